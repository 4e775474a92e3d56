"""`inspect`: says what a model file is from its header alone, with the evidence and what must stay open."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna_engine.errors import InputFileError
from luna_engine.weights import components
from luna_engine.weights.architectures import ARCHITECTURES
from luna_engine.weights.components import DIFFUSION, Component, Form
from luna_engine.weights.families import detect_family
from luna_engine.weights.headers import read_header
from luna_engine.weights.keys import Keys
from luna_engine.weights.kinds import Kind, adapter_kind, part_kind
from luna_engine.weights.pipelines import MODEL_INDEX, is_pipeline, part_files, pipeline_class, weight_file
from luna_engine.weights.verdicts import Confidence, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from luna_engine.weights.containers.records import Header, TensorInfo

_PREFIXES_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a header says.

    ``family`` is None where no diffusion part was recognised; ``part`` names a text encoder or VAE.
    ``prefix`` stands before the diffusion keys. ``open_questions`` are what only the file's name, its metadata or
    a look at the values could settle.
    """

    path: Path
    size_bytes: int
    container: str
    kind: Kind
    family: str | None
    variant: str
    part: str
    precision: str
    form: Form
    prediction: str | None
    confidence: Confidence
    evidence: tuple[str, ...]
    possible: tuple[str, ...]
    open_questions: tuple[str, ...]
    components: tuple[Component, ...]
    prefix: str
    key_prefixes: Mapping[str, int]
    metadata: Mapping[str, Any]
    header: Header | None

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """Return the file's tensors in file order."""
        return self.header.tensors if self.header is not None else ()

    @property
    def name(self) -> str:
        """Return the kind and family as one phrase for people, such as "sdxl checkpoint"."""
        words = [self.family or self.part, self.variant, self.kind.value]
        return " ".join(word for word in words if word)


def inspect(path: str | Path) -> Inspection:
    """Say what a file is, reading its header only.

    Args:
        path: a file; one of several that a model is cut into, or their index, for the whole; or a diffusers folder,
            whose diffusion model is looked at and whose other parts are listed.

    Raises:
        InputFileError: ``file-missing``, ``file-unreadable``, ``file-damaged``, ``wrong-type`` (no file),
            ``precision-unsupported`` (an element type nobody knows).
    """
    path = Path(path)
    file = weight_file(path)
    try:
        found = inspect_header(read_header(file))
    except InputFileError as error:
        if error.code != "pickle-refused":
            raise
        return _pickle(file)
    return _with_pipeline(found, path) if is_pipeline(path) else found


def _with_pipeline(found: Inspection, folder: Path) -> Inspection:
    """Add what stands in the other folders of a diffusers model."""
    parts: list[Component] = []
    for name, file in part_files(folder).items():
        if file != found.path:
            header = read_header(file)
            parts.append(components.describe(name, "", header.tensors, header.metadata, header.container))
    claim = pipeline_class(folder)
    return dataclasses.replace(
        found,
        kind=Kind.CHECKPOINT if parts else found.kind,
        evidence=(*found.evidence, f"{MODEL_INDEX} says {claim}") if claim else found.evidence,
        components=(*found.components, *parts),
    )


def inspect_header(header: Header) -> Inspection:
    """Say what a file with this header is."""
    # A scale stands beside a weight under a name that begins like it: it must not be taken for the weight.
    keys = Keys({tensor.name: tensor.shape for tensor in header.tensors if not components.is_scale(tensor.name)})
    if (adapter := adapter_kind(keys)) is not None:
        return _simple(header, adapter[0], "", adapter[1])
    prefix, verdict = _diffusion(keys)
    if verdict is not None:
        return _with_diffusion(header, keys, prefix, verdict)
    if (part := part_kind(keys)) is not None:
        return _simple(header, *part)
    if prefix and len(keys.behind(prefix)):
        return _with_diffusion(header, keys, prefix, Verdict("", "", Confidence.UNKNOWN))
    return _simple(header, Kind.UNKNOWN, "", "")


def _pickle(path: Path) -> Inspection:
    return Inspection(
        path, path.stat().st_size, "pickle", Kind.PICKLE, None, "", "", "unknown", Form.FLOAT, None, Confidence.UNKNOWN,
        ("a torch archive or pickle: contents unknown until loaded",), (), (), (), "", {}, {}, None,
    )  # fmt: skip


