"""Rows of the weights screen: sources with one column per precision, and jobs with their bar."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_engine.weights.precisions import PRECISIONS
from luna_tui.glyphs import Tone
from luna_tui.widgets.table import Cell, Column, Row
from luna_tui.wording import UNKNOWN, duration, gib, size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from luna_tui.backend.weights import JobView, SourceView
    from luna_tui.glyphs import Glyphs

_BAR_CELLS = 16
# Titles of precisions whose label is too wide, and the order in which their columns leave a narrow terminal.
_TITLES = {
    "fp8_e4m3fn_scaled": "fp8 scaled",
    "fp8_e4m3fn": "fp8 plain",
    "gguf_F16": "gguf F16",
    "gguf_BF16": "gguf BF16",
}
_DROPS = {
    "gguf_Q8_0": 1, "bf16": 2, "fp8_e4m3fn_scaled": 4, "fp16": 5, "fp8_e4m3fn": 8, "gguf_Q4_K_M": 8, "gguf_Q6_K": 9,
    "gguf_Q5_K_M": 10, "gguf_Q4_K_S": 11, "gguf_F16": 12, "gguf_BF16": 13, "gguf_Q5_0": 14, "gguf_Q4_0": 15,
}  # fmt: skip


def _title(label: str) -> str:
    return _TITLES.get(label, label.removeprefix("gguf_"))


SOURCE_COLUMNS = (
    Column("source", "SOURCE", 22, flex=True),
    Column("arch", "ARCH", 11, drop=3),
    Column("size", "SIZE", 9, align="right", drop=6),
    *(
        Column(label, _title(label), max(8, len(_title(label))), align="right", drop=_DROPS[label])
        for label in PRECISIONS
    ),
    Column("note", "NOTE", 26, drop=7),
)

JOB_COLUMNS = (
    Column("job", "JOB", 22, flex=True),
    Column("state", "STATE", 10),
    Column("bar", "PROGRESS", _BAR_CELLS + 6),
    Column("rate", "RATE", 10, align="right", drop=3),
    Column("eta", "ETA", 6, align="right", drop=2),
    Column("rss", "RSS", 8, align="right", drop=4),
    Column("detail", "DETAIL", 34, drop=1),
)

_STATE_TONES = {
    "queued": Tone.DIM,
    "running": Tone.BUSY,
    "verifying": Tone.BUSY,
    "done": Tone.GOOD,
    "reused": Tone.GOOD,
    "failed": Tone.BAD,
    "cancelled": Tone.WARN,
}


def source_row(source: SourceView, active: Mapping[str, JobView], glyphs: Glyphs) -> Row:
    """Return a source's row. ``active`` are unfinished jobs by the file they write."""
    cells = [Cell(source.name), Cell(source.family or source.what), Cell(size(source.bytes))]
    cells += [_variant_cell(source, label, active, glyphs) for label in PRECISIONS]
    cells.append(_note(source))
    sort = (source.name.casefold(), source.family or "", source.bytes, *(cell.text for cell in cells[3:]))
    return Row(source.path, tuple(cells), sort, Tone.NORMAL if source.problem is None else Tone.DIM)


def _variant_cell(source: SourceView, label: str, active: Mapping[str, JobView], glyphs: Glyphs) -> Cell:
    for variant in source.variants:
        if variant.precision == label:
            if variant.state == "current":
                return Cell(f"{gib(variant.bytes)}{'+' if glyphs.ascii else '✓'}", Tone.GOOD)
            return Cell(f"{gib(variant.bytes)}!", Tone.WARN)
    stem = source.name.rpartition(".")[0]
    for job in active.values():
        if job.name == f"{stem} -> {label}":
            return Cell(UNKNOWN if job.fraction is None else f"{100 * job.fraction:.0f} %", Tone.BUSY)
    return Cell(glyphs.dot if source.problem is not None else glyphs.dash, Tone.DIM)


def _note(source: SourceView) -> Cell:
    if source.problem is not None:
        return Cell(f"{source.problem.code}: {source.problem.message}", Tone.BAD)
    stale = [variant for variant in source.variants if variant.state != "current"]
    if stale:
        return Cell(f"{stale[0].precision} is {stale[0].state}", Tone.WARN)
    return Cell(source.what, Tone.DIM)


def job_row(job: JobView, glyphs: Glyphs) -> Row:
    """Return a job's row with its bar."""
    percent = "" if job.fraction is None else f" {100 * job.fraction:3.0f} %"
    bar = glyphs.bar(job.fraction, _BAR_CELLS) + percent if job.fraction is not None else UNKNOWN
    rate = UNKNOWN if job.bytes_per_s is None else f"{job.bytes_per_s / 1e6:.0f} MB/s"
    tone = _STATE_TONES.get(job.state, Tone.NORMAL)
    eta = UNKNOWN if job.eta_s is None else duration(job.eta_s)
    cells = (
        Cell(job.name),
        Cell(job.state, tone),
        Cell(bar, tone),
        Cell(rate),
        Cell(eta),
        Cell(size(job.rss_bytes)),
        detail(job),
    )
    return Row(job.id, cells, (job.name, job.state, job.fraction or 0.0, rate, eta, job.rss_bytes or 0, ""))


def detail(job: JobView) -> Cell:
    """Return what a job does, where its result is, or why there is none."""
    if job.error is not None:
        hint = f" → {job.error.hint}" if job.error.hint else ""
        return Cell(f"{job.error.code}: {job.error.message}{hint}", Tone.BAD)
    if job.is_over:
        return Cell(job.destination, Tone.DIM)
    counted = f" {job.index}/{job.count}" if job.index is not None and job.count is not None else ""
    return Cell(f"{job.phase or 'waits'}{counted} {job.tensor or ''}".rstrip(), Tone.DIM)
