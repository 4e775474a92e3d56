"""From the nested keys of a rule file to its rules: the maps that hold a rule's own keys, and the path to each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_engine.wildcards.diagnostics import did_you_mean, near_names
from luna_engine.wildcards.tree_events import Mapping, Raw, Scalar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from luna_engine.wildcards.rules.nodes import Problems


def path_of(keys: tuple[str, ...]) -> str:
    """Return the path that nested keys spell, ``place:beach.pier``."""
    head, rest = keys[0], ".".join(keys[1:])
    if not rest:
        return head
    return f"{head}.{rest}" if ":" in head else f"{head}:{rest}"


def leaves(
    node: Raw, keys: tuple[str, ...], spot: Scalar, marks: frozenset[str], problems: Problems, what: str
) -> Iterator[tuple[tuple[str, ...], Scalar, Mapping]]:
    """Yield the maps that hold one of ``marks``, with the keys that lead there and the last of these as written."""
    if not isinstance(node, Mapping):
        hint = did_you_mean(near_names(keys[-1], marks)) or f"a rule has one of {', '.join(sorted(marks))}"
        problems.report(spot, f"{keys[-1]}: is no part of {what}; it was left out", hint)
        return
    entries = problems.pairs(node)
    if any(key.value in marks for key, _ in entries):
        yield keys, spot, node
        return
    for key, value in entries:
        yield from leaves(value, (*keys, key.value), key, marks, problems, what)
