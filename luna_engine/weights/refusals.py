"""Sources that cannot be converted, each with what it is and what to use in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_engine.errors import InputFileError
from luna_engine.weights.architectures import ARCHITECTURES, Architecture
from luna_engine.weights.components import Form
from luna_engine.weights.containers.dtypes import DTYPES
from luna_engine.weights.diffusers_layouts import LAYOUT
from luna_engine.weights.diffusers_names import RENAMED_FAMILIES
from luna_engine.weights.keys import Keys
from luna_engine.weights.kinds import Kind
from luna_engine.weights.precisions import Precision, source_bits
from luna_engine.weights.targets import DECODED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luna_engine.weights.inspection import Inspection
    from luna_engine.weights.summary import Summary

_NO_PART = {
    Kind.VAE: "a VAE",
    Kind.TEXT_ENCODER: "a text encoder",
    Kind.VISION_ENCODER: "a vision encoder",
}
_NO_MODEL = {
    Kind.LORA: "a LoRA",
    Kind.CONTROLNET: "a ControlNet",
    Kind.EMBEDDING: "an embedding",
    Kind.UPSCALER: "an upscaler",
}
_NO_WAY_BACK = frozenset({Form.NUNCHAKU, Form.BITSANDBYTES, Form.NVFP4, Form.OTHER_LAYOUT})


def refuse_unsuitable(found: Inspection, target: Precision, *, allow_finer: bool) -> None:
    """Raise an InputFileError if ``found`` cannot become ``target``."""
    _refuse_kind(found)
    if found.form in _NO_WAY_BACK:
        raise _error(
            found,
            "precision-unsupported",
            f"holds {found.form.value} weights; they cannot be turned back into plain weights",
            "use the original fp16 or bf16 file",
        )
    if found.variant == LAYOUT and (found.family not in RENAMED_FAMILIES or found.container == "gguf"):
        raise _error(
            found,
            "family-unsupported",
            f"is {found.family} in diffusers layout, which this Luna cannot rename",
            "use the single-file version of the model",
        )
    if (target.container == "gguf" or target.is_fp8) and found.family not in ARCHITECTURES:
        first = ", ".join(tensor.name for tensor in found.tensors[:3])
        lack = "no GGUF loader exists" if target.container == "gguf" else "nobody has tried which weights bear 8 bits"
        raise _error(
            found,
            "family-unsupported",
            f"is of the family {found.family or 'unknown'} ({first}, ...), for which {lack}",
            "convert to bf16",
        )
    _refuse_finer(found, target, allow_finer=allow_finer)


def impossible(found: Summary, target: Precision) -> str | None:
    """Say why a source cannot become ``target``, as far as its summary tells; the plan may still find more."""
    if found.form in _NO_WAY_BACK:
        return f"{found.form.value} weights cannot be turned back"
    if (target.container == "gguf" or target.is_fp8) and found.family not in ARCHITECTURES:
        return f"{found.family or 'an unknown family'}: bf16 and fp16 only"
    if source_bits(found.precision) < target.bits:
        return f"finer than its own {found.precision}"
    return None


def _refuse_kind(found: Inspection) -> None:
    if found.kind is Kind.PICKLE:
        raise _error(
            found,
            "pickle-refused",
            "is a pickle: loading it could run code",
            "use a safetensors version of the model",
        )
    if (words := _NO_MODEL.get(found.kind)) is not None:
        raise _error(found, "wrong-type", f"is {words}, not a model", "name a checkpoint or diffusion model")
    if (words := _NO_PART.get(found.kind)) is not None:
        raise _error(
            found, "component-missing", f"is {words}: no diffusion part", "name a checkpoint or diffusion model"
        )
    if found.kind is Kind.UNKNOWN:
        first = ", ".join(tensor.name for tensor in found.tensors[:3]) or "no tensors"
        raise _error(
            found,
            "family-unsupported",
            f"holds nothing that Luna knows ({first})",
            "`luna weights inspect` shows its keys",
        )


def _refuse_finer(found: Inspection, target: Precision, *, allow_finer: bool) -> None:
    bits = source_bits(found.precision)
    is_same = target.container == "gguf" == found.container and found.precision == target.dtype
    closed = {tensor.dtype for tensor in found.tensors} - set(DTYPES) - DECODED
    if closed and not is_same:
        raise _error(
            found,
            "precision-unsupported",
            f"is packed as {', '.join(sorted(closed))}, which this Luna does not turn back",
            "convert the original file",
        )
    if bits < target.bits and not allow_finer:
        raise _error(
            found,
            "precision-unsupported",
            f"has {bits}-bit weights; {target.label} would be larger and no better",
            "convert the original file, or say --allow-finer",
        )


def refuse_gaps(found: Inspection, architecture: Architecture | None, names: Sequence[str]) -> None:
    """Refuse a model with a block missing in the middle: a partial merge or a broken copy.

    Args:
        found: the file, for the message.
        architecture: says how the blocks are called; None asks nothing.
        names: the tensors under reference names.
    """
    keys = Keys(dict.fromkeys(names, ()))
    for prefix in architecture.blocks if architecture is not None else ():
        numbers = keys.blocks(prefix)
        missing = sorted(set(range(max(numbers, default=-1) + 1)) - numbers)
        if missing:
            raise _error(
                found,
                "file-damaged",
                f"lacks {', '.join(f'{prefix}{number}' for number in missing[:8])}",
                "the merge or download is incomplete: take the whole file",
            )


def _error(found: Inspection, code: str, message: str, hint: str) -> InputFileError:
    return InputFileError(code, f"{found.path.name} {message}", hint, file=str(found.path))
