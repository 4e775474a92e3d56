"""`plan`: what a conversion will write, to the byte, decided from headers alone.

Everything that can be refused without reading a weight is refused here.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luna_engine.weights import provenance
from luna_engine.weights.architectures import ARCHITECTURES, Architecture
from luna_engine.weights.components import Form
from luna_engine.weights.containers.dtypes import DTYPES
from luna_engine.weights.containers.ggml_types import BLOCK_TYPES
from luna_engine.weights.containers.gguf_header import DEFAULT_ALIGNMENT, ORIGINAL_SHAPE
from luna_engine.weights.containers.gguf_writer import Value, lay_out_gguf
from luna_engine.weights.containers.safetensors_writer import lay_out
from luna_engine.weights.diffusers_layouts import LAYOUT
from luna_engine.weights.inspection import Inspection, inspect
from luna_engine.weights.kernels.seam import kernel_name, require_kernels
from luna_engine.weights.mixes import Convolutions, block_types
from luna_engine.weights.naming import root_id, root_of
from luna_engine.weights.pipelines import source_stem
from luna_engine.weights.precisions import Precision, find_precision
from luna_engine.weights.refusals import refuse_gaps, refuse_unsuitable
from luna_engine.weights.sources import source_tensors
from luna_engine.weights.targets import Fp8Layout, PlannedTensor, fp8_target, gguf_target, is_in_block, plain_target

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from luna_engine.weights.containers.layout import Layout, Slot
    from luna_engine.weights.provenance import Findings, SourceStamp

_SPARE_HEADER_BYTES = 1024  # escapes in the error summary, which the JSON header writes longer
_SCALED_FORMS = frozenset({Form.FP8_SCALED, Form.FP8_SCALED_LEGACY})


@dataclass(frozen=True, slots=True)
class ConversionOptions:
    """Choices beside the precision.

    Attributes:
        allow_finer: write a finer class than the source's, and say so in the file.
        reshape: store tensors whose rows do not fill blocks in another shape (readers need to know that key).
        roots: folders that sources stand below, for the relative path in the provenance.
        fp8: how scaled fp8 is written.
        convolutions: what UNets' convolutions become in a mix of block types.
    """

    allow_finer: bool = False
    reshape: bool = True
    roots: tuple[Path, ...] = ()
    fp8: Fp8Layout = field(default_factory=Fp8Layout)
    convolutions: Convolutions = Convolutions.MIX


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
    fp8_layout: str = ""
    convolutions: Convolutions = Convolutions.MIX
    warnings: tuple[str, ...] = field(default=())

    def count(self, action: str) -> int:
        """Return how many tensors are copied, cast or quantised."""
        return sum(tensor.action == action for tensor in self.tensors)

    @property
    def reshaped(self) -> int:
        """Return how many quantised tensors are stored in another shape."""
        return sum(tensor.is_reshaped for tensor in self.tensors)

    @property
    def files(self) -> tuple[Path, ...]:
        """Return the files that are read."""
        return self.inspection.header.files if self.inspection.header is not None else (self.source,)

    @property
    def source_bytes(self) -> int:
        """Return the bytes that are read."""
        return sum(tensor.source.size_bytes for tensor in self.tensors)

    @property
    def block_types(self) -> frozenset[str]:
        """Return the block types that kernels pack."""
        return frozenset(
            tensor.dtype for tensor in self.tensors if tensor.action == "quantised" and tensor.dtype in BLOCK_TYPES
        )

    @property
    def kernel(self) -> str:
        """Return what turns the numbers into other types: block kernels if there are blocks to pack, else NumPy."""
        return kernel_name() if self.block_types else "numpy"

    def layout(self, findings: Findings | None = None, header_bytes: int | None = None) -> Layout:
        """Return header and places; with ``findings`` the final header, as long as the first one."""
        metadata = self._metadata(findings)
        table = list(self._table())
        if self.precision.container == "gguf":
            return lay_out_gguf(table, metadata)
        strings = {key: str(value) for key, value in metadata.items()}
        # The largest elements first, as the format's own writer does: readers need each on a multiple of its size.
        table.sort(key=lambda entry: -DTYPES[entry[1]])
        return lay_out(table, strings, spare_bytes=_SPARE_HEADER_BYTES, header_bytes=header_bytes)

    def places(self, layout: Layout) -> list[tuple[PlannedTensor, Slot, tuple[Slot, ...]]]:
        """Return each tensor with its slot and those of its extras, in the order of the source."""
        slots = {slot.name: slot for slot in layout.slots}
        return [
            (tensor, slots[tensor.name], tuple(slots[extra.name] for extra in tensor.extras)) for tensor in self.tensors
        ]

    def _table(self) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        for tensor in self.tensors:
            yield tensor.name, tensor.dtype, tensor.stored_shape
            for extra in tensor.extras:
                yield extra.name, extra.dtype, extra.shape

    def _metadata(self, findings: Findings | None) -> dict[str, Value]:
        own = provenance.entries(self.stamp, self.precision.label, self.kernel, self.created, findings)
        carried = provenance.carried(self.inspection.metadata)
        if self.fp8_layout:
            own[provenance.FP8_LAYOUT] = self.fp8_layout
        if self.convolutions is not Convolutions.MIX:
            own[provenance.CONVOLUTIONS] = self.convolutions.value
        if self.precision.container != "gguf":
            return {**carried, **own}
        config = {"luna.source_metadata.config": carried["config"]} if "config" in carried else {}
        shapes = {ORIGINAL_SHAPE + tensor.name: tensor.source.shape for tensor in self.tensors if tensor.is_reshaped}
        return {
            "general.architecture": self.architecture,
            "general.quantization_version": 2,
            "general.file_type": self.precision.file_type or 0,
            "general.name": source_stem(self.source),
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
        source: a model file with a diffusion part, an index or shard of one, or a diffusers folder.
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
    refuse_gaps(inspection, architecture, [tensor.name for tensor in tensors])
    header = inspection.header
    if header is None:  # pickles, which were refused above
        raise TypeError(f"{inspection.path} has no header")
    path = header.path
    root = root_of(path, options.roots)
    stamp = provenance.stamp_of(header, root, root_id(root))
    draft = ConversionPlan(
        path,
        target,
        inspection,
        architecture.label if architecture is not None else "",
        tensors,
        stamp,
        provenance.now(),
        0,
        _is_at_target(inspection, target, tensors, options.fp8),
        _layout_word(options.fp8) if target.is_scaled else "",
        options.convolutions if target.dtype in BLOCK_TYPES else Convolutions.MIX,
        _warnings(target, tensors),
    )
    require_kernels(draft.block_types)
    size = draft.layout().size_bytes
    return dataclasses.replace(draft, size_bytes=size)


def _plan_tensors(
    inspection: Inspection,
    target: Precision,
    architecture: Architecture | None,
    options: ConversionOptions,
    overflowing: frozenset[str],
) -> tuple[PlannedTensor, ...]:
    sources = source_tensors(inspection)
    if architecture is None or not (target.container == "gguf" or target.is_fp8):
        return tuple(plain_target(source, target) for source in sources)
    if target.container == "gguf":
        weights = [(source.name, len(source.shape)) for source in sources if is_in_block(source, architecture)]
        types = block_types(target.label, target.dtype, weights, options.convolutions)
        return tuple(
            gguf_target(
                source,
                target,
                architecture,
                types.get(source.name),
                reshape=options.reshape,
                overflows=source.name in overflowing,
            )
            for source in sources
        )
    same = inspection.form in _SCALED_FORMS if target.is_scaled else inspection.form is Form.FP8_PLAIN
    planned = [fp8_target(source, target, architecture, options.fp8, is_same_form=same) for source in sources]
    return _marked(planned, options.fp8)


def _marked(planned: Sequence[PlannedTensor], layout: Fp8Layout) -> tuple[PlannedTensor, ...]:
    """Give the file's own mark, if the layout has one, to the first tensor with a scale."""
    first = next((tensor for tensor in planned if tensor.has_scale), None)
    return tuple(
        dataclasses.replace(tensor, extras=(*tensor.extras, *layout.mark())) if tensor is first else tensor
        for tensor in planned
    )


def _layout_word(layout: Fp8Layout) -> str:
    return ("legacy" if layout.is_legacy else "current") + (", full" if layout.is_full_matmul else "")


def _is_at_target(
    inspection: Inspection, target: Precision, tensors: tuple[PlannedTensor, ...], layout: Fp8Layout
) -> bool:
    """Tell whether the source itself is what is asked for: nothing to leave out, nothing to change.

    Whoever packed it chose what stays 16-bit; packing again would only add error.
    """
    is_one_file = inspection.header is not None and len(inspection.header.files) == 1
    has_one_part = len(inspection.components) == 1 and not inspection.prefix
    is_whole = is_one_file and has_one_part and inspection.variant != LAYOUT
    if inspection.container != target.container or not is_whole:
        return False
    if target.is_scaled and layout.is_full_matmul:
        return False  # whether the source asks for that stands in its data
    is_alike = inspection.precision == target.dtype
    if target.is_fp8:
        return is_alike and inspection.form is (layout.form if target.is_scaled else Form.FP8_PLAIN)
    if target.container == "gguf":
        return is_alike
    return all(tensor.action == "copied" for tensor in tensors) and any(
        tensor.dtype == target.dtype for tensor in tensors
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
