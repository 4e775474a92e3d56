"""A prompt's text as weighted pieces and embedding names, by the rules ComfyUI's nodes have taught users (N1, N2)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Iterator

EMBEDDING = "embedding:"
NESTING_MAX = 200
_LEVEL = 1.1
# Escaped parentheses are set aside as characters that no prompt holds, so that groups do not see them.
_ASIDE = {r"\)": "\0\1", r"\(": "\0\2"}
_EMBEDDING_START = re.compile(rf"[ \n](?={EMBEDDING})")


@dataclass(frozen=True, slots=True)
class WeightedText:
    """A run of text of one weight."""

    text: str
    weight: float


@dataclass(frozen=True, slots=True)
class EmbeddingName:
    """``embedding:NAME`` and what follows it up to the next embedding, which goes on as text."""

    name: str
    rest: str
    weight: float


def read_prompt(text: str, *, has_weights: bool = True) -> Iterator[WeightedText | EmbeddingName]:
    """Cut a prompt into runs of one weight and embeddings.

    Args:
        text: the prompt.
        has_weights: False for encoders that read parentheses as text; escaped ones lose their backslash all the same.

    Raises:
        DaemonError: ``request-invalid`` for parentheses nested deeper than `NESTING_MAX`.
    """
    for piece in _weigh(text) if has_weights else (_unweighted(text),):
        for part in _EMBEDDING_START.split(piece.text):
            if part.startswith(EMBEDDING):
                words = part.removeprefix(EMBEDDING).split()
                yield EmbeddingName(words[0] if words else "", " ".join(words[1:]), piece.weight)
            elif part:
                yield WeightedText(part, piece.weight)


def _weigh(text: str) -> Iterator[WeightedText]:
    for written, aside in _ASIDE.items():
        text = text.replace(written, aside)
    open_groups = [(_split_groups(text), 1.0)]
    while open_groups:
        pieces, weight = open_groups[-1]
        piece = next(pieces, None)
        if piece is None:
            open_groups.pop()
        elif not _is_group(piece):
            yield WeightedText(_restore(piece), weight)
        elif len(open_groups) > NESTING_MAX:
            raise DaemonError(
                "request-invalid", f"parentheses are nested deeper than {NESTING_MAX}", "give weights as (text:1.3)"
            )
        else:
            body, own = _explicit_weight(piece[1:-1], weight * _LEVEL)
            open_groups.append((_split_groups(body), own))


def _unweighted(text: str) -> WeightedText:
    for written in _ASIDE:
        text = text.replace(written, written[1])
    return WeightedText(text, 1.0)


def _is_group(piece: str) -> bool:
    return len(piece) >= 2 and piece[0] == "(" and piece[-1] == ")"


def _restore(text: str) -> str:
    for written, aside in _ASIDE.items():
        text = text.replace(aside, written[1])
    return text


def _explicit_weight(body: str, implied: float) -> tuple[str, float]:
    """Take ``:1.3`` off the end. It replaces the weight of all groups around; without a number the text stays."""
    head, colon, tail = body.rpartition(":")
    if not colon or not head:
        return body, implied
    try:
        weight = float(tail)
    except ValueError:
        return body, implied
    return (head, weight) if math.isfinite(weight) else (body, implied)


def _split_groups(text: str) -> Iterator[str]:
    """Cut text into top-level groups and what lies between them.

    A closing parenthesis too many makes the depth negative: what follows is no group until it is balanced.
    """
    start, depth = 0, 0
    for index, character in enumerate(text):
        if character == "(":
            if depth == 0 and index > start:
                yield text[start:index]
                start = index
            depth += 1
        elif character == ")":
            depth -= 1
            if depth == 0:
                yield text[start : index + 1]
                start = index + 1
    if start < len(text):
        yield text[start:]
