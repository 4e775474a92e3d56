"""Rows of the weights screen: sources, a column per precision, their files below them, and jobs with their bar."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_engine.weights.precisions import PRECISIONS
from luna_tui.glyphs import Tone
from luna_tui.plain import clean
from luna_tui.widgets.table import Cell, Column, Row
from luna_tui.wording import UNKNOWN, count, duration, gib, size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from luna_tui.backend.weights_views import DiskView, JobView, SourceView, VariantView, WeightsView
    from luna_tui.glyphs import Glyphs

_BAR_CELLS = 16
_DISK_CELLS = 18
# Titles of precisions whose label is too wide, and the order in which their columns leave a narrow terminal.
_TITLES = {
    "fp8_e4m3fn_scaled": "fp8",
    "fp8_e4m3fn": "fp8 plain",
    "gguf_F16": "gguf F16",
    "gguf_BF16": "gguf BF16",
}
_DROPS = {
    "gguf_Q8_0": 1, "bf16": 2, "fp8_e4m3fn_scaled": 2, "fp16": 8, "fp8_e4m3fn": 11, "gguf_Q4_K_M": 3, "gguf_Q6_K": 9,
    "gguf_Q5_K_M": 10, "gguf_Q4_K_S": 12, "gguf_F16": 13, "gguf_BF16": 14, "gguf_Q5_0": 15, "gguf_Q4_0": 16,
}  # fmt: skip
# What the note says first of a variant that is not simply there.
_SIGNS = {"stale": "!", "damaged": "!", "orphaned": "!", "foreign": "!", "unsure": "?", "outdated": "!"}


def short(label: str) -> str:
    """Return a precision in as few letters as tell it from the others."""
    return _TITLES.get(label, label.removeprefix("gguf_"))


WIDE_COLUMNS = (
    Column("source", "SOURCE", 24, flex=True),
    Column("arch", "ARCH", 9, drop=5),
    Column("size", "SIZE", 9, align="right", drop=6),
    *(
        Column(label, short(label), max(6, len(short(label))), align="right", drop=_DROPS[label])
        for label in PRECISIONS
    ),
    Column("saved", "SAVED", 5, align="right", drop=7),
    Column("note", "NOTE", 28, drop=4),
)
NARROW_COLUMNS = (
    Column("source", "SOURCE", 14, flex=True),
    Column("arch", "ARCH", 11, drop=1),
    Column("size", "SIZE", 9, align="right", drop=2),
    Column("variants", "VARIANTS", 14, flex=True),
)

JOB_COLUMNS = (
    Column("place", "", 2),
    Column("job", "JOB", 12, flex=True),
    Column("state", "STATE", 9, drop=1),
    Column("bar", "PROGRESS", _BAR_CELLS, drop=3),
    Column("share", "%", 5, align="right"),
    Column("rate", "RATE", 10, align="right", drop=5),
    Column("eta", "ETA", 6, align="right"),
    Column("rss", "RSS", 8, align="right", drop=6),
    Column("detail", "DETAIL", 34, drop=2),
)

_STATE_TONES = {
    "queued": Tone.DIM,
    "paused": Tone.WARN,
    "running": Tone.BUSY,
    "verifying": Tone.BUSY,
    "done": Tone.GOOD,
    "reused": Tone.GOOD,
    "failed": Tone.BAD,
    "cancelled": Tone.WARN,
}
_JOB_SIGNS = {"running": ("▶", ">"), "verifying": ("▶", ">"), "failed": ("✗", "X"), "paused": ("‖", "=")}


def source_rows(view: WeightsView, opened: Iterable[str], glyphs: Glyphs, *, is_wide: bool) -> list[Row]:
    """Return sources, under those that are opened their files, and at the end files that have no source here."""
    unfolded = set(opened)
    active: dict[str, dict[str, JobView]] = {}
    for job in view.jobs:
        if not job.is_over:
            active.setdefault(job.source, {})[job.precision] = job
    rows: list[Row] = []
    for source in view.sources:
        row = _source_row(source, active.get(source.path, {}), unfolded, glyphs, is_wide=is_wide)
        rows.append(row)
        if source.path in unfolded:
            last = len(source.variants) - 1
            rows += [
                _variant_row(variant, row, glyphs, is_wide=is_wide, is_last=number == last)
                for number, variant in enumerate(source.variants)
            ]
    return rows + [_stray_row(variant, glyphs, is_wide=is_wide) for variant in view.strays]


def _source_row(
    source: SourceView, jobs: Mapping[str, JobView], unfolded: set[str], glyphs: Glyphs, *, is_wide: bool
) -> Row:
    fold = " " if not source.variants else _fold(glyphs, is_open=source.path in unfolded)
    saved = saved_share(source)
    cells = [Cell(f"{fold}{source.name}"), Cell(source.family or source.what), Cell(size(source.bytes))]
    sort: list[object] = [source.name.casefold(), source.family or "", source.bytes]
    if is_wide:
        variants = [_variant_cell(source, label, jobs, glyphs) for label in PRECISIONS]
        cells += [*variants, Cell(UNKNOWN if saved is None else f"{100 * saved:.0f} %"), _note(source, jobs)]
        sort += [*(cell.text for cell in variants), saved, ""]
    else:
        cells.append(_words(source, jobs, glyphs))
        sort.append(cells[-1].text)
    return Row(source.path, tuple(cells), tuple(sort), Tone.NORMAL if source.problem is None else Tone.DIM)


def _fold(glyphs: Glyphs, *, is_open: bool) -> str:
    if glyphs.ascii:
        return "-" if is_open else "+"
    return "▾" if is_open else "▸"


def saved_share(source: SourceView) -> float | None:
    """Return how much smaller than the source its smallest usable file is; None if there is none."""
    sizes = [variant.bytes for variant in source.variants if variant.is_usable]
    return 1 - min(sizes) / source.bytes if sizes and source.bytes else None


def _mark(variant: VariantView, glyphs: Glyphs) -> str:
    """Return the sign behind a variant: verified, not what it should be, or nothing."""
    if not variant.is_usable or variant.state == "outdated":
        return _SIGNS.get(variant.state, "!")
    return ("+" if glyphs.ascii else "✓") if variant.is_verified else ""


def _tone(variant: VariantView) -> Tone:
    if variant.state == "damaged":
        return Tone.BAD
    return Tone.GOOD if variant.is_usable else Tone.WARN


def _variant_cell(source: SourceView, label: str, jobs: Mapping[str, JobView], glyphs: Glyphs) -> Cell:
    if (job := jobs.get(label)) is not None:
        return Cell(UNKNOWN if job.fraction is None else f"{100 * job.fraction:.0f} %", Tone.BUSY)
    found = [variant for variant in source.variants if variant.precision == label]
    if found:
        best = max(found, key=lambda variant: variant.is_usable)
        return Cell(f"{gib(best.bytes)}{_mark(best, glyphs)}", _tone(best))
    is_barred = source.problem is not None or label in source.impossible
    return Cell(glyphs.dot if is_barred else glyphs.dash, Tone.DIM)


def _words(source: SourceView, jobs: Mapping[str, JobView], glyphs: Glyphs) -> Cell:
    """Return one word per variant and job, for terminals without a column for each precision."""
    if source.problem is not None:
        return Cell(source.problem.code, Tone.BAD)
    words = [
        f"{short(label)} {UNKNOWN if job.fraction is None else f'{100 * job.fraction:.0f}%'}"
        for label, job in jobs.items()
    ]
    words += [f"{short(variant.precision)}{_mark(variant, glyphs)}" for variant in source.variants]
    is_stale = any(not variant.is_usable for variant in source.variants)
    tone = Tone.BUSY if jobs else Tone.WARN if is_stale else Tone.GOOD
    return Cell(" ".join(words) or UNKNOWN, tone if words else Tone.DIM)


def _note(source: SourceView, jobs: Mapping[str, JobView]) -> Cell:
    if source.problem is not None:
        return Cell(f"{source.problem.code}: {source.problem.message}", Tone.BAD)
    if jobs:
        job = next(iter(jobs.values()))
        return Cell(f"{'paused' if job.is_paused else job.state}: {short(job.precision)}", Tone.BUSY)
    odd = [variant for variant in source.variants if not variant.is_usable or variant.state == "outdated"]
    if odd:
        return Cell(f"{short(odd[0].precision)} is {odd[0].state}", Tone.WARN)
    used = [variant for variant in source.variants if variant.users]
    if used:
        return Cell(f"{', '.join(used[0].users)} uses {short(used[0].precision)}", Tone.NORMAL)
    return Cell(source.what, Tone.DIM)


def _variant_row(variant: VariantView, parent: Row, glyphs: Glyphs, *, is_wide: bool, is_last: bool) -> Row:
    """Return a file below its source; it sorts as the source does, so that it stays there."""
    branch = ("`-" if is_last else "|-") if glyphs.ascii else ("└" if is_last else "├")
    return _file_row(f" {branch} {variant.name}", variant, parent.sort, glyphs, is_wide=is_wide)


def _stray_row(variant: VariantView, glyphs: Glyphs, *, is_wide: bool) -> Row:
    return _file_row(f" {variant.name}", variant, None, glyphs, is_wide=is_wide)


def _file_row(
    name: str, variant: VariantView, sort: tuple[object, ...] | None, glyphs: Glyphs, *, is_wide: bool
) -> Row:
    head = (Cell(name), Cell(short(variant.precision) or UNKNOWN), Cell(size(variant.bytes)))
    note = Cell(variant.note, _tone(variant) if not variant.is_usable else Tone.DIM)
    if sort is None:
        blank = ("",) * len(PRECISIONS) if is_wide else ()
        sort = (variant.name.casefold(), variant.state, variant.bytes, *blank, *((None, "") if is_wide else ("",)))
    if not is_wide:
        mark = _mark(variant, glyphs)
        return Row(variant.path, (*head, Cell(f"{variant.state}{mark}", _tone(variant))), sort, Tone.DIM)
    return Row(variant.path, (*head, *(Cell("") for _ in PRECISIONS), Cell(""), note), sort, Tone.DIM)


def job_row(job: JobView, glyphs: Glyphs) -> Row:
    """Return a job's row with its bar."""
    state = "paused" if job.is_paused and not job.is_over else job.state
    share = UNKNOWN if job.fraction is None else f"{100 * job.fraction:.0f} %"
    bar = UNKNOWN if job.fraction is None else glyphs.bar(job.fraction, _BAR_CELLS)
    rate = UNKNOWN if job.bytes_per_s is None else f"{job.bytes_per_s / 1e6:.0f} MB/s"
    tone = _STATE_TONES.get(state, Tone.NORMAL)
    eta = UNKNOWN if job.eta_s is None or job.is_over else duration(job.eta_s)
    sign = _JOB_SIGNS.get(state)
    place = (sign[glyphs.ascii] if sign else glyphs.dot) if job.place is None else str(job.place)
    cells = (
        Cell(place, tone),
        Cell(job.name),
        Cell(state, tone),
        Cell(bar, tone),
        Cell(share, tone),
        Cell(rate),
        Cell(eta),
        Cell(size(job.rss_bytes)),
        detail(job),
    )
    sort = (
        job.place or 0, job.name, state, job.fraction or 0.0, job.fraction or 0.0, rate, eta, job.rss_bytes or 0, "",
    )  # fmt: skip
    return Row(job.id, cells, sort)


