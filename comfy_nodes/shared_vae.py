"""Nodes that encode and decode images in the daemon, whole or in tiles. They never load a VAE here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luna_daemon.proxy import DaemonVAE
from luna_engine.errors import LunaError

from . import comfy, health
from .serving import CATEGORY, FAMILY, served
from .widgets import integer, socket

if TYPE_CHECKING:
    from collections.abc import Sequence

_PIXELS = socket("IMAGE", "Images of any size; a fourth channel is left out.")
_SAMPLES = socket("LATENT", "Latents; noise_mask and other entries are ignored.")
_LATENT_TOOLTIP = "The latents, unscaled as VAEEncode gives them, marked with the family."


class _SharedVAE:
    """What the four nodes have in common."""

    CATEGORY = CATEGORY
    SEARCH_ALIASES = ["shared vae", "remote vae", "encode latent", "decode latent"]

    @classmethod
    def IS_CHANGED(cls, family: str = "auto", **_: Any) -> str:
        """Run again when the daemon serves another VAE for this."""
        return health.served("vae", family)


class LunaSharedVAEEncode(_SharedVAE):
    """Pixels to LATENT in the daemon, equal to VAEEncode."""

    DISPLAY_NAME = "Luna Shared VAE Encode"
    DESCRIPTION = (
        "Encodes images to latents with the VAE that the daemon shares between ComfyUI instances. "
        "Equals VAEEncode with the same file and precision."
    )
    FUNCTION = "encode"
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("samples",)
    OUTPUT_TOOLTIPS = (_LATENT_TOOLTIP,)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the images and the family."""
        return {"required": {"pixels": _PIXELS}, "optional": {"family": FAMILY}}

    def encode(self, pixels: Any, family: str = "auto") -> tuple[dict[str, Any]]:
        """Encode a batch."""
        vae = _vae_for_pixels(family)
        return (_latent(vae, vae.encode(_checked(pixels))),)


class LunaSharedVAEDecode(_SharedVAE):
    """LATENT to IMAGE in the daemon, equal to VAEDecode."""

    DISPLAY_NAME = "Luna Shared VAE Decode"
    DESCRIPTION = (
        "Decodes latents to images with the VAE that the daemon shares between ComfyUI instances. "
        "Equals VAEDecode with the same file and precision."
    )
    FUNCTION = "decode"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The images, 0 to 1.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the latents and the family."""
        return {"required": {"samples": _SAMPLES}, "optional": {"family": FAMILY}}

    def decode(self, samples: dict[str, Any], family: str = "auto") -> tuple[Any]:
        """Decode a batch."""
        return (_vae_for_latent(samples, family).decode(samples["samples"]),)


class LunaSharedVAEEncodeTiled(_SharedVAE):
    """Pixels to LATENT in the daemon in tiles, equal to VAEEncodeTiled."""

    DISPLAY_NAME = "Luna Shared VAE Encode (Tiled)"
    DESCRIPTION = (
        "Encodes images in tiles with the VAE that the daemon shares, for pictures that do not fit its memory whole. "
        "The picture crosses once and is tiled in the daemon. An image of one tile's size is encoded whole."
    )
    SEARCH_ALIASES = ["tiled vae", "low vram vae"]
    FUNCTION = "encode"
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("samples",)
    OUTPUT_TOOLTIPS = (_LATENT_TOOLTIP,)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the images, the tiles and the family."""
        return {
            "required": {
                "pixels": _PIXELS,
                "tile_size": integer("Side of a tile in pixels.", 512, 256, 1024, 64),
                "overlap": integer("Pixels that neighbours share; less than half a tile.", 64, 0, 256, 8),
            },
            "optional": {"family": FAMILY},
        }

    def encode(self, pixels: Any, tile_size: int, overlap: int, family: str = "auto") -> tuple[dict[str, Any]]:
        """Encode a batch."""
        _require_overlap(tile_size, overlap)
        vae = _vae_for_pixels(family)
        given = _checked(pixels)
        factor = vae.spacial_compression_encode()
        if _is_one_tile([side - side % factor for side in given.shape[-3:-1]], tile_size):
            return (_latent(vae, vae.encode(given)),)
        return (_latent(vae, vae.encode_tiled(given, tile_x=tile_size, tile_y=tile_size, overlap=overlap)),)


class LunaSharedVAEDecodeTiled(_SharedVAE):
    """LATENT to IMAGE in the daemon in tiles, equal to VAEDecodeTiled."""

    DISPLAY_NAME = "Luna Shared VAE Decode (Tiled)"
    DESCRIPTION = (
        "Decodes latents in tiles with the VAE that the daemon shares, for pictures that do not fit its memory whole. "
        "The latent crosses once and is tiled in the daemon. A latent of one tile's size is decoded whole."
    )
    SEARCH_ALIASES = ["tiled vae", "low vram vae"]
    FUNCTION = "decode"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The images, 0 to 1.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the latents, the tiles and the family."""
        return {
            "required": {
                "samples": _SAMPLES,
                "tile_size": integer("Side of a tile in latent units, 8 pixels each for most VAEs.", 64, 32, 128, 8),
                "overlap": integer("Latent units that neighbours share; less than half a tile.", 16, 0, 64, 4),
            },
            "optional": {"family": FAMILY},
        }

    def decode(self, samples: dict[str, Any], tile_size: int, overlap: int, family: str = "auto") -> tuple[Any]:
        """Decode a batch."""
        _require_overlap(tile_size, overlap)
        vae, latent = _vae_for_latent(samples, family), samples["samples"]
        if _is_one_tile(latent.shape[-2:], tile_size):
            return (vae.decode(latent),)
        return (vae.decode_tiled(latent, tile_x=tile_size, tile_y=tile_size, overlap=overlap),)


def _vae_for_pixels(family: str) -> DaemonVAE:
    return DaemonVAE(served(comfy.current_host(), "vae", family))


def _vae_for_latent(samples: dict[str, Any], family: str) -> DaemonVAE:
    """Return the VAE of the family, or else of the one that the latent is marked with, or else of its channels."""
    wanted = samples.get("luna_family", "auto") if family == "auto" else family
    channels = int(samples["samples"].shape[1])
    return DaemonVAE(served(comfy.current_host(), "vae", wanted, channels=channels))


def _latent(vae: DaemonVAE, samples: Any) -> dict[str, Any]:
    return {"samples": samples, "luna_family": vae.remote.facts.family}


def _checked(pixels: Any) -> Any:
    if not bool(pixels.isfinite().all()):
        raise LunaError("image-shape", "the image holds NaN or infinite values", "look at the node that made it")
    if pixels.shape[-1] == 1:
        return pixels.expand(*pixels.shape[:-1], 3)
    return pixels


def _require_overlap(tile_size: int, overlap: int) -> None:
    """Refuse an overlap that leaves no room to advance, also where a small picture would not need it now."""
    if overlap * 2 >= tile_size:
        raise LunaError(
            "value-range",
            f"an overlap of {overlap} is too large for tiles of {tile_size}",
            f"use less than {tile_size // 2}",
        )


def _is_one_tile(sides: Sequence[int], tile_size: int) -> bool:
    return all(side <= tile_size for side in sides)


NODES = (LunaSharedVAEEncode, LunaSharedVAEDecode, LunaSharedVAEEncodeTiled, LunaSharedVAEDecodeTiled)
