"""A prompt's text as rows: CLIP's chunks of 77 with start, end and padding, T5's and Qwen's single row (N3, N4, N5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from luna_daemon.runtime.backend import EncoderInput, Row
from luna_daemon.runtime.clip_text import END, POSITIONS, START, ClipShape
from luna_daemon.runtime.prompt_text import EmbeddingName, WeightedText, read_prompt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import torch

    from luna_daemon.runtime.text_encoder import EncoderShape
    from luna_daemon.runtime.vocabulary import Vocabulary

    FindEmbedding = Callable[[str], "torch.Tensor | None"]

_WHOLE_BELOW = 8  # a shorter group moves to the next chunk as a whole, a longer one is cut
_Token = tuple[int, float]


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A prompt for one encoder.

    Attributes:
        input: its rows and vectors.
        tokens: how many tokens the text has, start, end and padding not counted.
        missing: names of embeddings that were not found.
    """

    input: EncoderInput
    tokens: int
    missing: tuple[str, ...]


def tokenize(text: str, shape: ClipShape, vocabulary: Vocabulary, find_embedding: FindEmbedding) -> Tokenized:
    """Tokenize a prompt.

    Args:
        text: the prompt with weights and embeddings.
        shape: of the encoder; decides the padding.
        vocabulary: words to ids.
        find_embedding: name → vectors [n, width] or [width], or None.
    """
    read = _read(read_prompt(text), vocabulary, find_embedding)
    return read.tokenized(tuple(_row(chunk, shape.pad) for chunk in _chunks(read.groups)))


def tokenize_whole(
    text: str,
    shape: EncoderShape,
    vocabulary: Vocabulary,
    find_embedding: FindEmbedding,
    *,
    min_tokens: int,
    template: str | None = None,
) -> Tokenized:
    """Tokenize a prompt into one row of any length.

    Args:
        text: the prompt.
        shape: of the encoder; decides end and padding.
        vocabulary: words to ids.
        find_embedding: name → vectors [n, width] or [width], or None.
        min_tokens: shorter rows are filled up to this.
        template: what the text is put into, in place of ``{}``; prompt weights are then plain text.
    """
    full = text if template is None else template.replace("{}", text, 1)
    read = _read(read_prompt(full, has_weights=template is None), vocabulary, find_embedding)
    tokens = [token for group in read.groups for token in group]
    tokens += [] if shape.end is None else [(shape.end, 1.0)]
    tokens += [(shape.pad, 1.0)] * (min_tokens - len(tokens))
    row = Row(tuple(token for token, _ in tokens), tuple(weight for _, weight in tokens))
    return read.tokenized((row,))


@dataclass(frozen=True, slots=True)
class _Read:
    groups: list[list[_Token]]
    vectors: tuple[torch.Tensor, ...]
    missing: tuple[str, ...]

    def tokenized(self, rows: tuple[Row, ...]) -> Tokenized:
        return Tokenized(EncoderInput(rows, self.vectors), sum(map(len, self.groups)), self.missing)


def _read(
    pieces: Iterable[WeightedText | EmbeddingName], vocabulary: Vocabulary, find_embedding: FindEmbedding
) -> _Read:
    groups: list[list[_Token]] = []
    vectors: list[torch.Tensor] = []
    missing: list[str] = []
    for piece in pieces:
        run = piece.text if isinstance(piece, WeightedText) else ""
        if isinstance(piece, EmbeddingName):
            found, run = _embedding(piece, find_embedding)
            if found is None:
                missing.append(piece.name.strip(","))
            else:
                groups.append(_vector_group(found, vectors, piece.weight))
        if run:
            groups.append([(token, piece.weight) for token in vocabulary.encode(run)])
    return _Read(groups, tuple(vectors), tuple(missing))


def _embedding(piece: EmbeddingName, find: FindEmbedding) -> tuple[torch.Tensor | None, str]:
    """Look an embedding up, without its commas if that fails; return it and the text that goes on behind it."""
    found = find(piece.name)
    bare = piece.name.strip(",")
    if found is None and bare != piece.name:
        return find(bare), f"{piece.name[len(bare) :]} {piece.rest}"
    return found, piece.rest


def _vector_group(found: torch.Tensor, vectors: list[torch.Tensor], weight: float) -> list[_Token]:
    used = sum(len(block) for block in vectors)
    block = found.reshape(-1, found.shape[-1])
    vectors.append(block)
    return [(-1 - used - index, weight) for index in range(len(block))]


def _chunks(groups: Iterable[Sequence[_Token]]) -> list[list[_Token]]:
    """Lay groups into chunks that leave room for start and end."""
    room = POSITIONS - 2
    chunks: list[list[_Token]] = [[]]
    for group in groups:
        rest = list(group)
        is_cut = len(rest) >= _WHOLE_BELOW
        while len(chunks[-1]) + len(rest) > room:
            if is_cut:
                free = room - len(chunks[-1])
                chunks[-1] += rest[:free]
                rest = rest[free:]
            chunks.append([])
        chunks[-1] += rest
    return chunks


def _row(chunk: Sequence[_Token], pad: int) -> Row:
    filled = [(START, 1.0), *chunk, (END, 1.0)]
    filled += [(pad, 1.0)] * (POSITIONS - len(filled))
    return Row(tuple(token for token, _ in filled), tuple(weight for _, weight in filled))
