"""What can be done on the weights screen: convert, verify, prune, undo and pin files; hold, order and end jobs."""

from __future__ import annotations

import shlex
from functools import partial
from typing import TYPE_CHECKING

from luna_tui import actions
from luna_tui.screens.base import LunaScreen
from luna_tui.widgets.table import ListTable
from luna_tui.wording import count, size

if TYPE_CHECKING:
    from collections.abc import Callable

    from luna_tui.actions import Action
    from luna_tui.backend.weights_views import JobView, SourceView, VariantView, WeightsView

_MANY = 10  # more files want their number typed


class WeightsVerbs(LunaScreen):
    """The verbs, over what the cursors stand on."""

    def __init__(self) -> None:
        super().__init__()
        self.view: WeightsView | None = None

    # -- what the cursors stand on ---------------------------------------------------------------------------

    @property
    def current(self) -> SourceView | None:
        """The source under the cursor, or the one whose file the cursor is on."""
        key = self._key("source-list")
        for source in self.view.sources if self.view is not None else ():
            if source.path == key or any(variant.path == key for variant in source.variants):
                return source
        return None

    @property
    def current_variant(self) -> VariantView | None:
        """The converted file under the cursor; on a source its only one."""
        key = self._key("source-list")
        for variant in self._variants():
            if variant.path == key:
                return variant
        source = self.current
        return source.variants[0] if source is not None and len(source.variants) == 1 else None

    @property
    def current_job(self) -> JobView | None:
        """The job under the queue's cursor."""
        key = self._key("job-list")
        return next((job for job in self.view.jobs if job.id == key), None) if self.view is not None else None

    def _key(self, table: str) -> str | None:
        row = self.query_one(f"#{table}", ListTable).current
        return row.key if row is not None else None

    def _variants(self) -> list[VariantView]:
        if self.view is None:
            return []
        return [*(variant for source in self.view.sources for variant in source.variants), *self.view.strays]

    def _targets(self) -> tuple[list[str], list[str]]:
        """Return (sources, converted files) that are marked, else what the cursor is on."""
        keys = self.query_one("#source-list", ListTable).targets()
        files = {variant.path for variant in self._variants()}
        return [key for key in keys if key not in files], [key for key in keys if key in files]

    # -- what fits -------------------------------------------------------------------------------------------

    def why_not(self, action: Action) -> str | None:
        """Say why a verb does not fit the row under the cursor."""
        checks: dict[str, Callable[[], str | None]] = {
            "weights.convert": self._why_no_convert,
            "weights.inspect": lambda: None if self._key("source-list") else "no file under the cursor",
            "weights.verify": self._why_no_verify,
            "weights.undo": lambda: None if self._trash_bytes() else "the trash is empty",
            "weights.empty_trash": lambda: None if self._trash_bytes() else "the trash is empty",
            "weights.pin": self._why_no_pin,
            "job.cancel": lambda: self._why_no_job(is_over=False),
            "job.pause": lambda: self._why_no_job(is_over=False),
            "job.retry": lambda: self._why_no_job(is_over=True),
            "job.earlier": self._why_no_move,
            "job.later": self._why_no_move,
        }
        check = checks.get(action.id)
        return check() if check else None

    def _trash_bytes(self) -> int:
        return sum(disk.trash_bytes for disk in self.view.disks) if self.view is not None else 0

    def _why_no_convert(self) -> str | None:
        if self.current is None:
            return "no source under the cursor: a shows a folder"
        problem = self.current.problem
        return None if problem is None else f"{problem.code}: {problem.message}"

    def _why_no_verify(self) -> str | None:
        if self.current_variant is not None or (self.current is not None and self.current.variants):
            return None
        return "it has no converted files"

    def _why_no_pin(self) -> str | None:
        if self.current_variant is None:
            return "no converted file under the cursor: enter shows a source's"
        return None if self.current_variant.is_made else "Luna did not make it: nothing prunes it"

    def _why_no_job(self, *, is_over: bool) -> str | None:
        job = self.current_job
        if job is None:
            return "no job under the queue's cursor"
        fits = job.state in {"failed", "cancelled"} if is_over else not job.is_over
        return None if fits else f"{job.name} is {job.state}"

    def _why_no_move(self) -> str | None:
        job = self.current_job
        if job is None:
            return "no job under the queue's cursor"
        return None if job.place is not None else f"{job.name} does not wait"

    # -- files -----------------------------------------------------------------------------------------------

    def do_weights_convert(self) -> None:
        """Ask for precisions, show the plan, and queue what is confirmed."""
        from luna_tui.screens.convert import ConvertDialog

        marked, _ = self._targets()
        targets = tuple(marked) or ((self.current.path,) if self.current is not None else ())

        def answered(precisions: tuple[str, ...] | None) -> None:
            if precisions:
                call = partial(self.luna.backend.weights.convert, targets, precisions)
                self.verb("weights.convert", call, target=f"{_quoted(targets)} --to {','.join(precisions)}")

        self.app.push_screen(ConvertDialog(targets), answered)

    def do_weights_inspect(self) -> None:
        """Open the header of the file under the cursor."""
        from luna_tui.screens.header import HeaderDialog

        if (key := self._key("source-list")) is not None:
            self.app.push_screen(HeaderDialog(key))

    def do_weights_verify(self) -> None:
        """Check the converted file under the cursor, or all of the source under it."""
        key = self._key("source-list")
        source = self.current
        if key is None:
            return
        files = [variant.path for variant in source.variants] if source and source.path == key else [key]
        self.verb("weights.verify", partial(self.luna.backend.weights.verify, key), target=_quoted(files))

    def do_weights_prune(self) -> None:
        """Show what can go, and let go what is confirmed."""
        from luna_tui.screens.prune import PruneDialog

        table = self.query_one("#source-list", ListTable)
        marked = tuple(self._targets()[1]) if table.marks else ()
        self.app.push_screen(PruneDialog(marked), self._pruned)

    def _pruned(self, paths: tuple[str, ...] | None) -> None:
        if not paths:
            return
        call = partial(self.luna.backend.weights.prune, paths)
        action = actions.TABLE["weights.prune"]
        command = (action.cli or "").format(target=_quoted(paths))
        if len(paths) <= _MANY:
            self._start(action, call, command)
            return
        from luna_tui.screens.confirm import ConfirmDialog

        def answered(answer: bool | None) -> None:  # noqa: FBT001 - Textual's callback
            if answer:
                self._start(action, call, command)

        question = f"prune {count(len(paths), 'file')}"
        self.app.push_screen(ConfirmDialog(question, "u brings them back for 14 days.", str(len(paths))), answered)

    def do_weights_undo(self) -> None:
        """Bring back what was pruned last."""
        self.verb("weights.undo", self.luna.backend.weights.undo)

    def do_weights_empty_trash(self) -> None:
        """Delete what waits in the trash after the word was typed."""
        loss = f"{size(self._trash_bytes())} are deleted for good: nothing brings them back."
        self.verb("weights.empty_trash", self.luna.backend.weights.empty_trash, loss=loss, typed="trash")

    def do_weights_pin(self) -> None:
        """Pin the converted file under the cursor, or unpin it."""
        if (variant := self.current_variant) is not None:
            word = "unpin" if variant.is_pinned else "pin"
            call = partial(self.luna.backend.weights.pin, variant.path)
            self._start(actions.TABLE["weights.pin"], call, f"luna weights {word} {shlex.quote(variant.path)}")

    def do_weights_add(self) -> None:
        """Ask for a path and show what is there."""
        from luna_tui.screens.path import PathDialog

        def answered(path: str | None) -> None:
            if path:
                self.verb("weights.add", partial(self.luna.backend.weights.add, path), target=path)

        self.app.push_screen(PathDialog("show a file or folder"), answered)

    # -- jobs ------------------------------------------------------------------------------------------------

    def do_job_cancel(self) -> None:
        """Stop the job under the queue's cursor after asking."""
        if (job := self.current_job) is not None:
            call = partial(self.luna.backend.weights.cancel, job.id)
            self.verb("job.cancel", call, target=job.id, loss=f"{job.name}: what it has written so far goes.")

    def do_job_retry(self) -> None:
        """Queue the job under the queue's cursor again."""
        if (job := self.current_job) is not None:
            self.verb("job.retry", partial(self.luna.backend.weights.retry, job.id), target=job.id)

    def do_job_pause(self) -> None:
        """Hold the job under the queue's cursor, or let it go on."""
        if (job := self.current_job) is not None:
            word = "--resume" if job.is_paused else "--pause"
            self.verb("job.pause", partial(self.luna.backend.weights.pause, job.id), target=f"{job.id} {word}")

    def do_job_earlier(self) -> None:
        """Start the waiting job under the queue's cursor one place earlier."""
        self._move("job.earlier", -1)

    def do_job_later(self) -> None:
        """Start the waiting job under the queue's cursor one place later."""
        self._move("job.later", 1)

    def _move(self, action_id: str, step: int) -> None:
        job = self.current_job
        if job is not None and job.place is not None:
            call = partial(self.luna.backend.weights.move, job.id, step)
            self.verb(action_id, call, target=f"{job.id} --move {max(1, job.place + step)}")


def _quoted(paths: list[str] | tuple[str, ...]) -> str:
    return " ".join(shlex.quote(path) for path in paths)
