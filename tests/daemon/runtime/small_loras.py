"""Small text-encoder sets with seeded weights, and LoRAs of every kind for them. Not a test module."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import torch

from luna_daemon.encode_messages import LoraUse
from luna_daemon.patches import Patch, content_hash
from luna_daemon.runtime.backend import EncodeItem, EncoderInput, Row
from luna_daemon.runtime.backend_native import NativeSet
from luna_daemon.runtime.clip_text import END, START, ClipShape, ClipTextEncoder, expected_shapes
from luna_daemon.runtime.lora import LoraEntry, LoraRegistry
from luna_daemon.runtime.merged import HotRecipes, MergedWeights
from luna_daemon.runtime.set_loras import LoraShelf

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CPU = torch.device("cpu")
SHAPE = ClipShape(layers=2, width=64, activation="quick_gelu", pad=END)
LAYER = "clip_l.transformer.text_model.encoder.layers.0."
LINEARS = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (64, 64),
    "self_attn.v_proj": (64, 64),
    "self_attn.out_proj": (64, 64),
    "mlp.fc1": (256, 64),
    "mlp.fc2": (64, 256),
}
KINDS = ("lora", "dora", "dora_in", "loha", "lokr", "oft", "boft", "glora", "glora_old", "diff", "set", "model_as_lora")


def weights(seed: int = 3) -> dict[str, torch.Tensor]:
    """Return the weights of a small CLIP in fp16, projection included."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {**expected_shapes(SHAPE), "text_projection.weight": (64, 64)}
    return {
        name: (torch.randn(shape, generator=generator) * 0.1 + ("norm" in name and name.endswith("weight"))).half()
        for name, shape in shapes.items()
    }


def shelf(*entries: LoraEntry, hot_uses: int | None = None, merged_bytes: int = 2**30) -> LoraShelf:
    """Return a shelf with entries; nothing becomes hot unless asked for."""
    registry = LoraRegistry()
    for entry in entries:
        registry.put(entry)
    return LoraShelf(registry, MergedWeights(CPU, merged_bytes), lambda: HotRecipes(uses=hot_uses))


def small_set(family: str, shared: LoraShelf, roles: Sequence[str] = ("l",)) -> NativeSet:
    """Return a set of small CLIPs."""
    encoders = {role: ClipTextEncoder(SHAPE, weights(index), CPU) for index, role in enumerate(roles)}
    return NativeSet(family, encoders, None, CPU, shared)


def item(
    *tokens: int, loras: Sequence[LoraUse] = (), roles: Sequence[str] = ("l",), is_exact: bool = False
) -> EncodeItem:
    """Return a prompt of one row."""
    ids = (START, *tokens, END)
    ids += (END,) * (77 - len(ids))
    rows = EncoderInput((Row(ids, (1.0,) * 77),))
    return EncodeItem(dict.fromkeys(roles, rows), loras=tuple(loras), is_exact=is_exact)


def patch(kind: str, target: str, shape: tuple[int, int], seed: int = 0, rank: int = 4) -> Patch:
    """Return a seeded patch of a kind for a weight [out, in]; alpha is half the rank."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{kind} {target}".encode()) + seed)

    def random(*sizes: int, spread: float = 0.2) -> torch.Tensor:
        return torch.randn(sizes, generator=generator) * spread

    out, into = shape
    up, down = random(out, rank), random(rank, into)
    factors: Mapping[str, torch.Tensor]
    name, alpha = kind, rank / 2
    match kind:
        case "lora":
            factors = {"up": up, "down": down}
        case "dora":
            name, factors = "lora", {"up": up, "down": down, "dora_scale": random(out, 1).abs() + 0.5}
        case "dora_in":
            name, factors = "lora", {"up": up, "down": down, "dora_scale": random(1, into).abs() + 0.5}
        case "loha":
            factors = {"w1_a": up, "w1_b": down, "w2_a": random(out, rank), "w2_b": random(rank, into)}
        case "lokr":
            factors = {"w1": random(4, 4), "w2_a": random(out // 4, rank), "w2_b": random(rank, into // 4)}
        case "oft":
            factors = {"blocks": random(out // 8, 8, 8, spread=0.05), "rescale": random(out, 1)}
        case "boft":
            factors = {"blocks": random(2, out // 8, 8, 8, spread=0.05), "rescale": 1 + random(out, 1)}
        case "glora":
            factors = {"a1": random(into, rank), "a2": random(rank, into), "b1": up, "b2": down}
        case "glora_old":
            name, factors = "glora", {"a2": random(into, rank), "a1": random(rank, into), "b2": up, "b1": down}
        case _:
            factors, alpha = {"weight": random(out, into)}, None
    return Patch(target, name, factors, alpha)


def entry_of(*patches: Patch) -> LoraEntry:
    """Return an entry under its real hash."""
    return LoraEntry(content_hash(patches), patches)


def lora(kind: str = "lora", seed: int = 0, prefix: str = LAYER, rank: int = 4) -> LoraEntry:
    """Return a LoRA of a kind on all linear layers of a block."""
    return entry_of(*(patch(kind, f"{prefix}{name}.weight", shape, seed, rank) for name, shape in LINEARS.items()))


def use(entry: LoraEntry, strength: float = 1.0, model: float = 1.0) -> LoraUse:
    """Return a use of an entry."""
    return LoraUse(entry.hash, strength, model)
