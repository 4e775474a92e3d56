"""Programs: what texts are compiled to, and how they run. A program is sites that draw, and the text behind the last.

A run notes the number of each candidate it draws, and nothing else: with the program these numbers tell everything
(`traces`). What a program does not cover raises `Uncompiled`, and the long way is taken.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luna_engine.wildcards.expansion import ChoiceKind
from luna_engine.wildcards.pools import running_sums
from luna_engine.wildcards.seeds import GOLDEN, MASK, below

if TYPE_CHECKING:
    from luna_engine.wildcards.model import Item
    from luna_engine.wildcards.pools import Pool

MOST_OPEN = 40
MOST_DRAWS = 5_000
_MOST_WEIGHT = 1 << 32
_FEW = 64
_A, _B = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB

# Start and end of a site in its text, its own text, its name.
Place = tuple[int, int, str, str]
# The text before a site, h of the site's text plus its occurrence, the source, the place. A tuple: thousands of them
# live as long as a snapshot, and few objects each are what the collector can bear.
Site = tuple[str, int, "Source", Place]
Program = tuple[tuple[Site, ...], str]
# A candidate's text, its h, and its program if it is more than text.
Entry = tuple[str, int, Program | None]
Entries = Sequence[Entry] | Mapping[int, Entry]
# Gets K of its site, the pieces of the output, the draws, and the ids of the lists whose items are being expanded.
Draw = Callable[[int, list[str], list[int], list[int]], None]


class Uncompiled(Exception):  # noqa: N818 - a control-flow signal inside this package, not an error of the API
    """This text, or this draw, needs the long way."""


class Table(dict[int, Entry]):
    """The candidates of a list, each compiled when it is first drawn."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[int], Entry]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, at: int) -> Entry:
        found = self[at] = self._make(at)
        return found


@dataclass(slots=True, eq=False)
class Source:
    """What a site draws from, and how: by a ``draw`` of its own, else one candidate of ``table`` by ``sums``.

    One of ``pool``, ``items`` and ``options`` (written text and weight) holds the candidates; a number has
    ``number_text`` and ``total`` grid points. ``total`` is what ``sums`` ends with, at the scale of draws; ``weights``
    need not have that scale. ``owner`` is the one list that items are drawn from. ``frame`` is the program of an
    inline template, which is no choice. A multi-pick has a ``separator``.
    """

    draw: Draw | None = None
    kind: ChoiceKind = ChoiceKind.OPTION
    pool: Pool | None = None
    items: Sequence[Item] = ()
    options: Sequence[tuple[str, float]] = ()
    weights: Sequence[int] = ()
    total: int = 0
    sums: list[int] | None = None
    table: Entries = ()
    owner: int | None = None
    lists: frozenset[int] = frozenset()
    number_text: Callable[[int], str] | None = None
    frame: Program | None = None
    separator: str | None = None

    def item(self, at: int) -> Item | None:
        """Return a candidate that is an item."""
        if self.pool is not None:
            return self.pool.items[at]
        return self.items[at] if self.items else None


def run(program: Program, frame: int, out: list[str], draws: list[int], active: list[int]) -> None:
    """Run a program in a frame.

    Args:
        program: what to run.
        frame: F of the frame, any bits above the 64th being without meaning; K of each site is computed here.
        out: takes the pieces of the output.
        draws: takes the number of each candidate.
        active: the ids of the lists whose items are being expanded.

    Raises:
        Uncompiled: a limit is near, or a list is drawn from while an item of it is being expanded.
    """
    sites, behind = program
    for before, own, source, _ in sites:
        out.append(before)
        x = ((frame ^ own) + GOLDEN) & MASK
        x = ((x ^ (x >> 30)) * _A) & MASK
        x = ((x ^ (x >> 27)) * _B) & MASK
        if source.draw is not None:
            source.draw(x ^ (x >> 31), out, draws, active)
            continue
        # One candidate of one list, or one option, without a call of its own: most draws are.
        key = x ^ (x >> 31)
        at = (key * source.total) >> 64
        if source.sums is not None:
            at = bisect_right(source.sums, at)
        owner = source.owner
        if owner in active:
            raise Uncompiled
        draws.append(at)
        text, own_key, inner = source.table[at]
        if inner is None:
            out.append(text)
        elif owner is None:
            run(inner, key + own_key, out, draws, active)
        else:
            if len(active) > MOST_OPEN or len(draws) > MOST_DRAWS:
                raise Uncompiled
            active.append(owner)
            run(inner, key + own_key, out, draws, active)
            active.pop()
    out.append(behind)


def _run_item(program: Program, frame: int, out: list[str], draws: list[int], active: list[int], owner: int) -> None:
    """Run an item's program with its list among those being expanded."""
    if len(active) > MOST_OPEN or len(draws) > MOST_DRAWS:
        raise Uncompiled
    active.append(owner)
    run(program, frame, out, draws, active)
    active.pop()


