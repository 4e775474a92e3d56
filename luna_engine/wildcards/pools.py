"""Pools: the candidates a name draws from, with their weights summed once."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luna_engine.wildcards.lines import Lines
from luna_engine.wildcards.model import TEMPLATES, Branch, ItemList, Kind, Place, lists_below, walk_places

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from luna_engine.wildcards.lookup import AddressIndex
    from luna_engine.wildcards.model import Item
    from luna_engine.wildcards.names import Target

_MICRO = 1_000_000


@dataclass(frozen=True, slots=True)
class Pool:
    """Candidates of positive weight. ``sums`` are running weight sums, None if all weights are equal.

    ``factor`` gives what groups of weights multiply an item's weight by, in millionths; None without such groups.
    """

    items: Sequence[Item]
    sums: list[int] | None
    total: int
    lists: frozenset[int]
    held: int
    factor: Callable[[Item], int] | None = None

    def weight(self, index: int) -> int:
        """Return the integer weight of a candidate, in the pool's scale."""
        if self.sums is None:
            return 1
        return self.sums[index] - (self.sums[index - 1] if index else 0)

    def weights(self) -> Sequence[int]:
        """Return the integer weights of all candidates."""
        if self.sums is None:
            return [1] * len(self.items)
        return [self.weight(at) for at in range(len(self.items))]

    def at(self, point: int) -> int:
        """Return the first candidate whose running sum exceeds ``point``."""
        return point if self.sums is None else bisect.bisect_right(self.sums, point)

    def without(self, active: Sequence[Item]) -> Pool:
        """Return the pool without items that are being expanded."""
        excluded = [item for item in active if id(item.owner) in self.lists]
        if not excluded:
            return self
        barred = {id(item) for item in excluded}
        return make_pool([item for item in self.items if id(item) not in barred], self.lists, self.held, self.factor)


def make_pool(
    items: Sequence[Item], lists: frozenset[int], held: int, factor: Callable[[Item], int] | None = None
) -> Pool:
    """Return the pool of items; those of weight 0 are left out, decimals are scaled to the least power of ten."""
    if factor is None:
        weights = [item.weight.micro for item in items]
    else:
        weights = [item.weight.micro * factor(item) for item in items]
    if all(weight == weights[0] and weight for weight in weights):
        return Pool(items, None, len(items), lists, held, factor)  # no copy for the common case
    chosen = [item for item, weight in zip(items, weights, strict=True) if weight > 0]
    return Pool(chosen, *running_sums([weight for weight in weights if weight > 0]), lists, held, factor)


def pool_of_item(item: Item) -> Pool:
    """Return the pool of one item, which a name may stand for."""
    return Pool([item], None, 1, frozenset((id(item.owner),)), 1)


def running_sums(micro: Sequence[int]) -> tuple[list[int] | None, int]:
    """Return the running sums of weights given in millionths, at the least scale that keeps them whole.

    Equal weights give (None, their number): one ticket each draws the same candidate.
    """
    distinct = set(micro)
    if len(distinct) <= 1:
        return None, len(micro)
    scale = _MICRO
    while scale > 1 and any(weight % scale for weight in distinct):
        scale //= 10
    sums: list[int] = []
    total = 0
    for weight in micro:
        total += weight // scale
        sums.append(total)
    return sums, total


def pool_of_lists(
    lists: Iterable[ItemList], factor: Callable[[Item], int] | None = None, *, is_sorted: bool = False
) -> Pool:
    """Return the joint pool of lists, each once, every item with its own weight.

    With ``is_sorted`` (the dynamicprompts profile) items are in code point order and of equal texts the first counts.
    """
    once = list({id(found): found for found in lists}.values())
    ids = frozenset(id(found) for found in once)
    held = sum(len(found.items) for found in once)
    if is_sorted:
        firsts: dict[str, Item] = {}
        for item in (item for found in once for item in found.items):
            firsts.setdefault(item.text, item)
        return make_pool([firsts[text] for text in sorted(firsts)], ids, held, factor)
    if len(once) == 1:
        items = once[0].items
        if isinstance(items, Lines) and factor is None:
            return _pool_of_lines(items, ids, held)
        return make_pool(items, ids, held, factor)
    return make_pool([item for found in once for item in found.items], ids, held, factor)


def _pool_of_lines(lines: Lines, ids: frozenset[int], held: int) -> Pool:
    """Return the pool of a txt file; no item is made, unless some must be left out."""
    if lines.micro is None:
        return Pool(lines, None, len(lines), ids, held)
    if min(lines.micro) == 0:
        return make_pool(lines, ids, held)
    return Pool(lines, *running_sums(lines.micro), ids, held)


def target_lists(target: Target, index: AddressIndex, *, templates: bool) -> list[ItemList]:
    """Return the lists a target draws from.

    Args:
        target: what a name stands for (not a single item).
        index: the library, for folders.
        templates: a file gives its templates if it has any (``{harbor}``), instead of everything else.
    """
    if target.union:
        return [found for part in target.union for found in target_lists(part, index, templates=templates)]
    if target.folder is not None:
        return [found for document in index.below_folder(target.folder) for found in lists_below(document.top)]
    document, place = target.document, target.place
    if document is None:
        return []
    if place is None:
        top = document.top
        if templates and document.kind is not Kind.TXT and isinstance(top, Branch) and TEMPLATES in top.entries:
            return [found for found in walk_places(top.entries[TEMPLATES]) if isinstance(found, ItemList)]
        return list(lists_below(top))
    if target.stars == "*" and isinstance(place, Branch):
        return [entry for entry in place.entries.values() if isinstance(entry, ItemList)]
    return list(_below(place))


def _below(place: Place) -> Iterable[ItemList]:
    if place.keys and place.keys[0] == TEMPLATES:
        return (found for found in walk_places(place) if isinstance(found, ItemList))
    return lists_below(place)
