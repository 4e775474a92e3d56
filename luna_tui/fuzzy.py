"""Ranking names by what is typed: whole words first, then letters in order; cheap enough for tens of thousands."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST_RANKED = 200


def rank(typed: str, names: Iterable[str]) -> list[str]:
    """Return the names that fit, best first, at most 200.

    A name fits if every word of ``typed`` stands in it, or failing that if its letters occur in this order. Matches
    that begin a part of an address come first, then shorter names.
    """
    words = typed.casefold().split()
    letters = "".join(words)
    found: list[tuple[int, int, str]] = []
    for name in names:
        folded = name.casefold()
        if all(word in folded for word in words):
            found.append((sum(_depth(folded, word) for word in words), len(name), name))
        elif (spread := _spread(folded, letters)) is not None:
            found.append((100 + spread, len(name), name))
    found.sort()
    return [name for _, _, name in found[:MOST_RANKED]]


def _depth(name: str, word: str) -> int:
    """Return 0 if a word begins the name, 1 if it begins a part of it, else 2."""
    at = name.find(word)
    return 0 if at == 0 else 1 if name[at - 1] in "/.:_- " else 2


def _spread(name: str, letters: str) -> int | None:
    """Return how far apart letters stand that occur in order, None if they do not."""
    at = first = -1
    for letter in letters:
        at = name.find(letter, at + 1)
        if at < 0:
            return None
        first = at if first < 0 else first
    return at - first - len(letters) + 1
