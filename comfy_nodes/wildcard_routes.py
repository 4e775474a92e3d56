"""What the wildcard nodes ask in the browser: samples without queueing, completions, the library to insert from."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from luna_engine.errors import LunaError
from luna_engine.wildcards import RuleOptions, Severity
from luna_engine.wildcards.seeds import batch_seed

from . import wildcard_library
from .wildcard_library import library_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from luna_engine.wildcards import Expansion, TreeNode

MOST_SAMPLES = 20
_MOST_S = 0.5
_MOST_FOUND = 200


def preview(payload: dict[str, Any]) -> dict[str, Any]:
    """Return samples of a node's templates, as the node itself would give them for the first seed.

    Args:
        payload: ``parts`` (name to template, ``""`` the main one), ``seed`` (decimal text or integer), ``count``,
            ``rules`` (as LunaPromptCraft draws).

    Raises:
        LunaError: ``value-range`` for fields of another kind.
    """
    parts, seed, count = _parts(payload), _integer(payload, "seed", 0), _integer(payload, "count", 5)
    library = library_of()
    snapshot = library.snapshot
    rules = RuleOptions() if payload.get("rules") is True else None
    started = time.monotonic()
    samples: list[Expansion] = []
    for index in range(max(1, min(count, MOST_SAMPLES))):
        one = batch_seed(seed, index)
        samples.append(library.expand_parts(parts, one, snapshot=snapshot, rules=rules))
        if time.monotonic() - started > _MOST_S:
            break
    found = dict.fromkeys(problem for sample in samples for problem in sample.diagnostics)
    combinations = library.count_quickly(parts.get("", ""))
    return {
        "samples": [{"seed": str(sample.seed), "parts": dict(sample.parts)} for sample in samples],
        "problems": [wildcard_library.problem_line(one) for one in found if one.severity is not Severity.HINT],
        "combinations": None if combinations is None else str(combinations),
    }


def complete(payload: dict[str, Any]) -> dict[str, Any]:
    """Return what can stand at the cursor of a template: ``text``, ``cursor`` (in characters)."""
    text = _text(payload, "text")
    cursor = max(0, min(_integer(payload, "cursor", len(text)), len(text)))
    found = library_of().complete(text, cursor)
    return {
        "completions": [
            {"text": one.text, "start": one.start, "end": one.end, "kind": one.kind, "detail": one.detail}
            for one in found
        ]
    }


def find(payload: dict[str, Any]) -> dict[str, Any]:
    """Return references to addresses that hold all words of ``words``, with their numbers of items.

    With words the shortest addresses come first, since they are nearest to what was asked; without, the tree's order.
    """
    words = _text(payload, "words").casefold().split()
    nodes = _nodes(library_of().tree())
    fitting = [node for node in nodes if all(word in node.address.casefold() for word in words)]
    if words:
        fitting.sort(key=lambda node: len(node.address))
    return {
        "found": [
            {"reference": f"{{{node.address}}}", "address": node.address, "items": node.items}
            for node in fitting[:_MOST_FOUND]
        ]
    }


ROUTES = {"/luna/wildcards/preview": preview, "/luna/wildcards/complete": complete, "/luna/wildcards/find": find}


def _nodes(nodes: tuple[TreeNode, ...]) -> Iterator[TreeNode]:
    return (node for top in nodes for node in top.walk() if not node.is_note and node.items)


def _parts(payload: dict[str, Any]) -> dict[str, str]:
    parts = payload.get("parts")
    if not isinstance(parts, dict) or not all(isinstance(text, str) for text in parts.values()):
        raise LunaError("value-range", "parts must map names to templates")
    return {str(name): text for name, text in parts.items()}


def _text(payload: dict[str, Any], name: str) -> str:
    value = payload.get(name, "")
    if not isinstance(value, str):
        raise LunaError("value-range", f"{name} must be a text")
    return value


def _integer(payload: dict[str, Any], name: str, default: int) -> int:
    """Read an integer; seeds come as text, because JavaScript rounds them above 2^53."""
    value = payload.get(name, default)
    digits = str(value).removeprefix("-")
    if isinstance(value, bool) or not (digits.isascii() and digits.isdigit()) or len(digits) > 30:
        raise LunaError("value-range", f"{name} must be an integer")
    return int(str(value))
