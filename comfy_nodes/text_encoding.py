"""Nodes that turn text into CONDITIONING in the daemon. They never load a text encoder here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luna_daemon.proxy import DaemonCLIP
from luna_engine.errors import LunaError

from . import comfy, health, lora_stack
from .serving import CATEGORY, FAMILY, served
from .widgets import choice, integer, socket, text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from luna_daemon.remote import RemoteSet

    Conditioning = list[list[Any]]
    Stack = Sequence[Sequence[Any]] | None

_SYNTAX = "(word:1.2), embedding:name and \\( work as in ComfyUI."
_SKIP = integer(
    "0 is the family's own layer, -1 the last, -2 the one before. Acts on CLIP-L and CLIP-G only.", 0, -24, 0
)
_LORAS = socket("LORA_STACK", "LoRAs for the text encoder, at their clip strength, for this prompt alone.")
_MISSING = choice(
    ("error", "skip"),
    "error",
    "What an embedding:name or a LoRA that is not found does: stop, or be left out with a notice.",
)
_PAIR = (
    "The conditioning of the positive prompt.",
    "The conditioning of the negative prompt.",
)
_SHARED_OPTIONS = {"clip_skip": _SKIP, "lora_stack": _LORAS, "missing": _MISSING}


def _changed(family: str, inputs: Mapping[str, Any]) -> str:
    """Return what a run depends on besides its widgets: the served model, and the LoRA folder if a stack is linked."""
    loras = comfy.current_host().lora_stamp() if "lora_stack" in inputs else ""
    return f"{health.served('text', family)} {loras}"


def _tokenize(host: comfy.ComfyHost, remote: RemoteSet, prompt: str, missing: str) -> dict[str, Any]:
    tokens, lost = host.tokenize(remote.facts.family, prompt)
    if lost and missing == "error":
        raise LunaError(
            "embedding-missing",
            f"no file for embedding:{lost[0]} in ComfyUI's embeddings folders",
            "check the spelling, or set missing to skip",
        )
    for name in lost:
        host.notice(f"embedding:{name} was not found and is left out of the prompt")
    return tokens


def _clip(host: comfy.ComfyHost, remote: RemoteSet, clip_skip: int, stack: Stack, missing: str) -> DaemonCLIP:
    clip = DaemonCLIP(remote, None)
    if clip_skip:
        clip.layers = {role: clip_skip for role in ("l", "g") if role in remote.facts.encoders}
    lora_stack.apply(host, clip, stack, missing)
    return clip


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
            "required": {"text": text(f"The prompt. {_SYNTAX}", multiline=True)},
            "optional": {"family": FAMILY, **_SHARED_OPTIONS},
        }

    @classmethod
    def IS_CHANGED(cls, family: str = "auto", **inputs: Any) -> str:
        """Run again when the daemon serves another model for this, or a LoRA file changed."""
        return _changed(family, inputs)

    def encode(
        self,
        text: str,
        family: str = "auto",
        clip_skip: int = 0,
        lora_stack: Stack = None,
        missing: str = "error",
    ) -> tuple[Conditioning]:
        """Encode one prompt."""
        host = comfy.current_host()
        remote = served(host, "text", family)
        tokens = _tokenize(host, remote, text, missing)
        return (_clip(host, remote, clip_skip, lora_stack, missing).encode_from_tokens_scheduled(tokens),)


class LunaSharedCLIPEncodeDual:
    """Two texts to CONDITIONING in one request."""

    DISPLAY_NAME = "Luna Shared CLIP Encode (Positive + Negative)"
    DESCRIPTION = (
        "Encodes a positive and a negative prompt with the daemon's text encoder, both in one request. "
        "Each equals CLIPTextEncode's with the same model."
    )
    SEARCH_ALIASES = ["shared clip", "remote text encode", "prompt"]
    CATEGORY = CATEGORY
    FUNCTION = "encode"
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING")
    RETURN_NAMES = ("positive", "negative")
    OUTPUT_TOOLTIPS = _PAIR

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare both prompts and how to encode them."""
        return {
            "required": {
                "positive": text(f"What shall be in the picture. {_SYNTAX}", multiline=True),
                "negative": text("What shall not be in the picture.", multiline=True),
            },
            "optional": {"family": FAMILY, **_SHARED_OPTIONS},
        }

    @classmethod
    def IS_CHANGED(cls, family: str = "auto", **inputs: Any) -> str:
        """Run again when the daemon serves another model for this, or a LoRA file changed."""
        return _changed(family, inputs)

    def encode(
        self,
        positive: str,
        negative: str,
        family: str = "auto",
        clip_skip: int = 0,
        lora_stack: Stack = None,
        missing: str = "error",
    ) -> tuple[Conditioning, Conditioning]:
        """Encode both prompts."""
        host = comfy.current_host()
        remote = served(host, "text", family)
        tokens = [_tokenize(host, remote, prompt, missing) for prompt in (positive, negative)]
        first, second = _clip(host, remote, clip_skip, lora_stack, missing).encode_prompts(tokens)
        return first, second


