"""What the `luna weights` verbs print: records for programs and lines for people, from one place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luna_tui.commands.weights_group import printable
from luna_tui.wording import duration, size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from luna_engine.weights import Inspection
    from luna_engine.weights.components import Component
    from luna_engine.weights.estimate import Estimate
    from luna_engine.weights.jobs import Job
    from luna_engine.weights.progress import Progress


def inspection_fields(found: Inspection, tensors: Iterable[Any] = ()) -> dict[str, Any]:
    """Return the fields of ``luna.weights.inspect/1``."""
    return {
        "path": str(found.path),
        "bytes": found.size_bytes,
        "container": found.container,
        "kind": found.kind.value,
        "architecture": {
            "value": found.family,
            "variant": found.variant,
            "source": "header",
            "confidence": found.confidence.value,
        },
        "part": found.part or None,
        "precision": found.precision,
        "form": found.form.value,
        "prediction": found.prediction,
        "evidence": list(found.evidence),
        "possible": list(found.possible),
        "open_questions": list(found.open_questions),
        "components": [_component(part) for part in found.components],
        "metadata": {key: value for key, value in found.metadata.items() if len(str(value)) <= 4096},
        "tensors": [
            {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape), "bytes": tensor.size_bytes}
            for tensor in tensors
        ],
    }


def _component(part: Component) -> dict[str, Any]:
    return {
        "name": part.name,
        "prefix": part.prefix,
        "tensors": part.tensors,
        "parameters": part.parameters,
        "bytes": part.size_bytes,
        "dtypes": dict(part.dtypes),
        "form": part.form.value,
    }


def inspection_text(found: Inspection, tensors: Iterable[Any] = ()) -> str:
    """Return an inspection for people."""
    lines = [f"{printable(found.path.name)}: {printable(found.name)}, {found.precision}, {size(found.size_bytes)}"]
    lines += [
        f"  {printable(part.name):<18} {part.parameters / 1e6:>9.1f} M parameters  {size(part.size_bytes):>10}  "
        f"{', '.join(part.dtypes)}"
        for part in found.components
    ]
    if found.prediction:
        lines.append(f"  prediction: {found.prediction}")
    lines += [f"  because: {printable(evidence)}" for evidence in found.evidence]
    lines += [f"  open: {printable(question)}" for question in found.open_questions]
    if found.kind.value == "unknown":
        lines += [f"  {count:>6} keys under {printable(prefix)}" for prefix, count in found.key_prefixes.items()]
    lines += [f"  {printable(tensor.name)}  {tensor.dtype}  {list(tensor.shape)}" for tensor in tensors]
    return "\n".join(lines)


def estimate_text(found: Estimate) -> str:
    """Return room, memory and time of a conversion for people."""
    room = (
        f"{size(found.missing_bytes)} too little space"
        if found.missing_bytes
        else f"{size(found.free_after_bytes)} stay free"
    )
    memory = f"{'' if found.ram_source == 'measured' else 'at most '}{size(found.peak_ram_bytes)} of memory"
    if found.missing_ram_bytes:
        memory = f"{memory}, {size(found.missing_ram_bytes)} too little"
    time = "time not measured here yet" if found.duration_s is None else f"about {duration(found.duration_s)}"
    return f"{room}, {memory}, {time}"


def job_fields(job: Job, progress: Progress | None, *, is_paused: bool = False) -> dict[str, Any]:
    """Return one entry of ``luna.weights.jobs/1``."""
    return {
        "id": job.id,
        "source": job.source,
        "precision": job.precision,
        "destination": job.destination,
        "state": job.state.value,
        "paused": is_paused,
        "queued_at": job.queued_at,
        "started_at": job.started_at,
        "ended_at": job.ended_at,
        "output_bytes": job.output_bytes,
        "error": job.error,
        "result": job.result,
        "progress": progress.as_dict() if progress else None,
    }


def job_text(job: Job, progress: Progress | None, *, is_paused: bool = False) -> str:
    """Return one job as a line for people."""
    share = ""
    if progress and progress.total_bytes and progress.done_bytes is not None and not job.state.is_over:
        share = f" {100 * progress.done_bytes // progress.total_bytes} %"
    reason = f"  {job.error['code']}: {printable(job.error['message'])}" if job.error else ""
    state = f"{job.state.value}, paused" if is_paused else job.state.value
    return f"{job.id}  {state}{share:<6} {printable(job.name)}{reason}"
