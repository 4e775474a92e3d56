"""Files of a language model: a Hugging Face folder, or one safetensors file. Configuration is data, never code."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luna_daemon.runtime.files import Stamp
from luna_daemon.runtime.parts import FLOATS, OpenFile, Part, PartKind
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import torch

    from luna_daemon.runtime.parts import Entry

ROLE = "llm"
KIND = PartKind(ROLE, "a Qwen3 or Qwen3-VL language model", "model.language_model.embed_tokens.weight", (), ("",))
TOKENIZER = "tokenizer.json"
CONFIG = "config.json"
CONFIG_BYTES_MAX = 1 << 20
HINT = "give a Hugging Face folder of Qwen3 or Qwen3-VL, or its weights as one safetensors file, in fp32, fp16 or bf16"
_HEADS = {24: [5, 11, 17], 27: [8, 16, 24]}  # vision blocks -> blocks whose states join the language model's
_VISION_HEADS = 16
_POSITIONS = 262_144
_MROPE = {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True}


@dataclass(frozen=True, slots=True)
class LanguageFiles:
    """An opened model.

    Attributes:
        part: its tensors under transformers' names.
        config: what transformers' configuration class takes, with ``model_type`` ``qwen3`` or ``qwen3_vl``.
        tokenizer: the path of ``tokenizer.json``, None if there is none.
        stamp: changes when a weight file does.
    """

    part: Part
    config: Mapping[str, Any]
    tokenizer: Path | None
    stamp: Stamp

    @property
    def family(self) -> str:
        """Return ``qwen3`` or ``qwen3-vl``."""
        return str(self.config["model_type"]).replace("_", "-")

    def precision(self, *, has_card: bool) -> str:
        """Return the type that most weights have on a card or without one: bf16, fp16 or fp32."""
        found = Counter(_kept(entry.dtype, has_card=has_card) for entry in self.part.entries.values())
        return found.most_common(1)[0][0]

    def needed_bytes(self, *, has_card: bool) -> int:
        """Return the bytes that the weights will hold."""
        sizes = {"fp32": 4, "fp16": 2, "bf16": 2}
        return sum(
            math.prod(entry.shape) * sizes[_kept(entry.dtype, has_card=has_card)]
            for entry in self.part.entries.values()
        )

    @property
    def config_hash(self) -> str:
        """Return what tells two configurations apart."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()


def open_language_files(path: Path, label: str, stack: contextlib.ExitStack) -> LanguageFiles:
    """Open a model.

    Args:
        path: a folder with ``config.json``, ``tokenizer.json`` and safetensors files, or one such file.
        label: for messages.
        stack: closes the files.

    Raises:
        DaemonError: ``wrong-type``, ``file-damaged``, ``model-unsupported``, ``component-missing``.
    """
    paths = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not paths:
        raise DaemonError("component-missing", f"{label} holds no safetensors file", HINT)
    opened = [stack.enter_context(OpenFile(one, f"{label}/{one.name}" if path.is_dir() else label)) for one in paths]
    part = _part(opened, label)
    folder = path if path.is_dir() else path.parent
    config = _read_config(folder / CONFIG, label)
    if config is None or not _agrees(config, part.entries):
        if path.is_dir() and config is None:
            raise DaemonError("component-missing", f"{label} has no {CONFIG}", HINT)
        config = config_from_shapes(part.entries, label)
    tokenizer = folder / TOKENIZER
    return LanguageFiles(part, config, tokenizer if tokenizer.is_file() else None, _stamp(paths))


def _kept(dtype: str, *, has_card: bool) -> str:
    """Return how a stored type is kept: halves become fp32 on a CPU, which computes with that."""
    if dtype == "BF16":
        return "bf16"
    return "fp16" if dtype == "F16" and has_card else "fp32"


def _stamp(paths: Sequence[Path]) -> Stamp:
    stamps = [Stamp.of(path) for path in paths]
    first = stamps[0]
    return Stamp(
        first.device,
        first.inode,
        sum(stamp.size_bytes for stamp in stamps),
        max(stamp.mtime_ns for stamp in stamps),
    )


def _part(opened: Sequence[OpenFile], label: str) -> Part:
    entries: dict[str, Entry] = {}
    names: dict[str, str] = {}
    readers: dict[str, Callable[[str], torch.Tensor]] = {}
    for file in opened:
        for stored, entry in file.entries.items():
            entries[stored], readers[stored] = entry, file.read
    rename = _renaming(entries)
    names = {rename(stored): stored for stored in entries}
    odd = next((stored for stored, entry in entries.items() if entry.dtype not in FLOATS), None)
    if odd is not None:
        raise DaemonError("model-unsupported", f"{label} is quantised ({odd} is {entries[odd].dtype})", HINT)
    named = {name: names[name] for name in sorted(names)}
    return Part(
        kind=KIND,
        names=named,
        entries={name: entries[stored] for name, stored in named.items()},
        read=lambda stored: readers[stored](stored),
        source=label,
    )


