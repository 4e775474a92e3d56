"""Exact odds of a template, site by site: what it can print and how likely, nested draws multiplied out.

Nothing is drawn. Fractions throughout; the most likely texts are kept at every level and the rest is summed.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from luna_engine.wildcards.picks import lone_part
from luna_engine.wildcards.recursion import recursion_room
from luna_engine.wildcards.references import item_of_reference, pool_of_reference, read_braces
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
    Prompt,
    Tag,
    Text,
    Variable,
    Variant,
    Wildcard,
    Wrapper,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from luna_engine.wildcards.model import Document, Item
    from luna_engine.wildcards.pools import Pool
    from luna_engine.wildcards.snapshot import Snapshot

_MOST_DEPTH = 20
_MOST_WORK = 100_000
_LEAST_KEPT = 200
_ONE = Fraction(1)


@dataclass(frozen=True, slots=True)
class Share:
    """One text that a site can print, with its probability."""

    text: str
    probability: Fraction


@dataclass(frozen=True, slots=True)
class SiteOdds:
    """What one site of a template can print, most likely first.

    ``rest`` is the probability of all texts not listed. ``is_exact`` is False where a draw depends on earlier ones
    (conditions) or the work was cut short: such parts are listed as they are written. ``span`` is the construct in
    the template, comment lines dropped.
    """

    site: str
    reference: str
    span: tuple[int, int]
    shares: tuple[Share, ...]
    rest: Fraction
    is_exact: bool

    def as_dict(self) -> dict[str, Any]:
        """Return the odds as JSON-safe data."""
        return {
            "site": self.site,
            "reference": self.reference,
            "span": list(self.span),
            "shares": [{"text": share.text, "probability": float(share.probability)} for share in self.shares],
            "rest": float(self.rest),
            "exact": self.is_exact,
        }


@dataclass(slots=True)
class _Outcomes:
    """Texts with their probabilities, most likely first; what is missing from 1 was cut off."""

    texts: list[tuple[str, Fraction]]
    is_exact: bool = True


@dataclass(frozen=True, slots=True)
class _Scope:
    """Where nodes stand: their text, the file whose keys they see, the items round them, the variables."""

    parsed: Parsed
    document: Document | None = None
    active: tuple[Item, ...] = ()
    variables: dict[str, _Outcomes | tuple[Prompt, _Scope]] = field(default_factory=dict)
    using: frozenset[str] = frozenset()


def probabilities(
    snapshot: Snapshot, parsed: Parsed, top: int = 50, variables: Mapping[str, str] | None = None
) -> tuple[SiteOdds, ...]:
    """Return the odds of each site of a template, in reading order; bindings print nothing and are left out."""
    with recursion_room():
        teller = _Teller(snapshot, max(top, _LEAST_KEPT))
        scope = _Scope(parsed)
        for name, text in (variables or {}).items():
            scope.variables[name] = _certain(text)
        return tuple(_shown(odds, top) for odds in teller.sites(parsed.nodes, scope, {}))


def _shown(odds: tuple[str, Node, Parsed, _Outcomes], top: int) -> SiteOdds:
    name, node, parsed, outcomes = odds
    merged: dict[str, Fraction] = {}
    for text, share in outcomes.texts:
        merged[text] = merged.get(text, Fraction(0)) + share
    ranked = sorted(merged.items(), key=lambda pair: -pair[1])[:top]
    shares = tuple(Share(text, share) for text, share in ranked)
    rest = _ONE - sum((share.probability for share in shares), Fraction(0))
    return SiteOdds(name, parsed.text[node.start : node.end], (node.start, node.end), shares, rest, outcomes.is_exact)


def _certain(text: str, *, is_exact: bool = True) -> _Outcomes:
    return _Outcomes([(text, _ONE)], is_exact)


class _Teller:
    """Tells outcomes; ``keep`` is how many texts are kept at each level."""

    def __init__(self, snapshot: Snapshot, keep: int) -> None:
        self.snapshot = snapshot
        self.keep = keep
        self.work = 0

    def sites(
        self, nodes: tuple[Node, ...], scope: _Scope, seen: dict[str, int]
    ) -> Iterator[tuple[str, Node, Parsed, _Outcomes]]:
        """Yield the sites of the template's own frame: plain braces, brackets and tags are looked into."""
        for node in nodes:
            if isinstance(node, (Text, Kept)):
                continue
            if isinstance(node, Tag) or self.is_text(node, scope):
                inner = node.nodes if isinstance(node, (Tag, Braces, Bracket)) else ()
                yield from self.sites(inner, scope, seen)
                continue
            text = scope.parsed.text[node.start : node.end].replace("\r\n", "\n")
            occurrence = seen.get(text, 0)
            seen[text] = occurrence + 1
            outcomes = self.site(node, scope)
            if not isinstance(node, Binding):
                yield (f"{text} #{occurrence + 1}" if occurrence else text), node, scope.parsed, outcomes

    def is_text(self, node: Node, scope: _Scope) -> bool:
        """Tell whether a construct draws nothing itself: it is printed as written, or round what it holds."""
        if isinstance(node, Braces):
            meaning = read_braces(node, scope.parsed, self.snapshot, scope.document)
            return meaning.target is None and meaning.inline is None
        if isinstance(node, (Bracket, Wildcard)):
            return self.pool(node, scope) is None and self.item_named(node, scope) is None
        return False

    def nodes(self, nodes: tuple[Node, ...], scope: _Scope) -> _Outcomes:
        """Return the outcomes of nodes one after the other."""
        total = _certain("")
        for node in nodes:
            total = self.join(total, self.node(node, scope), lambda left, right: left + right)
        return total

    def node(self, node: Node, scope: _Scope) -> _Outcomes:
        if isinstance(node, Text):
            return _certain(node.value)
        if isinstance(node, Tag):
            inner = self.nodes(node.nodes, scope)
            return _Outcomes([(f"<{node.word}:{text}>", share) for text, share in inner.texts], inner.is_exact)
        return self.site(node, scope)

    def site(self, node: Node, scope: _Scope) -> _Outcomes:
        self.work += 1
        written = scope.parsed.text[node.start : node.end]
        if self.work > _MOST_WORK or len(scope.active) > _MOST_DEPTH:
            return _certain(written, is_exact=False)
        if isinstance(node, Number):
            return self.number(node, written)
        if isinstance(node, Variant):
            options = [option for option in node.options if option.weight.micro > 0]
            told = ((option.weight.micro, self.prompt(option.prompt, scope)) for option in options)
            return self.mixture(told, sum(option.weight.micro for option in options), written)
        if isinstance(node, Multi):
            return self.multi(node, scope, written)
        if isinstance(node, Binding):
            return self.bind(node, scope)
        if isinstance(node, Variable):
            return self.variable(node, scope, written)
        if isinstance(node, Conditional):
            return _certain(written, is_exact=False)
        if isinstance(node, Wrapper):
            outer, inner = self.prompt(node.outer, scope), self.prompt(node.inner, scope)
            return self.join(outer, inner, lambda left, right: left.replace("...", right, 1))
        if isinstance(node, (Braces, Bracket, Wildcard)):
            return self.reference(node, scope, written)
        return _certain(written)

    def prompt(self, prompt: Prompt, scope: _Scope) -> _Outcomes:
        return self.nodes(prompt.nodes, scope)

    def number(self, node: Number, written: str) -> _Outcomes:
        grid = node.grid
        if grid is None:
            return _certain(written)
        share = Fraction(1, grid.points)
        return _Outcomes([(grid.text(at), share) for at in range(min(grid.points, self.keep))])

    def reference(self, node: Braces | Bracket | Wildcard, scope: _Scope, written: str) -> _Outcomes:
        item = self.item_named(node, scope)
        if item is not None:
            return self.item(item, scope)
        if isinstance(node, Wildcard) and node.arguments:
            scope = _Scope(scope.parsed, scope.document, scope.active, dict(scope.variables), scope.using)
            for argument in node.arguments:
                value = self.prompt(argument.value, scope) if argument.eager else (argument.value, scope)
                scope.variables[argument.name] = value
        pool = self.pool(node, scope)
        if pool is not None:
            return self.draw(pool, scope, written)
        if isinstance(node, Wildcard):
            return _certain(written)
        if isinstance(node, Braces):
            meaning = read_braces(node, scope.parsed, self.snapshot, scope.document)
            if meaning.is_kept:
                return _certain(written)
            if meaning.inline is not None:
                inner = _Scope(scope.parsed, meaning.document, scope.active, scope.variables, scope.using)
                return self.prompt(meaning.inline, inner)
        inside = self.nodes(node.nodes, scope)
        return _Outcomes([(written[0] + text + written[-1], share) for text, share in inside.texts], inside.is_exact)

    def pool(self, node: Node, scope: _Scope) -> Pool | None:
        return pool_of_reference(node, scope.parsed, self.snapshot, scope.document)

    def item_named(self, node: Node, scope: _Scope) -> Item | None:
        return item_of_reference(node, scope.parsed, self.snapshot, scope.document)

    def draw(self, pool: Pool, scope: _Scope, written: str) -> _Outcomes:
        pool = pool.without(scope.active)
        if not pool.items:
            return _certain(written)
        told = ((pool.weight(at), self.item(pool.items[at], scope)) for at in self.heaviest(pool))
        return self.mixture(told, pool.total, written)

    def heaviest(self, pool: Pool) -> Iterable[int]:
        """Return the heaviest candidates, as many as are kept; of equal ones the first."""
        if pool.sums is None:
            return range(min(len(pool.items), self.keep))
        return heapq.nsmallest(self.keep, range(len(pool.items)), key=lambda at: (-pool.weight(at), at))

    def item(self, item: Item, scope: _Scope) -> _Outcomes:
        if any(item is known for known in scope.active):
            return _certain(item.text, is_exact=False)
        parsed = self.snapshot.parse_item(item)
        owner = item.owner
        document = owner.document if owner is not None else None
        return self.nodes(parsed.nodes, _Scope(parsed, document, (*scope.active, item), scope.variables, scope.using))

    def multi(self, node: Multi, scope: _Scope, written: str) -> _Outcomes:
        """Return the ordered selections; if they are too many the pick is told as it is written, which is not exact."""
        candidates = self.candidates(node, scope)
        size = len(candidates)
        if not size:
            return _certain(written, is_exact=False)
        low = min(size if node.low is None else node.low, size)
        high = min(size if node.high is None else node.high, size)
        low, high = min(low, high), max(low, high)
        if sum(math.perm(size, count) for count in range(low, high + 1)) > self.keep * 10:
            return _certain(written, is_exact=False)
        told: list[_Outcomes] = []
        for count in range(low, high + 1):
            told += self.selections(candidates, count, node.separator)
        return self.mixture(((1, one) for one in told), high - low + 1, written)

    def candidates(self, node: Multi, scope: _Scope) -> list[tuple[int, _Outcomes]]:
        """Return what a multi-pick chooses from, nothing if that is too much to tell."""
        part = lone_part(node)
        if part is not None:
            lends = not (isinstance(part, Wildcard) and part.arguments)
            pool = self.pool(part, scope) if lends else None
            if pool is not None:
                pool = pool.without(scope.active)
                if len(pool.items) > self.keep * 10:
                    return []
                weights: dict[str, int] = {}
                items = {item.text: item for item in reversed(pool.items)}
                for at, item in enumerate(pool.items):
                    weights[item.text] = weights.get(item.text, 0) + pool.weight(at)
                return [(weight, self.item(items[text], scope)) for text, weight in weights.items()]
        return [
            (option.weight.micro, self.prompt(option.prompt, scope))
            for option in node.options
            if option.weight.micro > 0
            for _ in range(min(option.quantity, self.keep))
        ]

    def selections(self, candidates: list[tuple[int, _Outcomes]], count: int, separator: str) -> list[_Outcomes]:
        """Return each ordered selection of ``count`` candidates, its texts weighed by its probability."""
        found: list[_Outcomes] = []

        def glue(left: str, right: str) -> str:
            return left + separator + right if left and right else left + right

        def walk(left: list[tuple[int, _Outcomes]], made: _Outcomes, share: Fraction, wanted: int) -> None:
            if not wanted:
                found.append(_Outcomes([(text, share * own) for text, own in made.texts], made.is_exact))
                return
            total = sum(weight for weight, _ in left)
            for at, (weight, outcomes) in enumerate(left):
                rest = left[:at] + left[at + 1 :]
                walk(rest, self.join(made, outcomes, glue), share * Fraction(weight, total), wanted - 1)

        walk(candidates, _certain(""), _ONE, count)
        return found

    def bind(self, node: Binding, scope: _Scope) -> _Outcomes:
        if not (node.only_if_unset and node.name in scope.variables):
            value = self.prompt(node.value, scope) if node.eager else (node.value, scope)
            scope.variables[node.name] = value
        return _certain("")

    def variable(self, node: Variable, scope: _Scope, written: str) -> _Outcomes:
        value = scope.variables.get(node.name)
        if value is None:
            return self.prompt(node.default, scope) if node.default is not None else _certain(written)
        if isinstance(value, _Outcomes):
            return value
        if node.name in scope.using:
            return _certain(written)
        prompt, home = value
        using = scope.using | {node.name}
        return self.prompt(prompt, _Scope(home.parsed, home.document, scope.active, scope.variables, using))

    def mixture(self, told: Iterable[tuple[int, _Outcomes]], total: int, written: str) -> _Outcomes:
        """Return the outcomes of one draw among weighted candidates."""
        texts: list[tuple[str, Fraction]] = []
        is_exact = True
        for weight, outcomes in told:
            share = Fraction(weight, total)
            texts += ((text, share * own) for text, own in outcomes.texts)
            is_exact = is_exact and outcomes.is_exact
            self.work += len(outcomes.texts)
        if not texts:
            return _certain(written)
        return _Outcomes(self.most_likely(texts), is_exact)

    def join(self, left: _Outcomes, right: _Outcomes, glue: Callable[[str, str], str]) -> _Outcomes:
        """Return the outcomes of two independent texts; rank i of one meets rank j of the other if (i+1)(j+1) fits."""
        is_exact = left.is_exact and right.is_exact
        texts: list[tuple[str, Fraction]] = []
        for at, (text, share) in enumerate(left.texts):
            partners = right.texts[: self.keep // (at + 1)]
            texts += ((glue(text, other), share * own) for other, own in partners)
        self.work += len(texts)
        return _Outcomes(self.most_likely(texts), is_exact)

    def most_likely(self, texts: list[tuple[str, Fraction]]) -> list[tuple[str, Fraction]]:
        if len(texts) > 1:
            texts.sort(key=lambda pair: -pair[1])
        return texts[: self.keep]
