"""Screen 3: the sources with their converted files, the queue of conversions and the disks they lie on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

from textual.widgets import Static

from luna_tui.plain import content
from luna_tui.screens.weights_rows import (
    JOB_COLUMNS,
    NARROW_COLUMNS,
    WIDE_COLUMNS,
    detail,
    disk_line,
    job_row,
    source_rows,
)
from luna_tui.screens.weights_verbs import WeightsVerbs
from luna_tui.views import EventRow
from luna_tui.widgets.chrome import Pane
from luna_tui.widgets.table import ListTable
from luna_tui.wording import count, size

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from luna_tui.backend.weights_views import JobView, WeightsView

EMPTY = (
    "No checkpoints under {roots}.\n\n"
    "a shows a folder or file now; weights.paths in the settings or LUNA_MODELS keep it.\n"
    "luna demo-models DIR makes small model files to try."
)
NO_JOBS = "No conversions yet. c converts the source under the cursor."
_WIDE = 120  # below it one word per variant takes the place of a column per precision


class WeightsScreen(WeightsVerbs):
    """Sources, variants and jobs."""

    SCREEN_ID = "weights"
    ABOUT = (
        "Checkpoints and diffusion models with the converted files that belong to them, as their headers say. "
        "c writes the diffusion part in another precision, in a process of its own: leaving Luna stops nothing. "
        "d takes files that Luna made into a trash, u brings them back."
    )
    CSS_PATH = "../styles/weights.tcss"
    PANES: ClassVar[tuple[str, ...]] = ("sources", "queue")

    def __init__(self) -> None:
        super().__init__()
        self._opened: set[str] = set()
        self._is_wide = True

    def body(self) -> ComposeResult:
        """Yield the list of sources above the queue and the disks."""
        with Pane(id="sources", title="sources"):
            yield ListTable(WIDE_COLUMNS, id="source-list", empty="reading …", markable=True)
        with Pane(id="queue", title="queue", classes="side"):
            yield ListTable(JOB_COLUMNS, id="job-list", empty=NO_JOBS)
        yield Static("", id="disks")

    def on_resize(self) -> None:
        """Turn columns into words where they do not fit."""
        super().on_resize()
        is_wide = self.app.size.width >= _WIDE
        if is_wide != self._is_wide:
            self._is_wide = is_wide
            self._sources.set_columns(WIDE_COLUMNS if is_wide else NARROW_COLUMNS)
            self._show_sources()

    # -- data ------------------------------------------------------------------------------------------------

    def load(self) -> WeightsView:
        """Read folders and job files."""
        view: WeightsView = self.luna.backend.weights.snapshot()
        return view

    def show(self, snapshot: WeightsView) -> None:
        """Update the lists in place."""
        if self.view is not None:
            told = {job.id for job in self.view.jobs if job.is_over}
            for job in snapshot.jobs:
                if job.is_over and job.id not in told:
                    self._tell(job)
        self.view = snapshot
        self._sources.empty = EMPTY.format(roots=", ".join(snapshot.roots) or "any known folder")
        self._show_sources()
        jobs = self.query_one("#job-list", ListTable)
        jobs.set_rows([job_row(job, self.luna.glyphs) for job in snapshot.jobs])
        lines = [disk_line(disk, self.luna.glyphs) for disk in snapshot.disks]
        self.query_one("#disks", Static).update(content("\n".join(lines)))
        self._retitle(snapshot)
        self._show_job()

    @property
    def _sources(self) -> ListTable:
        return self.query_one("#source-list", ListTable)

    def _show_sources(self) -> None:
        if self.view is not None:
            self._sources.set_rows(source_rows(self.view, self._opened, self.luna.glyphs, is_wide=self._is_wide))

    def _tell(self, job: JobView) -> None:
        """Say and record how a job ended since this screen last looked."""
        error = job.error if job.state == "failed" else None
        message = f"{job.name}: {job.state}" if error is None else f"{job.name}: {error.message}"
        self.luna.toast(message, "information" if error is None else "error")
        self.luna.record(
            EventRow("", time.time(), "info" if error is None else "error", "weights",
                     job.state if error is None else error.code, message, error.hint if error else None)
        )  # fmt: skip

    def _retitle(self, view: WeightsView) -> None:
        variants = [variant for source in view.sources for variant in source.variants]
        pane = self.query_one("#sources", Pane)
        unread = f" · {view.unread} still to be read" if view.unread else ""
        pane.set_title(
            f"{count(len(view.sources), 'source')} · {count(len(variants), 'converted file')}, "
            f"{size(sum(variant.bytes for variant in variants))}{unread}"
        )
        self._show_why()
        running = sum(job.state in {"running", "verifying"} for job in view.jobs)
        queued = sum(job.state == "queued" for job in view.jobs)
        self.query_one("#queue", Pane).set_title(f"queue · {running} running, {queued} queued")

    # -- cursor ----------------------------------------------------------------------------------------------

    def on_list_table_highlighted(self) -> None:
        """Show the keys that work on the row under the cursor, and what there is no room for in the row."""
        self._show_job()
        self._show_why()
        self.refresh_bindings()

    def _show_job(self) -> None:
        """Write the current job's detail below the queue, where there is room for it at every size."""
        job = self.current_job
        self.query_one("#queue", Pane).border_subtitle = content(detail(job).text if job is not None else "")

    def _show_why(self) -> None:
        """Write below the sources what is to be told of the folders, else why precisions are impossible."""
        pane = self.query_one("#sources", Pane)
        notices = self.view.notices if self.view is not None else ()
        pane.border_subtitle = content(notices[0] if notices else self._why_impossible())

    def _why_impossible(self) -> str:
        variant = self.current_variant
        if variant is not None and self._key("source-list") == variant.path:
            return variant.note
        reasons = list(dict.fromkeys(self.current.impossible.values())) if self.current is not None else []
        return f"{self.luna.glyphs.dot} {'; '.join(reasons)}" if reasons else ""

    def on_list_table_selected(self, event: ListTable.Selected) -> None:
        """Open what was chosen: a source's files, or the header of one that has none."""
        if event.table.id != "source-list":
            return
        source = self.current
        if source is None or source.path != event.key or not source.variants:
            self.do_weights_inspect()
        elif source.path in self._opened:
            self.do_weights_fold()
        else:
            self.do_weights_unfold()

    def do_weights_unfold(self) -> None:
        """Show the files of the source under the cursor."""
        if self.current is not None:
            self._opened.add(self.current.path)
            self._show_sources()

    def do_weights_fold(self) -> None:
        """Hide the files of the source under the cursor, which goes to the source."""
        if self.current is not None:
            self._opened.discard(self.current.path)
            self._sources.go_to(self.current.path)
            self._show_sources()