def _diffusion(keys: Keys) -> tuple[str, Verdict | None]:
    """Find the prefix of the diffusion keys and their family."""
    prefix = components.diffusion_prefix(keys)
    if prefix:
        return prefix, detect_family(keys.behind(prefix))
    bare = detect_family(keys)
    if bare is None and keys.has_prefix("model.") and (behind := detect_family(keys.behind("model."))):
        return "model.", behind
    return "", bare


def _simple(header: Header, kind: Kind, part: str, evidence: str) -> Inspection:
    whole = components.describe(part or kind.value, "", header.tensors, header.metadata, header.container)
    confidence = Confidence.UNKNOWN if kind is Kind.UNKNOWN else Confidence.CERTAIN
    return Inspection(
        header.path, header.size_bytes, header.container, kind, None, "", part, whole.precision, whole.form, None,
        confidence, (evidence,) if evidence else (), (), (), (whole,), "", _prefixes(header), header.metadata, header,
    )  # fmt: skip


def _with_diffusion(header: Header, keys: Keys, prefix: str, verdict: Verdict) -> Inspection:
    parts = _split(header, prefix)
    diffusion = next(part for part in parts if part.name == DIFFUSION)
    has_others = any(part.name not in {DIFFUSION, "dropped", "other"} for part in parts)
    prediction, question = _prediction(keys, verdict.family)
    questions = [question] if question else []
    if verdict.possible:
        questions.append(f"one of {', '.join(verdict.possible)}: only the name or metadata can say")
    claim = _contradicted_claim(header, verdict)
    return Inspection(
        header.path,
        header.size_bytes,
        header.container,
        Kind.CHECKPOINT if has_others else Kind.DIFFUSION_MODEL,
        verdict.family or None,
        verdict.variant,
        "",
        diffusion.precision,
        diffusion.form,
        prediction,
        verdict.confidence,
        (*(f"{prefix}{verdict.evidence[0]}" for _ in verdict.evidence[:1]), *verdict.evidence[1:], *claim),
        verdict.possible,
        tuple(questions),
        parts,
        prefix,
        _prefixes(header),
        header.metadata,
        header,
    )


def _split(header: Header, prefix: str) -> tuple[Component, ...]:
    groups: dict[tuple[str, str], list[TensorInfo]] = {(DIFFUSION, prefix): []}
    for tensor in header.tensors:
        groups.setdefault(_group(tensor.name, prefix), []).append(tensor)
    return tuple(
        components.describe(name, at, tensors, header.metadata, header.container)
        for (name, at), tensors in groups.items()
        if tensors
    )


def _group(name: str, prefix: str) -> tuple[str, str]:
    if is_diffusion_tensor(name, prefix):
        return (DIFFUSION, prefix)
    return components.component_of(name) or ("other", "")


def is_diffusion_tensor(name: str, prefix: str) -> bool:
    """Tell whether a tensor of a file with that diffusion prefix belongs to the diffusion part."""
    if name in components.TOP_MARKERS:
        return True
    if components.is_dropped(name):
        return False
    if prefix:
        return name.startswith(prefix)
    return components.component_of(name) is None


def _prediction(keys: Keys, family: str) -> tuple[str | None, str | None]:
    """Return an SDXL model's prediction type by its markers, and the question that remains without one."""
    if family != "sdxl":
        return None, None
    if "edm_mean" in keys and "edm_std" in keys:
        return "EDM", None
    if "edm_vpred.sigma_max" in keys:
        return "v-EDM", None
    if "v_pred" in keys:
        return "v, zero terminal SNR" if "ztsnr" in keys else "v", None
    return "eps", "eps, or v without a marker: nothing in the file says"


def _contradicted_claim(header: Header, verdict: Verdict) -> tuple[str, ...]:
    """Compare a GGUF file's word for its architecture with the keys."""
    claim = header.metadata.get("general.architecture")
    if not isinstance(claim, str) or not verdict.family:
        return ()
    known = ARCHITECTURES.get(verdict.family)
    if known is not None and claim == known.label:
        return (f"general.architecture {claim}",)
    return (f"general.architecture says {claim}, the keys say {verdict.family}",)


def _prefixes(header: Header) -> dict[str, int]:
    counts = Counter(".".join(tensor.name.split(".")[:2]) for tensor in header.tensors)
    return dict(counts.most_common(_PREFIXES_SHOWN))
