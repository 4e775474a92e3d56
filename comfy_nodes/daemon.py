"""Nodes that use the daemon directly: status, text encoding, VAE encode and decode. They never load a model here."""

from __future__ import annotations

import contextlib
from typing import Any

from luna_daemon.proxy import DaemonCLIP, DaemonVAE
from luna_daemon.remote import RemoteSet
from luna_daemon.selection import FAMILIES, choose_set
from luna_daemon.services import Services
from luna_daemon.sources import ServedSet
from luna_engine.errors import LunaError

from . import comfy, health
from .status import describe
from .widgets import choice, integer, socket, text

CATEGORY = "Luna/Daemon"
_FAMILY = choice(
    ("auto", *FAMILIES),
    "auto",
    "Which of the models the daemon serves: auto takes the only one that fits, or the daemon's default.",
)


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


class LunaSharedCLIPEncode:
    """Text to CONDITIONING in the daemon, equal to CLIPTextEncode of the family."""

    DISPLAY_NAME = "Luna Shared CLIP Encode"
    DESCRIPTION = (
        "Encodes a prompt with the text encoder that the daemon shares between ComfyUI instances. "
        "The conditioning equals CLIPTextEncode's with the same model; no text encoder is loaded here."
    )
    SEARCH_ALIASES = ["shared clip", "remote text encode", "prompt"]
    CATEGORY = CATEGORY
    FUNCTION = "encode"
    RETURN_TYPES = ("CONDITIONING",)
    RETURN_NAMES = ("conditioning",)
    OUTPUT_TOOLTIPS = ("As CLIPTextEncode gives it for this family.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the prompt and how to encode it."""
        return {
            "required": {
                "text": text("The prompt. (word:1.2), embedding:name and \\( work as in ComfyUI.", multiline=True)
            },
            "optional": {
                "family": _FAMILY,
                "clip_skip": integer(
                    "0 is the family's own layer, -1 the last, -2 the one before. Acts on CLIP-L and CLIP-G only.",
                    0,
                    -24,
                    0,
                ),
                "missing": choice(
                    ("error", "skip"),
                    "error",
                    "What an embedding:name that is not found does: stop, or be left out with a notice.",
                ),
            },
        }

    @classmethod
    def IS_CHANGED(cls, family: str = "auto", **_: Any) -> str:
        """Run again when the daemon serves another model for this."""
        return health.served("text", family)

    def encode(
        self, text: str, family: str = "auto", clip_skip: int = 0, missing: str = "error"
    ) -> tuple[list[list[Any]]]:
        """Encode one prompt."""
        host = comfy.current_host()
        remote = _served(host, "text", family)
        tokens, lost = host.tokenize(remote.facts.family, text)
        if lost and missing == "error":
            raise LunaError(
                "embedding-missing",
                f"no file for embedding:{lost[0]} in ComfyUI's embeddings folders",
                "check the spelling, or set missing to skip",
            )
        for name in lost:
            host.notice(f"embedding:{name} was not found and is left out of the prompt")
        clip = DaemonCLIP(remote, None)
        if clip_skip:
            clip.layers = {role: clip_skip for role in ("l", "g") if role in remote.facts.encoders}
        return (clip.encode_from_tokens_scheduled(tokens),)


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
            "optional": {"family": _FAMILY},
        }

    @classmethod
    def IS_CHANGED(cls, family: str = "auto", **_: Any) -> str:
        """Run again when the daemon serves another VAE for this."""
        return health.served("vae", family)

    def encode(self, pixels: Any, family: str = "auto") -> tuple[dict[str, Any]]:
        """Encode a batch."""
        host = comfy.current_host()
        remote = _served(host, "vae", family)
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
            "optional": {"family": _FAMILY},
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
        remote = _served(host, "vae", wanted, channels=int(latent.shape[1]))
        return (DaemonVAE(remote).decode(latent),)


def _served(host: comfy.ComfyHost, component: str, family: str, *, channels: int | None = None) -> RemoteSet:
    services = health.services()
    connect = services.text if component == "text" else services.vae
    row = choose_set(connect().list_models(loaded=True).sets, component, family, channels=channels)
    return RemoteSet(connect, ServedSet(row.id), host)


def _checked(pixels: Any) -> Any:
    if not bool(pixels.isfinite().all()):
        raise LunaError("image-shape", "the image holds NaN or infinite values", "look at the node that made it")
    if pixels.shape[-1] == 1:
        return pixels.expand(*pixels.shape[:-1], 3)
    return pixels


NODES = (LunaDaemonStatus, LunaSharedCLIPEncode, LunaSharedVAEEncode, LunaSharedVAEDecode)
