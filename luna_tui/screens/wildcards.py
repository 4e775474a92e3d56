"""Screen 4: the wildcard library as a tree, an editor for its files, and samples that follow every change."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, ClassVar

from textual.containers import Horizontal
from textual.message import Message
from textual.widgets import Input, Static

from luna_engine.errors import LunaError
from luna_tui.plain import content
from luna_tui.screens.base import LunaScreen
from luna_tui.screens.wildcard_files import FileEditors
from luna_tui.screens.wildcard_rows import PROBLEM_COLUMNS, problem_key, problem_row, title_of_samples
from luna_tui.widgets.chrome import Pane
from luna_tui.widgets.samples import Samples
from luna_tui.widgets.table import ListTable
from luna_tui.widgets.tree_table import TreeTable
from luna_tui.wording import count

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.timer import Timer

    from luna_engine.wildcards import Change, Diagnostic
    from luna_tui.backend.wildcards import LibraryView, PreviewView, Wildcards

TYPING_PAUSE_S = 0.060
LINT_PAUSE_S = 0.4
_STEP = 5
_MOST_SAMPLES = 50


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

    class PreviewFailed(Message):
        """The preview met an expected error."""

        def __init__(self, error: LunaError) -> None:
            super().__init__()
            self.error = error

    class DiskChanged(Message):
        """Files changed on disk; the library has them already."""

        def __init__(self, change: Change) -> None:
            super().__init__()
            self.change = change

    def __init__(self) -> None:
        super().__init__()
        self.view: LibraryView | None = None
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
            with Pane(id="editor", classes="side", title="no file open"):
                yield FileEditors(lambda: self.port, id="files")
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

    @property
    def files(self) -> FileEditors:
        """The open files."""
        return self.query_one(FileEditors)

    def on_mount(self) -> None:
        """Guard unsaved text."""
        super().on_mount()
        self.luna.quit_guards["wildcards"] = self.files.guard

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
            self.query_one(TreeTable).set_nodes(self.view.nodes, self.files.modified)

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
        self.files.set_problems(problems)

    def on_list_table_highlighted(self, event: ListTable.Highlighted) -> None:
        """Sample the address under the tree's cursor."""
        if isinstance(event.table, TreeTable):
            self.ask_preview()

    def on_list_table_selected(self, event: ListTable.Selected) -> None:
        """Open a file at the address or at the problem."""
        if isinstance(event.table, TreeTable):
            node = event.table.node
            if node is not None and node.file is not None:
                self.files.open_file(node.root, node.file, node.line or 1)
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
            self.files.open_file(root, problem.file, problem.line or 1, problem.column or 1)

    # -- the editor

    def _focus_pane(self, pane: str) -> None:
        """Focus the editor that is shown, not the first that exists."""
        buffer = self.files.current_buffer
        if pane == "editor" and buffer is not None:
            buffer.editor.focus()
        else:
            super()._focus_pane(pane)

    def on_file_editors_edited(self, event: FileEditors.Edited) -> None:
        """Sample after a pause in typing."""
        event.stop()
        self._show_tree()
        if self._typing is not None:
            self._typing.stop()
        self._typing = self.set_timer(TYPING_PAUSE_S, self.ask_preview)

    def do_item_save(self) -> None:
        """Save the file in the editor."""
        self.files.save_current()

    def on_file_editors_saved(self, message: FileEditors.Saved) -> None:
        """Sample what was saved, and say so."""
        message.stop()
        self.ask_preview()
        self._loaded = self.port.problems()
        bad = sum(problem.file == message.file.name and problem.severity.value == "error" for problem in self._loaded)
        note = f" with {count(bad, 'error')}" if bad else ""
        self.luna.toast(f"saved {message.file.name}{note}", "warning" if bad else "information")

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
        self.files.reread(change.paths)

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
        buffer = self.files.current_buffer
        overlay = (buffer.file.path, buffer.editor.text if buffer.is_modified else None) if buffer else None
        template, wanted, seed, port = self.template, self.sample_count, self.seed, self.port

        def work() -> None:
            try:
                if overlay is not None:
                    port.overlay(*overlay)
                self.post_message(self.Previewed(port.preview(template, wanted, seed), port.problems()))
            except LunaError as error:
                self.post_message(self.PreviewFailed(error))

        self.run_worker(work, thread=True, group="preview", name="preview")

    def on_wildcards_screen_preview_failed(self, message: WildcardsScreen.PreviewFailed) -> None:
        """Say what failed."""
        message.stop()
        self._is_previewing = False
        error = message.error
        self.luna.toast(f"{error.message} → {error.hint}" if error.hint else error.message, "error")

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
        buffer = self.files.current_buffer
        at_problem = table.current is not None and buffer is not None and self.focused is buffer.editor
        following = (table.cursor + 1) % len(table.shown) if at_problem else table.cursor
        table.go_to(table.shown[following].key)
        self._open_problem(table.shown[following].key)
