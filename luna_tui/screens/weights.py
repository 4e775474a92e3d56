"""Screen 3: the sources with their converted files, the queue of conversions, and the verbs on both."""

from __future__ import annotations

import shlex
import time
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from luna_tui.plain import content
from luna_tui.screens.base import LunaScreen
from luna_tui.screens.weights_rows import JOB_COLUMNS, SOURCE_COLUMNS, detail, job_row, source_row
from luna_tui.views import EventRow
from luna_tui.widgets.chrome import Pane
from luna_tui.widgets.table import ListTable
from luna_tui.wording import count, size

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual.app import ComposeResult

    from luna_tui.actions import Action
    from luna_tui.backend.weights import JobView, SourceView, WeightsView

EMPTY = (
    "No checkpoints under {roots}.\n\n"
    "a shows a folder or file now; weights.paths in the settings or LUNA_MODELS keep it.\n"
    "luna demo-models DIR makes small model files to try."
)
NO_JOBS = "No conversions yet. c converts the source under the cursor."


class WeightsScreen(LunaScreen):
    """Sources, variants and jobs."""

    SCREEN_ID = "weights"
    ABOUT = (
        "Checkpoints and diffusion models with the converted files that belong to them, as their headers say. "
        "c writes the diffusion part in another precision, in a process of its own: leaving Luna stops nothing. "
        "A converted file appears only when it is complete and checked."
    )
    CSS_PATH = "../styles/weights.tcss"
    PANES: ClassVar[tuple[str, ...]] = ("sources", "queue")

    def __init__(self) -> None:
        super().__init__()
        self.view: WeightsView | None = None

    def body(self) -> ComposeResult:
        """Yield the list of sources above the queue."""
        with Pane(id="sources", title="sources"):
            yield ListTable(SOURCE_COLUMNS, id="source-list", empty="reading …")
        with Pane(id="queue", title="queue"):
            yield ListTable(JOB_COLUMNS, id="job-list", empty=NO_JOBS)

    # -- data ------------------------------------------------------------------------------------------------

    def load(self) -> WeightsView:
        """Read folders and job files."""
        view: WeightsView = self.luna.backend.weights.snapshot()
        return view

    def show(self, snapshot: WeightsView) -> None:
        """Update both lists in place."""
        if self.view is not None:
            told = {job.id for job in self.view.jobs if job.is_over}
            for job in snapshot.jobs:
                if job.is_over and job.id not in told:
                    self._tell(job)
        self.view = snapshot
        sources, jobs = self.query_one("#source-list", ListTable), self.query_one("#job-list", ListTable)
        sources.empty = EMPTY.format(roots=", ".join(snapshot.roots) or "any known folder")
        active = {job.destination: job for job in snapshot.jobs if not job.is_over}
        sources.set_rows([source_row(source, active, self.luna.glyphs) for source in snapshot.sources])
        jobs.set_rows([job_row(job, self.luna.glyphs) for job in snapshot.jobs])
        self._retitle(snapshot)
        self._show_job()

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
        pane.set_title(
            f"{count(len(view.sources), 'source')} · {count(len(variants), 'converted file')}, "
            f"{size(sum(variant.bytes for variant in variants))}"
        )
        pane.border_subtitle = content(view.notices[0] if view.notices else "")
        running = sum(job.state in {"running", "verifying"} for job in view.jobs)
        queued = sum(job.state == "queued" for job in view.jobs)
        self.query_one("#queue", Pane).set_title(f"queue · {running} running, {queued} queued")

    @property
    def current(self) -> SourceView | None:
        """The source under the cursor."""
        row = self.query_one("#source-list", ListTable).current
        if row is None or self.view is None:
            return None
        return next((source for source in self.view.sources if source.path == row.key), None)

    @property
    def current_job(self) -> JobView | None:
        """The job under the queue's cursor."""
        row = self.query_one("#job-list", ListTable).current
        if row is None or self.view is None:
            return None
        return next((job for job in self.view.jobs if job.id == row.key), None)

    def on_list_table_highlighted(self) -> None:
        """Show the keys that work on the row under the cursor, and the whole word on a job."""
        self._show_job()
        self.refresh_bindings()

    def _show_job(self) -> None:
        """Write the current job's detail below the queue, where there is room for it at every size."""
        job = self.current_job
        self.query_one("#queue", Pane).border_subtitle = content(detail(job).text if job is not None else "")

    def on_list_table_selected(self, event: ListTable.Selected) -> None:
        """Open what was chosen: a source's header."""
        if event.table.id == "source-list":
            self.do_weights_inspect()

    # -- verbs -----------------------------------------------------------------------------------------------

    def why_not(self, action: Action) -> str | None:
        """Say why a verb does not fit the row under the cursor."""
        checks: dict[str, Callable[[], str | None]] = {
            "weights.convert": self._why_no_convert,
            "weights.inspect": lambda: None if self.current else "no source under the cursor",
            "weights.verify": lambda: None if self.current and self.current.variants else "it has no converted files",
            "weights.cancel": self._why_no_cancel,
            "weights.retry": self._why_no_retry,
        }
        check = checks.get(action.id)
        return check() if check else None

    def _why_no_convert(self) -> str | None:
        if self.current is None:
            return "no source under the cursor: a shows a folder"
        problem = self.current.problem
        return None if problem is None else f"{problem.code}: {problem.message}"

    def _why_no_cancel(self) -> str | None:
        job = self.current_job
        if job is None:
            return "no job under the queue's cursor"
        return f"{job.name} is {job.state} already" if job.is_over else None

    def _why_no_retry(self) -> str | None:
        job = self.current_job
        if job is None:
            return "no job under the queue's cursor"
        return None if job.state in {"failed", "cancelled"} else f"{job.name} is {job.state}"

    def do_weights_convert(self) -> None:
        """Ask for precisions, show the plan, and queue what is confirmed."""
        from luna_tui.screens.convert import ConvertDialog

        targets = self.query_one("#source-list", ListTable).targets()

        def answered(precisions: tuple[str, ...] | None) -> None:
            if precisions:
                call = partial(self.luna.backend.weights.convert, targets, precisions)
                target = " ".join(shlex.quote(path) for path in targets)
                self.verb("weights.convert", call, target=f"{target} --to {','.join(precisions)}")

        self.app.push_screen(ConvertDialog(targets), answered)

    def do_weights_inspect(self) -> None:
        """Open the header of the source under the cursor."""
        from luna_tui.screens.header import HeaderDialog

        if (source := self.current) is not None:
            self.app.push_screen(HeaderDialog(source.path))

    def do_weights_verify(self) -> None:
        """Check the converted files of the source under the cursor."""
        if (source := self.current) is not None:
            call = partial(self.luna.backend.weights.verify, source.path)
            target = " ".join(shlex.quote(variant.path) for variant in source.variants)
            self.verb("weights.verify", call, target=target)

    def do_weights_cancel(self) -> None:
        """Stop the job under the queue's cursor after asking."""
        if (job := self.current_job) is not None:
            call = partial(self.luna.backend.weights.cancel, job.id)
            self.verb("weights.cancel", call, target=job.id, loss=f"{job.name}: what it has written so far goes.")

    def do_weights_retry(self) -> None:
        """Queue the job under the queue's cursor again."""
        if (job := self.current_job) is not None:
            self.verb("weights.retry", partial(self.luna.backend.weights.retry, job.id), target=job.id)

    def do_weights_add(self) -> None:
        """Ask for a path and show what is there."""
        from luna_tui.screens.path import PathDialog

        def answered(path: str | None) -> None:
            if path:
                self.verb("weights.add", partial(self.luna.backend.weights.add, path), target=path)

        self.app.push_screen(PathDialog("show a file or folder"), answered)
