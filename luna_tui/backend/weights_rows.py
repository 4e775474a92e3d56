"""Turns what the catalogue and the queue know into what the weights screen shows."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from luna_engine.weights.precisions import PRECISIONS
from luna_engine.weights.refusals import impossible
from luna_tui.backend.weights_views import JobView, SourceView, VariantView
from luna_tui.views import Failure

if TYPE_CHECKING:
    from luna_engine.weights.assembly import SourceRow
    from luna_engine.weights.jobs import Job
    from luna_engine.weights.progress import Progress
    from luna_engine.weights.variants import Variant


def source_view(row: SourceRow) -> SourceView:
    """Return a source with its variants."""
    found = row.inspection
    problem = None
    if row.error is not None:
        problem = Failure(row.error["code"], row.error["message"], row.error["hint"])
    elif found is not None and not found.is_convertible:
        problem = Failure("component-missing", f"{found.name}: no diffusion part", "name a checkpoint")
    barred = {}
    if found is not None and problem is None:
        barred = {label: why for label, target in PRECISIONS.items() if (why := impossible(found, target))}
    return SourceView(
        str(row.path),
        row.path.name,
        found.family if found else None,
        found.name if found else "unreadable" if row.is_read else "reading …",
        found.precision if found else "",
        row.size_bytes,
        tuple(variant_view(variant) for variant in row.variants),
        problem,
        barred,
    )


def variant_view(variant: Variant) -> VariantView:
    """Return a converted file."""
    check = variant.check
    return VariantView(
        str(variant.path),
        variant.path.name,
        variant.precision,
        variant.size_bytes,
        variant.state.value,
        _note(variant),
        variant.state.is_usable,
        check is not None and check.error is None,
        variant.is_pinned,
        variant.provenance is not None,
        variant.users,
    )


def _note(variant: Variant) -> str:
    """Say what is known of a file: its state, its last check, its making, who holds it."""
    parts = [] if variant.state.value == "current" else [f"{variant.state.value}: {variant.reason}"]
    if (check := variant.check) is not None and check.error is None:
        figure = "" if check.rms_error is None else f", RMS {100 * check.rms_error:.2g} %"
        parts.append(f"verified {check.at[5:10]}{figure}")
    if variant.users:
        parts.append(f"used by {', '.join(variant.users)}")
    elif variant.used_at is not None:
        parts.append(f"used {time.strftime('%m-%d', time.localtime(variant.used_at))}")
    parts += ["pinned"] if variant.is_pinned else []
    if (made := variant.provenance) is not None:
        parts += [f"luna {made.version}", f"source {made.source_sha256[:8]}"]
    return " · ".join(parts)


def job_view(job: Job, progress: Progress | None, place: int | None, *, is_paused: bool) -> JobView:
    """Return a job; ``place`` is a waiting one's in the queue."""
    error = None if job.error is None else Failure(job.error["code"], job.error["message"], job.error["hint"])
    done = progress.done_bytes if progress is not None else None
    total = progress.total_bytes if progress is not None else None
    fraction = done / total if done is not None and total else None
    return JobView(
        job.id,
        job.name,
        job.state.value,
        progress.phase if progress is not None else None,
        progress.tensor if progress is not None else None,
        progress.index if progress is not None else None,
        progress.count if progress is not None else None,
        1.0 if job.state.value in {"done", "reused"} else fraction,
        progress.bytes_per_s if progress is not None else None,
        progress.eta_s if progress is not None else None,
        progress.rss_bytes if progress is not None else None,
        job.destination,
        job.state.is_over,
        error,
        job.precision,
        job.source,
        place,
        is_paused,
    )
