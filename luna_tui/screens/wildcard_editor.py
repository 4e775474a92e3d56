"""The editor pane of screen 4: files, completions, find, going to definitions and back, the user's own editor."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from textual.app import SuspendNotSupported
from textual.message import Message
from textual.widgets import Input

from luna_engine.errors import LunaError
from luna_tui.external import editor_command
from luna_tui.screens.choose import ChoiceDialog
from luna_tui.screens.wildcard_drafts import DraftKeeper
from luna_tui.screens.wildcard_files import FileEditors
from luna_tui.widgets.chrome import Pane
from luna_tui.widgets.completions import Completions

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual.app import ComposeResult
    from textual.timer import Timer

    from luna_engine.wildcards import Completion
    from luna_tui.app import LunaApp
    from luna_tui.backend.references import Destination
    from luna_tui.backend.wildcards import Wildcards
    from luna_tui.screens.wildcard_files import Buffer

_COMPLETE_PAUSE_S = 0.08
_MOST_BACK = 50
Spot = tuple[int, str, int, int]
"""Root, name, line, column."""


class EditorPane(Pane):
    """Everything round the text.

    Args:
        port: returns the wildcards port.
    """

    class Completed(Message):
        """Completions for a line came from the worker."""

        def __init__(self, line: str, found: tuple[Completion, ...]) -> None:
            super().__init__()
            self.line = line
            self.found = found

    class Resolved(Message):
        """The reference under the cursor leads there, or nowhere."""

        def __init__(self, destination: Destination | None) -> None:
            super().__init__()
            self.destination = destination

    def __init__(self, port: Callable[[], Wildcards]) -> None:
        super().__init__(id="editor", classes="side", title="no file open")
        self._port = port
        self._back: list[Spot] = []
        self._pause: Timer | None = None
        self._closed_before = 0
        # Held, not queried for: a timer may fire while the application closes and the parts are gone already.
        self.completions = Completions()
        self.files = FileEditors(port, self.completions, id="files")
        self.drafts = DraftKeeper(port, lambda: self.files)

    def compose(self) -> ComposeResult:
        """Yield files, completions and the find bar."""
        yield self.files
        yield self.completions
        yield Input(placeholder="find: enter next, shift+tab back, esc closes", id="find")
        yield self.drafts

    def on_mount(self) -> None:
        """Hide the find bar."""
        self.query_one("#find").display = False

    @property
    def luna(self) -> LunaApp:
        """The application, typed."""
        return cast("LunaApp", self.app)

    @property
    def buffer(self) -> Buffer | None:
        """The file that is shown."""
        return self.files.current_buffer

    # -- completions

    def on_file_editors_edited(self) -> None:
        """Ask for completions after a pause, and keep a draft after a longer one. The screen samples."""
        if self.buffer is None:
            return
        self.drafts.note(self.buffer)
        self._closed_before = self.completions.times_closed
        if self._pause is not None:
            self._pause.stop()
        self._pause = self.set_timer(_COMPLETE_PAUSE_S, self.ask_completions)

    def on_file_editors_shown(self, message: FileEditors.Shown) -> None:
        """Recover a draft that was asked for."""
        message.stop()
        self.completions.show(())
        self.drafts.shown(message.buffer)

    def ask_completions(self) -> None:
        """Ask what can stand at the cursor, if something is open there."""
        buffer = self.buffer
        if buffer is None or not buffer.editor.has_focus or self._closed_before != self.completions.times_closed:
            return
        line, column = buffer.editor.current_line, buffer.editor.cursor_location[1]
        if not _is_open(line[:column], buffer.file.path):
            self.completions.show(())
            return
        port, path = self._port(), buffer.file.path
        name = line.rfind("__", 0, column) if line[:column].count("__") % 2 else 0  # a YAML list round it is no mark

        def work() -> None:
            found = port.complete(line[name:], column - name, path)
            self.post_message(
                self.Completed(line, tuple(replace(one, start=one.start + name, end=one.end + name) for one in found))
            )

        self.run_worker(work, thread=True, group="complete", exclusive=True, name="complete")

    def on_editor_pane_completed(self, message: EditorPane.Completed) -> None:
        """Show them if the line is still that line."""
        message.stop()
        buffer = self.buffer
        is_same = buffer is not None and buffer.editor.has_focus and buffer.editor.current_line == message.line
        if is_same and self._closed_before == self.completions.times_closed:
            self.completions.show(message.found)

    def on_text_area_selection_changed(self) -> None:
        """Close the list when the cursor leaves its line."""
        buffer = self.buffer
        if self.completions.found and (buffer is None or not _is_open(
            buffer.editor.current_line[: buffer.editor.cursor_location[1]], buffer.file.path
        )):  # fmt: skip
            self.completions.show(())

    # -- finding

    def find(self) -> None:
        """Open the find bar."""
        if self.buffer is None:
            return
        bar = self.query_one("#find", Input)
        bar.display = True
        selected = self.buffer.editor.selected_text
        if selected and "\n" not in selected:
            bar.value = selected
        bar.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Find while typing."""
        if event.input.id == "find":
            event.stop()
            self._find(event.value, 0)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Go to the next place."""
        if event.input.id == "find":
            event.stop()
            self._find(event.value, 1)

    def _find(self, text: str, step: int) -> None:
        if self.buffer is not None and text and not self.buffer.editor.find(text, step=step):
            self.luna.toast(f"{text!r} is not in {self.buffer.file.name}", "warning")

    def find_back(self) -> None:
        """Go to the place before."""
        self._find(self.query_one("#find", Input).value, -1)

    def close_find(self) -> bool:
        """Close the find bar; tell whether it was open."""
        bar = self.query_one("#find", Input)
        was_open = bar.display
        bar.display = False
        if was_open and self.buffer is not None:
            self.buffer.editor.focus()
        return was_open

    # -- definitions

    def go(self, root: int, name: str, line: int, column: int = 1) -> None:
        """Go somewhere and remember where one was."""
        if self.buffer is not None:
            self._back.append((self.buffer.file.root, self.buffer.file.name, *self.buffer.editor.place))
            del self._back[:-_MOST_BACK]
        self.files.open_file(root, name, line, column)

    def go_back(self) -> None:
        """Go to where one was before."""
        if self._back:
            self.files.open_file(*self._back.pop())
        else:
            self.luna.toast("nothing to go back to")

    def go_to_definition(self) -> None:
        """Go to what the reference under the cursor names."""
        buffer = self.buffer
        if buffer is None:
            return
        line, column, path, port = (
            buffer.editor.current_line,
            buffer.editor.place[1] - 1,
            buffer.file.path,
            self._port(),
        )

        def work() -> None:
            self.post_message(self.Resolved(port.definition(line, column, path)))

        self.run_worker(work, thread=True, group="definition", exclusive=True, name="definition")

    def on_editor_pane_resolved(self, message: EditorPane.Resolved) -> None:
        """Go there."""
        message.stop()
        found = message.destination
        if found is None:
            self.luna.toast("no reference under the cursor leads to a file", "warning")
        else:
            self.go(found.root, found.file, found.line)

    # -- the user's own editor

    def open_external(self) -> None:
        """Open the file in $EDITOR at the line; unsaved text is saved first, if the answer allows."""
        buffer = self.buffer
        if buffer is None:
            self.luna.toast("no file is open", "warning")
        elif buffer.is_modified:
            choices = (("s", "Stay"), ("v", "Save and open"))
            text = f"{buffer.file.name} has unsaved text, which another editor would not see."
            self.app.push_screen(ChoiceDialog("unsaved text", text, choices), self._save_then_open)
        else:
            self._run_external(buffer)

    def _save_then_open(self, answer: str | None) -> None:
        if answer == "v":
            self.files.save_current(then=self.open_external)

    def _run_external(self, buffer: Buffer) -> None:
        setting = getattr(getattr(self.luna.backend, "settings", None), "ui", None)
        try:
            command = editor_command(buffer.file.path, buffer.editor.place[0], getattr(setting, "editor", None))
            with self.app.suspend():
                code = subprocess.run(command, check=False).returncode
        except SuspendNotSupported:
            self.luna.toast("there is no terminal to give away here; edit the file elsewhere", "warning")
        except LunaError as error:
            self.luna.toast(f"{error.message} → {error.hint}", "error")
        except OSError as error:
            self.luna.toast(f"the editor did not start: {error.strerror or error}", "error")
        else:
            if code:
                self.luna.toast(f"{Path(command[0]).name} ended with {code}", "warning")
            self.files.reread([buffer.file.name])
        self.app.refresh(layout=True)


def _is_open(before: str, path: Path) -> bool:
    """Tell whether something that a completion can end stands open: ``{``, ``__``, or a ``[`` that is no YAML list."""
    if before.count("__") % 2:
        return True
    opened = max(before.rfind("{"), before.rfind("["))
    if opened < max(before.rfind("}"), before.rfind("]"), 0):
        return False
    if before[opened : opened + 1] != "[":
        return before[opened : opened + 1] == "{"
    is_list = before[:opened].rstrip()[-1:] in {"", ":", "-", ",", "["}
    return path.suffix.lower() in {".yaml", ".yml", ".json"} and not is_list