def _renaming(stored: Mapping[str, Entry]) -> Callable[[str], str]:
    """Return how a file's names become those of transformers' classes."""
    if any(name.startswith("visual.") for name in stored):  # early conversions

        def modern(name: str) -> str:
            if name.startswith("visual."):
                return f"model.{name}"
            return f"model.language_model.{name.removeprefix('model.')}" if name.startswith("model.") else name

        return modern
    if any(name.startswith("model.language_model.") for name in stored) and not any(
        name.startswith("model.visual.") for name in stored
    ):
        return lambda name: name.replace("model.language_model.", "model.", 1)
    return lambda name: name


def _read_config(path: Path, label: str) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > CONFIG_BYTES_MAX:
            raise ValueError("it is too large")
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DaemonError("file-damaged", f"{label}: {CONFIG} cannot be read: {error}", HINT) from error
    if not isinstance(config, dict) or config.get("model_type") not in {"qwen3", "qwen3_vl"}:
        return None
    if "quantization_config" in config:
        raise DaemonError("model-unsupported", f"{label}: {CONFIG} says that it is quantised", HINT)
    return config


def _agrees(config: Mapping[str, Any], entries: Mapping[str, Entry]) -> bool:
    """Tell whether a configuration is that of these weights: it may lie in a folder of many models."""
    is_vl = config["model_type"] == "qwen3_vl"
    text = config.get("text_config", {}) if is_vl else config
    table = entries.get("model.language_model.embed_tokens.weight" if is_vl else "model.embed_tokens.weight")
    return (
        isinstance(text, dict)
        and table is not None
        and table.shape == (text.get("vocab_size"), text.get("hidden_size"))
        and text.get("num_hidden_layers") == _count(entries, f"{_text_prefix(entries)}layers.")
    )


def _text_prefix(entries: Mapping[str, Entry]) -> str:
    return "model.language_model." if "model.language_model.embed_tokens.weight" in entries else "model."


def _count(entries: Mapping[str, Entry], prefix: str) -> int:
    return len({name[len(prefix) :].partition(".")[0] for name in entries if name.startswith(prefix)})


def config_from_shapes(entries: Mapping[str, Entry], label: str) -> dict[str, Any]:
    """Return the configuration of weights without one, for the published sizes of Qwen3 and Qwen3-VL.

    Raises:
        DaemonError: ``wrong-type`` for other weights, ``model-unsupported`` for a size whose configuration the shapes
            do not tell.
    """
    prefix = _text_prefix(entries)
    first = f"{prefix}layers.0."
    try:
        vocabulary, width = entries[f"{prefix}embed_tokens.weight"].shape
        (head_width,) = entries[f"{first}self_attn.q_norm.weight"].shape
        queries = entries[f"{first}self_attn.q_proj.weight"].shape[0]
        keys = entries[f"{first}self_attn.k_proj.weight"].shape[0]
        hidden = entries[f"{first}mlp.gate_proj.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise DaemonError("wrong-type", f"{label} is no Qwen3 or Qwen3-VL language model", HINT) from error
    is_vl = prefix != "model."
    text: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": _count(entries, f"{prefix}layers."),
        "num_attention_heads": queries // head_width,
        "num_key_value_heads": keys // head_width,
        "head_dim": head_width,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": _POSITIONS if is_vl else 40_960,
        "rope_theta": 5_000_000 if is_vl else 1_000_000,
    }
    is_tied = "lm_head.weight" not in entries
    if not is_vl:
        return {"model_type": "qwen3", "tie_word_embeddings": is_tied, **text}
    text["rope_scaling"] = dict(_MROPE)
    return {
        "model_type": "qwen3_vl",
        "tie_word_embeddings": is_tied,
        "text_config": text,
        "vision_config": _vision_from_shapes(entries, label),
    }


def _vision_from_shapes(entries: Mapping[str, Entry], label: str) -> dict[str, Any]:
    depth = _count(entries, "model.visual.blocks.")
    if depth not in _HEADS:
        raise DaemonError(
            "model-unsupported",
            f"{label} has {depth} vision blocks; published sizes of Qwen3-VL have {' or '.join(map(str, _HEADS))}",
            f"put its {CONFIG} beside it",
        )
    try:
        width, channels, frames, patch, _ = entries["model.visual.patch_embed.proj.weight"].shape
        positions = entries["model.visual.pos_embed.weight"].shape[0]
        hidden = entries["model.visual.blocks.0.mlp.linear_fc1.weight"].shape[0]
        out, merged = entries["model.visual.merger.linear_fc2.weight"].shape
    except (KeyError, ValueError) as error:
        raise DaemonError("file-damaged", f"{label} has an incomplete vision tower", HINT) from error
    return {
        "depth": depth,
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_heads": _VISION_HEADS,
        "in_channels": channels,
        "patch_size": patch,
        "temporal_patch_size": frames,
        "spatial_merge_size": round((merged / width) ** 0.5),
        "out_hidden_size": out,
        "num_position_embeddings": positions,
        "deepstack_visual_indexes": _HEADS[depth],
    }
