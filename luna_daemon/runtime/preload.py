"""A first small run of a set, so that the first request does not pay for allocation and kernel choice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from luna_daemon.runtime.backend import EncodeItem, EncoderInput, Row
from luna_daemon.runtime.clip_text import END, POSITIONS, START

if TYPE_CHECKING:
    from luna_daemon.runtime.backend import ModelSet


def warm_up(model: ModelSet) -> None:
    """Encode an empty prompt; encode and decode one image of eight latent units."""
    if model.encoders:
        inputs = {
            role: EncoderInput((Row((START, *[END] * (POSITIONS - 1)), (1.0,) * POSITIONS),)) for role in model.encoders
        }
        model.encode([EncodeItem(inputs)], lambda: None)
    if model.vae is not None:
        side = 8 * model.vae.spatial
        latent = model.vae_encode(torch.full((1, side, side, 3), 0.5), lambda: None)
        model.vae_decode(latent, lambda: None)
