"""The rules of one snapshot, compiled: which rules an item takes part in, as source and as target."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

from luna_engine.wildcards.lines import Lines
from luna_engine.wildcards.linking import covers
from luna_engine.wildcards.model import Branch, Item, ItemList, lists_below
from luna_engine.wildcards.names import joined
from luna_engine.wildcards.rules.matching import Needle, blob, item_address, list_address, resolve_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from luna_engine.wildcards.lookup import AddressIndex
    from luna_engine.wildcards.model import Document
    from luna_engine.wildcards.pools import Pool
    from luna_engine.wildcards.rules.records import (
        ContextRule,
        Entry,
        ExpanderRule,
        LinkRule,
        ModifierRule,
        PairRule,
        RuleFile,
        Spot,
        StateRule,
        TagRule,
        WeightGroup,
    )

_MICRO = 1_000_000
_PREFERRED, _AVOIDED = Fraction(2), Fraction(1, 2)


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A constraint ready for use; paths are joined and case folded."""

    rule: PairRule
    source: str
    target: str
    compatible: tuple[Needle, ...]
    incompatible: tuple[Needle, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """A preference ready for use."""

    rule: ContextRule
    target: str
    when: tuple[Needle, ...]
    prefer: tuple[Needle, ...]
    avoid: tuple[Needle, ...]
    require: tuple[Needle, ...]


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """A demand on the whole draw ready for use."""

    rule: StateRule
    source: str
    target: str | None
    states: tuple[Needle, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Modifier:
    """A modifier ready for use; one of ``source`` and ``tag`` is set."""

    rule: ModifierRule
    source: str | None
    tag: Needle | None
    target: str
    compatible: tuple[Needle, ...]
    incompatible: tuple[Needle, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Expander:
    """An expander ready for use; ``document`` is the rule file, from which its paths are read."""

    rule: ExpanderRule
    source: str
    document: Document


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """Links ready for use."""

    rule: LinkRule
    path: str


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """A group of weights ready for use."""

    rule: WeightGroup
    items: tuple[Needle, ...]
    document: Document


@dataclass(frozen=True, slots=True)
class Unmet:
    """A path of a rule that names nothing in the library."""

    path: str
    spot: Spot


@dataclass(slots=True, eq=False)
class Facts:
    """What rules know of an item. ``is_bound``: some constraint could speak about it."""

    item: Item
    address: str
    tags: tuple[str, ...]
    tag_words: str
    words: str
    sources: tuple[Pair, ...] = ()
    targets: frozenset[Pair] = frozenset()
    contexts: tuple[Context, ...] = ()
    whens: frozenset[Context] = frozenset()
    states: tuple[State, ...] = ()
    is_bound: bool = False

    def meets(self, needle: Needle) -> bool:
        """Tell whether an entry of a rule meets the item."""
        return needle.meets(self.words, self.address)


@dataclass(slots=True)
class RuleSet:
    """Every rule of a snapshot's visible rule files, in place order."""

    documents: list[Document]
    pairs: list[Pair] = field(default_factory=list)
    contexts: list[Context] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    modifiers: list[Modifier] = field(default_factory=list)
    expanders: list[Expander] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    tags: list[tuple[str, TagRule]] = field(default_factory=list)
    unmet: list[Unmet] = field(default_factory=list)
    _facts: dict[Item, Facts] = field(default_factory=dict)
    _addresses: dict[frozenset[int], tuple[str, ...]] = field(default_factory=dict)

    def facts(self, item: Item) -> Facts:
        """Return what rules know of an item, found once."""
        found = self._facts.get(item)
        if found is None:
            found = self._facts[item] = self._make_facts(item)
        return found

    def _make_facts(self, item: Item) -> Facts:
        address = item_address(item)
        tags = self._tags_of(item, address)
        facts = Facts(item, address, tags, blob(tags), blob(self._texts_of(item, tags)))
        facts.sources = tuple(pair for pair in self.pairs if covers(pair.source, address))
        facts.targets = frozenset(pair for pair in self.pairs if covers(pair.target, address))
        facts.contexts = tuple(context for context in self.contexts if covers(context.target, address))
        facts.whens = frozenset(
            context for context in self.contexts if any(facts.meets(needle) for needle in context.when)
        )
        facts.states = tuple(state for state in self.states if covers(state.source, address))
        related = (facts.sources, facts.targets, facts.contexts, facts.whens, facts.states)
        facts.is_bound = any(related) or bool(item.blacklist or item.whitelist)
        return facts

    @staticmethod
    def _texts_of(item: Item, tags: tuple[str, ...]) -> tuple[str, ...]:
        """Return what entries may meet: the tags, and the id or for want of one the text."""
        return (*tags, item.item_id if item.item_id is not None else item.text)

    def _tags_of(self, item: Item, address: str) -> tuple[str, ...]:
        """Return an item's own tags, its category file's, and those of tags files from root to leaf."""
        found = dict.fromkeys(item.tags)
        if item.owner is not None:
            found.update(dict.fromkeys(_common_tags(item.owner)))
        for path, rule in self.tags:
            if covers(path, address):
                found.update(dict.fromkeys(rule.tags))
        return tuple(found)

    def added_templates(self) -> Iterator[str]:
        """Yield templates that reach what modifiers and expanders can draw from."""
        for modifier in self.modifiers:
            yield from (entry.text for entry in modifier.rule.texts)
        for expander in self.expanders:
            yield from (f"__{entry.text.replace(':', '/')}__" for entry in expander.rule.paths)

    def addresses(self, pool: Pool) -> tuple[str, ...]:
        """Return the addresses of the lists a pool draws from."""
        found = self._addresses.get(pool.lists)
        if found is None:
            items = pool.items[:1] if len(pool.lists) == 1 else pool.items
            owners = {id(item.owner): item.owner for item in items}
            found = tuple(list_address(owner) for owner in owners.values() if owner is not None)
            self._addresses[pool.lists] = found
        return found

    def factor(self, item: Item) -> int:
        """Return the factor of an item's weight in millionths, by the first group that lists it."""
        found = self.group_of(item)
        return found.rule.micro if found is not None else _MICRO

    def group_of(self, item: Item) -> Group | None:
        """Return the first group that lists an item; nothing is kept, a list may have a million."""
        address = item_address(item)
        words = blob(self._texts_of(item, self._tags_of(item, address)))
        for group in self.groups:
            if any(needle.meets(words, address) for needle in group.items):
                return group
        return None

    def has_grouped(self, found: ItemList) -> bool:
        """Tell whether a list may hold an item of a group; a large text file is not read item by item to find out."""
        if not isinstance(found.items, Lines):
            return True
        address = list_address(found)
        if any(covers(path, address) or covers(address, path) for path, _ in self.tags):
            return True
        for needle in (needle for group in self.groups for needle in group.items):
            if needle.path is not None and (covers(needle.path, address) or covers(address, needle.path)):
                return True
            if needle.words and found.items.may_hold(needle.words.split()[0]):
                return True
        return False


def has_demands(document: Document) -> bool:
    """Tell whether a file's items have tags of the file, a blacklist or a whitelist: rules without a rule file."""
    for found in lists_below(document.top, with_templates=True):
        if _common_tags(found) or any(item.blacklist or item.whitelist for item in found.items):
            return True
    return False


def _common_tags(owner: ItemList) -> tuple[str, ...]:
    top = owner.document.top
    if owner.keys != ("items",) or not isinstance(top, Branch):
        return ()
    entry = top.entries.get("common_tags")
    if not isinstance(entry, ItemList):
        return ()
    return tuple(tag.strip() for item in entry.items for tag in item.text.split(",") if tag.strip())


def weigh(needles: tuple[Needle, ...], facts: Facts, default: Fraction) -> Fraction:
    """Return the product of the factors of the entries that meet an item: the written number, else the default.

    An entry of weight 0 is no factor: what it meets is not to be drawn, which may have to be relaxed.
    """
    factor = Fraction(1)
    for needle in needles:
        if needle.entry.micro != 0 and facts.meets(needle):
            factor *= default if needle.entry.micro is None else Fraction(needle.entry.micro, _MICRO)
    return factor


def pair_factor(pair: Pair, target: Facts) -> Fraction:
    """Return what a constraint does to the weight of a target."""
    return weigh(pair.compatible, target, Fraction(1))


def context_factor(context: Context, target: Facts) -> Fraction:
    """Return what a preference does to the weight of a target."""
    return (
        weigh(context.prefer, target, _PREFERRED)
        * weigh(context.avoid, target, _AVOIDED)
        * weigh(context.require, target, Fraction(1))
    )


def compile_rules(documents: list[Document], index: AddressIndex) -> RuleSet | None:
    """Return the rules of the rule files among ``documents``, None if there are none."""
    files = sorted(documents, key=lambda document: (document.root, document.path))
    made = RuleSet(files)
    for document in files:
        rules = document.content.rules
        if rules is not None:
            _Compiler(made, document, index).add(rules)
    return made if files else None


class _Compiler:
    def __init__(self, made: RuleSet, document: Document, index: AddressIndex) -> None:
        self.made = made
        self.document = document
        self.index = index

    def path(self, text: str, spot: Spot) -> str:
        """Return the address a path names; one that names nothing is noted and compared as written."""
        found = resolve_path(text, self.index, self.document)
        if found is None:
            self.made.unmet.append(Unmet(text, spot))
        return found if found is not None else joined(text).casefold()

    def needles(self, entries: tuple[Entry, ...]) -> tuple[Needle, ...]:
        return tuple(Needle.of(entry, self.index, self.document) for entry in entries)

    def add(self, rules: RuleFile) -> None:
        made, needles, path = self.made, self.needles, self.path
        for pair in rules.pairs:
            source, target = path(pair.source, pair.spot), path(pair.target, pair.spot)
            made.pairs.append(Pair(pair, source, target, needles(pair.compatible), needles(pair.incompatible)))
        for context in rules.contexts:
            lists = (needles(part) for part in (context.when, context.prefer, context.avoid, context.require))
            made.contexts.append(Context(context, path(context.target, context.spot), *lists))
        for state in rules.states:
            target_path = None if state.target is None else path(state.target, state.spot)
            made.states.append(State(state, path(state.source, state.spot), target_path, needles(state.states)))
        for modifier in rules.modifiers:
            made.modifiers.append(
                Modifier(
                    modifier,
                    None if modifier.source is None else path(modifier.source, modifier.spot),
                    None if modifier.tag is None else needles((modifier.tag,))[0],
                    path(modifier.target, modifier.spot),
                    needles(modifier.compatible),
                    needles(modifier.incompatible),
                )
            )
        for expander in rules.expanders:
            made.expanders.append(Expander(expander, path(expander.source, expander.spot), self.document))
            for entry in expander.paths:
                path(entry.text, entry.spot)
        for link in rules.links:
            made.links.append(Link(link, path(link.path, link.spot)))
        for tag in rules.tags:
            made.tags.append((path(tag.path, tag.spot), tag))
        for group in rules.groups:
            made.groups.append(Group(group, needles(group.items), self.document))
        made.tags.sort(key=lambda pair: pair[0].count("/"))  # from root to leaf
