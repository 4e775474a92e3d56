"""Rule files to records (WILDCARDS section 9), the older shapes included. What no rule uses is reported."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from luna_engine.wildcards.rules.nodes import Problems
from luna_engine.wildcards.rules.read_additions import read_expanders, read_links, read_modifiers
from luna_engine.wildcards.rules.records import (
    ContextRule,
    PairRule,
    RuleFile,
    RuleKind,
    StateRule,
    TagRule,
    WeightGroup,
)
from luna_engine.wildcards.rules.walking import leaves, path_of
from luna_engine.wildcards.tree_events import Mapping, Raw, Scalar, Sequence

if TYPE_CHECKING:
    from luna_engine.wildcards.diagnostics import Diagnostic

_STEM = re.compile(r"(constraints|modifiers|expanders|lora|tags|rules)_|(wildcard_rules)\Z", re.IGNORECASE)
_KINDS = {
    **{kind.value: kind for kind in RuleKind},
    "rules": RuleKind.CONSTRAINTS,
    "wildcard_rules": RuleKind.WEIGHTS,
}
_TYPE_LINES = 10
_NOTES = frozenset({"type", "name", "description", "usage_notes", "version"})
_CONTEXTS = "context_preferences"
_PAIR_KEYS = ("compatible", "incompatible", "allow_states")


def kind_of(stem: str, documents: list[Raw]) -> RuleKind | None:
    """Return the kind of a rule file, by its stem or by a scalar ``type:`` in its first ten lines; None for others."""
    found = _STEM.match(stem)
    if found:
        return _KINDS[(found[1] or found[2]).lower()]
    for node in documents[:1]:
        for key, value in node.entries if isinstance(node, Mapping) else ():
            if key.value == "type" and isinstance(value, Scalar) and key.line < _TYPE_LINES:
                return _KINDS.get(value.value.strip().lower())
    return None


def read_rules(kind: RuleKind, documents: list[Raw], file: str) -> tuple[RuleFile, list[Diagnostic]]:
    """Return the rules of a file, and what in it no rule uses."""
    problems = Problems(file)
    tops: list[tuple[Scalar, Raw]] = []
    for node in documents:
        if isinstance(node, Mapping):
            tops += [
                (key, value)
                for key, value in problems.pairs(node)
                if not (key.value in _NOTES and isinstance(value, Scalar))
            ]
        else:
            problems.report(node, f"a file of {kind.value} holds a map", "begin with a path and a colon")
    return _READERS[kind](kind, tops, problems), problems.found


def _constraints(kind: RuleKind, tops: list[tuple[Scalar, Raw]], problems: Problems) -> RuleFile:
    pairs: list[PairRule] = []
    contexts: list[ContextRule] = []
    states: list[StateRule] = []
    for key, value in tops:
        rest = value
        if isinstance(value, Mapping):
            for name, preferences in problems.pairs(value):
                if name.value == _CONTEXTS:
                    contexts += _contexts(key.value, preferences, problems)
            kept = [pair for pair in problems.pairs(value) if pair[0].value != _CONTEXTS]
            if not kept and value.entries:
                continue
            rest = Mapping(value.line, value.column, value.start, value.is_flow, kept, value.end)
        for keys, spot_node, leaf in leaves(rest, (key.value,), key, frozenset(_PAIR_KEYS), problems, "a constraint"):
            fields = problems.fields(leaf, _PAIR_KEYS, "a constraint")
            lists = {name: problems.entries(node) for name, node in fields.items()}
            spot = problems.spot(spot_node)
            source, target = (path_of(keys[:-1]), keys[-1]) if len(keys) > 1 else (keys[0], None)
            if lists.get("allow_states"):
                states.append(StateRule(spot, source, target, lists["allow_states"]))
            compatible, incompatible = lists.get("compatible", ()), lists.get("incompatible", ())
            if target is None and (compatible or incompatible):
                problems.report(spot_node, "this constraint names no target", "write path: category: {compatible: …}")
            elif target is not None and (compatible or incompatible):
                pairs.append(PairRule(spot, source, target, compatible, incompatible))
    return RuleFile(kind, tuple(pairs), tuple(contexts), tuple(states))


def _contexts(target: str, node: Raw, problems: Problems) -> list[ContextRule]:
    made: list[ContextRule] = []
    for entry in node.entries if isinstance(node, Sequence) else [node]:
        if not isinstance(entry, Mapping):
            problems.report(entry, "a preference is a map", "write {when: [tag], prefer: [text]}")
            continue
        fields = problems.fields(entry, ("when", "prefer", "avoid", "require"), "a preference")
        lists = {name: problems.entries(value) for name, value in fields.items()}
        if not lists.get("when"):
            problems.report(entry, "this preference says not when", "add when: [tag]")
            continue
        made.append(
            ContextRule(
                problems.spot(entry),
                target,
                lists["when"],
                lists.get("prefer", ()),
                lists.get("avoid", ()),
                lists.get("require", ()),
            )
        )
    return made


def _tags(kind: RuleKind, tops: list[tuple[Scalar, Raw]], problems: Problems) -> RuleFile:
    made: list[TagRule] = []

    def walk(node: Raw, keys: tuple[str, ...], spot_node: Raw) -> None:
        if isinstance(node, Mapping):
            for key, value in problems.pairs(node):
                walk(value, (*keys, key.value), key)
            return
        if isinstance(node, Sequence):
            for entry in node.entries:
                if isinstance(entry, Mapping):
                    walk(entry, keys, spot_node)
            node = Sequence(
                node.line,
                node.column,
                node.start,
                node.is_flow,
                [entry for entry in node.entries if not isinstance(entry, Mapping)],
                node.end,
            )
        tags = tuple(entry.text for entry in problems.entries(node))
        if tags:
            made.append(TagRule(problems.spot(spot_node), path_of(keys), tags))

    for key, value in tops:
        walk(value, (key.value,), key)
    return RuleFile(kind, tags=tuple(made))


def _weights(kind: RuleKind, tops: list[tuple[Scalar, Raw]], problems: Problems) -> RuleFile:
    made: list[WeightGroup] = []
    for key, value in tops:
        if key.value != "weights" or not isinstance(value, Mapping):
            problems.unknown_key(key, ("weights",), "a file of weights")
            continue
        for name, group in problems.pairs(value):
            if not isinstance(group, Mapping):
                problems.report(name, f"{name.value}: should be a map", "write {items: [one, two], weight: 0.5}")
                continue
            fields = problems.fields(group, ("items", "weight"), "a group of weights")
            items = problems.entries(fields["items"]) if "items" in fields else ()
            if not items or "weight" not in fields:
                problems.report(name, f"the group {name.value} needs items and a weight", None)
                continue
            made.append(WeightGroup(problems.spot(name), name.value, items, problems.micro(fields["weight"])))
    return RuleFile(kind, groups=tuple(made))


_READERS = {
    RuleKind.CONSTRAINTS: _constraints,
    RuleKind.MODIFIERS: read_modifiers,
    RuleKind.EXPANDERS: read_expanders,
    RuleKind.LORA: read_links,
    RuleKind.TAGS: _tags,
    RuleKind.WEIGHTS: _weights,
}
