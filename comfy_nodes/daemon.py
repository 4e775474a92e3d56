"""Nodes that use the daemon directly: status, VAE encode and decode. They never load a model here."""

from __future__ import annotations

import contextlib
from typing import Any

from luna_daemon.proxy import DaemonVAE
from luna_daemon.services import Services
from luna_engine.errors import LunaError

from . import comfy, health
from .serving import CATEGORY, FAMILY, served
from .status import describe
from .widgets import socket


class LunaDaemonStatus:
    """Ask both services how they are; never cached, never an error."""

    DISPLAY_NAME = "Luna Daemon Status"
    DESCRIPTION = (
        "Shows what Luna's daemons are doing: state, device, memory, models served, queue. "
        "Asked anew at every run; a daemon that is down gives is_running false and the command that starts it."
    )
    SEARCH_ALIASES = ["health", "vram", "server"]
    CATEGORY = CATEGORY
    FUNCTION = "report"
    OUTPUT_NODE = True
    RETURN_TYPES = ("STRING", "BOOLEAN")
    RETURN_NAMES = ("status", "is_running")
    OUTPUT_TOOLTIPS = (
        "The report, as shown on the node.",
        "True if at least one service answers and is healthy.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare no inputs."""
        return {"required": {}}

    @classmethod
    def IS_CHANGED(cls) -> float:
        """Run always. The NaN is made anew: ComfyUI finds ``math.nan`` by identity and would never run again."""
        return float("nan")

    def report(self) -> dict[str, Any]:
        """Ask both ports."""
        with contextlib.closing(Services()) as fresh:  # a kept connection would try for seconds to reconnect
            lines, is_running = describe(fresh)
        report = "\n".join(lines)
        return {"ui": {"text": [report]}, "result": (report, is_running)}


class LunaSharedVAEEncode:
    """Pixels to LATENT in the daemon, equal to VAEEncode."""

    DISPLAY_NAME = "Luna Shared VAE Encode"
    DESCRIPTION = (
        "Encodes images to latents with the VAE that the daemon shares between ComfyUI instances. "
        "Equals VAEEncode with the same file and precision."
    )
    SEARCH_ALIASES = ["shared vae", "remote vae", "encode latent", "decode latent"]
    CATEGORY = CATEGORY
    FUNCTION = "encode"
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("samples",)
    OUTPUT_TOOLTIPS = ("The latents, unscaled as VAEEncode gives them, marked with the family.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the images and the family."""
        return {
            "required": {"pixels": socket("IMAGE", "Images of any size; a fourth channel is left out.")},
            "optional": {"family": FAMILY},
        }

    @classmethod
    def IS_CHANGED(cls, family: str = "auto", **_: Any) -> str:
        """Run again when the daemon serves another VAE for this."""
        return health.served("vae", family)

    def encode(self, pixels: Any, family: str = "auto") -> tuple[dict[str, Any]]:
        """Encode a batch."""
        host = comfy.current_host()
        remote = served(host, "vae", family)
        samples = DaemonVAE(remote).encode(_checked(pixels))
        return ({"samples": samples, "luna_family": remote.facts.family},)


class LunaSharedVAEDecode:
    """LATENT to IMAGE in the daemon, equal to VAEDecode."""

    DISPLAY_NAME = "Luna Shared VAE Decode"
    DESCRIPTION = (
        "Decodes latents to images with the VAE that the daemon shares between ComfyUI instances. "
        "Equals VAEDecode with the same file and precision."
    )
    SEARCH_ALIASES = ["shared vae", "remote vae", "encode latent", "decode latent"]
    CATEGORY = CATEGORY
    FUNCTION = "decode"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The images, 0 to 1.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the latents and the family."""
        return {
            "required": {"samples": socket("LATENT", "Latents; noise_mask and other entries are ignored.")},
            "optional": {"family": FAMILY},
        }

    @classmethod
    def IS_CHANGED(cls, family: str = "auto", **_: Any) -> str:
        """Run again when the daemon serves another VAE for this."""
        return health.served("vae", family)

    def decode(self, samples: dict[str, Any], family: str = "auto") -> tuple[Any]:
        """Decode a batch."""
        host = comfy.current_host()
        latent = samples["samples"]
        wanted = samples.get("luna_family", "auto") if family == "auto" else family
        remote = served(host, "vae", wanted, channels=int(latent.shape[1]))
        return (DaemonVAE(remote).decode(latent),)


def _checked(pixels: Any) -> Any:
    if not bool(pixels.isfinite().all()):
        raise LunaError("image-shape", "the image holds NaN or infinite values", "look at the node that made it")
    if pixels.shape[-1] == 1:
        return pixels.expand(*pixels.shape[:-1], 3)
    return pixels


NODES = (LunaDaemonStatus, LunaSharedVAEEncode, LunaSharedVAEDecode)
