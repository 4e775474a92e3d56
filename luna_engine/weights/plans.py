"""`plan`: what a conversion will write, to the byte, decided from headers alone.

Everything that can be refused without reading a weight is refused here.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna_engine.errors import InputFileError
from luna_engine.weights import provenance
from luna_engine.weights.architectures import ARCHITECTURES, Architecture, is_bare
from luna_engine.weights.components import Form, is_scale
from luna_engine.weights.containers.dtypes import FLOATS
from luna_engine.weights.containers.ggml_types import BY_NAME
from luna_engine.weights.containers.gguf_header import DEFAULT_ALIGNMENT, ORIGINAL_SHAPE
from luna_engine.weights.containers.gguf_writer import Value, lay_out_gguf
from luna_engine.weights.containers.safetensors_writer import lay_out
from luna_engine.weights.inspection import Inspection, inspect, is_diffusion_tensor
from luna_engine.weights.naming import root_id, root_of
from luna_engine.weights.precisions import Precision, find_precision
from luna_engine.weights.refusals import refuse_unsuitable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luna_engine.weights.containers.layout import Layout
    from luna_engine.weights.containers.records import TensorInfo
    from luna_engine.weights.provenance import Findings, SourceStamp

KERNEL = "numpy"
_SPARE_HEADER_BYTES = 1024  # escapes in the error summary, which the JSON header writes longer
_SIDE_ELEMENTS = 1024
_RESHAPED_COLUMNS = 256
_GGUF_WHOLE = frozenset({"I8", "I16", "I32", "I64"})


@dataclass(frozen=True, slots=True)
class ConversionOptions:
    """Choices beside the precision.

    Attributes:
        allow_finer: write a finer class than the source's, and say so in the file.
        reshape: store tensors whose rows do not fill blocks in another shape (readers need to know that key).
        roots: folders that sources stand below, for the relative path in the provenance.
    """

    allow_finer: bool = False
    reshape: bool = True
    roots: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of the output. ``action`` is copied, cast or quantised; ``stored_shape`` differs where reshaped."""

    name: str
    source: TensorInfo
    scale: TensorInfo | None
    dtype: str
    stored_shape: tuple[int, ...]
    action: str

    @property
    def is_reshaped(self) -> bool:
        """Tell whether readers need the original shape's key."""
        return self.action == "quantised" and self.stored_shape != self.source.shape


@dataclass(frozen=True, slots=True)
class ConversionPlan:
    """Every decision of one conversion. ``size_bytes`` is exact."""

    source: Path
    precision: Precision
    inspection: Inspection
    architecture: str
    tensors: tuple[PlannedTensor, ...]
    stamp: SourceStamp
    created: str
    size_bytes: int
    is_at_target: bool
    warnings: tuple[str, ...] = field(default=())

    def count(self, action: str) -> int:
        """Return how many tensors are copied, cast or quantised."""
        return sum(tensor.action == action for tensor in self.tensors)

    @property
    def reshaped(self) -> int:
        """Return how many quantised tensors are stored in another shape."""
        return sum(tensor.is_reshaped for tensor in self.tensors)

    @property
    def source_bytes(self) -> int:
        """Return the bytes that are read."""
        return sum(tensor.source.size_bytes for tensor in self.tensors)

    def layout(self, findings: Findings | None = None, header_bytes: int | None = None) -> Layout:
        """Return header and places; with ``findings`` the final header, as long as the first one."""
        metadata = self._metadata(findings)
        table = [(tensor.name, tensor.dtype, tensor.stored_shape) for tensor in self.tensors]
        if self.precision.container == "gguf":
            return lay_out_gguf(table, metadata)
        strings = {key: str(value) for key, value in metadata.items()}
        return lay_out(table, strings, spare_bytes=_SPARE_HEADER_BYTES, header_bytes=header_bytes)

    def _metadata(self, findings: Findings | None) -> dict[str, Value]:
        own = provenance.entries(self.stamp, self.precision.label, KERNEL, self.created, findings)
        carried = provenance.carried(self.inspection.metadata)
        if self.precision.container != "gguf":
            return {**carried, **own}
        config = {"luna.source_metadata.config": carried["config"]} if "config" in carried else {}
        shapes = {ORIGINAL_SHAPE + tensor.name: tensor.source.shape for tensor in self.tensors if tensor.is_reshaped}
        return {
            "general.architecture": self.architecture,
            "general.quantization_version": 2,
            "general.file_type": self.precision.file_type or 0,
            "general.name": self.source.stem,
            "general.alignment": DEFAULT_ALIGNMENT,
            **own,
            **config,
            **shapes,
        }


