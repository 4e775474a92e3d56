"""Patches of weights as they cross the wire: what a LoRA does to each tensor, its content hash, its bytes.

A patch names its weight as ComfyUI's state dict does, so that two encoders can never be mixed up. No code travels:
tensors go as safetensors, slices and scalars in its metadata.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch

    Slice = tuple[int, int, int]

FIELDS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "lora": (frozenset({"up", "down"}), frozenset({"dora_scale"})),
    "loha": (frozenset({"w1_a", "w1_b", "w2_a", "w2_b"}), frozenset({"dora_scale"})),
    "lokr": (frozenset(), frozenset({"w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "dora_scale"})),
    "oft": (frozenset({"blocks"}), frozenset({"rescale", "dora_scale"})),
    "boft": (frozenset({"blocks"}), frozenset({"rescale", "dora_scale"})),
    "glora": (frozenset({"a1", "a2", "b1", "b2"}), frozenset({"dora_scale"})),
    "diff": (frozenset({"weight"}), frozenset()),
    "set": (frozenset({"weight"}), frozenset()),
    "model_as_lora": (frozenset({"weight"}), frozenset()),
}
"""Kind → the tensors that it must have, and those that it may have. Every kind may have the scalar ``alpha``."""


@dataclass(frozen=True, slots=True)
class Patch:
    """What is done to one weight, or to a slice of it.

    Attributes:
        target: the weight, ``clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight``.
        kind: a key of `FIELDS`.
        tensors: by field.
        alpha: None where it equals the rank.
        part: (dimension, start, length) of the slice, None for the whole weight.
    """

    target: str
    kind: str
    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    alpha: float | None = None
    part: Slice | None = None

    @property
    def nbytes(self) -> int:
        """Return the bytes of its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def content_hash(patches: Iterable[Patch]) -> str:
    """Return BLAKE2b-256, in hex, over all tensors and scalars, in an order that does not depend on the caller's.

    Each tensor counts with its weight, slice, kind, field, dtype, shape and every byte of it.
    """
    from luna_daemon.tensors import from_torch

    digest = hashlib.blake2b(digest_size=32)
    for patch in in_order(patches):
        digest.update(repr((patch.target, patch.part, patch.kind, patch.alpha)).encode())
        for name, tensor in sorted(patch.tensors.items()):
            wire = from_torch(name, tensor)
            digest.update(repr((name, wire.dtype, wire.shape)).encode())
            digest.update(wire.data)
    return digest.hexdigest()


def in_order(patches: Iterable[Patch]) -> list[Patch]:
    """Sort patches; those of one weight by slice and kind."""
    return sorted(patches, key=lambda patch: (patch.target, patch.part or (), patch.kind))


def pack(patches: Iterable[Patch]) -> bytes:
    """Return the blob of `lora_put`: a safetensors file with the names ``<target>|<kind>|<field>``.

    Where a weight has several patches, the second one's target is written ``<target>#1``. The metadata holds
    ``<target>|slice`` as ``dimension,start,length`` and ``<target>|<kind>|alpha`` as a number.
    """
    from safetensors.torch import save

    tensors: dict[str, torch.Tensor] = {}
    facts: dict[str, str] = {}
    seen: dict[str, int] = {}
    for patch in in_order(patches):
        count = seen[patch.target] = seen.get(patch.target, -1) + 1
        name = f"{patch.target}#{count}" if count else patch.target
        if patch.part is not None:
            facts[f"{name}|slice"] = ",".join(map(str, patch.part))
        if patch.alpha is not None:
            facts[f"{name}|{patch.kind}|alpha"] = repr(float(patch.alpha))
        for which, tensor in patch.tensors.items():
            # A clone each: safetensors refuses tensors that share memory, and LoRA files do tie some.
            tensors[f"{name}|{patch.kind}|{which}"] = tensor.detach().to("cpu").contiguous().clone()
    return save(tensors, facts)


def unpack(blob: memoryview) -> tuple[Patch, ...]:
    """Read a blob.

    Raises:
        DaemonError: ``lora-invalid`` for anything that `pack` does not write.
    """
    import json

    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = bytes(blob)
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise invalid(f"the blob is no intact safetensors file: {error}") from error
    facts = header.get("__metadata__") or {}
    grouped: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        target, kind, which = _split(name, 3)
        grouped.setdefault((target, kind), {})[which] = tensor
    return tuple(_patch(target, kind, fields, facts) for (target, kind), fields in grouped.items())


def _split(name: str, count: int) -> list[str]:
    pieces = name.split("|")
    if len(pieces) != count:
        raise invalid(f"the blob's name {name!r} is not <target>|<kind>|<field>")
    return pieces


def _patch(target: str, kind: str, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, str]) -> Patch:
    try:
        alpha = facts.get(f"{target}|{kind}|alpha")
        pieces = [int(number) for number in facts[f"{target}|slice"].split(",")] if f"{target}|slice" in facts else None
        part = None if pieces is None else (pieces[0], pieces[1], pieces[2])
        return Patch(target.partition("#")[0], kind, tensors, None if alpha is None else float(alpha), part)
    except (ValueError, IndexError) as error:
        raise invalid(f"{target}: slice or alpha is no number") from error


def invalid(message: str) -> DaemonError:
    """Return the ``lora-invalid`` error."""
    return DaemonError("lora-invalid", message, "the file is damaged, or made for something else: get it again")
