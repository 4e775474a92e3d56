"""The n-th combination of a template by arithmetic: an index becomes the digits of every draw; nothing is walked."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from luna_engine.wildcards.counting import Counter, NeedsWalkError, Scope, ordered_selections
from luna_engine.wildcards.lines import Lines
from luna_engine.wildcards.parser import is_plain
from luna_engine.wildcards.references import item_of_reference, pool_of_reference, read_braces
from luna_engine.wildcards.syntax import (
    Binding,
    Braces,
    Bracket,
    Multi,
    Node,
    Number,
    Parsed,
    Prompt,
    Tag,
    Variable,
    Variant,
    Wildcard,
    Wrapper,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from luna_engine.wildcards.model import Item
    from luna_engine.wildcards.pools import Pool
    from luna_engine.wildcards.snapshot import Snapshot

_MOST_STEPS = 500_000


def digits_or_none(snapshot: Snapshot, parsed: Parsed, index: int) -> list[int] | None:
    """Return the digits of combination ``index`` in the order of the draws, the last site fastest.

    No digits if the number of combinations depends on earlier draws, so that they have to be walked; None if there
    are not so many.
    """
    try:
        if index >= Counter(snapshot).template(parsed):
            return None
        return _Ranker(Counter(snapshot)).nodes(parsed.nodes, Scope(parsed, None, {}, can_bind=True), index)
    except NeedsWalkError:
        return []


class _Ranker:
    """Turns an index into digits the way `Counter` turns a text into a number."""

    def __init__(self, counter: Counter) -> None:
        self.counter = counter
        self.snapshot = counter.snapshot

    def nodes(self, nodes: tuple[Node, ...], scope: Scope, index: int) -> list[int]:
        """Return the digits of nodes one after the other."""
        ahead = scope.copy()
        counts = [self.counter.node(node, ahead) for node in nodes]
        shares: list[int] = []
        for count in reversed(counts):
            index, share = divmod(index, count)
            shares.append(share)
        digits: list[int] = []
        for node, share in zip(nodes, reversed(shares), strict=True):
            digits += self.node(node, scope, share)
        return digits

    def node(self, node: Node, scope: Scope, index: int) -> list[int]:  # noqa: PLR0911 - one line for each construct
        if isinstance(node, Tag):
            return self.nodes(node.nodes, scope, index)
        if isinstance(node, Number):
            return [index] if node.grid else []
        if isinstance(node, Variant):
            options = [option for option in node.options if option.weight.micro > 0]
            if not options:
                return []
            at, index = _place(index, (self.counter.prompt(option.prompt, scope) for option in options))
            return [at, *self.prompt(options[at].prompt, scope, index)]
        if isinstance(node, Multi):
            return self.multi(node, scope, index)
        if isinstance(node, (Braces, Bracket, Wildcard)):
            return self.reference(node, scope, index)
        if isinstance(node, Variable):
            return self.variable(node, scope, index)
        if isinstance(node, Binding):
            is_drawn = node.eager and not (node.only_if_unset and node.name in scope.variables)
            digits = self.prompt(node.value, scope, index) if is_drawn else []
            self.counter.node(node, scope)  # binds the name
            return digits
        if isinstance(node, Wrapper):
            if self.counter.node(node, scope) == 1:
                return []
            outer, inner = divmod(index, self.counter.prompt(node.inner, scope))
            return [*self.prompt(node.outer, scope, outer), *self.prompt(node.inner, scope, inner)]
        return []

    def prompt(self, prompt: Prompt, scope: Scope, index: int) -> list[int]:
        return self.nodes(prompt.nodes, scope.inside(), index)

    def reference(self, node: Braces | Bracket | Wildcard, scope: Scope, index: int) -> list[int]:
        item = item_of_reference(node, scope.parsed, self.snapshot, scope.document)
        if item is not None:
            return self.item(item, index)
        pool = pool_of_reference(node, scope.parsed, self.snapshot, scope.document)
        if pool is not None:
            return self.draw(pool, index) if pool.items else []
        if isinstance(node, Wildcard):
            return []
        if isinstance(node, Braces):
            meaning = read_braces(node, scope.parsed, self.snapshot, scope.document)
            if meaning.inline is not None:
                return self.nodes(meaning.inline.nodes, scope.inside(meaning.document), index)
            if meaning.is_kept:
                return []
        return self.nodes(node.nodes, scope, index)

    def draw(self, pool: Pool, index: int) -> list[int]:
        items = pool.items
        if isinstance(items, Lines):
            # Items without a construct count one each; only the others are looked at.
            passed = 0
            for at in items.special():
                if index - passed < at:
                    return [index - passed]
                count = self.counter.item(items[at])
                if index - passed < at + count:
                    return [at, *self.item(items[at], index - passed - at)]
                passed += count - 1
            return [index - passed]
        at, index = _place(index, (self.counter.item(item) for item in items))
        return [at, *self.item(items[at], index)]

    def item(self, item: Item, index: int) -> list[int]:
        if is_plain(item.text):
            return []
        parsed = self.snapshot.parse_item(item)
        document = item.owner.document if item.owner is not None else None
        self.counter.active.append(item)
        try:
            return self.nodes(parsed.nodes, Scope(parsed, document, {}, can_bind=True), index)
        finally:
            self.counter.active.pop()

    def variable(self, node: Variable, scope: Scope, index: int) -> list[int]:
        if node.name not in scope.variables:
            return self.prompt(node.default, scope, index) if node.default is not None else []
        value = scope.variables[node.name]
        if value is None or node.name in scope.using:
            return []
        prompt, parsed, document = value
        inner = Scope(parsed, document, scope.variables, can_bind=False, using=scope.using | {node.name})
        return self.nodes(prompt.nodes, inner, index)

    def multi(self, node: Multi, scope: Scope, index: int) -> list[int]:
        lent = self.counter.lent(node, scope)
        entries: list[tuple[int, Callable[[int], list[int]]]] = []
        if lent is not None:
            entries = [(self.counter.item(item), partial(self.item, item)) for item in lent]
        else:
            for option in node.options:
                if option.weight.micro > 0:
                    count = self.counter.prompt(option.prompt, scope)
                    entries += [(count, partial(self.prompt, option.prompt, scope))] * min(option.quantity, 100_000)
        size = len(entries)
        if not size:
            return []
        low = min(size if node.low is None else node.low, size)
        high = min(size if node.high is None else node.high, size)
        low, high = min(low, high), max(low, high)
        counts = [count for count, _ in entries]
        step, index = _place(index, (ordered_selections(counts, k, k) for k in range(low, high + 1)))
        digits, order, index = _selection(counts, low + step, index)
        chosen = [entries[at] for at in order]
        shares: list[int] = []
        for count, _ in reversed(chosen):
            index, share = divmod(index, count)
            shares.append(share)
        for (_, digits_of), share in zip(chosen, reversed(shares), strict=True):
            digits += digits_of(share)
        return [step, *digits]


def _place(index: int, counts: Iterable[int]) -> tuple[int, int]:
    """Return which candidate an index falls on, and what is left of the index inside it."""
    for at, count in enumerate(counts):
        if index < count:
            return at, index
        index -= count
    raise IndexError(index)


def _selection(counts: list[int], wanted: int, index: int) -> tuple[list[int], list[int], int]:
    """Return the digits of an ordered selection, the candidates it takes, and what is left for what they hold."""
    left = list(range(len(counts)))
    is_even = len(set(counts)) == 1
    if not is_even and len(counts) ** 2 * wanted > _MOST_STEPS:
        raise NeedsWalkError
    digits: list[int] = []
    order: list[int] = []
    inside = 1
    for taken in range(wanted):
        rest = wanted - taken - 1
        if is_even:
            each = inside * counts[0] ** (rest + 1) * math.perm(len(left) - 1, rest)
            digit, index = divmod(index, each)
        else:
            ways = (
                inside * counts[at] * ordered_selections([counts[other] for other in left if other != at], rest, rest)
                for at in left
            )
            digit, index = _place(index, ways)
        inside *= counts[left[digit]]
        digits.append(digit)
        order.append(left.pop(digit))
    return digits, order, index
