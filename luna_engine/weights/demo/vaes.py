"""The image autoencoder of SD, SDXL, SD3 and Flux: one shape, other numbers of latent channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_engine.weights.demo.parts import RandomTensor, conv, norm

if TYPE_CHECKING:
    from collections.abc import Iterator

_LEVELS = (128, 256, 512, 512)


def vae(latent_channels: int, *, with_quant_convs: bool) -> Iterator[RandomTensor]:
    """Yield a whole autoencoder.

    Args:
        latent_channels: 4 (SD, SDXL) or 16 (SD3, Flux, Z-Image).
        with_quant_convs: whether the 1x1 convolutions between the halves exist (the 4-channel ones have them).
    """
    yield from _encoder(2 * latent_channels)
    yield from _decoder(latent_channels)
    if with_quant_convs:
        yield from conv("quant_conv", 2 * latent_channels, 2 * latent_channels, 1)
        yield from conv("post_quant_conv", latent_channels, latent_channels, 1)


def _encoder(moments: int) -> Iterator[RandomTensor]:
    yield from conv("encoder.conv_in", _LEVELS[0], 3, 3)
    width = _LEVELS[0]
    for level, out in enumerate(_LEVELS):
        for block in range(2):
            yield from _residual(f"encoder.down.{level}.block.{block}", width, out)
            width = out
        if level < len(_LEVELS) - 1:
            yield from conv(f"encoder.down.{level}.downsample.conv", width, width, 3)
    yield from _middle("encoder", width)
    yield from norm("encoder.norm_out", width)
    yield from conv("encoder.conv_out", moments, width, 3)


def _decoder(latent_channels: int) -> Iterator[RandomTensor]:
    width = _LEVELS[-1]
    yield from conv("decoder.conv_in", width, latent_channels, 3)
    yield from _middle("decoder", width)
    for level in reversed(range(len(_LEVELS))):
        for block in range(3):
            yield from _residual(f"decoder.up.{level}.block.{block}", width, _LEVELS[level])
            width = _LEVELS[level]
        if level:
            yield from conv(f"decoder.up.{level}.upsample.conv", width, width, 3)
    yield from norm("decoder.norm_out", width)
    # Half the spread: most of the picture then lies inside -1..1 and is not clipped.
    yield from conv("decoder.conv_out", 3, width, 3, gain=0.8)


def _middle(half: str, width: int) -> Iterator[RandomTensor]:
    yield from _residual(f"{half}.mid.block_1", width, width)
    yield from norm(f"{half}.mid.attn_1.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        yield from conv(f"{half}.mid.attn_1.{part}", width, width, 1)
    yield from _residual(f"{half}.mid.block_2", width, width)


def _residual(name: str, width: int, out: int) -> Iterator[RandomTensor]:
    yield from norm(f"{name}.norm1", width)
    yield from conv(f"{name}.conv1", out, width, 3)
    yield from norm(f"{name}.norm2", out)
    yield from conv(f"{name}.conv2", out, out, 3)
    if width != out:
        yield from conv(f"{name}.nin_shortcut", out, width, 1)
