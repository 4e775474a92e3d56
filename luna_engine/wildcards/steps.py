"""A draw step by step: the text after each choice, what is not drawn yet standing as it is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from luna_engine.wildcards.expansion import Choice
    from luna_engine.wildcards.library import WildcardLibrary

MOST_STEPS = 1_000


@dataclass(frozen=True, slots=True)
class Step:
    """The state after draw ``number``. ``choices`` are all so far, those from ``first_new`` on came with this draw."""

    number: int
    text: str
    parts: Mapping[str, str]
    choices: tuple[Choice, ...]
    first_new: int


def steps(library: WildcardLibrary, parts: Mapping[str, str], seed: int, **options: Any) -> Iterator[Step]:
    """Yield the state before the first draw (number 0, no choices), then one step for each draw.

    The last step has the text of ``expand`` with the same arguments. Each step is a draw of its own that stops
    early, so the work grows with the square of their number; beyond 1,000 draws the rest comes as one step.
    """
    snapshot = library.snapshot
    whole = library.expand_parts(parts, seed, snapshot=snapshot, **options)
    known = 0
    for number in range(MOST_STEPS):
        result = library.expand_parts(parts, seed, snapshot=snapshot, most_draws=number, **options)
        if result.text == whole.text and result.parts == whole.parts and len(result.choices) == len(whole.choices):
            break
        if number and len(result.choices) == known:
            continue  # a draw for a condition leaves no trace
        yield Step(number, result.text, result.parts, result.choices, known)
        known = len(result.choices)
    yield Step(number, whole.text, whole.parts, whole.choices, known)
