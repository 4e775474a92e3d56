"""What screen 4 writes into its lists and titles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_tui.glyphs import Tone
from luna_tui.widgets.table import Cell, Column, Row
from luna_tui.widgets.tree_table import node_key

if TYPE_CHECKING:
    from collections.abc import Iterable

    from luna_engine.wildcards import Diagnostic, Severity, TreeNode
    from luna_tui.backend.wildcards import PreviewView

PROBLEM_COLUMNS = (
    Column("severity", "", 1),
    Column("place", "PLACE", 26),
    Column("code", "CODE", 15, drop=2),
    Column("message", "PROBLEM", 20, flex=True),
    Column("hint", "WHAT TO DO", 20, flex=True, drop=1),
)
_TONES = {"error": Tone.BAD, "warning": Tone.WARN, "hint": Tone.DIM}
_SIGNS = {"error": "E", "warning": "W", "hint": "·"}


def place_of(problem: Diagnostic) -> str:
    """Return file:line:column."""
    parts = (problem.file or "<template>", problem.line, problem.column)
    return ":".join(str(part) for part in parts if part is not None)


def problem_key(problem: Diagnostic) -> str:
    """Return what tells one problem from another."""
    return f"{place_of(problem)} {problem.code} {problem.message}"


def _what_to_do(problem: Diagnostic) -> str:
    mend = "enter goes there, again mends it" if problem.fix is not None else ""
    return " · ".join(part for part in (problem.hint or "", mend) if part)


def problem_row(problem: Diagnostic) -> Row:
    """Return a problem's row."""
    word = problem.severity.value
    cells = (
        Cell(_SIGNS[word], _TONES[word]),
        Cell(place_of(problem)),
        Cell(problem.code, _TONES[word]),
        Cell(problem.message),
        Cell(_what_to_do(problem), Tone.DIM),
    )
    return Row(
        problem_key(problem), cells, (problem.severity.rank, place_of(problem), problem.code, problem.message, "")
    )


def title_of_samples(preview: PreviewView, profile: str, pinned: int, rerolled: int) -> str:
    """Return what is shown, from which seed, how many and how fast."""
    parts = ["samples", preview.template[:40] or "nothing", f"seed {preview.seed}"]
    number = str(len(preview.samples))
    parts.append(f"{number} of {preview.wanted}" if preview.is_partial else number)
    if preview.is_stale:
        parts.insert(1, "last good text")
    if profile != "native":
        parts.insert(1, profile)
    parts += [f"{pinned} pinned"] if pinned else []
    parts += [f"{rerolled} rerolled"] if rerolled else []
    parts.append(f"{preview.elapsed_s * 1000:.0f} ms")
    return " · ".join(parts)


def worst_by_node(nodes: Iterable[TreeNode], problems: Iterable[Diagnostic]) -> dict[str, tuple[Severity, bool]]:
    """Return the worst problem at or below each node of the tree, and whether a cycle is among them, by node key.

    A problem belongs to the deepest key whose line is at or above its own.
    """
    by_file: dict[str, list[Diagnostic]] = {}
    for problem in problems:
        if problem.file is not None:
            by_file.setdefault(problem.file, []).append(problem)
    marks: dict[str, tuple[Severity, bool]] = {}
    for node in nodes:
        _mark(node, by_file, marks)
    return marks


def _mark(
    node: TreeNode, by_file: dict[str, list[Diagnostic]], marks: dict[str, tuple[Severity, bool]]
) -> tuple[Severity, bool] | None:
    if node.kind == "folder":
        found = [mark for child in node.children if (mark := _mark(child, by_file, marks)) is not None]
    else:
        found = []
        for problem in by_file.get(node.file or "", ()):
            one = (problem.severity, problem.code == "cycle")
            found.append(one)
            _mark_keys(node, problem.line or 1, one, marks)
    return _merge(node, found, marks)


def _mark_keys(node: TreeNode, line: int, one: tuple[Severity, bool], marks: dict[str, tuple[Severity, bool]]) -> None:
    below = [child for child in node.children if child.line is not None and child.line <= line]
    if below:
        child = max(below, key=lambda found: found.line or 0)
        _merge(child, [one], marks)
        _mark_keys(child, line, one, marks)


def _merge(
    node: TreeNode, found: list[tuple[Severity, bool]], marks: dict[str, tuple[Severity, bool]]
) -> tuple[Severity, bool] | None:
    key = node_key(node)
    known = marks.get(key)
    found = [*found, known] if known is not None else found
    if not found:
        return None
    worst = min((severity for severity, _ in found), key=lambda severity: severity.rank)
    marks[key] = (worst, any(is_cycle for _, is_cycle in found))
    return marks[key]


def reference_to(address: str, home: str | None, profile: str) -> str:
    """Return how an address is written.

    Args:
        address: ``folder/file:key.key``, or a file or folder.
        home: the address of the file it is written into, None for a prompt.
        profile: a template of the two peers knows ``__…__`` alone, there a file of keys has no name of its own.
    """
    file, colon, path = address.partition(":")
    if home is not None and colon and file == home:
        return f"[{path}]"
    if profile == "native":
        return f"{{{address}}}"
    if not colon:
        return f"__{file}__"
    folder = file.rpartition("/")[0] if profile == "dynamicprompts" else ""
    return f"__{folder}{'/' if folder else ''}{path.replace('.', '/')}__"
