"""What modifiers and expanders add once every reference is drawn (WILDCARDS 9, point 5). Each pick is asked once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from luna_engine.wildcards.linking import covers
from luna_engine.wildcards.rules.matching import resolve_target
from luna_engine.wildcards.seeds import below, site_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luna_engine.wildcards.pools import Pool
    from luna_engine.wildcards.rules.records import Entry, Spot
    from luna_engine.wildcards.rules.ruleset import Expander, Modifier, RuleSet
    from luna_engine.wildcards.rules.search import Pick
    from luna_engine.wildcards.snapshot import Snapshot

_MICRO = 1_000_000


@dataclass(frozen=True, slots=True)
class Addition:
    """Something to print: ``text`` as it stands, or as a prompt, or ``count`` items of ``pool``.

    ``key`` seeds its draws; it is made of the pick's site and the rule's own words, never of lines.
    """

    name: str
    text: str
    spot: Spot
    pick: Pick
    key: int
    joiner: str = ", "
    is_prompt: bool = False
    pool: Pool | None = None
    count: int = 1


@dataclass(slots=True)
class Effects:
    """The additions behind each pick (by identity), and at the end of each part."""

    modifiers: dict[int, list[Addition]] = field(default_factory=dict)
    expanders: dict[str, list[Addition]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Tell whether there is anything to print."""
        return bool(self.modifiers or self.expanders)


def find_modifiers(rules: RuleSet, picks: Sequence[Pick], effects: Effects) -> None:
    """Note for each pick of one part the texts that modifiers append to it, one a rule at most."""
    for number, modifier in enumerate(rules.modifiers):
        sources = [pick for pick in picks if _calls(modifier, pick)]
        if not sources:
            continue
        rule = modifier.rule
        source = rule.source or (rule.tag.text if rule.tag else "")
        twins = sum(_name(one) == _name(modifier) for one in rules.modifiers[:number])
        for pick in picks:
            if not _takes(modifier, pick) or sources == [pick]:  # no pick calls for its own text
                continue
            key = site_key(pick.reference.site.key + pick.place, f"modifier {source} {rule.target}", twins)
            entry = _weighted(rule.texts, key, 0)
            if entry is not None:
                name = f"{source} on {rule.target}"
                addition = Addition(name, entry.text, entry.spot, pick, key, rule.joiner, is_prompt=True)
                effects.modifiers.setdefault(id(pick), []).append(addition)


def _name(modifier: Modifier) -> tuple[str | None, str | None, str]:
    rule = modifier.rule
    return (rule.source, rule.tag.text if rule.tag else None, rule.target)


def _calls(modifier: Modifier, pick: Pick) -> bool:
    """Tell whether a pick is a source of a modifier."""
    if modifier.tag is not None:
        return pick.facts.meets(modifier.tag)
    return modifier.source is not None and covers(modifier.source, pick.facts.address)


def _takes(modifier: Modifier, pick: Pick) -> bool:
    """Tell whether a modifier's text can stand behind a pick."""
    facts = pick.facts
    if not covers(modifier.target, facts.address) or any(facts.meets(needle) for needle in modifier.incompatible):
        return False
    return not modifier.compatible or any(facts.meets(needle) for needle in modifier.compatible)


def find_expanders(rules: RuleSet, snapshot: Snapshot, picks: Sequence[Pick], effects: Effects) -> None:
    """Note what expanders append to one part: for each pick and rule once, if its probability has it."""
    for pick in picks:
        for number, expander in enumerate(rules.expanders):
            if not covers(expander.source, pick.facts.address):
                continue
            rule = expander.rule
            twins = sum(
                (one.rule.source, one.rule.name) == (rule.source, rule.name) for one in rules.expanders[:number]
            )
            key = site_key(pick.reference.site.key + pick.place, f"expander {rule.source} {rule.name}", twins)
            if below(key, _MICRO, 0) < rule.micro:
                part = effects.expanders.setdefault(pick.reference.part, [])
                part += _expansions(expander, snapshot, pick, key)


@dataclass(slots=True)
class _Source:
    """One value or path of an expander; a path may be drawn from again, as long as it has more to give."""

    entry: Entry
    pool: Pool | None
    taken: int = 0

    def can_give(self) -> bool:
        return self.taken < (1 if self.pool is None else len(self.pool.items))


def _expansions(expander: Expander, snapshot: Snapshot, pick: Pick, key: int) -> list[Addition]:
    """Draw how many additions there are and which of the rule's paths and values give them."""
    rule = expander.rule
    sources = [_Source(entry, None) for entry in rule.values]
    for entry in rule.paths:
        target = resolve_target(entry.text, snapshot.index, expander.document)
        if target is not None:
            pool = snapshot.pool(target)
            sources.append(_Source(entry, pool))
    count = rule.low + below(key, rule.high - rule.low + 1, 1)
    for position in range(count):
        free = [source for source in sources if source.can_give()]
        chosen = _weighted(tuple(source.entry for source in free), key, position + 2)
        if chosen is None:
            break
        next(source for source in free if source.entry is chosen).taken += 1
    return [
        Addition(
            f"{rule.source} {source.entry.text}",
            source.entry.text,
            source.entry.spot,
            pick,
            site_key(key, source.entry.text, 0),
            pool=source.pool,
            count=source.taken,
        )
        for source in sources
        if source.taken
    ]


def _weighted(entries: Sequence[Entry], key: int, position: int) -> Entry | None:
    """Draw one entry by its weight, None if none has a positive one."""
    weights = [_MICRO if entry.micro is None else entry.micro for entry in entries]
    total = sum(weights)
    if total <= 0:
        return None
    ticket = below(key, total, position)
    for entry, weight in zip(entries, weights, strict=True):
        if ticket < weight:
            return entry
        ticket -= weight
    return None