def number_source(points: int, text_of: Callable[[int], str]) -> Source:
    """Return what draws a number of a grid."""

    def draw(key: int, out: list[str], draws: list[int], active: list[int]) -> None:
        del active
        at = below(key, points)
        draws.append(at)
        out.append(text_of(at))

    return Source(draw, ChoiceKind.NUMBER, total=points, number_text=text_of)


def inline_source(program: Program, own_key: int) -> Source:
    """Return what runs an inline template."""

    def draw(key: int, out: list[str], draws: list[int], active: list[int]) -> None:
        run(program, key + own_key, out, draws, active)

    return Source(draw, frame=program)


def variant_source(table: Entries, records: list[tuple[str, float]], weights: list[int]) -> Source:
    """Return what draws one option; ``records`` holds what is told of each, ``weights`` are millionths."""
    sums, total = _checked_sums(weights)
    return Source(options=records, weights=weights, total=total, sums=sums, table=table)


def pool_source(pool: Pool, table: Entries) -> Source:
    """Return what draws one item of a pool."""
    if not pool.items or pool.total > _MOST_WEIGHT:
        raise Uncompiled
    source = Source(pool=pool, total=pool.total, sums=pool.sums, table=table, lists=pool.lists)
    if len(pool.lists) == 1:
        source.owner = next(iter(pool.lists))
    else:
        source.draw = _joint_draw(pool, table)
    return source


def _joint_draw(pool: Pool, table: Entries) -> Draw:
    """Return the draw from several lists at once: which one an item stands in is known when it is drawn."""
    total, sums, lists = pool.total, pool.sums, pool.lists

    def draw(key: int, out: list[str], draws: list[int], active: list[int]) -> None:
        if not lists.isdisjoint(active):
            raise Uncompiled
        at = (key * total) >> 64
        if sums is not None:
            at = bisect_right(sums, at)
        draws.append(at)
        text, own_key, inner = table[at]
        if inner is None:
            out.append(text)
        else:
            _run_item(inner, key + own_key, out, draws, active, id(pool.items[at].owner))

    return draw


def multi_source(source: Source, low: int, span: int, separator: str) -> Source:
    """Make a source of candidates one that draws several: ``low`` to ``low + span - 1``, each at most once.

    It notes how many it draws before them.
    """
    sums, total = _checked_sums(source.weights)
    table, items, lists = source.table, source.items, source.lists
    few = list(range(total)) if sums is None and total <= _FEW else None

    def draw(key: int, out: list[str], draws: list[int], active: list[int]) -> None:
        if active and not lists.isdisjoint(active):
            raise Uncompiled
        count = low + ((key * span) >> 64)
        draws.append(count)
        has_text = False
        chosen: dict[str, int] = {}
        for at in _order(key, count, sums, total) if few is None else _order_few(key, count, few):
            draws.append(at)
            text, own_key, inner = table[at]
            if inner is None:
                if text:
                    out += (separator, text) if has_text else (text,)
                    has_text = True
                continue
            occurrence = chosen.get(text, 0)
            chosen[text] = occurrence + 1
            gap = len(out)
            out.append("")
            _run_item(inner, key + own_key + occurrence, out, draws, active, id(items[at].owner) if items else 0)
            if any(out[gap:]):
                if has_text:
                    out[gap] = separator
                has_text = True

    source.draw, source.separator = draw, separator
    return source


def _checked_sums(weights: Sequence[int]) -> tuple[list[int] | None, int]:
    """Return running sums and total, None for the sums of equal weights."""
    sums, total = running_sums(weights)
    if not weights or total > _MOST_WEIGHT:
        raise Uncompiled
    return sums, total


def _order(key: int, count: int, sums: list[int] | None, total: int) -> list[int]:
    """Draw ``count`` candidates without replacement, as `picks` does; pick j uses position j of the site's stream."""
    removed: list[int] = []
    order: list[int] = []
    for position in range(1, count + 1):
        at = below(key, total, position)
        for gone in removed:
            before = gone if sums is None else sums[gone - 1] if gone else 0
            if at < before:
                break
            at += 1 if sums is None else sums[gone] - before
        if sums is not None:
            at = bisect_right(sums, at)
        total -= 1 if sums is None else sums[at] - (sums[at - 1] if at else 0)
        order.append(at)
        insort(removed, at)
    return order


def _order_few(key: int, count: int, candidates: list[int]) -> list[int]:
    """Draw as `_order` does from a few equal candidates: what is drawn leaves the list."""
    left = candidates.copy()
    order: list[int] = []
    state = key + GOLDEN
    for size in range(len(left), len(left) - count, -1):
        state += GOLDEN
        x = state & MASK
        x = ((x ^ (x >> 30)) * _A) & MASK
        x = ((x ^ (x >> 27)) * _B) & MASK
        order.append(left.pop(((x ^ (x >> 31)) * size) >> 64))
    return order
