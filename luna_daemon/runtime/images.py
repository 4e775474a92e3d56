"""Pixel and latent tensors as nodes give them, brought to what a VAE takes: crop, channels, time axis (N16)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    import torch

    from luna_daemon.encode_messages import Tile
    from luna_daemon.model_messages import VaeFacts


@dataclass(frozen=True, slots=True)
class Pixels:
    """Pixels [B, H, W, 3] ready for the VAE; ``crop`` is (height, width) kept, None if nothing was cut off."""

    tensor: torch.Tensor
    crop: tuple[int, int] | None


def prepare_pixels(pixels: torch.Tensor, facts: VaeFacts) -> Pixels:
    """Drop alpha and centre-crop both sides to a multiple of the factor.

    Args:
        pixels: [B, H, W, C] or [B, 1, H, W, C], C ≥ 3; for a video VAE one video, [T, H, W, C] or [1, T, H, W, C].
        facts: of the VAE.

    Raises:
        DaemonError: ``image-shape``.
    """
    if pixels.ndim == 5 and is_video(facts) and pixels.shape[0] == 1:
        pixels = pixels[0]
    elif pixels.ndim == 5 and pixels.shape[1] == 1:
        pixels = pixels[:, 0]
    if pixels.ndim != 4:
        raise DaemonError(
            "image-shape",
            f"pixels have shape {list(pixels.shape)}; this VAE takes [batch or frames, height, width, channels]",
            "send single images or one video; videos need a video VAE",
        )
    count, height, width, channels = pixels.shape
    if channels < 3 or count == 0 or min(height, width) < facts.spatial:
        raise DaemonError(
            "image-shape",
            f"pixels have shape {list(pixels.shape)}; at least one image of {facts.spatial} by {facts.spatial} pixels "
            "with 3 channels is needed",
            "send RGB images",
        )
    kept_height, kept_width = (side - side % facts.spatial for side in (height, width))
    top, left = (height - kept_height) // 2, (width - kept_width) // 2
    cropped = pixels[:, top : top + kept_height, left : left + kept_width, :3]
    is_cut = (kept_height, kept_width) != (height, width)
    return Pixels(cropped, (kept_height, kept_width) if is_cut else None)


def prepare_latent(latent: torch.Tensor, facts: VaeFacts) -> torch.Tensor:
    """Return the latent as [B, C, h, w], a time axis of one dropped; for a video VAE as [B, C, T, h, w].

    Raises:
        DaemonError: ``latent-mismatch``.
    """
    if is_video(facts):
        latent = latent.unsqueeze(2) if latent.ndim == 4 else latent
    elif latent.ndim == 5 and latent.shape[2] == 1:
        latent = latent[:, :, 0]
    if latent.ndim != facts.latent_dim + 2 or latent.shape[1] != facts.latent_channels or 0 in latent.shape:
        raise DaemonError(
            "latent-mismatch",
            f"the latent has shape {list(latent.shape)}; "
            f"this VAE takes [batch, {facts.latent_channels}, {'frames, ' * is_video(facts)}height, width]",
            "use the VAE of the model that made the latent",
        )
    return latent


def require_finite(tensor: torch.Tensor, what: str) -> None:
    """Refuse NaN and infinity, which a VAE would spread over the whole image.

    Raises:
        DaemonError: ``value-range``.
    """
    if not bool(tensor.isfinite().all()):
        raise DaemonError("value-range", f"the {what} has values that are not finite numbers", f"mend the {what} first")


def is_video(facts: VaeFacts) -> bool:
    """Tell whether a VAE's latents have a time axis."""
    return facts.latent_dim == 3


def require_tile(tile: Tile, *, is_timed: bool = False) -> None:
    """Check that tiles overlap less than half of themselves; the half-wide passes could not advance otherwise.

    Args:
        tile: sizes.
        is_timed: whether the VAE has tiles along time.

    Raises:
        DaemonError: ``value-range``.
    """
    if tile.t is not None and tile.t > 1 and not is_timed:
        raise DaemonError("value-range", "this VAE is for images and has no tiles along time", "leave t out")
    most = min(tile.x, tile.y) // 2
    if tile.overlap >= most:
        raise DaemonError(
            "value-range",
            f"an overlap of {tile.overlap} is too large for tiles of {tile.x} by {tile.y}",
            f"use less than {most}",
        )
