"""Tiled VAE passes with ComfyUI's positions, feathering and mean of three (rule N18 of the backend's spec)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import TYPE_CHECKING

import torch

from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luna_daemon.encode_messages import Tile

Run = Callable[[torch.Tensor], torch.Tensor]


def encode_passes(tile: Tile) -> tuple[tuple[int, int], ...]:
    """Return (width, height) of the three passes of an encode, in ComfyUI's order of summing."""
    return (tile.x, tile.y), (tile.x * 2, tile.y // 2), (tile.x // 2, tile.y * 2)


def decode_passes(tile: Tile) -> tuple[tuple[int, int], ...]:
    """Return (width, height) of the three passes of a decode, in ComfyUI's order of summing."""
    return (tile.x // 2, tile.y * 2), (tile.x * 2, tile.y // 2), (tile.x, tile.y)


def count_tiles(width: int, height: int, passes: Sequence[tuple[int, int]], overlap: int) -> int:
    """Return how many tiles all passes over one image have; sizes in units of the source."""
    return sum(
        len(_starts(height, tile_height, overlap)) * len(_starts(width, tile_width, overlap))
        for tile_width, tile_height in passes
    )


def mean_of_passes(
    source: torch.Tensor, passes: Sequence[tuple[int, int]], overlap: int, scale: float, run: Run
) -> torch.Tensor:
    """Run one image in several tilings and return the mean.

    Args:
        source: ``[1, C, H, W]``.
        passes: (width, height) of the tiles, in units of the source.
        overlap: in units of the source.
        scale: output pixels per source pixel.
        run: maps a tile ``[1, C, h, w]`` to ``[1, C', h * scale, w * scale]``, fp32 on the CPU.
    """
    total = _one_pass(source, passes[0], overlap, scale, run)
    for size in passes[1:]:
        total += _one_pass(source, size, overlap, scale, run)
    return total / len(passes)


def _one_pass(source: torch.Tensor, size: tuple[int, int], overlap: int, scale: float, run: Run) -> torch.Tensor:
    tile_width, tile_height = size
    height, width = source.shape[2:]
    if height <= tile_height and width <= tile_width:
        return run(source)
    feather = round(overlap * scale)
    blended: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    for top, left in product(_starts(height, tile_height, overlap), _starts(width, tile_width, overlap)):
        done = run(source[:, :, top : top + tile_height, left : left + tile_width])
        if blended is None or weights is None:
            shape = (1, done.shape[1], round(height * scale), round(width * scale))
            blended, weights = torch.zeros(shape), torch.zeros((1, 1, *shape[2:]))
        down, right = round(top * scale), round(left * scale)
        place = (..., slice(down, down + done.shape[2]), slice(right, right + done.shape[3]))
        mask = _ramp(done.shape[2], feather)[:, None] * _ramp(done.shape[3], feather)
        blended[place] += done * mask
        weights[place] += mask
    if blended is None or weights is None:
        raise DaemonError("internal", f"no tile of {size} covers {width} by {height}")
    return blended / weights


def _starts(length: int, tile: int, overlap: int) -> range:
    """Return where tiles begin along one axis; the last one is cut short at the border."""
    return range(0, length - overlap, tile - overlap) if length > tile else range(1)


def _ramp(length: int, feather: int) -> torch.Tensor:
    """Return the weights along one axis: min(1, (i + 1) / feather) from both ends, 1 if the axis is no longer."""
    if feather >= length or feather == 0:
        return torch.ones(length)
    rise = ((torch.arange(length, dtype=torch.float32) + 1) / feather).clamp(max=1.0)
    return rise * rise.flip(0)
