"""What makes a patch sound: fields that its kind has, finite numbers, ranks, shapes that multiply and fit the weight.

Judged before anything is queued, so that a bad LoRA is its sender's error and nobody else's.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from luna_daemon.patches import FIELDS, Patch, invalid

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from luna_engine.errors import DaemonError

SCALE_MAX = 1e4
"""The largest alpha over rank: a hundred times what any trainer writes."""
_FLOATS = frozenset(
    {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2}
)


def rank_of(patch: Patch, weight: Sequence[int] = ()) -> int | None:
    """Return the rank that alpha is divided by, None for kinds and forms without one.

    Args:
        patch: a sound one.
        weight: the shape that it is for; see `glora_is_old`.
    """
    tensors = patch.tensors
    match patch.kind:
        case "lora":
            return tensors["down"].shape[0]
        case "loha":
            return tensors["w1_b"].shape[0]
        case "lokr":
            # With both factors in two, the second one's rank counts (LyCORIS writes them equal).
            inner = tensors.get("w2_b", tensors.get("w1_b")) if _lokr_is_factored(tensors) else None
            return None if inner is None else inner.shape[0]
        case "glora":
            return tensors["b1"].shape[0] if glora_is_old(tensors, weight) else tensors["b1"].shape[1]
        case _:
            return None


def _lokr_is_factored(tensors: Mapping[str, torch.Tensor]) -> bool:
    return "w1" not in tensors or "w2" not in tensors


def glora_is_old(tensors: Mapping[str, torch.Tensor], weight: Sequence[int] = ()) -> bool:
    """Tell LyCORIS' old layout (b2 @ b1) from the new one (b1 @ b2).

    For a square weight the factors fit both; then the side that is as long as the weight decides.
    """
    a1, a2, b1, b2 = (tensors[name].shape for name in ("a1", "a2", "b1", "b2"))
    is_old = b2[1] == b1[0] == a1[0] == a2[1]
    is_new = b2[0] == b1[1] == a1[1] == a2[0]
    if is_old and is_new:
        return bool(weight) and a2[0] == weight[0] == weight[1]
    return is_old


def scale_of(patch: Patch, weight: Sequence[int] = ()) -> float:
    """Return alpha over rank; a missing alpha equals the rank."""
    rank = rank_of(patch, weight)
    return 1.0 if patch.alpha is None or rank is None else patch.alpha / rank


def check(patch: Patch) -> None:
    """Judge a patch by itself.

    Raises:
        DaemonError: ``lora-invalid`` naming the weight and what is wrong.
    """
    if patch.kind not in FIELDS:
        raise _bad(patch, "is of a kind that is not known here")
    required, optional = FIELDS[patch.kind]
    names = set(patch.tensors)
    if required - names or names - required - optional:
        raise _bad(patch, f"has the fields {', '.join(sorted(names)) or 'none'}")
    if patch.kind == "lokr" and not all(_has_factor(names, factor) for factor in ("w1", "w2")):
        raise _bad(patch, "lacks one of its two factors")
    for name, tensor in patch.tensors.items():
        if tensor.dtype not in _FLOATS:
            raise _bad(patch, f"{name} is {tensor.dtype}, not a float")
        if tensor.numel() == 0:
            raise _bad(patch, f"{name} is empty, {list(tensor.shape)}: rank 0")
        if not bool(tensor.float().isfinite().all()):
            raise _bad(patch, f"{name} has values that are not finite numbers")
    if patch.alpha is not None and not math.isfinite(patch.alpha):
        raise _bad(patch, "alpha is not a finite number")
    shape(patch)
    if abs(scale_of(patch)) > SCALE_MAX:
        raise _bad(patch, f"alpha over rank is {scale_of(patch):g}, at most {SCALE_MAX:g} makes sense")


def _has_factor(names: set[str], factor: str) -> bool:
    return factor in names or {f"{factor}_a", f"{factor}_b"} <= names


def check_fits(patch: Patch, weight: Sequence[int]) -> None:
    """Judge a patch against the weight that it is for.

    Raises:
        DaemonError: ``lora-invalid`` if the shapes differ or the slice lies outside.
    """
    target = list(weight)
    if patch.part is not None:
        dimension, start, length = patch.part
        if not 0 <= dimension < len(target) or start < 0 or length < 1 or start + length > target[dimension]:
            raise _bad(patch, f"its slice {patch.part} lies outside {list(weight)}")
        target[dimension] = length
    made = shape(patch, target)
    if list(made) != target:
        raise _bad(patch, f"it makes {list(made)}, the weight has {target}")
    scale = patch.tensors.get("dora_scale")
    if scale is not None:
        _check_dora(patch, scale, target)


def _check_dora(patch: Patch, scale: torch.Tensor, target: list[int]) -> None:
    if len(target) != 2 or tuple(scale.shape) not in {(target[0], 1), (1, target[1])}:
        raise _bad(patch, f"dora_scale has {list(scale.shape)}, the weight {target}")


def shape(patch: Patch, weight: Sequence[int] = ()) -> tuple[int, ...]:
    """Return the shape of what a patch makes.

    Args:
        patch: its fields are those of its kind.
        weight: the shape that it is for; decides where a kind's layout depends on it.

    Raises:
        DaemonError: ``lora-invalid`` for factors that do not multiply.
    """
    sides = {
        name: tuple(tensor.flatten(1).shape if tensor.ndim > 2 else tensor.shape)
        for name, tensor in patch.tensors.items()
    }
    return _SHAPES[patch.kind](patch, sides, weight)


def _product(patch: Patch, left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, int]:
    if len(left) != 2 or len(right) != 2 or left[1] != right[0]:
        raise _bad(patch, f"its factors {list(left)} and {list(right)} do not multiply")
    return left[0], right[1]


def _lora(patch: Patch, sides: Mapping[str, tuple[int, ...]], _weight: Sequence[int]) -> tuple[int, ...]:
    return _product(patch, sides["up"], sides["down"])


def _loha(patch: Patch, sides: Mapping[str, tuple[int, ...]], _weight: Sequence[int]) -> tuple[int, ...]:
    first = _product(patch, sides["w1_a"], sides["w1_b"])
    if first != _product(patch, sides["w2_a"], sides["w2_b"]):
        raise _bad(patch, "its two products differ in shape")
    return first


def _lokr(patch: Patch, sides: Mapping[str, tuple[int, ...]], _weight: Sequence[int]) -> tuple[int, ...]:
    first, second = (
        sides[factor] if factor in sides else _product(patch, sides[f"{factor}_a"], sides[f"{factor}_b"])
        for factor in ("w1", "w2")
    )
    if len(first) != 2 or len(second) != 2:
        raise _bad(patch, "its factors are no matrices")
    return first[0] * second[0], first[1] * second[1]


def _glora(patch: Patch, sides: Mapping[str, tuple[int, ...]], weight: Sequence[int]) -> tuple[int, ...]:
    if any(len(side) != 2 for side in sides.values()):
        raise _bad(patch, "its factors are no matrices")
    if glora_is_old(patch.tensors, weight):
        inner, outer = _product(patch, sides["a2"], sides["a1"]), _product(patch, sides["b2"], sides["b1"])
    else:
        inner, outer = _product(patch, sides["a1"], sides["a2"]), _product(patch, sides["b1"], sides["b2"])
    if inner != (outer[1], outer[1]):
        raise _bad(patch, f"its factors make {list(inner)} for the inputs, {list(outer)} for the weight")
    return outer


def _oft(patch: Patch, _sides: Mapping[str, tuple[int, ...]], weight: Sequence[int]) -> tuple[int, ...]:
    blocks = patch.tensors["blocks"].shape
    dimensions = 3 if patch.kind == "oft" else 4
    if len(blocks) != dimensions or blocks[-1] != blocks[-2] or (patch.kind == "boft" and blocks[-1] % 2):
        raise _bad(patch, f"its blocks have {list(blocks)}")
    rows = blocks[-3] * blocks[-2]
    rescale = patch.tensors.get("rescale")
    if rescale is not None and tuple(rescale.shape) not in {(rows, 1), (1,), (1, 1)}:
        raise _bad(patch, f"rescale has {list(rescale.shape)}, expected [{rows}, 1]")
    if patch.kind == "boft" and rows % (2 ** blocks[0] * (blocks[-1] // 2)):
        raise _bad(patch, f"{blocks[0]} butterfly steps do not divide {rows} rows")
    return (rows, *weight[1:])


def _whole(patch: Patch, _sides: Mapping[str, tuple[int, ...]], _weight: Sequence[int]) -> tuple[int, ...]:
    return tuple(patch.tensors["weight"].shape)


_SHAPES: Mapping[str, Callable[[Patch, Mapping[str, tuple[int, ...]], Sequence[int]], tuple[int, ...]]] = {
    "lora": _lora,
    "loha": _loha,
    "lokr": _lokr,
    "glora": _glora,
    "oft": _oft,
    "boft": _oft,
    "diff": _whole,
    "set": _whole,
    "model_as_lora": _whole,
}


def _bad(patch: Patch, what: str) -> DaemonError:
    return invalid(f"{patch.kind} for {patch.target}: {what}")
