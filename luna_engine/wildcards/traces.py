"""Traces of compiled programs, and the choices they stand for: put together only when somebody looks at them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from luna_engine.wildcards.expansion import Choice, ChoiceKind
from luna_engine.wildcards.model import TEMPLATES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luna_engine.wildcards.model import Item
    from luna_engine.wildcards.pools import Pool


def _never(*_: Any) -> None:
    raise NotImplementedError("a source without a draw")


@dataclass(slots=True, eq=False)
class Source:
    """What a site draws from, and how: ``draw`` notes entries in a trace.

    One of ``pool``, ``items`` and ``options`` (written text and weight) holds the candidates; a number has none, and
    ``size`` is its grid. ``is_frame``: no choice, only the frame of an inline template.
    """

    draw: Callable[..., None] = _never
    kind: ChoiceKind = ChoiceKind.OPTION
    pool: Pool | None = None
    items: Sequence[Item] = ()
    options: Sequence[tuple[str, float]] = ()
    weights: Sequence[int] = ()
    total: int = 0
    lists: frozenset[int] = frozenset()
    size: int = 1
    is_multi: bool = False
    is_frame: bool = False

    def owner_of(self, at: int) -> int:
        """Return the id of the list a candidate lives in, 0 for an option."""
        return id(self.items[at].owner) if self.items else 0

    def item(self, at: int) -> Item | None:
        """Return a candidate that is an item."""
        if self.pool is not None:
            return self.pool.items[at]
        return self.items[at] if self.items else None


# The draw, h of the site's text plus its occurrence, the source, start and end in the text, the text, the name.
# A tuple: thousands of them live as long as a snapshot, and one object each is what the collector can bear.
Site = tuple[Callable[..., None], int, Source, int, int, str, str]


class Trace:
    """The draws of one part: entries of (site, candidate, first piece, piece behind the last, parent entry)."""

    __slots__ = ("entries", "part", "pieces")

    def __init__(self, part: str, pieces: list[str], entries: list[Any]) -> None:
        self.part = part
        self.pieces = pieces
        self.entries = entries


def choices_of(traces: tuple[Trace, ...]) -> tuple[Choice, ...]:
    """Return the choices of an expansion, a parent before what it holds."""
    made: list[Choice] = []
    for trace in traces:
        _Teller(trace, made).tell()
    return tuple(made)


class _Teller:
    def __init__(self, trace: Trace, made: list[Choice]) -> None:
        self.trace = trace
        self.made = made
        self.offsets = list(accumulate(map(len, trace.pieces), initial=0))
        self.frames: list[str] = []
        self.parents: list[int | None] = []

    def tell(self) -> None:
        """Put the choices behind those made before."""
        left: dict[tuple[int, int], tuple[int, int]] = {}
        for site, at, first, end, above in self.trace.entries:
            source: Source = site[2]
            prefix = self.frames[above] if above >= 0 else self.trace.part and f"{self.trace.part}:"
            name = f"{prefix} {site[6]}" if prefix else site[6]
            parent = self.parents[above] if above >= 0 else None
            if source.is_frame:
                self.frames.append(name)
                self.parents.append(parent)
                continue
            frame = name
            if source.is_multi:
                weight = source.weights[at]
                number, rest = left.get((id(site), above), (0, source.total))
                left[id(site), above] = (number + 1, rest - weight)
                frame, share, size = f"{name} [{number + 1}]", weight / rest, len(source.weights) - number
            elif source.pool is not None:
                share, size = source.pool.weight(at) / source.pool.total, len(source.pool.items)
            elif source.options:
                share, size = source.weights[at] / source.total, len(source.options)
            else:
                share, size = 1 / source.size, source.size
            self.frames.append(frame)
            self.parents.append(len(self.made))
            span = (self.offsets[first], self.offsets[end])
            value = "".join(self.trace.pieces[first:end])
            self.made.append(self.choice(site, at, value, parent, span, name, share, size))

    def choice(
        self,
        site: Site,
        at: int,
        value: str,
        parent: int | None,
        span: tuple[int, int],
        name: str,
        share: float,
        size: int,
    ) -> Choice:
        _, _, source, start, end, text, _ = site
        item = source.item(at)
        if item is None or item.owner is None:
            written, weight = source.options[at] if source.options else (text, 1.0)
            return Choice(
                source.kind,
                value,
                written,
                self.trace.part,
                weight=weight,
                probability=share,
                pool_size=size,
                parent=parent,
                span=span,
                site_span=(start, end),
                site_text=text,
                site=name,
            )
        owner = item.owner
        return Choice(
            ChoiceKind.TEMPLATE if owner.keys[:1] == (TEMPLATES,) else ChoiceKind.ITEM,
            value,
            item.text,
            self.trace.part,
            owner.document.path,
            item.line,
            item.column,
            owner.address,
            item.item_id,
            item.tags,
            item.payload,
            item.extra,
            item.weight.micro / 1_000_000,
            share,
            size,
            parent,
            span,
            (start, end),
            text,
            name,
        )
