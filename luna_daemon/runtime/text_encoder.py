"""What every text encoder of the native backend offers, and the token table with room for textual inversions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from luna_daemon.model_messages import EncoderFacts
    from luna_daemon.runtime.side_path import Slot


class EncoderShape(Protocol):
    """Sizes and special tokens that the rules of a family need."""

    @property
    def layers(self) -> int:
        """Number of blocks."""

    @property
    def width(self) -> int:
        """Width of a hidden state."""

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""

    @property
    def start(self) -> int | None:
        """Token in front of a row."""

    @property
    def end(self) -> int | None:
        """Token behind a prompt."""

    @property
    def pad(self) -> int:
        """Token that fills a row."""


@dataclass(frozen=True, slots=True)
class HiddenStates:
    """What a batch of rows gave: ``last`` after the final norm [rows, n, width], and the raw picked blocks."""

    last: torch.Tensor
    blocks: Mapping[int, torch.Tensor]


class TextEncoder(Protocol):
    """A text encoder with its weights. Only the executor thread calls it."""

    @property
    def shape(self) -> EncoderShape:
        """Its sizes."""

    @property
    def facts(self) -> EncoderFacts:
        """Sizes for tokenizers."""

    @property
    def dtype(self) -> torch.dtype:
        """The type that its weights count as; ComfyUI keeps them in it."""

    @property
    def has_pooled(self) -> bool:
        """Whether a row has a pooled state."""

    @property
    def is_masked(self) -> bool:
        """Whether padding is masked, and the mask handed on with the conditioning."""

    def run(
        self,
        ids: torch.Tensor,
        vectors: torch.Tensor | None,
        blocks: Iterable[int],
        mask: torch.Tensor | None = None,
    ) -> HiddenStates:
        """Encode rows of equal length.

        Args:
            ids: [rows, n] int64 on the CPU; ``vocabulary + k`` is vector k.
            vectors: [k, width] or None.
            blocks: indexes of the blocks whose raw output is wanted.
            mask: [rows, n], 1 for tokens and 0 for padding; only for an encoder that is masked.
        """

    def final_norm(self, hidden: torch.Tensor) -> torch.Tensor:
        """Apply the norm behind the last block."""

    def project(self, pooled: torch.Tensor) -> torch.Tensor:
        """Apply text_projection."""

    def state(self) -> dict[str, torch.Tensor]:
        """Return the weights under their standalone names."""

    def slots(self) -> dict[str, Slot]:
        """Return where each weight lives, by its standalone name."""

    def to(self, device: torch.device) -> None:
        """Move the weights; they compute where they are."""


def look_up(table: torch.Tensor, ids: torch.Tensor, vectors: torch.Tensor | None) -> torch.Tensor:
    """Look ids up in fp32; an id behind the vocabulary is a vector.

    Args:
        table: [vocabulary, width], 8 or more bits.
        ids: int64, below vocabulary + number of vectors.
        vectors: [k, width] fp32, or None.
    """
    vocabulary = len(table)
    rows = _rows(table, ids.clamp(max=vocabulary - 1))
    if vectors is not None:
        known = ids < vocabulary
        rows[~known] = vectors[ids[~known] - vocabulary]
    return rows


def _rows(table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    if table.dtype.itemsize > 1:
        return nn.functional.embedding(ids, table).float()
    # Indexing is not there for 8-bit floats on every device. Some fp8 files hold NaN for unused tokens.
    return table.view(torch.uint8)[ids].view(table.dtype).float().nan_to_num()
