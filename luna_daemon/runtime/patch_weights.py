"""The arithmetic of patches on whole weights, kind by kind, in the order of operations that ComfyUI computes in.

The order matters: an exact result is equal to ComfyUI's to the last bit. Formulas: Hu et al. 2021 (LoRA), Liu et al.
2024 (DoRA), LyCORIS (Yeh et al. 2023: LoHa, LoKr, GLoRA), Qiu et al. 2023 (OFT), Liu et al. 2023 (BOFT).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from luna_daemon.runtime.patch_shapes import glora_is_old, scale_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from luna_daemon.patches import Patch

    Tensors = Mapping[str, torch.Tensor]
    Application = tuple[Patch, float, float]


def patched(original: torch.Tensor, applications: Iterable[Application], dtype: torch.dtype) -> torch.Tensor:
    """Return a weight with patches applied, in order; the original is only read.

    Args:
        original: the weight as it is kept.
        applications: (patch, strength of the patch, strength of the weight itself).
        dtype: of the arithmetic and of the result.
    """
    weight = original.to(dtype, copy=True)
    for patch, strength, strength_model in applications:
        given = original
        view = weight
        if patch.part is not None:
            view, given = weight.narrow(*patch.part), original.narrow(*patch.part)
        if strength_model != 1.0:
            view *= strength_model
        _apply(view, patch, strength, given)
    return weight


def _apply(weight: torch.Tensor, patch: Patch, strength: float, original: torch.Tensor) -> None:
    tensors = {name: tensor.to(weight.device, weight.dtype) for name, tensor in patch.tensors.items()}
    if patch.kind == "set":
        weight.copy_(tensors["weight"])
    elif patch.kind == "diff":
        if strength != 0.0:
            weight += strength * tensors["weight"]
    elif patch.kind == "model_as_lora":
        weight += strength * (tensors["weight"] - original.to(weight.dtype))
    else:
        _add(weight, _DELTAS[patch.kind](weight, patch, tensors, strength), patch, tensors, strength)


def _add(weight: torch.Tensor, delta: torch.Tensor, patch: Patch, tensors: Tensors, strength: float) -> None:
    # OFT's alpha bounds its rotation, and its delta carries no scale; with DoRA it is multiplied in all the same.
    rotates = patch.kind in {"oft", "boft"}
    scale = (patch.alpha or 0.0) if rotates else scale_of(patch, weight.shape)
    if "dora_scale" in tensors:
        _decompose(weight, delta, tensors["dora_scale"], scale, strength)
    else:
        weight += (strength if rotates else strength * scale) * delta


def _decompose(
    weight: torch.Tensor, delta: torch.Tensor, magnitude: torch.Tensor, scale: float, strength: float
) -> None:
    """Set magnitude and direction apart: the sum is brought to the given norms.

    By row the divisor is the norm of the weight before the patch, by column of the sum, as ComfyUI has them.
    """
    delta = delta * scale
    total = weight + delta
    if magnitude.shape[0] == total.shape[0]:
        norm = weight.reshape(weight.shape[0], -1).norm(dim=1, keepdim=True)
    else:
        norm = total.transpose(0, 1).reshape(total.shape[1], -1).norm(dim=1, keepdim=True).transpose(0, 1)
    total *= magnitude / (norm + torch.finfo(weight.dtype).eps)
    if strength == 1.0:
        weight.copy_(total)
    else:
        weight += strength * (total - weight)


def _lora(weight: torch.Tensor, patch: Patch, tensors: Tensors, strength: float) -> torch.Tensor:  # noqa: ARG001 - one signature for all kinds
    return torch.mm(tensors["up"].flatten(1), tensors["down"].flatten(1)).reshape(weight.shape)


def _loha(weight: torch.Tensor, patch: Patch, tensors: Tensors, strength: float) -> torch.Tensor:  # noqa: ARG001 - likewise
    first, second = torch.mm(tensors["w1_a"], tensors["w1_b"]), torch.mm(tensors["w2_a"], tensors["w2_b"])
    return (first * second).reshape(weight.shape)


def _lokr(weight: torch.Tensor, patch: Patch, tensors: Tensors, strength: float) -> torch.Tensor:  # noqa: ARG001 - likewise
    first, second = (
        tensors[factor] if factor in tensors else torch.mm(tensors[f"{factor}_a"], tensors[f"{factor}_b"])
        for factor in ("w1", "w2")
    )
    return torch.kron(first, second).reshape(weight.shape)


def _glora(weight: torch.Tensor, patch: Patch, tensors: Tensors, strength: float) -> torch.Tensor:  # noqa: ARG001 - likewise
    a1, a2, b1, b2 = (tensors[name].flatten(1) for name in ("a1", "a2", "b1", "b2"))
    if glora_is_old(patch.tensors, weight.shape):
        return torch.mm(b2, b1) + torch.mm(torch.mm(weight, a2), a1)
    return torch.mm(torch.mm(weight, a1), a2) + torch.mm(b1, b2)


def _rotations(patch: Patch, blocks: torch.Tensor) -> torch.Tensor:
    """Return the rotations of skew-symmetric generators by Cayley's transform; alpha bounds their norm."""
    unit = torch.eye(blocks.shape[-1], device=blocks.device, dtype=blocks.dtype)
    skew = blocks - blocks.transpose(-1, -2)
    if patch.alpha is not None and patch.alpha > 0:
        norm = torch.norm(skew) + 1e-8
        if norm > patch.alpha:
            skew = skew * patch.alpha / norm
    return ((unit + skew) @ (unit - skew).float().inverse()).to(blocks.dtype)


def _oft(weight: torch.Tensor, patch: Patch, tensors: Tensors, strength: float) -> torch.Tensor:
    blocks = tensors["blocks"]
    turn = _rotations(patch, blocks)
    unit = torch.eye(blocks.shape[1], device=weight.device, dtype=weight.dtype)
    rest = weight.shape[1:]
    turned = torch.einsum(
        "k n m, k n ... -> k m ...",
        (turn * strength) - strength * unit,
        weight.reshape(blocks.shape[0], blocks.shape[1], *rest),
    )
    return turned.reshape(-1, *rest)


def _boft(weight: torch.Tensor, patch: Patch, tensors: Tensors, strength: float) -> torch.Tensor:
    blocks = tensors["blocks"]
    turns = _rotations(patch, blocks)
    unit = torch.eye(blocks.shape[-1], device=weight.device, dtype=weight.dtype)
    moved = weight
    for step in range(blocks.shape[0]):
        turn = turns[step] if strength == 1 else turns[step] * strength + (1 - strength) * unit
        apart = 2**step * (blocks.shape[-1] // 2)
        rest = moved.shape[1:]
        moved = moved.reshape(-1, 2, apart, *rest).transpose(1, 2).reshape(-1, blocks.shape[-1], *rest)
        moved = torch.einsum("b i j, b j ...-> b i ...", turn, moved)
        moved = moved.reshape(-1, apart, 2, *rest).transpose(1, 2).reshape(-1, *rest)
    if "rescale" in tensors:
        moved = moved * tensors["rescale"]
    return moved - weight


_DELTAS: Mapping[str, Callable[[torch.Tensor, Patch, Tensors, float], torch.Tensor]] = {
    "lora": _lora,
    "loha": _loha,
    "lokr": _lokr,
    "glora": _glora,
    "oft": _oft,
    "boft": _boft,
}
