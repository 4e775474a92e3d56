"""Screen 4: the wildcard library as a tree, an editor for its files, and samples that follow every change."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from textual.containers import Horizontal
from textual.message import Message
from textual.widgets import ContentSwitcher, Input, Static, TextArea

from luna_engine.errors import LunaError
from luna_tui.plain import content
from luna_tui.screens.base import LunaScreen
from luna_tui.screens.choose import ChoiceDialog
from luna_tui.screens.wildcard_rows import PROBLEM_COLUMNS, problem_key, problem_row, title_of_samples
from luna_tui.widgets.chrome import Pane
from luna_tui.widgets.samples import Samples
from luna_tui.widgets.table import ListTable
from luna_tui.widgets.tree_table import TreeTable
from luna_tui.widgets.yaml_editor import Marks, YamlEditor
from luna_tui.wording import count

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from textual.app import ComposeResult
    from textual.timer import Timer

    from luna_engine.wildcards import Change, Diagnostic
    from luna_tui.backend.wildcards import LibraryView, OpenFile, PreviewView, Wildcards

TYPING_PAUSE_S = 0.060
LINT_PAUSE_S = 0.4
_STEP = 5
_MOST_SAMPLES = 50


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


class WildcardsScreen(LunaScreen):
    """Wildcard files and what they give."""

    SCREEN_ID = "wildcards"
    ABOUT = (
        "The wildcard folders as a tree: enter opens a file at the line of an address, l and h fold. "
        "Samples follow each pause in typing and each save, here or in another editor. "
        "A file that does not parse keeps its last good text, and the list below says what is wrong where."
    )
    CSS_PATH = "../styles/wildcards.tcss"
    REFRESH_S = 0
    PANES: ClassVar[tuple[str, ...]] = ("tree", "editor", "samples", "problems")

    class Previewed(Message):
        """Samples came from the worker, with the load problems of that moment."""

        def __init__(self, preview: PreviewView, problems: tuple[Diagnostic, ...]) -> None:
            super().__init__()
            self.preview = preview
            self.problems = problems

    class Failed(Message):
        """A worker met an expected error."""

        def __init__(self, error: LunaError, file: OpenFile | None = None) -> None:
            super().__init__()
            self.error = error
            self.file = file

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

    class DiskChanged(Message):
        """Files changed on disk; the library has them already."""

        def __init__(self, change: Change) -> None:
            super().__init__()
            self.change = change

    def __init__(self) -> None:
        super().__init__()
        self.view: LibraryView | None = None
        self.buffers: dict[Path, Buffer] = {}
        self.current_path: Path | None = None
        self.seed = 0
        self.sample_count = 10
        self._linted: tuple[Diagnostic, ...] = ()
        self._loaded: tuple[Diagnostic, ...] = ()
        self._is_watching = False
        self._is_previewing = False
        self._preview_again = False
        self._typing: Timer | None = None
        self._linting: Timer | None = None

    # -- composition

    def body(self) -> ComposeResult:
        """Yield tree, editor, samples and problems."""
        with Horizontal(id="upper"):
            with Pane(id="tree", title="tree"):
                yield TreeTable(id="library-tree")
            with (
                Pane(id="editor", classes="side", title="no file open"),
                ContentSwitcher(id="files", initial="no-file"),
            ):
                yield Static(content("enter on an address of the tree opens its file; ctrl+s saves it"), id="no-file")
            with Pane(id="samples", classes="side", title="samples"):
                yield Samples()
                yield Static("", id="odds")
                yield Input(placeholder="prompt> (empty: the address under the cursor)", id="prompt")
        with Pane(id="problems", title="problems"):
            yield ListTable(PROBLEM_COLUMNS, id="problem-list", empty="no problems")

    @property
    def port(self) -> Wildcards:
        """The wildcards port."""
        found: Wildcards | None = self.luna.backend.wildcards
        if found is None:
            raise LunaError("unavailable", "this backend has no wildcard library")
        return found

    def on_mount(self) -> None:
        """Guard unsaved text."""
        super().on_mount()
        self.luna.quit_guards["wildcards"] = self._guard

    # -- the library

    def load(self) -> LibraryView:
        """Read the library, and watch it from then on."""
        port = self.port
        view = port.snapshot()
        self._linted = port.lint()
        if not self._is_watching:
            self._is_watching = True
            port.watch(self._tell_change)
        return view

    def _tell_change(self, change: Change) -> None:
        """Take a change from the watching thread."""
        self.post_message(self.DiskChanged(change))

    def show(self, snapshot: LibraryView) -> None:
        """Show the tree; the samples follow."""
        is_first = self.view is None
        self.view = snapshot
        tree = self.query_one(TreeTable)
        tree.empty = (
            "No wildcard files.\n\nPut .yaml or .txt files into a folder and name it in settings.toml:\n"
            '[wildcards]\nroots = ["/path/to/wildcards"]'
        )
        self._show_tree()
        self.header.summary = f"native · {snapshot.items:,} items"
        for notice in snapshot.notices if is_first else ():
            self.luna.toast(notice, "warning")
        self._loaded = self.port.problems()
        self._show_problems()
        self.ask_preview()

    def _show_tree(self) -> None:
        if self.view is not None:
            modified = frozenset(buffer.file.name for buffer in self.buffers.values() if buffer.is_modified)
            self.query_one(TreeTable).set_nodes(self.view.nodes, modified)

    @property
    def problems(self) -> tuple[Diagnostic, ...]:
        """Load problems as of now, and what the last lint found beside them."""
        kept = (problem for problem in self._linted if problem.code not in {"yaml-syntax", "duplicate-key", "encoding"})
        return tuple(dict.fromkeys((*self._loaded, *kept)))

    def _show_problems(self) -> None:
        problems = sorted(self.problems, key=lambda problem: problem.severity.rank)
        self.query_one("#problem-list", ListTable).set_rows([problem_row(problem) for problem in problems])
        numbers = [sum(problem.severity.value == word for problem in problems) for word in ("error", "warning", "hint")]
        words = zip(numbers, ("error", "warning", "hint"), strict=True)
        self.query_one("#problems", Pane).set_title(
            " · ".join(count(number, word) for number, word in words) if problems else "no problems"
        )
        for buffer in self.buffers.values():
            buffer.editor.set_problems(problem for problem in problems if problem.file == buffer.file.name)
            buffer.marks.refresh()

    def on_list_table_highlighted(self, event: ListTable.Highlighted) -> None:
        """Sample the address under the tree's cursor."""
        if isinstance(event.table, TreeTable):
            self.ask_preview()

    def on_list_table_selected(self, event: ListTable.Selected) -> None:
        """Open a file at the address or at the problem."""
        if isinstance(event.table, TreeTable):
            node = event.table.node
            if node is not None and node.file is not None:
                self.open_file(node.root, node.file, node.line or 1)
            elif node is not None:
                event.table.action_unfold()
        else:
            self._open_problem(event.key)

    def _open_problem(self, key: str) -> None:
        problem = next((problem for problem in self.problems if problem_key(problem) == key), None)
        if problem is None or problem.file is None:
            return
        root = self.port.root_of(problem.file)
        if root is None:
            self.luna.toast(f"{problem.file} is no longer there", "warning")
        else:
            self.open_file(root, problem.file, problem.line or 1, problem.column or 1)

    # -- the editor

    def open_file(self, root: int, name: str, line: int, column: int = 1) -> None:
        """Show a file in the editor at a place; text that is being edited stays as it is."""
        known = next(
            (buffer for buffer in self.buffers.values() if (buffer.file.root, buffer.file.name) == (root, name)), None
        )
        if known is not None:
            self._show_buffer(known, line, column)
            return
        self._work(lambda: self.Opened(self.port.open(root, name), line, column), f"open {name}")

    def _work(self, work: Callable[[], Message], name: str, file: OpenFile | None = None) -> None:
        """Run blocking work; its message comes back, an expected error as Failed."""

        def run() -> None:
            try:
                self.post_message(work())
            except LunaError as error:
                self.post_message(self.Failed(error, file))

        self.run_worker(run, thread=True, group=name, name=name)

    async def on_wildcards_screen_opened(self, message: WildcardsScreen.Opened) -> None:
        """Show a file that was read, or take over what changed on disk."""
        message.stop()
        buffer = self.buffers.get(message.file.path)
        if message.line is None:
            if buffer is not None:
                self._take_disk(buffer, message.file)
            return
        if buffer is None:
            number = len(self.query(YamlEditor)) + 1
            editor = YamlEditor(message.file.text, id=f"editor-{number}", read_only=self.luna.readonly)
            buffer = Buffer(message.file, editor, Marks(editor))
            self.buffers[message.file.path] = buffer
            await self.query_one(ContentSwitcher).mount(
                Horizontal(buffer.marks, editor, id=f"file-{number}", classes="file")
            )
        self._show_buffer(buffer, message.line, message.column)
        self._show_problems()

    def _show_buffer(self, buffer: Buffer, line: int, column: int) -> None:
        parent = buffer.editor.parent
        self.current_path = buffer.file.path
        self.query_one(ContentSwitcher).current = parent.id if parent is not None else None
        self.open_pane("editor")
        buffer.editor.go_to(line, column)
        self._show_title()
        self.call_after_refresh(buffer.editor.focus)

    def _focus_pane(self, pane: str) -> None:
        """Focus the editor that is shown, not the first that exists."""
        buffer = self.current
        if pane == "editor" and buffer is not None:
            buffer.editor.focus()
        else:
            super()._focus_pane(pane)

    @property
    def current(self) -> Buffer | None:
        """The file in the editor."""
        return self.buffers.get(self.current_path) if self.current_path else None

    def _show_title(self) -> None:
        buffer = self.current
        if buffer is not None:
            mark = " · modified" if buffer.is_modified else ""
            self.query_one("#editor", Pane).set_title(f"{buffer.file.name}{mark}")

    def on_text_area_changed(self, event: TextArea.Changed) -> None:
        """Sample after a pause in typing."""
        event.stop()
        self._show_title()
        self._show_tree()
        if self._typing is not None:
            self._typing.stop()
        self._typing = self.set_timer(TYPING_PAUSE_S, self.ask_preview)

    def do_item_save(self) -> None:
        """Save the file in the editor."""
        buffer = self.current
        if buffer is None:
            self.luna.toast("no file is open", "warning")
        else:
            self._save(buffer, overwrite=False)

    def _save(self, buffer: Buffer, *, overwrite: bool) -> None:
        file, text = buffer.file, buffer.editor.text
        self._work(
            lambda: self.Saved(self.port.save(file, text, overwrite=overwrite)), f"save {file.name}", buffer.file
        )

    def on_wildcards_screen_saved(self, message: WildcardsScreen.Saved) -> None:
        """Sample what was saved, and say so."""
        message.stop()
        buffer = self.buffers.get(message.file.path)
        if buffer is not None:
            buffer.file = message.file
        self._show_title()
        self.ask_preview()
        self._loaded = self.port.problems()
        bad = sum(problem.file == message.file.name and problem.severity.value == "error" for problem in self._loaded)
        note = f" with {count(bad, 'error')}" if bad else ""
        self.luna.toast(f"saved {message.file.name}{note}", "warning" if bad else "information")

    def on_wildcards_screen_failed(self, message: WildcardsScreen.Failed) -> None:
        """Say what failed; a conflict asks what to keep."""
        message.stop()
        self._is_previewing = False
        error = message.error
        buffer = self.buffers.get(message.file.path) if message.file else None
        if error.code == "conflict" and buffer is not None:
            self._ask_conflict(buffer, error.message)
            return
        hint = f" → {error.hint}" if error.hint else ""
        self.luna.toast(f"{error.message}{hint}", "error")

    def _ask_conflict(self, buffer: Buffer, text: str) -> None:
        choices = (("s", "Stay"), ("m", "Mine over it"), ("t", "Theirs"))

        def answered(answer: str | None) -> None:
            if answer == "m":
                self._save(buffer, overwrite=True)
            elif answer == "t":
                file = buffer.file
                buffer.editor.load_text(file.text)  # clean again, so that the disk is taken over
                self._reread(buffer)

        self.app.push_screen(ChoiceDialog(f"conflict: {buffer.file.name}", text, choices), answered)

    # -- the disk

    def on_wildcards_screen_disk_changed(self, message: WildcardsScreen.DiskChanged) -> None:
        """Sample at once, then look at the tree and at open files."""
        message.stop()
        change = message.change
        if change.notice:
            self.luna.toast(change.notice, "warning")
            return
        self.ask_preview()
        self._lint_soon()  # tree and lint wait, so that the samples have the processor
        for buffer in self.buffers.values():
            if buffer.file.name in change.paths:
                self._reread(buffer)

    def _reread(self, buffer: Buffer) -> None:
        file = buffer.file
        self._work(lambda: self.Opened(self.port.open(file.root, file.name), None, 1), f"read {file.name}")

    def _take_disk(self, buffer: Buffer, file: OpenFile) -> None:
        """Take over a changed file at the same line; unsaved text is never replaced unasked."""
        if file.text == buffer.file.text:
            buffer.file = file
        elif not buffer.is_modified:
            place = buffer.editor.cursor_location
            buffer.file = file
            buffer.editor.load_text(file.text)
            buffer.editor.go_to(place[0] + 1, place[1] + 1)
            self._show_title()
        elif not isinstance(self.app.screen, ChoiceDialog):
            self._ask_conflict(buffer, f"{file.name} was changed by another program while you edit it.")

    def _guard(self, leave: Callable[[], None]) -> bool:
        """Ask before unsaved text is lost."""
        unsaved = [buffer for buffer in self.buffers.values() if buffer.is_modified]
        if not unsaved:
            return True
        names = ", ".join(buffer.file.name for buffer in unsaved)

        def answered(answer: str | None) -> None:
            if answer == "v":
                self._work(lambda: self._save_all(unsaved, leave), "save all")
            elif answer == "d":
                leave()

        choices = (("s", "Stay"), ("v", "Save all"), ("d", "Discard"))
        self.app.push_screen(ChoiceDialog("unsaved text", f"Not saved: {names}", choices), answered)
        return False

    def _save_all(self, buffers: list[Buffer], leave: Callable[[], None]) -> Message:
        """Save in a worker; leave only if every file was written."""
        saved = [self.port.save(buffer.file, buffer.editor.text) for buffer in buffers]
        self.app.call_from_thread(leave)
        return self.Saved(saved[-1])

    # -- samples

    @property
    def template(self) -> str:
        """The typed prompt, else a reference to the address under the cursor."""
        typed = self.query_one("#prompt", Input).value
        if typed:
            return typed
        node = self.query_one(TreeTable).node
        return f"{{{node.address}}}" if node is not None else ""

    def ask_preview(self) -> None:
        """Draw samples in a worker; while one runs, at most one more waits."""
        if self.view is None or not self.is_attached:
            return
        if self._is_previewing:
            self._preview_again = True
            return
        self._is_previewing = True
        buffer = self.current
        overlay = (buffer.file.path, buffer.editor.text if buffer.is_modified else None) if buffer else None
        template, wanted, seed, port = self.template, self.sample_count, self.seed, self.port

        def work() -> Message:
            if overlay is not None:
                port.overlay(*overlay)
            return self.Previewed(port.preview(template, wanted, seed), port.problems())

        self._work(work, "preview")

    def on_wildcards_screen_previewed(self, message: WildcardsScreen.Previewed) -> None:
        """Show samples and the problems known so far; the lint follows when there is a pause."""
        message.stop()
        self._is_previewing = False
        preview = message.preview
        self.query_one(Samples).show(preview)
        self.query_one("#samples", Pane).set_title(title_of_samples(preview))
        number = "not known" if preview.combinations is None else f"{preview.combinations:,}, exact"
        self.query_one("#odds", Static).update(content(f"combinations {number}"))
        if message.problems != self._loaded:
            self._loaded = message.problems
            self._show_problems()
            self._lint_soon()
        if self._preview_again:
            self._preview_again = False
            self.ask_preview()

    def _lint_soon(self) -> None:
        if self._linting is not None:
            self._linting.stop()
        self._linting = self.set_timer(LINT_PAUSE_S, self.refresh_data)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Sample the typed prompt."""
        if event.input.id == "prompt":
            event.stop()
            self.ask_preview()
        else:
            super().on_input_changed(event)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Go from the prompt to its samples."""
        if event.input.id == "prompt":
            event.stop()
            self.query_one(Samples).focus()
        else:
            super().on_input_submitted(event)

    # -- actions

    def do_wildcards_reroll(self) -> None:
        """Draw with new seeds."""
        self.seed = secrets.randbits(32)
        self.ask_preview()

    def do_wildcards_more(self) -> None:
        """Show more samples."""
        self.sample_count = min(_MOST_SAMPLES, self.sample_count + _STEP if self.sample_count > 1 else _STEP)
        self.ask_preview()

    def do_wildcards_fewer(self) -> None:
        """Show fewer samples."""
        self.sample_count = max(1, self.sample_count - _STEP)
        self.ask_preview()

    def do_wildcards_choices(self) -> None:
        """Show where each word came from."""
        self.query_one(Samples).turn_choices()

    def do_wildcards_prompt(self) -> None:
        """Type a prompt."""
        self.open_pane("samples")
        self.call_after_refresh(self.query_one("#prompt", Input).focus)

    def do_wildcards_next_problem(self) -> None:
        """Go to the next problem."""
        table = self.query_one("#problem-list", ListTable)
        if not table.shown:
            self.luna.toast("no problems")
            return
        buffer = self.current
        at_problem = table.current is not None and buffer is not None and self.focused is buffer.editor
        following = (table.cursor + 1) % len(table.shown) if at_problem else table.cursor
        table.go_to(table.shown[following].key)
        self._open_problem(table.shown[following].key)
