"""The parts of a checkpoint by the prefixes of their names, and how the numbers of each are stored."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from luna_engine.weights.containers.dtypes import FLOATS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from luna_engine.weights.containers.records import TensorInfo

DIFFUSION = "diffusion"

DIFFUSION_PREFIXES = ("model.diffusion_model.", "model.model.", "net.")
_LEAST_KEYS = 6  # "more than 5": fewer keys under a prefix are some other part's

# (prefix, component); the first that fits wins. None is decided by the width of the tensors.
_PREFIXES: tuple[tuple[str, str], ...] = (
    ("cond_stage_model.transformer.", "clip_l"),
    ("cond_stage_model.model.", "clip_h"),
    ("conditioner.embedders.0.transformer.", "clip_l"),
    ("conditioner.embedders.1.model.", "clip_g"),
    ("conditioner.embedders.0.model.", "clip_g"),
    ("conditioner.embedders.0.open_clip.", "vision"),
    ("embedder.model.visual.", "vision"),
    ("first_stage_model.", "vae"),
    ("vae.", "vae"),
    ("pretransform.model.", "vae"),
    ("text_encoders.", "text encoder"),
)
_DROPPED_PREFIXES = ("model_ema.", "denoiser.")
_SCHEDULE = frozenset(
    {
        "alphas_cumprod", "alphas_cumprod_prev", "betas", "log_one_minus_alphas_cumprod", "logvar",
        "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2", "posterior_variance",
        "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod", "global_step", "scale_factor",
    }
)  # fmt: skip
# Without these a model samples wrongly: they travel with the diffusion part, whatever its prefix.
TOP_MARKERS = frozenset({"v_pred", "ztsnr", "edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min"})
INNER_MARKERS = frozenset({"__x0__", "__index_timestep_zero__"})

_SCALE_SUFFIXES = (
    ".scale_weight", ".scale_input", ".weight_scale", ".weight_scale_2", ".input_scale", ".comfy_quant",
    ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map",
)  # fmt: skip


class Form(str, Enum):
    """How the numbers of a part are stored."""

    FLOAT = "float"
    FP8_PLAIN = "fp8 plain"
    FP8_SCALED_LEGACY = "fp8 scaled, legacy"
    FP8_SCALED = "fp8 scaled, current"
    NVFP4 = "nvfp4"
    OTHER_LAYOUT = "another ComfyUI layout"
    BITSANDBYTES = "bitsandbytes 4-bit"
    NUNCHAKU = "nunchaku SVDQuant"
    GGUF = "gguf"


@dataclass(frozen=True, slots=True)
class Component:
    """One part of a file. ``parameters`` are logical: scales, markers and padding do not count."""

    name: str
    prefix: str
    tensors: int
    parameters: int
    size_bytes: int
    dtypes: Mapping[str, int]
    form: Form

    @property
    def precision(self) -> str:
        """Return the element type of most parameters."""
        return max(self.dtypes, key=lambda dtype: self.dtypes[dtype]) if self.dtypes else "none"


def diffusion_prefix(names: Iterable[str]) -> str:
    """Return the prefix that most diffusion keys stand under, "" if none does.

    ComfyUI's fallback to ``model.`` (AuraFlow) is the caller's: it takes a look at the family.
    """
    counts: Counter[str] = Counter()
    for name in names:
        for prefix in DIFFUSION_PREFIXES:
            if name.startswith(prefix):
                counts[prefix] += 1
                break
    if not counts:
        return ""
    prefix, count = max(counts.items(), key=lambda item: item[1])
    return prefix if count >= _LEAST_KEYS else ""


def component_of(name: str) -> tuple[str, str] | None:
    """Return the (component, prefix) that a tensor's name belongs to by its prefix alone, or None."""
    if is_dropped(name):
        return ("dropped", "")
    for prefix, component in _PREFIXES:
        if name.startswith(prefix):
            if component == "text encoder":
                encoder = name[len(prefix) :].partition(".")[0]
                return (encoder, f"{prefix}{encoder}.")
            return (component, prefix)
    return None


def is_dropped(name: str) -> bool:
    """Tell whether no loader needs the tensor: averages of training, schedules, index tables."""
    return (
        name.startswith(_DROPPED_PREFIXES)
        or name in _SCHEDULE
        or name.endswith((".position_ids", "_extra_state"))
        or "accum_" in name
    )


def is_scale(name: str) -> bool:
    """Tell whether a tensor belongs to another's stored form and is no weight itself."""
    return name.endswith(_SCALE_SUFFIXES) or name.rpartition(".")[2] == "scaled_fp8" or ".quant_state." in name


def form_of(tensors: Sequence[TensorInfo], metadata: Mapping[str, Any]) -> Form:
    """Tell the stored form from names and types."""
    names = [tensor.name for tensor in tensors]
    for form, mark in (
        (Form.NUNCHAKU, ".wscales"),
        (Form.BITSANDBYTES, ".quant_state.bitsandbytes__"),
        (Form.NVFP4, ".weight_scale_2"),
    ):
        if any(mark in name for name in names):
            return form
    kinds = {tensor.dtype for tensor in tensors if not is_scale(tensor.name)}
    has_fp8 = bool(kinds & {"F8_E4M3", "F8_E5M2"})
    if any(name.endswith(".comfy_quant") for name in names) or "_quantization_metadata" in metadata:
        return Form.FP8_SCALED if has_fp8 else Form.OTHER_LAYOUT
    if any(name.rpartition(".")[2] == "scaled_fp8" or name.endswith(".scale_weight") for name in names):
        return Form.FP8_SCALED_LEGACY
    if has_fp8:
        return Form.FP8_PLAIN
    return Form.FLOAT if kinds <= FLOATS | {"I64", "I32", "BOOL", "U8"} else Form.GGUF


def describe(
    name: str, prefix: str, tensors: Sequence[TensorInfo], metadata: Mapping[str, Any], container: str
) -> Component:
    """Sum up the tensors of one part."""
    form = Form.GGUF if container == "gguf" else form_of(tensors, metadata)
    dtypes: Counter[str] = Counter()
    for tensor in tensors:
        if not is_scale(tensor.name):
            packed = 2 if form is Form.NVFP4 and tensor.dtype == "U8" else 1
            dtypes[tensor.dtype] += packed * math.prod(tensor.shape)
    return Component(
        name,
        prefix,
        len(tensors),
        sum(dtypes.values()),
        sum(tensor.size_bytes for tensor in tensors),
        dict(dtypes.most_common()),
        form,
    )
