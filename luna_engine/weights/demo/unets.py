"""The UNets of SD1.5 and SDXL at the least width and depth that loaders still recognise.

Both are 320 wide at every level (the real ones widen to 1280); SDXL keeps its depths on the way down, because
loaders tell it by them, and has one transformer block per place elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from luna_engine.weights.demo.parts import RandomTensor, conv, linear, norm, under

if TYPE_CHECKING:
    from collections.abc import Iterator

_WIDTH = 320
_TIME_WIDTH = 4 * _WIDTH


@dataclass(frozen=True, slots=True)
class UNet:
    """What tells one UNet from another. Depths are transformer blocks behind each residual block of a level."""

    depth_down: tuple[int, ...]
    depth_up: tuple[int, ...]
    depth_middle: int
    context: int
    has_linear_projection: bool
    pooled: int | None = None


SD15 = UNet((1, 1, 1, 0), (1, 1, 1, 0), 1, 768, has_linear_projection=False)
SDXL = UNet((0, 2, 10), (0, 1, 1), 1, 2048, has_linear_projection=True, pooled=2816)


def unet(kind: UNet) -> Iterator[RandomTensor]:
    """Yield a UNet under the names of the original repositories, without a prefix."""
    yield from linear("time_embed.0", _TIME_WIDTH, _WIDTH)
    yield from linear("time_embed.2", _TIME_WIDTH, _TIME_WIDTH)
    if kind.pooled is not None:
        yield from linear("label_emb.0.0", _TIME_WIDTH, kind.pooled)
        yield from linear("label_emb.0.2", _TIME_WIDTH, _TIME_WIDTH)
    yield from _down(kind)
    yield from _residual("middle_block.0", _WIDTH)
    yield from under("middle_block.1.", _transformer(kind, kind.depth_middle))
    yield from _residual("middle_block.2", _WIDTH)
    yield from _up(kind)
    yield from norm("out.0", _WIDTH)
    # A random network predicts no noise; a small prediction leaves the sampler's latents in the range of real ones.
    yield from conv("out.2", 4, _WIDTH, 3, gain=0.2)


def _down(kind: UNet) -> Iterator[RandomTensor]:
    yield from conv("input_blocks.0.0", _WIDTH, 4, 3)
    index = 1
    for level, depth in enumerate(kind.depth_down):
        for _ in range(2):
            yield from _residual(f"input_blocks.{index}.0", _WIDTH)
            if depth:
                yield from under(f"input_blocks.{index}.1.", _transformer(kind, depth))
            index += 1
        if level < len(kind.depth_down) - 1:
            yield from conv(f"input_blocks.{index}.0.op", _WIDTH, _WIDTH, 3)
            index += 1


def _up(kind: UNet) -> Iterator[RandomTensor]:
    index = 0
    for level in reversed(range(len(kind.depth_up))):
        depth = kind.depth_up[level]
        for place in range(3):
            # Each takes the skip connection from the way down beside its own input: twice the width.
            yield from _residual(f"output_blocks.{index}.0", 2 * _WIDTH)
            if depth:
                yield from under(f"output_blocks.{index}.1.", _transformer(kind, depth))
            if level and place == 2:
                yield from conv(f"output_blocks.{index}.{2 if depth else 1}.conv", _WIDTH, _WIDTH, 3)
            index += 1


def _residual(name: str, width: int) -> Iterator[RandomTensor]:
    yield from norm(f"{name}.in_layers.0", width)
    yield from conv(f"{name}.in_layers.2", _WIDTH, width, 3)
    yield from linear(f"{name}.emb_layers.1", _WIDTH, _TIME_WIDTH)
    yield from norm(f"{name}.out_layers.0", _WIDTH)
    yield from conv(f"{name}.out_layers.3", _WIDTH, _WIDTH, 3)
    if width != _WIDTH:
        yield from conv(f"{name}.skip_connection", _WIDTH, width, 1)


def _transformer(kind: UNet, depth: int) -> Iterator[RandomTensor]:
    yield from norm("norm", _WIDTH)
    yield from _projection(kind, "proj_in")
    for index in range(depth):
        yield from under(f"transformer_blocks.{index}.", _block(kind.context))
    yield from _projection(kind, "proj_out")


def _projection(kind: UNet, name: str) -> Iterator[RandomTensor]:
    if kind.has_linear_projection:
        yield from linear(name, _WIDTH, _WIDTH)
    else:
        yield from conv(name, _WIDTH, _WIDTH, 1)


def _block(context: int) -> Iterator[RandomTensor]:
    yield from norm("norm1", _WIDTH)
    yield from _attention("attn1", _WIDTH)
    yield from norm("norm2", _WIDTH)
    yield from _attention("attn2", context)
    yield from norm("norm3", _WIDTH)
    yield from linear("ff.net.0.proj", 8 * _WIDTH, _WIDTH)
    yield from linear("ff.net.2", _WIDTH, 4 * _WIDTH)


def _attention(name: str, context: int) -> Iterator[RandomTensor]:
    yield from linear(f"{name}.to_q", _WIDTH, _WIDTH, bias=False)
    yield from linear(f"{name}.to_k", _WIDTH, context, bias=False)
    yield from linear(f"{name}.to_v", _WIDTH, context, bias=False)
    yield from linear(f"{name}.to_out.0", _WIDTH, _WIDTH)