def plan(
    source: str | Path,
    precision: str | Precision,
    *,
    options: ConversionOptions | None = None,
    overflowing: frozenset[str] = frozenset(),
) -> ConversionPlan:
    """Decide what converting ``source`` to ``precision`` writes.

    Args:
        source: a model file with a diffusion part.
        precision: a label or its Precision.
        options: see ConversionOptions.
        overflowing: names of side tensors that hold values beyond half's range (known after a look at the data).

    Raises:
        InputFileError: the source is damaged, of another kind or in a form that cannot be converted.
        LunaError: ``precision-unsupported``, ``name-too-long``.
    """
    options = options or ConversionOptions()
    target = precision if isinstance(precision, Precision) else find_precision(precision)
    inspection = inspect(source)
    refuse_unsuitable(inspection, target, allow_finer=options.allow_finer)
    architecture = ARCHITECTURES.get(inspection.family or "")
    tensors = _plan_tensors(inspection, target, architecture, options, overflowing)
    path = Path(source)
    root = root_of(path, options.roots)
    header = inspection.header
    stamp = provenance.stamp_of(path, root, root_id(root), header.sha256 if header is not None else "")
    draft = ConversionPlan(
        path,
        target,
        inspection,
        architecture.label if architecture is not None else "",
        tensors,
        stamp,
        provenance.now(),
        0,
        _is_at_target(inspection, target, tensors),
        _warnings(target, tensors),
    )
    size = draft.layout().size_bytes
    return dataclasses.replace(draft, size_bytes=size)


def _plan_tensors(
    inspection: Inspection,
    target: Precision,
    architecture: Architecture | None,
    options: ConversionOptions,
    overflowing: frozenset[str],
) -> tuple[PlannedTensor, ...]:
    wanted = [tensor for tensor in inspection.tensors if is_diffusion_tensor(tensor.name, inspection.prefix)]
    scales = {tensor.name: tensor for tensor in wanted if is_scale(tensor.name)}
    weights = sorted((t for t in wanted if t.name not in scales), key=lambda tensor: tensor.offset)
    planned: list[PlannedTensor] = []
    for tensor in weights:
        name = tensor.name.removeprefix(inspection.prefix)
        scale = _scale_of(inspection, tensor, scales)
        if target.container == "gguf" and architecture is not None:
            planned.append(_gguf(name, tensor, scale, target, architecture, options, overflowing))
        else:
            planned.append(_safetensors(name, tensor, scale, target))
    _refuse_twins(inspection, planned)
    return tuple(planned)


def _safetensors(name: str, tensor: TensorInfo, scale: TensorInfo | None, target: Precision) -> PlannedTensor:
    is_float = tensor.dtype in FLOATS
    dtype = target.dtype if is_float else tensor.dtype
    action = "copied" if dtype == tensor.dtype else "cast"
    return PlannedTensor(name, tensor, scale, dtype, tensor.shape, action)


def _gguf(
    name: str,
    tensor: TensorInfo,
    scale: TensorInfo | None,
    target: Precision,
    architecture: Architecture,
    options: ConversionOptions,
    overflowing: frozenset[str],
) -> PlannedTensor:
    if tensor.dtype in FLOATS and architecture.is_quantised(name, tensor.shape):
        stored = _blocked_shape(tensor.shape, BY_NAME[target.dtype].block, reshape=options.reshape)
        if stored is not None:
            return PlannedTensor(name, tensor, scale, target.dtype, stored, "quantised")
    dtype = _side_type(name, tensor, architecture, overflows=tensor.name in overflowing)
    stored = tensor.shape if math.prod(tensor.shape) and tensor.shape else (1,)
    return PlannedTensor(name, tensor, scale, dtype, stored, "copied" if dtype == tensor.dtype else "cast")


