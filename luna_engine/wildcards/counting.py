"""Exact numbers of combinations, by sums and products over the graph; nothing is listed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from luna_engine.wildcards.lines import Lines
from luna_engine.wildcards.model import Kind
from luna_engine.wildcards.parser import is_plain, match_lone_name
from luna_engine.wildcards.picks import lone_part
from luna_engine.wildcards.references import pool_of_reference, read_braces, read_bracket, read_name
from luna_engine.wildcards.syntax import (
    Binding,
    Braces,
    Bracket,
    Conditional,
    Kept,
    Multi,
    Node,
    Number,
    Parsed,
    Profile,
    Prompt,
    Tag,
    Text,
    Variable,
    Variant,
    Wildcard,
    Wrapper,
)

if TYPE_CHECKING:
    from luna_engine.wildcards.model import Document, Item
    from luna_engine.wildcards.names import Target
    from luna_engine.wildcards.pools import Pool
    from luna_engine.wildcards.snapshot import Snapshot

_MOST_STEPS = 5_000_000


class NeedsWalkError(Exception):
    """The number depends on earlier draws; only walking the cases can tell."""


@dataclass(slots=True)
class Scope:
    """Where nodes stand: their text, the file whose keys they see, variables, and whether bindings surely happen."""

    parsed: Parsed
    document: Document | None
    variables: dict[str, tuple[Prompt, Parsed, Document | None] | None]
    can_bind: bool
    using: frozenset[str] = frozenset()

    def copy(self) -> Scope:
        """Return the scope with variables of its own, to look ahead in."""
        return Scope(self.parsed, self.document, dict(self.variables), self.can_bind, self.using)

    def inside(self, document: Document | None = None) -> Scope:
        """Return the scope of a prompt within the text, perhaps with another file's keys."""
        return Scope(self.parsed, document or self.document, self.variables, can_bind=False, using=self.using)


