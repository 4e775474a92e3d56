"""Whether picks agree, and what a pick does to the weight of a candidate (WILDCARDS 9, points 1 to 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from luna_engine.wildcards.linking import covers
from luna_engine.wildcards.rules.matching import as_words
from luna_engine.wildcards.rules.records import Spot
from luna_engine.wildcards.rules.ruleset import Context, Facts, Pair, context_factor, pair_factor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from fractions import Fraction

    from luna_engine.wildcards.model import Item
    from luna_engine.wildcards.rules.matching import Needle


@dataclass(frozen=True, slots=True)
class Breach:
    """A rule that two picks break. ``rank``: 0 blacklists, 1 incompatible, 2 the rest; heavier first."""

    rank: int
    spot: Spot
    text: str
    culprit: Item


@dataclass(frozen=True, slots=True)
class Need:
    """What a pick wants of some other pick: one of these tags."""

    breach: Breach
    words: tuple[str, ...]
    target: str | None = None


def breaches(first: Facts, second: Facts) -> Iterator[Breach]:
    """Yield the rules that two picks break, in both directions."""
    if first.is_bound or second.is_bound:
        yield from _one_way(first, second)
        yield from _one_way(second, first)


def _one_way(source: Facts, target: Facts) -> Iterator[Breach]:
    for tag in source.item.blacklist:
        words = as_words(tag)
        if words and words in target.tag_words:
            yield Breach(0, spot_of(source.item), f"{shown(source.item)} has {tag} on its blacklist", target.item)
    for pair in source.sources:
        if pair in target.targets:
            yield from _broken_pair(pair, target)
    for context in target.contexts:
        if context in source.whens:
            yield from _broken_context(context, target)


def _broken_context(context: Context, target: Facts) -> Iterator[Breach]:
    name = context.rule.target
    if context.require and not any(target.meets(needle) for needle in context.require):
        yield Breach(2, context.rule.spot, f"{name} requires {_listed(context.require)}", target.item)
    for needle in (*context.prefer, *context.avoid, *context.require):
        if needle.entry.micro == 0 and target.meets(needle):
            yield Breach(1, needle.entry.spot, f"{name}: {needle.entry.text} has weight 0", target.item)


def _broken_pair(pair: Pair, target: Facts) -> Iterator[Breach]:
    name = f"{pair.rule.source} with {pair.rule.target}"
    for needle in pair.incompatible:
        if target.meets(needle):
            yield Breach(1, needle.entry.spot, f"{name}: incompatible {needle.entry.text}", target.item)
    for needle in pair.compatible:
        if needle.entry.micro == 0 and target.meets(needle):
            yield Breach(1, needle.entry.spot, f"{name}: {needle.entry.text} has weight 0", target.item)
    if pair.compatible and not any(target.meets(needle) for needle in pair.compatible):
        yield Breach(2, pair.rule.spot, f"{name}: compatible only {_listed(pair.compatible)}", target.item)


def _listed(needles: Sequence[Needle]) -> str:
    texts = [needle.entry.text for needle in needles]
    return ", ".join(texts[:4]) + (", …" if len(texts) > 4 else "")


def spot_of(item: Item) -> Spot:
    """Return where an item stands."""
    return Spot(item.owner.document.path if item.owner is not None else "", item.line, item.column)


def shown(item: Item) -> str:
    """Return an item's id or the beginning of its text, for a message."""
    name = item.item_id or item.text
    return repr(name if len(name) <= 40 else f"{name[:39]}…")


def needs_of(facts: Facts) -> Iterator[Need]:
    """Yield what a pick wants of the others: its whitelist, and rules with ``allow_states``."""
    item = facts.item
    if item.whitelist:
        text = f"{shown(item)} wants one of {', '.join(item.whitelist[:4])}"
        words = tuple(filter(None, map(as_words, item.whitelist)))
        yield Need(Breach(2, spot_of(item), text, item), words)
    for state in facts.states:
        text = f"{state.rule.source} allows only {_listed(state.states)}"
        words = tuple(needle.words for needle in state.states if needle.words)
        yield Need(Breach(2, state.rule.spot, text, item), words, state.target)


def is_met(need: Need, item: Item, picks: Iterable[Facts]) -> bool:
    """Tell whether some other pick has what a pick wants, or the rule's target is not drawn at all."""
    others = [facts for facts in picks if facts.item is not item]
    if need.target is not None and not any(covers(need.target, facts.address) for facts in others):
        return True
    return any(word in facts.tag_words for facts in others for word in need.words)


@dataclass(frozen=True, slots=True)
class Influence:
    """A rule that changed the weight of a candidate."""

    factor: Fraction
    rule: Pair | Context


def influences(candidate: Facts, picks: Iterable[Facts]) -> list[Influence]:
    """Return the rules that change a candidate's weight, each once however many picks call for it."""
    found: dict[object, Influence] = {}
    for pick in picks:
        for source, target in ((pick, candidate), (candidate, pick)):
            for pair in source.sources:
                if pair in target.targets:
                    found.setdefault((pair, target is pick and id(pick)), Influence(pair_factor(pair, target), pair))
            for context in target.contexts:
                if context in source.whens:
                    key = (context, target is pick and id(pick))
                    found.setdefault(key, Influence(context_factor(context, target), context))
    return [influence for influence in found.values() if influence.factor != 1]


def can_matter(addresses: Sequence[str], picks: Iterable[Facts]) -> bool:
    """Tell whether some pick could change weights in a pool of these addresses; a no saves looking at each item."""

    def meets(path: str) -> bool:
        return any(covers(path, address) or covers(address, path) for address in addresses)

    for pick in picks:
        if any(meets(pair.target) for pair in pick.sources) or any(meets(pair.source) for pair in pick.targets):
            return True
        if pick.contexts or any(meets(context.target) for context in pick.whens):
            return True
    return False