def _blocked_shape(shape: tuple[int, ...], block: int, *, reshape: bool) -> tuple[int, ...] | None:
    """Return the shape to store in whole blocks; None if the tensor cannot be."""
    if shape[-1] % block == 0:
        return shape
    elements = math.prod(shape)
    for columns in (_RESHAPED_COLUMNS, block):
        if reshape and columns % block == 0 and elements % columns == 0:
            return (elements // columns, columns)
    return None


def _side_type(name: str, tensor: TensorInfo, architecture: Architecture, *, overflows: bool) -> str:
    """Return the type of a tensor that is not quantised; loaders read bare parameters only as F32 or F16."""
    if tensor.dtype == "F16" or tensor.dtype in _GGUF_WHOLE:
        return tensor.dtype
    is_small = len(tensor.shape) <= 1 or math.prod(tensor.shape) <= _SIDE_ELEMENTS
    if tensor.dtype not in FLOATS or is_small or overflows or is_bare(architecture, name):
        return "F32"
    return "F16"


def _scale_of(inspection: Inspection, tensor: TensorInfo, scales: dict[str, TensorInfo]) -> TensorInfo | None:
    """Return the scale that a scaled fp8 weight is multiplied with."""
    if tensor.dtype not in {"F8_E4M3", "F8_E5M2"} or not tensor.name.endswith(".weight"):
        return None
    layer = tensor.name.removesuffix(".weight")
    found = scales.get(f"{layer}.weight_scale") or scales.get(f"{layer}.scale_weight")
    if found is None and inspection.form in {Form.FP8_SCALED, Form.FP8_SCALED_LEGACY}:
        raise InputFileError(
            "file-damaged",
            f"{inspection.path.name}: {layer} is scaled fp8 but its scale is missing",
            "without it the weights are wrong by a factor: take the original file",
            file=str(inspection.path),
        )
    if found is not None and math.prod(found.shape) != 1:
        raise InputFileError(
            "file-damaged",
            f"{inspection.path.name}: the scale of {layer} has shape {list(found.shape)}, one number is needed",
            file=str(inspection.path),
        )
    return found


def _refuse_twins(inspection: Inspection, planned: Sequence[PlannedTensor]) -> None:
    seen: set[str] = set()
    for tensor in planned:
        if tensor.name in seen:
            raise InputFileError(
                "file-damaged",
                f"{inspection.path.name}: {tensor.name} occurs with and without the prefix {inspection.prefix}",
                file=str(inspection.path),
            )
        seen.add(tensor.name)


def _is_at_target(inspection: Inspection, target: Precision, tensors: tuple[PlannedTensor, ...]) -> bool:
    """Tell whether the source itself is what is asked for: nothing to leave out, nothing to change."""
    if inspection.container == target.container == "gguf" and inspection.precision == target.dtype:
        return True  # whoever packed it chose what stays 16-bit; packing again would only add error
    return (
        inspection.container == target.container
        and len(tensors) == len(inspection.tensors)
        and not inspection.prefix
        and all(tensor.action == "copied" for tensor in tensors)
        and any(tensor.dtype == target.dtype for tensor in tensors)
    )


def _warnings(target: Precision, tensors: tuple[PlannedTensor, ...]) -> tuple[str, ...]:
    if target.container != "gguf":
        return ()
    deep = [tensor.name for tensor in tensors if len(tensor.stored_shape) > 4]
    if deep:
        return (f"{len(deep)} tensors have more than 4 dimensions ({deep[0]}): C readers refuse the file",)
    return ()


def plan_fields(found: ConversionPlan, destination: Path) -> dict[str, Any]:
    """Return the plan as one entry of ``luna.weights.plan/1``."""
    return {
        "source": str(found.source),
        "destination": str(destination),
        "precision": found.precision.label,
        "architecture": found.architecture or found.inspection.family,
        "tensors": {
            "quantised": found.count("quantised"),
            "kept": found.count("cast") + found.count("copied"),
            "reshaped": found.reshaped,
        },
        "output_bytes": found.size_bytes,
        "is_at_target": found.is_at_target,
        "warnings": list(found.warnings),
    }
