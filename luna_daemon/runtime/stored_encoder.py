"""What text encoders without a pooled state have in common: weights kept as stored, moved and named as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from luna_daemon.model_messages import EncoderFacts
from luna_daemon.runtime.side_path import Slot, find_slots
from luna_daemon.runtime.stored import build, fill

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from torch import nn

    from luna_daemon.runtime.text_encoder import EncoderShape


class StoredEncoder:
    """The part of `luna_daemon.runtime.text_encoder.TextEncoder` that does not depend on the architecture.

    Args:
        shape: sizes.
        make: builds the module without weights.
        tensors: standalone names → tensors of any float type.
        deciding: name of the tensor whose type is the encoder's, 16 bits at most.
        device: where it runs.
    """

    has_pooled = False
    row_max: ClassVar[int]

    def __init__(
        self,
        shape: EncoderShape,
        make: Callable[[], nn.Module],
        tensors: Mapping[str, torch.Tensor],
        deciding: str,
        device: torch.device,
    ) -> None:
        self.device = device
        self._sizes = shape
        self._module = build(make)
        self.dtype = fill(self._module, tensors, deciding)

    @property
    def facts(self) -> EncoderFacts:
        """Sizes for tokenizers."""
        return EncoderFacts(self._sizes.layers, self._sizes.width, self.row_max, self._sizes.vocabulary)

    def project(self, pooled: torch.Tensor) -> torch.Tensor:
        """Return it as it is: there is neither pooled state nor projection."""
        return pooled

    def state(self) -> dict[str, torch.Tensor]:
        """Return the weights under their standalone names."""
        return dict(self._module.state_dict())

    def slots(self) -> dict[str, Slot]:
        """Return where each weight lives, by its standalone name."""
        return dict(find_slots(self._module, self.dtype))

    def to(self, device: torch.device) -> None:
        """Move the weights; they compute where they are."""
        self._module.to(device)
        self.device = device
