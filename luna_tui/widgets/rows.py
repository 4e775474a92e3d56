"""The data of a list: columns, cells, rows, and which columns fit a width. Nothing here draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luna_tui.glyphs import Tone

if TYPE_CHECKING:
    from collections.abc import Sequence


GAP = 2  # cells between two columns


@dataclass(frozen=True, slots=True)
class Column:
    """A column. ``width`` is in cells; the flexible one takes what is left and at least ``width``.

    ``drop``: 0 stays always; where the list is too narrow the columns with the greatest number leave first.
    """

    key: str
    label: str
    width: int
    flex: bool = False
    align: str = "left"
    drop: int = 0


@dataclass(frozen=True, slots=True)
class Cell:
    """Foreign or own text in a tone; it is made safe when it is drawn."""

    text: str
    tone: Tone | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A row: its key keeps cursor and mark over updates. ``sort`` has one value per column."""

    key: str
    cells: tuple[Cell, ...]
    sort: tuple[Any, ...] | None = None
    tone: Tone = Tone.NORMAL


def fitting(columns: Sequence[Column], available: int) -> tuple[tuple[int, int], ...]:
    """Return (index, width) of the columns that fit ``available`` cells; flexible ones share what is left."""
    kept = list(range(len(columns)))

    def needed() -> int:
        return sum(columns[index].width + GAP for index in kept) - GAP

    while needed() > available:
        droppable = [index for index in kept if columns[index].drop]
        if not droppable:
            break
        kept.remove(max(droppable, key=lambda index: columns[index].drop))
    flexible = [index for index in kept if columns[index].flex]
    extra = max(0, available - needed()) // len(flexible) if flexible else 0
    return tuple((index, columns[index].width + (extra if index in flexible else 0)) for index in kept)


def sort_value(row: Row, index: int) -> tuple[bool, Any]:
    """Return what a row is ordered by; unknown comes last."""
    value = row.sort[index] if row.sort is not None else row.cells[index].text.casefold()
    return (value is None, value if value is not None else 0)
