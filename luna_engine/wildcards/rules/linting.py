"""Lint of rules: paths that name nothing, entries that meet nothing, demands that contradict each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_engine.wildcards.diagnostics import Diagnostic, Severity, did_you_mean, near_names
from luna_engine.wildcards.linking import covers
from luna_engine.wildcards.rules.agreement import shown, spot_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from luna_engine.wildcards.rules.matching import Needle
    from luna_engine.wildcards.rules.records import Entry, Spot
    from luna_engine.wildcards.rules.ruleset import Facts, RuleSet
    from luna_engine.wildcards.snapshot import Snapshot

_MOST_ITEMS = 200_000


def lint_rules(snapshot: Snapshot) -> list[Diagnostic]:
    """Return what is wrong with the rules of a library, and with the tags of its items."""
    rules = snapshot.rules
    if rules is None:
        return []
    found = [_unmet(path.path, path.spot, snapshot) for path in rules.unmet]
    items = [item for one in snapshot.index.lists() if len(one.items) <= _MOST_ITEMS for item in one.items]
    if len(items) <= _MOST_ITEMS:
        facts = [rules.facts(item) for item in items]
        found += _idle(rules, facts)
        found += (problem for one in facts for problem in _contradicting_tags(one))
    found += _contradicting_entries(rules)
    return found


def _unmet(path: str, spot: Spot, snapshot: Snapshot) -> Diagnostic:
    hint = did_you_mean(near_names(path, snapshot.index.names())) or "check the path, or remove the rule"
    return _warning("rule-never-applies", f"nothing in the library is called {path!r}", hint, spot)


def _idle(rules: RuleSet, facts: Sequence[Facts]) -> Iterator[Diagnostic]:
    """Yield a hint for each entry that meets no item it could speak about."""
    for pair in rules.pairs:
        yield from _meet_nothing((*pair.compatible, *pair.incompatible), _below(pair.target, facts), pair.rule.target)
    for context in rules.contexts:
        wished = (*context.prefer, *context.avoid, *context.require)
        yield from _meet_nothing(wished, _below(context.target, facts), context.rule.target)
        yield from _meet_nothing(context.when, facts, "the library")
    for state in rules.states:
        yield from _meet_nothing(state.states, facts, "the library")
    for modifier in rules.modifiers:
        limits = (*modifier.compatible, *modifier.incompatible)
        yield from _meet_nothing(limits, _below(modifier.target, facts), modifier.rule.target)
        if modifier.tag is not None:
            yield from _meet_nothing((modifier.tag,), facts, "the library")
    for group in rules.groups:
        yield from _meet_nothing(group.items, facts, "the library")


def _below(path: str, facts: Sequence[Facts]) -> list[Facts]:
    return [one for one in facts if covers(path, one.address)]


def _meet_nothing(needles: Iterable[Needle], facts: Sequence[Facts], where: str) -> Iterator[Diagnostic]:
    for needle in needles:
        if facts and not any(one.meets(needle) for one in facts):
            spot = needle.entry.spot
            yield Diagnostic(
                "rule-never-applies",
                Severity.HINT,
                f"{needle.entry.text!r} meets no tag, id, path or text of {where}",
                "entries are compared as whole words",
                spot.file,
                spot.line,
                spot.column,
            )


def _contradicting_entries(rules: RuleSet) -> Iterator[Diagnostic]:
    for pair in rules.pairs:
        yield from _in_both(pair.rule.compatible, pair.rule.incompatible, "compatible and incompatible")
    for context in rules.contexts:
        yield from _in_both(context.rule.prefer, context.rule.avoid, "preferred and avoided")


def _in_both(first: Sequence[Entry], second: Sequence[Entry], what: str) -> Iterator[Diagnostic]:
    known = {entry.text.casefold() for entry in first}
    for entry in second:
        if entry.text.casefold() in known:
            yield _warning("rule-contradiction", f"{entry.text!r} is {what} in one rule", "remove one", entry.spot)


def _contradicting_tags(facts: Facts) -> Iterator[Diagnostic]:
    item = facts.item
    black = {tag.casefold() for tag in item.blacklist}
    for tag in item.whitelist:
        if tag.casefold() in black:
            message = f"{shown(item)} has {tag} on its whitelist and on its blacklist"
            yield _warning("rule-contradiction", message, "remove one", spot_of(item))


def _warning(code: str, message: str, hint: str, spot: Spot) -> Diagnostic:
    return Diagnostic(code, Severity.WARNING, message, hint, spot.file, spot.line, spot.column)