class LunaSharedCLIPEncodeSDXL:
    """Two texts with SDXL's sizes to CONDITIONING in one request, each equal to CLIPTextEncodeSDXL."""

    DISPLAY_NAME = "Luna Shared CLIP Encode (SDXL)"
    DESCRIPTION = (
        "Encodes a positive and a negative prompt with the daemon's SDXL text encoders, both in one request, and adds "
        "the six size numbers to each. Equals CLIPTextEncodeSDXL with the same model."
    )
    SEARCH_ALIASES = ["sdxl text encode", "dual clip"]
    CATEGORY = CATEGORY
    FUNCTION = "encode"
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING")
    RETURN_NAMES = ("positive", "negative")
    OUTPUT_TOOLTIPS = _PAIR

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the prompts, the sizes, and how to encode."""
        return {
            "required": {
                "positive": text(f"What shall be in the picture, for both encoders. {_SYNTAX}", multiline=True),
                "negative": text("What shall not be in the picture, for both encoders.", multiline=True),
                "width": integer("Width that the training picture is said to have had.", 1024, 512, 4096, 8),
                "height": integer("Height that the training picture is said to have had.", 1024, 512, 4096, 8),
            },
            "optional": {
                "crop_w": integer("Left edge of the crop that is said to have been made.", 0, 0, 8192),
                "crop_h": integer("Upper edge of that crop.", 0, 0, 8192),
                "target_width": integer("Width that the picture is made for.", 1024, 0, 8192),
                "target_height": integer("Height that the picture is made for.", 1024, 0, 8192),
                "positive_l": text("Another positive text for CLIP-L; blank is the same text.", multiline=True),
                "negative_l": text("Another negative text for CLIP-L; blank is the same text.", multiline=True),
                **_SHARED_OPTIONS,
            },
        }

    @classmethod
    def IS_CHANGED(cls, **inputs: Any) -> str:
        """Run again when the daemon serves another SDXL, or a LoRA file changed."""
        return _changed("sdxl", inputs)

    def encode(
        self,
        positive: str,
        negative: str,
        width: int,
        height: int,
        crop_w: int = 0,
        crop_h: int = 0,
        target_width: int = 1024,
        target_height: int = 1024,
        positive_l: str = "",
        negative_l: str = "",
        clip_skip: int = 0,
        lora_stack: Stack = None,
        missing: str = "error",
    ) -> tuple[Conditioning, Conditioning]:
        """Encode both prompts."""
        host = comfy.current_host()
        remote = served(host, "text", "sdxl")
        tokens = [
            _two_texts(host, remote, for_g, for_l, missing)
            for for_g, for_l in ((positive, positive_l), (negative, negative_l))
        ]
        sizes = {
            "width": width,
            "height": height,
            "crop_w": crop_w,
            "crop_h": crop_h,
            "target_width": target_width,
            "target_height": target_height,
        }
        clip = _clip(host, remote, clip_skip, lora_stack, missing)
        first, second = clip.encode_prompts(tokens, add_dict=sizes)
        return first, second


def _two_texts(host: comfy.ComfyHost, remote: RemoteSet, for_g: str, for_l: str, missing: str) -> dict[str, Any]:
    """Tokenize for both encoders; the side with fewer chunks gets empty ones (DAEMON.md N6)."""
    tokens = _tokenize(host, remote, for_g, missing)
    if not for_l.strip():
        return tokens
    tokens = {**tokens, "l": _tokenize(host, remote, for_l, missing)["l"]}
    empty = _tokenize(host, remote, "", missing)
    longest = max(map(len, tokens.values()))
    return {role: rows + empty[role] * (longest - len(rows)) for role, rows in tokens.items()}


NODES = (LunaSharedCLIPEncode, LunaSharedCLIPEncodeDual, LunaSharedCLIPEncodeSDXL)
