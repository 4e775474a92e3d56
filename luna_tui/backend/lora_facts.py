"""What a LoRA's or embedding's header tells: base model, rank, the parts it changes, trigger words.

Metadata keys are those of kohya's sd-scripts (``ss_…``) and of the Stability model spec (``modelspec.…``); key names
are those of kohya (``lora_unet_``, ``lora_te1_``) and diffusers (``unet.``, ``transformer.``, ``text_encoder.``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_SPEC = (
    ("stable-diffusion-xl", "sdxl"),
    ("stable-diffusion-v3", "sd3"),
    ("stable-diffusion-3", "sd3"),
    ("stable-diffusion-v1", "sd15"),
    ("flux", "flux"),
    ("z-image", "z-image"),
)
_KOHYA = (("sdxl", "sdxl"), ("sd3", "sd3"), ("flux", "flux"), ("sd_v1", "sd15"), ("sd_1", "sd15"), ("sd1", "sd15"))
_DOWN = (".lora_down.weight", ".lora_A.weight", ".lora_A.default.weight", ".lora.down.weight", "_lora.down.weight")
_PARTS = (
    ("unet", ("lora_unet_", "unet.", "diffusion_model.", "transformer.", "lora_transformer_")),
    ("l", ("lora_te_", "lora_te1_", "text_encoder.", "clip_l")),
    ("g", ("lora_te2_", "text_encoder_2.", "clip_g")),
    ("t5xxl", ("lora_te3_", "text_encoder_3.", "t5xxl")),
)
# Width of the text context that cross attention reads: the last axis of attn2's key projection.
_CONTEXT = {768: "sd15", 2048: "sdxl"}
# Width of an embedding's vectors where a file has one tensor only.
_EMBEDDING = {768: "sd15", 1280: "sdxl"}


@dataclass(frozen=True, slots=True)
class LoraFacts:
    """``evidence`` is ``metadata`` or ``keys``: how ``base`` is known."""

    base: str | None
    evidence: str | None
    rank: int | None
    parts: tuple[str, ...]
    triggers: tuple[str, ...]


def read(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, Any]) -> LoraFacts:
    """Return what tensor names, shapes and metadata tell."""
    base = _from_metadata(metadata)
    evidence = "metadata" if base else None
    if base is None:
        base = _from_keys(shapes)
        evidence = "keys" if base else None
    return LoraFacts(base, evidence, _rank(shapes), _parts(shapes), _triggers(metadata))


def _from_metadata(metadata: Mapping[str, Any]) -> str | None:
    spec = str(metadata.get("modelspec.architecture", "")).lower()
    kohya = str(metadata.get("ss_base_model_version", "")).lower()
    for text, table in ((spec, _SPEC), (kohya, _KOHYA)):
        if (found := next((family for mark, family in table if mark in text), None)) is not None:
            return found
    return None


def _from_keys(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    if {"clip_l", "clip_g"} <= set(shapes):
        return "sdxl"
    if len(shapes) == 1 and (width := next(iter(shapes.values()))[-1:]):
        return _EMBEDDING.get(width[0])
    names = list(shapes)
    if _any(names, "lora_te2_", "text_encoder_2.") and not _any(names, "single_transformer_blocks", "single_blocks"):
        return "sdxl"
    for name, shape in shapes.items():
        if ("attn2_to_k" in name or "attn2.to_k" in name) and name.endswith(_DOWN):
            return _CONTEXT.get(shape[-1])
    if _any(names, "double_blocks", "single_blocks", "single_transformer_blocks"):
        return "flux"
    if _any(names, "joint_blocks"):
        return "sd3"
    if _any(names, "diffusion_model.layers.0.attention.", "lora_unet_layers_0_attention_"):
        return "z-image"
    return None


def _any(names: Iterable[str], *marks: str) -> bool:
    return any(mark in name for name in names for mark in marks)


def _rank(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    ranks = {shape[0] for name, shape in shapes.items() if name.endswith(_DOWN) and shape}
    return max(ranks, default=None)


def _parts(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    return tuple(part for part, marks in _PARTS if any(name.startswith(marks) for name in shapes))


def _triggers(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    text = metadata.get("modelspec.trigger_phrase") or metadata.get("ss_trigger_words") or ""
    return tuple(word.strip() for word in str(text).split(",") if word.strip())