def detail(job: JobView) -> Cell:
    """Return what a job does, where its result is, or why there is none."""
    if job.error is not None:
        hint = f" → {job.error.hint}" if job.error.hint else ""
        return Cell(f"{job.error.code}: {job.error.message}{hint}", Tone.BAD)
    if job.is_over:
        return Cell(job.destination, Tone.DIM)
    if job.is_paused:
        return Cell("held: p lets it go on", Tone.WARN)
    if job.place is not None:
        return Cell("queued: one job at a time", Tone.DIM)
    counted = f" {job.index}/{job.count}" if job.index is not None and job.count is not None else ""
    return Cell(f"{job.phase or 'waits'}{counted} {job.tensor or ''}".rstrip(), Tone.DIM)


def disk_line(disk: DiskView, glyphs: Glyphs) -> str:
    """Return a disk as one line: Luna's files, its trash, what else lies there, and what is free."""
    other = max(0, disk.total - disk.free - disk.variant_bytes - disk.trash_bytes)
    shares = (("█", disk.variant_bytes), ("▓", disk.trash_bytes), ("▒", other))
    if glyphs.ascii:
        shares = (("#", disk.variant_bytes), ("x", disk.trash_bytes), ("=", other))
    cells = ((sign, round(_DISK_CELLS * share / max(1, disk.total)), share) for sign, share in shares)
    bar = "".join(sign * (max(1, number) if share else 0) for sign, number, share in cells)  # what is there is seen
    bar = bar[:_DISK_CELLS].ljust(_DISK_CELLS, glyphs.empty)
    return (
        f"{clean(disk.path)} {bar} variants {size(disk.variant_bytes)} in {count(disk.variants, 'file')} · "
        f"trash {size(disk.trash_bytes)} · other {size(other)} · free {gib(disk.free)} of {size(disk.total)}"
    )
