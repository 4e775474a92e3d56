"""What the `luna weights` verbs print: records for programs and lines for people, from one place."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

from luna_tui.wording import duration, size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from luna_engine.weights import Inspection
    from luna_engine.weights.catalog import SourceRow, Variant
    from luna_engine.weights.components import Component
    from luna_engine.weights.estimate import Estimate
    from luna_engine.weights.jobs import Job
    from luna_engine.weights.progress import Progress


def plain(text: str) -> str:
    """Return foreign text with what could act on the terminal written as escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


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
    lines = [f"{plain(found.path.name)}: {plain(found.name)}, {found.precision}, {size(found.size_bytes)}"]
    lines += [
        f"  {plain(part.name):<18} {part.parameters / 1e6:>9.1f} M parameters  {size(part.size_bytes):>10}  "
        f"{', '.join(part.dtypes)}"
        for part in found.components
    ]
    if found.prediction:
        lines.append(f"  prediction: {found.prediction}")
    lines += [f"  because: {plain(evidence)}" for evidence in found.evidence]
    lines += [f"  open: {plain(question)}" for question in found.open_questions]
    if found.kind.value == "unknown":
        lines += [f"  {count:>6} keys under {plain(prefix)}" for prefix, count in found.key_prefixes.items()]
    lines += [f"  {plain(tensor.name)}  {tensor.dtype}  {list(tensor.shape)}" for tensor in tensors]
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


def source_fields(row: SourceRow) -> dict[str, Any]:
    """Return one entry of ``luna.weights.list/1``."""
    found = row.inspection
    return {
        "path": str(row.path),
        "bytes": row.size_bytes,
        "modified_at": _moment(row.modified_s),
        "kind": found.kind.value if found else None,
        "architecture": None
        if found is None
        else {"value": found.family, "source": "header", "confidence": found.confidence.value},
        "precision": found.precision if found else None,
        "error": row.error,
        "variants": [_variant(variant) for variant in row.variants],
    }


def _variant(variant: Variant) -> dict[str, Any]:
    made = variant.provenance
    return {
        "path": str(variant.path),
        "format": variant.path.suffix.removeprefix("."),
        "precision": variant.precision,
        "bytes": variant.size_bytes,
        "source_sha256": made.source_sha256,
        "tool_version": made.version,
        "created_at": made.created,
        "stale": variant.state == "stale",
        "state": variant.state,
        "errors": dict(made.errors),
    }


def sources_text(rows: Sequence[SourceRow]) -> str:
    """Return the list of sources for people."""
    if not rows:
        return "No checkpoints found: set weights.paths or LUNA_MODELS, or name a folder."
    width = max(len(plain(row.path.name)) for row in rows)
    lines: list[str] = []
    for row in rows:
        found = row.inspection
        what = found.name if found else f"{row.error['code']}: {row.error['message']}" if row.error else "?"
        lines.append(f"{plain(row.path.name):<{width}}  {size(row.size_bytes):>10}  {plain(what)}")
        lines += [
            f"  {plain(v.path.name):<{width}}{size(v.size_bytes):>10}  {v.precision} {v.state}" for v in row.variants
        ]
    return "\n".join(lines)


def job_fields(job: Job, progress: Progress | None) -> dict[str, Any]:
    """Return one entry of ``luna.weights.jobs/1``."""
    return {
        "id": job.id,
        "source": job.source,
        "precision": job.precision,
        "destination": job.destination,
        "state": job.state.value,
        "queued_at": job.queued_at,
        "started_at": job.started_at,
        "ended_at": job.ended_at,
        "output_bytes": job.output_bytes,
        "error": job.error,
        "result": job.result,
        "progress": progress.as_dict() if progress else None,
    }


def job_text(job: Job, progress: Progress | None) -> str:
    """Return one job as a line for people."""
    share = ""
    if progress and progress.total_bytes and progress.done_bytes is not None and not job.state.is_over:
        share = f" {100 * progress.done_bytes // progress.total_bytes} %"
    reason = f"  {job.error['code']}: {plain(job.error['message'])}" if job.error else ""
    return f"{job.id}  {job.state.value}{share:<6} {plain(job.name)}{reason}"


def _moment(seconds: float) -> str:
    return (
        datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
        .isoformat(timespec="seconds")
        .replace("+00:00", "Z")
    )
