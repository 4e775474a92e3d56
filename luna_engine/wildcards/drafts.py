"""What an expansion works with: frames, sites, text being put together, and choices being made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from luna_engine.wildcards.expansion import Choice, ChoiceKind

if TYPE_CHECKING:
    from luna_engine.wildcards.model import Document, Item
    from luna_engine.wildcards.rules.records import Spot
    from luna_engine.wildcards.syntax import Parsed


@dataclass(slots=True)
class Frame:
    """One text being expanded. ``document`` is the file whose keys it sees, ``item`` where its places are.

    ``level`` is its depth, 0 for a part of the prompt: what stands at one depth is a stage of the rules.
    """

    parsed: Parsed
    key: int
    document: Document | None = None
    item: Item | None = None
    parent: int | None = None
    site: str = ""
    seen: dict[str, int] = field(default_factory=dict)
    level: int = 0


@dataclass(slots=True)
class Site:
    """A construct in a frame."""

    text: str
    key: int
    name: str
    occurrence: int = 0


@dataclass(slots=True)
class Draft:
    """A choice being made."""

    kind: ChoiceKind
    written: str
    part: str
    parent: int | None
    start: int | None
    first_piece: int
    site_span: tuple[int, int]
    site: Site
    weight: float
    probability: float
    pool_size: int
    item: Item | None = None
    value: str = ""
    end: int = 0
    rule: Spot | None = None

    def freeze(self) -> Choice:
        """Return the finished choice."""
        span = None if self.start is None else (self.start, self.end)
        site, item = self.site, self.item
        owner = item.owner if item is not None else None
        if item is None or owner is None:
            rule = self.rule
            return Choice(
                self.kind,
                self.value,
                self.written,
                self.part,
                rule.file if rule else None,
                rule.line if rule else None,
                rule.column if rule else None,
                weight=self.weight,
                probability=self.probability,
                pool_size=self.pool_size,
                parent=self.parent,
                span=span,
                site_span=self.site_span,
                site_text=site.text,
                site=site.name,
            )
        return Choice(  # by position: every item drawn comes this way
            self.kind,
            self.value,
            self.written,
            self.part,
            owner.document.path,
            item.line,
            item.column,
            owner.address,
            item.item_id,
            item.tags,
            item.payload,
            item.extra,
            self.weight,
            self.probability,
            self.pool_size,
            self.parent,
            span,
            self.site_span,
            site.text,
            site.name,
        )


class Pieces:
    """Text being put together; knows its length."""

    __slots__ = ("length", "pieces")

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.length = 0

    def write(self, text: str) -> None:
        """Add text."""
        self.pieces.append(text)
        self.length += len(text)

    def text(self, first: int = 0) -> str:
        """Return the text, or what came from piece ``first`` on."""
        pieces = self.pieces
        return pieces[first] if len(pieces) == first + 1 else "".join(pieces[first:])