@dataclass(slots=True)
class Counter:
    """Counts the combinations of texts over one snapshot.

    ``leaked`` holds the variables that items bound: a use behind such an item depends on what was drawn.
    ``is_wary`` treats every use of a variable as dependent.
    """

    snapshot: Snapshot
    active: list[Item] = field(default_factory=list)
    leaked: set[str] = field(default_factory=set)
    is_wary: bool = False

    def template(self, parsed: Parsed, variables: frozenset[str] = frozenset()) -> int:
        """Return the number of ways to expand a template.

        Raises:
            NeedsWalkError: it depends on earlier draws.
        """
        scope = Scope(parsed, None, dict.fromkeys(variables), can_bind=True)
        return self._nodes(parsed.nodes, scope)

    def factor_out(self, parsed: Parsed) -> tuple[int, str]:
        """Split a template whose number depends on earlier draws.

        Returns:
            The number of ways of the parts that nothing depends on, and the rest as a template to walk.
        """
        self.is_wary = True
        factor, rest = 1, []
        for node in parsed.nodes:
            if isinstance(node, (Text, Kept)):
                continue
            try:
                factor *= self._nodes((node,), Scope(parsed, None, {}, can_bind=False))
            except NeedsWalkError:
                rest.append(node)
        # A condition on tags, or one inside an item, may look at any draw before it.
        is_local = all(isinstance(node, (Binding, Variable, Conditional)) for node in rest)
        texts = [parsed.text[node.start : node.end] for node in rest]
        if not is_local or any("#" in text for text in texts):
            return 1, parsed.text
        return factor, "".join(texts)

    def pool(self, pool: Pool) -> int:
        """Return the number of ways to draw from a pool."""
        if any(id(item.owner) in pool.lists for item in self.active):
            raise NeedsWalkError
        known = self.snapshot.counts.get(id(pool))
        if known is None:
            outside, self.leaked = self.leaked, set()
            number = self._pool(pool)
            known = self.snapshot.counts[id(pool)] = (number, frozenset(self.leaked))
            self.leaked = outside
        self.leaked |= known[1]
        return known[0]

    def _pool(self, pool: Pool) -> int:
        items = pool.items
        if isinstance(items, Lines):
            counts = [self.item(item) for item in items.constructs()]
            return len(items) - len(counts) + sum(counts)
        return sum(self.item(item) for item in items) if items else 1

    def item(self, item: Item) -> int:
        """Return the number of ways to expand an item."""
        if is_plain(item.text):
            return 1
        document = item.owner.document if item.owner is not None else None
        lone = match_lone_name(item.text)
        is_native = document is not None and self.snapshot.roots[document.root].profile is Profile.NATIVE
        if lone is not None and is_native:
            target, _ = read_name(lone[2], self.snapshot, document)
            self.active.append(item)
            try:
                return self._target(target) if target is not None else 1
            finally:
                self.active.pop()
        parsed = self.snapshot.parse_item(item)
        variables: dict[str, tuple[Prompt, Parsed, Document | None] | None] = {}
        self.active.append(item)
        try:
            return self._nodes(parsed.nodes, Scope(parsed, document, variables, can_bind=True))
        finally:
            self.active.pop()
            self.leaked |= variables.keys()

    def _nodes(self, nodes: tuple[Node, ...], scope: Scope) -> int:
        total = 1
        for node in nodes:
            total *= self.node(node, scope)
        return total

    def node(self, node: Node, scope: Scope) -> int:
        """Return the number of ways to expand one construct; a binding binds its name in the scope."""
        if isinstance(node, (Text, Kept)):
            return 1
        if isinstance(node, Tag):
            return self._nodes(node.nodes, scope)
        if isinstance(node, Number):
            return node.grid.points if node.grid else 1
        if isinstance(node, Variant):
            return sum(self.prompt(option.prompt, scope) for option in node.options if option.weight.micro > 0) or 1
        if isinstance(node, Multi):
            return self._multi(node, scope)
        if isinstance(node, (Braces, Bracket, Wildcard)):
            return self._reference(node, scope)
        return self._command(node, scope)

    def prompt(self, prompt: Prompt, scope: Scope, document: Document | None = None) -> int:
        """Return the number of ways to expand a prompt within a text."""
        return self._nodes(prompt.nodes, scope.inside(document))

    def _reference(self, node: Braces | Bracket | Wildcard, scope: Scope) -> int:
        if isinstance(node, Wildcard):
            if node.arguments:
                raise NeedsWalkError
            if "*" in node.name:
                pool = self.snapshot.glob(node.name)
                return self.pool(pool) if pool is not None else 1
            target, _ = read_name(node.name, self.snapshot, scope.document, scope.parsed.profile)
            return self._target(target) if target is not None else 1
        if isinstance(node, Bracket):
            if scope.document is not None and scope.document.kind is not Kind.TXT:
                target, _ = read_bracket(node.path, scope.document)
                if target is not None:
                    return self._target(target)
            return self._nodes(node.nodes, scope)
        meaning = read_braces(node, scope.parsed, self.snapshot, scope.document)
        if meaning.target is not None:
            return self._target(meaning.target, templates=meaning.templates)
        if meaning.inline is not None:
            return self.prompt(meaning.inline, scope, meaning.document)
        return 1 if meaning.is_kept else self._nodes(node.nodes, scope)

    def _target(self, target: Target, *, templates: bool = False) -> int:
        if target.item is not None:
            if any(item is target.item for item in self.active):
                raise NeedsWalkError
            return self.item(target.item)
        return self.pool(self.snapshot.pool(target, templates=templates))

    def _command(self, node: Node, scope: Scope) -> int:
        if isinstance(node, Variable):
            return self._variable(node, scope)
        if isinstance(node, Binding):
            if not scope.can_bind or node.name in self.leaked:
                raise NeedsWalkError
            if node.only_if_unset and node.name in scope.variables:
                return 1
            if node.eager:
                number = self.prompt(node.value, scope)
                scope.variables[node.name] = None
                return number
            scope.variables[node.name] = (node.value, scope.parsed, scope.document)
            return 1
        if isinstance(node, Wrapper):
            if any(isinstance(part, Text) and "..." in part.value for part in node.outer.nodes):
                return self.prompt(node.outer, scope) * self.prompt(node.inner, scope)
            if all(isinstance(part, Text) for part in node.outer.nodes):
                return 1  # there is no place for the inner part: it stays as written
            raise NeedsWalkError
        if isinstance(node, Conditional):
            raise NeedsWalkError
        return 1

    def _variable(self, node: Variable, scope: Scope) -> int:
        if self.is_wary or node.name in self.leaked:
            raise NeedsWalkError
        if node.name not in scope.variables:
            if self.active:
                raise NeedsWalkError
            return self.prompt(node.default, scope) if node.default is not None else 1
        value = scope.variables[node.name]
        if value is None or node.name in scope.using:
            return 1
        prompt, parsed, document = value
        inner = Scope(parsed, document, scope.variables, can_bind=False, using=scope.using | {node.name})
        return self._nodes(prompt.nodes, inner)

    def _multi(self, node: Multi, scope: Scope) -> int:
        lent = self.lent(node, scope)
        if lent is not None:
            counts = [self.item(item) for item in lent]
        else:
            counts = [
                self.prompt(option.prompt, scope)
                for option in node.options
                if option.weight.micro > 0
                for _ in range(min(option.quantity, 100_000))
            ]
        size = len(counts)
        if not size:
            return 1
        low = min(size if node.low is None else node.low, size)
        high = min(size if node.high is None else node.high, size)
        return ordered_selections(counts, min(low, high), max(low, high))

    def lent(self, node: Multi, scope: Scope) -> list[Item] | None:
        """Return the items, distinct by text, that a pick's lone option lends it; None if it lends nothing."""
        part = lone_part(node)
        if part is None:
            return None
        if isinstance(part, Variable):
            raise NeedsWalkError
        if isinstance(part, Wildcard) and part.arguments:
            return None
        pool = pool_of_reference(part, scope.parsed, self.snapshot, scope.document)
        return self._distinct(pool) if pool is not None else None

    def _distinct(self, pool: Pool) -> list[Item]:
        if any(id(item.owner) in pool.lists for item in self.active):
            raise NeedsWalkError
        firsts: dict[str, Item] = {}
        for item in pool.items:
            firsts.setdefault(item.text, item)
        return list(firsts.values())


def ordered_selections(counts: list[int], low: int, high: int) -> int:
    """Return the number of ordered selections of ``low`` to ``high`` of the candidates, each with its own count.

    k! times the k-th elementary symmetric sum; equal counts have a closed form.

    Raises:
        NeedsWalkError: too many candidates of differing counts.
    """
    size = len(counts)
    if len(set(counts)) == 1:
        return sum(math.perm(size, k) * counts[0] ** k for k in range(low, high + 1))
    if size * high > _MOST_STEPS:
        raise NeedsWalkError
    sums = [1] + [0] * high
    for count in counts:
        for k in range(high, 0, -1):
            sums[k] += sums[k - 1] * count
    return sum(math.factorial(k) * sums[k] for k in range(low, high + 1))
