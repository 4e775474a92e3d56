"""Near duplicates among many short texts: pairs that share a word and are alike in at least 85 of 100 characters."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LEAST_SIMILAR = 0.85
MOST_TEXTS = 100_000
_MOST_BLOCK = 60
_WINDOW = 6
_MOST_CHARACTERS = 400


@dataclass(frozen=True, slots=True)
class Near:
    """Two texts, by their places in what was given, that are nearly one."""

    first: int
    second: int
    similarity: float


def near_pairs(texts: Sequence[str], wanted: Sequence[bool] | None = None) -> list[Near]:
    """Return the pairs of different texts that are nearly equal, the most alike first.

    Texts are compared if they share a word. Words of more than 60 texts make no block; those texts are sorted by what
    they say and each is compared with its neighbours, so that the work grows with the number of texts and not with its
    square. Similarity is twice the number of matching characters over all characters (Ratcliff and Obershelp).

    Args:
        texts: evened texts; equal ones are no pair.
        wanted: which texts at least one of a pair must be among; all if None.
    """
    found: dict[tuple[int, int], float] = {}
    counts = [Counter(text) for text in texts]
    for pair in _candidates(texts):
        if pair in found or (wanted is not None and not (wanted[pair[0]] or wanted[pair[1]])):
            continue
        similarity = _similarity(texts[pair[0]], texts[pair[1]], counts[pair[0]], counts[pair[1]])
        if similarity >= LEAST_SIMILAR:
            found[pair] = similarity
    return [Near(*pair, value) for pair, value in sorted(found.items(), key=lambda one: (-one[1], one[0]))]


def _candidates(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield pairs of places worth comparing, the lower first; those of large blocks may come more than once."""
    words = [frozenset(text.split()) if len(text) <= _MOST_CHARACTERS else frozenset() for text in texts]
    blocks: defaultdict[str, list[int]] = defaultdict(list)
    for at, held in enumerate(words):
        for word in held:
            blocks[word].append(at)
    for at, held in enumerate(words):
        small = [blocks[word] for word in held if len(blocks[word]) <= _MOST_BLOCK]
        yield from sorted({(at, other) for block in small for other in block if other > at})
    for block in blocks.values():
        if len(block) > _MOST_BLOCK:
            for ordered in (sorted(block, key=texts.__getitem__), sorted(block, key=lambda at: texts[at][::-1])):
                for number, first in enumerate(ordered):
                    for second in ordered[number + 1 : number + 1 + _WINDOW]:
                        yield min(first, second), max(first, second)


def _similarity(first: str, second: str, first_signs: Counter[str], second_signs: Counter[str]) -> float:
    """Return the similarity of two texts, 0 as soon as it cannot reach what counts."""
    length = len(first) + len(second)
    if first == second or 2 * min(len(first), len(second)) < LEAST_SIMILAR * length:
        return 0.0
    shared = sum(min(number, second_signs[sign]) for sign, number in first_signs.items())
    if 2 * shared < LEAST_SIMILAR * length:
        return 0.0
    return SequenceMatcher(None, first, second, autojunk=False).ratio()
