"""A pane that follows one log file: reading happens in a worker thread, lines come in batches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from textual.message import Message

from luna_tui.logtail import LogLine, LogTail
from luna_tui.widgets.chrome import Pane
from luna_tui.widgets.log_view import LogView

if TYPE_CHECKING:
    from textual.app import ComposeResult

_POLL_S = 0.2
_QUIET_TICKS = 2  # left out after a reading that found nothing


class LogPane(Pane):
    """Shows the log of whatever it is told to watch."""

    class Lines(Message):
        """New lines of a file."""

        def __init__(self, tail: LogTail, lines: list[LogLine]) -> None:
            super().__init__()
            self.tail = tail
            self.lines = lines

    def __init__(self, *, id: str, classes: str = "") -> None:  # noqa: A002 - Textual's word
        super().__init__(title="log", id=id, classes=classes)
        self.view = LogView(id=f"{id}-view")
        self._tail: LogTail | None = None
        self._name = ""
        self._reading = False
        self._ticks_to_skip = 0

    def compose(self) -> ComposeResult:
        """Yield the view."""
        yield self.view

    def on_mount(self) -> None:
        """Poll the file while the screen is shown."""
        self.set_interval(_POLL_S, self._tick)

    def on_unmount(self) -> None:
        """Let go of the file."""
        tail, self._tail = self._tail, None
        if tail is not None:
            tail.close()

    def follow_file(self, name: str, path: str | None) -> None:
        """Follow another file; the same one goes on as it is."""
        if name == self._name and path == (str(self._tail.path) if self._tail is not None else None):
            return
        if self._tail is not None:
            self._tail.close()
        self._name = name
        self._tail = LogTail(Path(path)) if path else None
        self._reading = False
        self.view.empty = "no log yet" if name else ""
        self.view.clear()
        self._retitle()
        self._poll()

    def _tick(self) -> None:
        if self._ticks_to_skip:
            self._ticks_to_skip -= 1
        else:
            self._poll()

    def _poll(self) -> None:
        if self._tail is None or self._reading or not self.screen.is_current:
            return
        self._reading = True
        tail = self._tail
        self.run_worker(lambda: self._read(tail), thread=True, group="log", exit_on_error=False, name="log")

    def _read(self, tail: LogTail) -> None:
        try:
            lines = tail.read()
        except OSError as error:
            tail.close()  # said once, not five times a second
            lines = [LogLine(f"cannot read the log: {error}", None, "error")]
        self.post_message(self.Lines(tail, lines))

    def on_log_pane_lines(self, message: LogPane.Lines) -> None:
        """Show what was read, unless another file is followed by now."""
        message.stop()
        if message.tail is not self._tail:
            return
        self._reading = False
        self._ticks_to_skip = 0 if message.lines else _QUIET_TICKS
        self.view.append(message.lines)
        if message.tail.missing and not self.view.lines:
            self.view.empty = f"no log at {message.tail.path}"

    def on_log_view_changed(self) -> None:
        """Say in the title whether the log is followed."""
        self._retitle()

    def _retitle(self) -> None:
        self.set_title(f"log: {self._name} · {self.view.status}" if self._name else "log")
