"""Reading what draws inside braces: ranges, variants and multi-picks with their weighted options."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from luna_engine.wildcards import scan
from luna_engine.wildcards.diagnostics import Severity
from luna_engine.wildcards.numbers import make_grid
from luna_engine.wildcards.syntax import (
    Kept,
    Multi,
    Node,
    Number,
    Option,
    Profile,
    Sampler,
    Variant,
    Weight,
    Wildcard,
)
from luna_engine.wildcards.weights import make_weight, match_weight

if TYPE_CHECKING:
    from luna_engine.wildcards.parser import Reader

_QUANTITY = re.compile(r"([0-9]+)#(?=__)")
_SEPARATORS = {Profile.NATIVE: ", ", Profile.DYNAMICPROMPTS: ",", Profile.IMPACT: " "}


def number(reader: Reader, start: int, end: int, written: tuple[str, str, str | None]) -> Node:
    """Read a range."""
    grid = make_grid(*written)
    body = reader.text[start + 1 : end - 1]
    if grid is None:
        reader.report(
            "bad-range", f"the range {body[:60]} is too large", "at most 30 digits and 10^30 values", start, end
        )
    elif grid.had_bad_step:
        reader.report(
            "bad-range",
            f"the step of {body} is not positive",
            "a step of 1 was used",
            start,
            end,
            Severity.WARNING,
        )
    elif grid.was_reversed:
        reader.report(
            "reversed-bounds",
            f"the bounds of {body} are reversed",
            "they were swapped",
            start,
            end,
            Severity.HINT,
        )
    return Number(start, end, grid)


def multi(reader: Reader, at: int, close: int, bound: re.Match[str]) -> Node:
    """Read a multi-pick whose bound was matched."""
    start, separator = bound.end(), _SEPARATORS[reader.profile]
    dollars = reader.tops(start, close).dollars
    if dollars:
        separator = scan.unescape(reader.text[start : dollars[0]])
        start = dollars[0] + 2
    if start == close:
        reader.report("syntax", "a multi-pick without options", "write {2$$, $$one|two|three}", at, close + 1)
        return Kept(at, close + 1)
    low, high = _bounds(bound)
    options = _options(reader, start, close, reader.tops(start, close).bars, quantified=True)
    if low is not None and high is not None and low > high:
        low, high = high, low
        reader.report(
            "reversed-bounds",
            "the bounds of the multi-pick are reversed",
            "they were swapped",
            at,
            bound.end(),
            Severity.HINT,
        )
    sampler = Sampler(bound[1]) if bound[1] else None
    return Multi(at, close + 1, sampler, low, high, separator, options)


def variant(reader: Reader, at: int, close: int, bars: list[int]) -> Node:
    """Read ``{a|b}`` whose bars stand at ``bars``."""
    start, sampler = at + 1, None
    if reader.has_commands and reader.text[start] in scan.SAMPLER_SIGNS:
        sampler = Sampler(reader.text[start])
        start += 1
    return Variant(at, close + 1, sampler, _options(reader, start, close, bars, quantified=False))


def _options(reader: Reader, start: int, end: int, bars: list[int], *, quantified: bool) -> tuple[Option, ...]:
    made: list[Option] = []
    for stop in (*bars, end):
        made.append(_option(reader, start, stop, quantified=quantified))
        start = stop + 1
    return tuple(made)


def _option(reader: Reader, start: int, end: int, *, quantified: bool) -> Option:
    weight, begin = Weight(), start
    found = match_weight(reader.text, start, end)
    if found:
        weight, begin = make_weight(found[1]), found.end()
        if weight.problem:
            reader.report(
                "bad-weight",
                weight.problem,
                "write a positive number such as 2:: or 0.5::",
                start,
                begin,
                Severity.WARNING,
            )
    quantity = _QUANTITY.match(reader.text, begin, end) if quantified and not found else None
    if quantity and reader.profile is not Profile.DYNAMICPROMPTS:
        prompt = reader.prompt(quantity.end(), end)
        if len(prompt.nodes) == 1 and isinstance(prompt.nodes[0], Wildcard):
            return Option(start, end, weight, prompt, _small(quantity[1]))
    return Option(start, end, weight, reader.prompt(begin, end))


def _small(digits: str) -> int:
    """Return the number, or a million if it is larger: more than any pick can use."""
    return int(digits) if len(digits) <= 6 else 1_000_000


def _bounds(bound: re.Match[str]) -> tuple[int | None, int | None]:
    _, low, high, least, _, most, exact = bound.groups()
    if exact:
        return _small(exact), _small(exact)
    if most:
        return 1, _small(most)
    if least:
        return _small(least), None
    return _small(low), _small(high)
