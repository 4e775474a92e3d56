"""Traces: the draws of compiled programs, and the choices they stand for, put together only when somebody looks."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from luna_engine.wildcards.expansion import Choice, ChoiceKind
from luna_engine.wildcards.model import TEMPLATES
from luna_engine.wildcards.recursion import recursion_room

if TYPE_CHECKING:
    from luna_engine.wildcards.programs import Place, Program, Source

    Trace = tuple[str, Program, list[int]]  # a part's name, its program, the number of each candidate drawn

_PENDING = Choice(ChoiceKind.OPTION, "", "")


def choices_of(traces: tuple[Trace, ...]) -> tuple[Choice, ...]:
    """Return the choices of an expansion, a parent before what it holds."""
    made: list[Choice] = []
    with recursion_room():
        for part, program, draws in traces:
            _Teller(part, draws, made).program(program, part and f"{part}:", None)
    return tuple(made)


class _Teller:
    """Walks a program again with the draws that were noted."""

    def __init__(self, part: str, draws: list[int], made: list[Choice]) -> None:
        self.part = part
        self.draws = iter(draws)
        self.made = made
        self.pieces: list[str] = []
        self.length = 0

    def write(self, text: str) -> None:
        self.pieces.append(text)
        self.length += len(text)

    def program(self, program: Program, frame: str, parent: int | None) -> None:
        sites, behind = program
        for before, _, source, place in sites:
            self.write(before)
            self.site(source, place, f"{frame} {place[3]}" if frame else place[3], parent)
        self.write(behind)

    def site(self, source: Source, place: Place, name: str, parent: int | None) -> None:
        if source.frame is not None:
            self.program(source.frame, name, parent)
        elif source.separator is not None:
            self.several(source, place, source.separator, name, parent)
        elif source.number_text is not None:
            at = next(self.draws)
            start, text = self.length, source.number_text(at)
            self.write(text)
            self.made.append(self.choice(source, place, at, text, parent, start, name, 1 / source.total, source.total))
        else:
            at = next(self.draws)
            if source.pool is not None:
                share, size = source.pool.weight(at) / source.pool.total, len(source.pool.items)
            else:
                share, size = source.weights[at] / sum(source.weights), len(source.options)
            self.one(source, place, at, parent, name, name, share, size)

    def several(self, source: Source, place: Place, separator: str, name: str, parent: int | None) -> None:
        """Tell the picks of a multi-pick; one that printed nothing brought no separator."""
        left = sum(source.weights)
        has_text = False
        for number in range(next(self.draws)):
            at = next(self.draws)
            before, length, made = len(self.pieces), self.length, len(self.made)
            if has_text:
                self.write(separator)
            start = self.length
            share, size = source.weights[at] / left, len(source.weights) - number
            self.one(source, place, at, parent, name, f"{name} [{number + 1}]", share, size)
            left -= source.weights[at]
            if self.length > start:
                has_text = True
            elif has_text:
                del self.pieces[before:]
                self.length = length
                self.made[made:] = [dataclasses.replace(choice, span=(length, length)) for choice in self.made[made:]]

    def one(
        self,
        source: Source,
        place: Place,
        at: int,
        parent: int | None,
        name: str,
        frame: str,
        share: float,
        size: int,
    ) -> None:
        """Tell one candidate and what it holds."""
        text, _, inner = source.table[at]
        number, start, first = len(self.made), self.length, len(self.pieces)
        self.made.append(_PENDING)  # a parent stands before what it holds
        if inner is None:
            self.write(text)
        else:
            self.program(inner, frame, number)
        value = "".join(self.pieces[first:])
        self.made[number] = self.choice(source, place, at, value, parent, start, name, share, size)

    def choice(
        self,
        source: Source,
        place: Place,
        at: int,
        value: str,
        parent: int | None,
        start: int,
        name: str,
        share: float,
        size: int,
    ) -> Choice:
        site_start, site_end, text, _ = place
        span, site_span = (start, self.length), (site_start, site_end)
        item = source.item(at)
        if item is None or item.owner is None:
            written, weight = source.options[at] if source.options else (text, 1.0)
            return Choice(
                source.kind,
                value,
                written,
                self.part,
                weight=weight,
                probability=share,
                pool_size=size,
                parent=parent,
                span=span,
                site_span=site_span,
                site_text=text,
                site=name,
            )
        owner = item.owner
        return Choice(
            ChoiceKind.TEMPLATE if owner.keys[:1] == (TEMPLATES,) else ChoiceKind.ITEM,
            value,
            item.text,
            self.part,
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
            site_span,
            text,
            name,
        )
