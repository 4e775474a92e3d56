"""Images as Qwen3-VL's vision tower reads them: resized, cut into patches, and where they stand in the conversation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PIXELS_MIN, PIXELS_MAX = 256 * 256, 1024 * 1024
RATIO_MAX = 200


@dataclass(frozen=True, slots=True)
class PatchSizes:
    """How a vision tower cuts images: side of a patch, frames in one, patches on each side that become one token."""

    side: int
    frames: int
    merged: int

    @property
    def unit(self) -> int:
        """Return the side of a token in pixels."""
        return self.side * self.merged


@dataclass(frozen=True, slots=True)
class PatchedImage:
    """An image as patches: values [rows * columns, channels * frames * side * side], rows and columns of patches."""

    values: torch.Tensor
    rows: int
    columns: int


def fitting_size(height: int, width: int, unit: int) -> tuple[int, int]:
    """Return the size an image is brought to: sides are multiples of a token, the area stays within bounds.

    Raises:
        DaemonError: ``image-shape`` for an image that is much longer than wide.
    """
    if max(height, width) > RATIO_MAX * min(height, width):
        raise DaemonError(
            "image-shape", f"an image of {width}x{height} is more than {RATIO_MAX} times longer than wide"
        )
    area = height * width
    scale = 1.0
    if area > PIXELS_MAX:
        scale = math.sqrt(PIXELS_MAX / area)
    elif area < PIXELS_MIN:
        scale = math.sqrt(PIXELS_MIN / area)
    is_small = area < PIXELS_MIN
    whole = math.ceil if is_small else math.floor if area > PIXELS_MAX else round
    return tuple(max(unit, whole(side * scale / unit) * unit) for side in (height, width))  # type: ignore[return-value]  # two sides in, two out


def patch(image: torch.Tensor, sizes: PatchSizes) -> PatchedImage:
    """Resize an image (bicubic, antialiased), map 0..1 to -1..1 and cut it into patches, a merged block after another.

    Args:
        image: [H, W, C] with at least three channels, fp32, 0..1; further channels are dropped.
        sizes: of the vision tower.

    Raises:
        DaemonError: ``image-shape`` or ``value-range``.
    """
    if image.ndim != 3 or image.shape[-1] < 3 or 0 in image.shape:
        raise DaemonError("image-shape", f"expected an image [H, W, 3], found {list(image.shape)}")
    if not torch.isfinite(image).all():
        raise DaemonError("value-range", "an image holds values that are no numbers")
    pixels = image[..., :3].permute(2, 0, 1)[None].float()
    height, width = fitting_size(image.shape[0], image.shape[1], sizes.unit)
    if (height, width) != tuple(image.shape[:2]):
        pixels = functional.interpolate(pixels, (height, width), mode="bicubic", antialias=True, align_corners=False)
    pixels = pixels.clamp(0.0, 1.0) * 2.0 - 1.0
    rows, columns, merged = height // sizes.side, width // sizes.side, sizes.merged
    blocks = pixels.reshape(3, rows // merged, merged, sizes.side, columns // merged, merged, sizes.side)
    still = blocks.permute(1, 4, 2, 5, 0, 3, 6)[..., None, :, :].expand(*([-1] * 5), sizes.frames, -1, -1)
    return PatchedImage(still.reshape(rows * columns, -1), rows, columns)


def positions(ids: Sequence[int], mark: int, images: Sequence[PatchedImage], merged: int) -> tuple[torch.Tensor, int]:
    """Return where each token stands: its index, then time, row and column (Qwen2-VL's multimodal rotary positions).

    Args:
        ids: of the whole conversation; each image is a run of ``mark``.
        mark: stands for a token of an image.
        images: in order.
        merged: patches on each side of a token.

    Returns:
        int64 [4, n], and the position of the next token.
    """
    columns: list[tuple[int, int, int]] = []
    at = 0
    waiting = iter(images)
    index = 0
    while index < len(ids):
        if ids[index] != mark:
            columns.append((at, at, at))
            at += 1
            index += 1
            continue
        image = next(waiting)
        high, wide = image.rows // merged, image.columns // merged
        columns += _grid(at, high, wide)
        index += high * wide
        at += max(high, wide)
    where = torch.tensor(columns, dtype=torch.int64).T
    return torch.cat((torch.arange(len(ids))[None], where)), at


def _grid(at: int, high: int, wide: int) -> Iterator[tuple[int, int, int]]:
    for row in range(high):
        for column in range(wide):
            yield at, at + row, at + column
