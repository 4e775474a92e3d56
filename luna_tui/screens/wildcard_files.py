"""The files open in the editor of screen 4: read and written in workers; unsaved text is never lost unasked.

Drafts are `luna_tui.screens.wildcard_drafts`', what stands round the text is `luna_tui.screens.wildcard_editor`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from textual.containers import Horizontal
from textual.message import Message
from textual.widgets import ContentSwitcher, Static, TextArea

from luna_engine.errors import LunaError
from luna_tui.plain import content
from luna_tui.screens.choose import ChoiceDialog
from luna_tui.screens.compare import CompareDialog, compared
from luna_tui.widgets.chrome import Pane
from luna_tui.widgets.yaml_editor import Marks, YamlEditor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from textual.app import ComposeResult

    from luna_engine.wildcards import Diagnostic
    from luna_tui.app import LunaApp
    from luna_tui.backend.wildcard_files import OpenFile
    from luna_tui.backend.wildcards import Wildcards
    from luna_tui.screens.base import LunaScreen
    from luna_tui.widgets.completions import Completions
    from luna_tui.widgets.table import Row

MOST_OVERLAY = 4 * 1024 * 1024  # characters; samples of larger files follow each save


@dataclass(slots=True)
class Buffer:
    """An open file: as it was read, and its editor, whose undo history lives as long as it is open."""

    file: OpenFile
    editor: YamlEditor
    marks: Marks

    @property
    def is_modified(self) -> bool:
        """Tell whether the editor holds unsaved text."""
        return self.editor.text != self.file.text

    @property
    def overlay(self) -> str | None:
        """The unsaved text of the whole file for the samples; None if there is none, or it is too large."""
        if not self.is_modified:
            return None
        whole = self.file.whole(self.editor.text)
        return whole if len(whole) <= MOST_OVERLAY else None

    def holds(self, line: int) -> bool:
        """Tell whether a line of the file is in the editor."""
        return self.file.section is None or self.file.first_line <= line <= self.file.last_line

    def show_problems(self, problems: Iterable[Diagnostic]) -> None:
        """Mark the problems of this file."""
        self.editor.set_problems(problem for problem in problems if problem.file == self.file.name)
        self.marks.refresh()


class FileEditors(ContentSwitcher):
    """One editor for each open file; the current one is shown.

    Args:
        port: returns the wildcards port.
    """

    class Edited(Message):
        """The text of an editor changed."""

    class Opened(Message):
        """A file was read: to be shown at a place, or because it changed on disk (``line`` None)."""

        def __init__(self, file: OpenFile, line: int | None, column: int) -> None:
            super().__init__()
            self.file = file
            self.line = line
            self.column = column

    class Saved(Message):
        """A file was written."""

        def __init__(self, file: OpenFile) -> None:
            super().__init__()
            self.file = file

    class Failed(Message):
        """A worker met an expected error."""

        def __init__(self, error: LunaError, file: OpenFile | None) -> None:
            super().__init__()
            self.error = error
            self.file = file

    class Compared(Message):
        """Two versions were laid side by side."""

        def __init__(self, file: OpenFile, rows: list[Row]) -> None:
            super().__init__()
            self.file = file
            self.rows = rows

    class Shown(Message):
        """A file is in the editor now, at the asked place."""

        def __init__(self, buffer: Buffer) -> None:
            super().__init__()
            self.buffer = buffer

    def __init__(
        self,
        port: Callable[[], Wildcards],
        completions: Completions,
        *,
        id: str,  # noqa: A002 - Textual's word
    ) -> None:
        super().__init__(id=id, initial="no-file")
        self._port = port
        self._completions = completions
        self._problems: tuple[Diagnostic, ...] = ()
        self._current_path: Path | None = None
        self._then: Callable[[], None] | None = None
        self.buffers: dict[Path, Buffer] = {}

    def compose(self) -> ComposeResult:
        """Yield what stands there before a file is open."""
        yield Static(content("enter on an address of the tree opens its file; ctrl+s saves it"), id="no-file")

    @property
    def luna(self) -> LunaApp:
        """The application, typed."""
        return cast("LunaApp", self.app)

    @property
    def current_buffer(self) -> Buffer | None:
        """The file that is shown."""
        return self.buffers.get(self._current_path) if self._current_path else None

    @property
    def modified(self) -> frozenset[str]:
        """The names of files with unsaved text."""
        return frozenset(buffer.file.name for buffer in self.buffers.values() if buffer.is_modified)

    def set_problems(self, problems: Iterable[Diagnostic]) -> None:
        """Mark these problems in the editors from now on."""
        self._problems = tuple(problems)
        for buffer in self.buffers.values():
            buffer.show_problems(self._problems)

    def _work(self, work: Callable[[], Message], name: str, file: OpenFile | None = None) -> None:
        """Run blocking work; its message comes back, an expected error as Failed."""

        def run() -> None:
            try:
                self.post_message(work())
            except LunaError as error:
                self.post_message(self.Failed(error, file))

        self.run_worker(run, thread=True, group=name, name=name)

    # -- opening

    def open_file(self, root: int, name: str, line: int, column: int = 1) -> None:
        """Show a file in the editor at a place; text that is being edited stays as it is."""
        known = next(
            (buffer for buffer in self.buffers.values() if (buffer.file.root, buffer.file.name) == (root, name)), None
        )
        if known is not None and (known.holds(line) or known.is_modified):
            if not known.holds(line):
                self.luna.toast(f"save {name} first: line {line} is in another part of it", "warning")
            self._show_buffer(known, line, column)
            return
        self._work(lambda: self.Opened(self._port().open(root, name, line), line, column), f"open {name}")

    async def on_file_editors_opened(self, message: FileEditors.Opened) -> None:
        """Show a file that was read, or take over what changed on disk."""
        message.stop()
        buffer = self.buffers.get(message.file.path)
        if message.line is None:
            if buffer is not None:
                self._take_disk(buffer, message.file)
            return
        if buffer is None:
            buffer = await self._make_buffer(message.file)
        elif not buffer.is_modified and buffer.file.first_line != message.file.first_line:
            buffer.file = message.file
            buffer.editor.show_section(message.file.text, message.file.first_line)
        self._show_buffer(buffer, message.line, message.column)
        buffer.show_problems(self._problems)
        if message.file.is_normalised and not self.luna.readonly:
            self.luna.toast(f"saving {message.file.name} evens out its line ends or encoding", "warning")

    async def _make_buffer(self, file: OpenFile) -> Buffer:
        number = len(self.buffers) + 1
        editor = YamlEditor(
            file.text,
            id=f"editor-{number}",
            read_only=self.luna.readonly,
            first_line=file.first_line,
            completions=self._completions,
        )
        buffer = Buffer(file, editor, Marks(editor))
        self.buffers[file.path] = buffer
        await self.mount(Horizontal(buffer.marks, editor, id=f"file-{number}", classes="file"))
        return buffer

    def _show_buffer(self, buffer: Buffer, line: int, column: int) -> None:
        parent = buffer.editor.parent
        self._current_path = buffer.file.path
        self.current = parent.id if parent is not None else None
        cast("LunaScreen", self.screen).open_pane("editor")
        buffer.editor.go_to(line, column)
        self._show_title()
        self.call_after_refresh(buffer.editor.focus)
        self.post_message(self.Shown(buffer))

    def _show_title(self) -> None:
        buffer = self.current_buffer
        if buffer is not None:
            file = buffer.file
            mark = " · modified" if buffer.is_modified else ""
            last = file.first_line + buffer.editor.document.line_count - 1
            part = f" · lines {file.first_line:,}-{last:,} of {file.section.total_lines:,}" if file.section else ""
            self.screen.query_one("#editor", Pane).set_title(f"{file.name}{part}{mark}")

    def on_text_area_changed(self, event: TextArea.Changed) -> None:
        """Mark the file as modified, and tell the screen."""
        event.stop()
        self._show_title()
        self.post_message(self.Edited())

    # -- saving

    def save_current(self, *, then: Callable[[], None] | None = None) -> None:
        """Save the file that is shown, and then do something else if it could be saved."""
        buffer = self.current_buffer
        if buffer is None:
            self.luna.toast("no file is open", "warning")
        else:
            self._then = then
            self._save(buffer, overwrite=False)

    def _save(self, buffer: Buffer, *, overwrite: bool) -> None:
        file, text = buffer.file, buffer.editor.text
        self._work(
            lambda: self.Saved(self._port().save(file, text, overwrite=overwrite)), f"save {file.name}", buffer.file
        )

    def on_file_editors_saved(self, message: FileEditors.Saved) -> None:
        """Remember what is on disk now; the screen, which gets the message next, samples it."""
        buffer = self.buffers.get(message.file.path)
        if buffer is not None:
            buffer.file = message.file
        self._show_title()
        then, self._then = self._then, None
        if then is not None:
            then()

    def on_file_editors_failed(self, message: FileEditors.Failed) -> None:
        """Say what failed; a conflict asks what to keep."""
        message.stop()
        self._then = None
        error = message.error
        buffer = self.buffers.get(message.file.path) if message.file else None
        if error.code == "conflict" and buffer is not None:
            self._ask_conflict(buffer, error.message)
        else:
            self.luna.toast(f"{error.message} → {error.hint}" if error.hint else error.message, "error")

    def _ask_conflict(self, buffer: Buffer, text: str) -> None:
        choices = (("s", "Stay"), ("m", "Mine over it"), ("t", "Theirs"), ("b", "Both side by side"))

        def answered(answer: str | None) -> None:
            if answer == "m":
                self._save(buffer, overwrite=True)
            elif answer == "t":
                file = buffer.file
                buffer.editor.load_text(file.text)  # clean again, so that the disk is taken over
                self._reread(buffer)
            elif answer == "b":
                self._compare(buffer)

        self.app.push_screen(ChoiceDialog(f"conflict: {buffer.file.name}", text, choices), answered)

    def _compare(self, buffer: Buffer) -> None:
        """Lay mine and theirs side by side, then ask again."""
        file, mine = buffer.file, buffer.editor.text

        def work() -> Message:
            theirs = self._port().open(file.root, file.name, file.first_line)
            return self.Compared(file, compared(mine, theirs.text))

        self._work(work, f"compare {file.name}")

    def on_file_editors_compared(self, message: FileEditors.Compared) -> None:
        """Show the comparison; its end asks what to keep."""
        message.stop()
        buffer = self.buffers.get(message.file.path)
        if buffer is not None:
            again = f"{message.file.name} was changed by another program while you edit it."
            dialog = CompareDialog(f"{message.file.name}: mine and theirs", message.rows)
            self.app.push_screen(dialog, lambda _: self._ask_conflict(buffer, again))

    # -- the disk

    def reread(self, names: Iterable[str]) -> None:
        """Look at files that changed on disk."""
        changed = set(names)
        for buffer in self.buffers.values():
            if buffer.file.name in changed:
                self._reread(buffer)

    def _reread(self, buffer: Buffer) -> None:
        file = buffer.file
        line = buffer.editor.place[0] if file.section else 1
        self._work(lambda: self.Opened(self._port().open(file.root, file.name, line), None, 1), f"read {file.name}")

    def _take_disk(self, buffer: Buffer, file: OpenFile) -> None:
        """Take over a changed file at the same line; unsaved text is never replaced unasked."""
        if file.text == buffer.file.text:
            buffer.file = file
            buffer.editor.line_number_start = file.first_line
        elif not buffer.is_modified:
            place = buffer.editor.place
            buffer.file = file
            buffer.editor.show_section(file.text, file.first_line)
            buffer.editor.go_to(*place)
            self._show_title()
        elif not isinstance(self.app.screen, ChoiceDialog):
            self._ask_conflict(buffer, f"{file.name} was changed by another program while you edit it.")

    def guard(self, leave: Callable[[], None]) -> bool:
        """Ask before unsaved text is lost."""
        unsaved = [buffer for buffer in self.buffers.values() if buffer.is_modified]
        if not unsaved:
            return True
        names = ", ".join(buffer.file.name for buffer in unsaved)

        def answered(answer: str | None) -> None:
            if answer == "v":
                self._work(lambda: self._save_all(unsaved, leave), "save all")
            elif answer == "d":
                self._work(lambda: self._give_up(unsaved, leave), "discard")

        choices = (("s", "Stay"), ("v", "Save all"), ("d", "Discard"))
        self.app.push_screen(ChoiceDialog("unsaved text", f"Not saved: {names}", choices), answered)
        return False

    def _give_up(self, buffers: list[Buffer], leave: Callable[[], None]) -> Message:
        """Forget the drafts in a worker, then leave."""
        for buffer in buffers:
            self._port().drop_draft(buffer.file.path)
        self.app.call_from_thread(leave)
        return self.Edited()

    def _save_all(self, buffers: list[Buffer], leave: Callable[[], None]) -> Message:
        """Save in a worker; leave only if every file was written."""
        saved = [self._port().save(buffer.file, buffer.editor.text) for buffer in buffers]
        self.app.call_from_thread(leave)
        return self.Saved(saved[-1])
