"""Screen 4: the wildcard library as a tree, an editor for its files, and samples that follow every change."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.containers import Horizontal
from textual.message import Message

from luna_engine.errors import LunaError
from luna_tui.screens.base import LunaScreen
from luna_tui.screens.wildcard_actions import WildcardActions
from luna_tui.screens.wildcard_editor import EditorPane
from luna_tui.screens.wildcard_rows import PROBLEM_COLUMNS, problem_key, problem_row, worst_by_node
from luna_tui.screens.wildcard_samples import SamplesPane
from luna_tui.widgets.chrome import Pane
from luna_tui.widgets.table import ListTable
from luna_tui.widgets.tree_table import TreeTable
from luna_tui.wording import count

if TYPE_CHECKING:
    from pathlib import Path

    from textual.app import ComposeResult
    from textual.timer import Timer
    from textual.widgets import Input

    from luna_engine.wildcards import Change, Diagnostic
    from luna_tui.backend.wildcards import LibraryView, Wildcards
    from luna_tui.screens.wildcard_files import FileEditors

TYPING_PAUSE_S = 0.060
LINT_PAUSE_S = 0.4
_LOAD_CODES = frozenset({"yaml-syntax", "duplicate-key", "encoding"})


class WildcardsScreen(WildcardActions, LunaScreen):
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

    class DiskChanged(Message):
        """Files changed on disk; the library has them already."""

        def __init__(self, change: Change) -> None:
            super().__init__()
            self.change = change

    def __init__(self) -> None:
        super().__init__()
        self.view: LibraryView | None = None
        self._linted: tuple[Diagnostic, ...] = ()
        self._loaded: tuple[Diagnostic, ...] = ()
        self._is_watching = False
        self._typing: Timer | None = None
        self._linting: Timer | None = None
        self.library_tree = TreeTable(id="library-tree")
        self.editor = EditorPane(lambda: self.port)
        self.samples = SamplesPane(lambda: self.port, self.subject, self.overlay)

    # -- composition

    def body(self) -> ComposeResult:
        """Yield tree, editor, samples and problems."""
        with Horizontal(id="upper"):
            with Pane(id="tree", title="tree"):
                yield self.library_tree
            yield self.editor
            yield self.samples
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
        self.luna.quit_guards["wildcards"] = self.files.guard

    def subject(self) -> str:
        """Return a reference to the address under the tree's cursor."""
        node = self.library_tree.node
        return f"{{{node.address}}}" if node is not None and self.view is not None else ""

    def overlay(self) -> tuple[Path, str | None] | None:
        """Return the file in the editor and its unsaved text."""
        buffer = self.files.current_buffer
        return (buffer.file.path, buffer.overlay) if buffer is not None else None

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
        self.library_tree.empty = (
            "No wildcard files.\n\nPut .yaml or .txt files into a folder and name it in settings.toml:\n"
            '[wildcards]\nroots = ["/path/to/wildcards"]'
        )
        self.tell_summary()
        self._loaded = self.port.problems()
        self._show_problems()
        if is_first:
            for notice in snapshot.notices:
                self.luna.toast(notice, "warning")
            self.editor.drafts.look()
        self.ask_preview()

    def tell_summary(self) -> None:
        """Say in row 1 which dialect the prompt is read in and how much there is."""
        if self.view is not None:
            self.header.summary = f"{self.samples.profile} · {self.view.items:,} items"

    def _show_tree(self) -> None:
        if self.view is not None:
            self.library_tree.set_nodes(
                self.view.nodes, self.files.modified, worst_by_node(self.view.nodes, self.problems)
            )

    @property
    def problems(self) -> tuple[Diagnostic, ...]:
        """Load problems as of now, and what the last lint found beside them."""
        kept = (problem for problem in self._linted if problem.code not in _LOAD_CODES)
        return tuple(dict.fromkeys((*self._loaded, *kept)))

    def _show_problems(self) -> None:
        problems = sorted(self.problems, key=lambda problem: problem.severity.rank)
        self.problem_list.set_rows([problem_row(problem) for problem in problems])
        numbers = [sum(problem.severity.value == word for problem in problems) for word in ("error", "warning", "hint")]
        words = zip(numbers, ("error", "warning", "hint"), strict=True)
        self.query_one("#problems", Pane).set_title(
            " · ".join(count(number, word) for number, word in words) if problems else "no problems"
        )
        self.files.set_problems(problems)
        self._show_tree()

    def problem_of(self, key: str) -> Diagnostic | None:
        """Return a problem of the list by its row's key."""
        return next((problem for problem in self.problems if problem_key(problem) == key), None)

    def on_list_table_highlighted(self, event: ListTable.Highlighted) -> None:
        """Sample the address under the tree's cursor."""
        if isinstance(event.table, TreeTable):
            self.ask_preview()

    def on_list_table_selected(self, event: ListTable.Selected) -> None:
        """Open a file at the address or at the problem."""
        if isinstance(event.table, TreeTable):
            node = event.table.node
            if node is not None and node.file is not None:
                self.editor.go(node.root, node.file, node.line or 1)
            elif node is not None:
                event.table.action_unfold()
        else:
            self.open_problem(event.key)

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

    def on_file_editors_saved(self, message: FileEditors.Saved) -> None:
        """Sample what was saved, and say so."""
        message.stop()
        self.ask_preview()
        self._loaded = self.port.problems()
        bad = sum(problem.file == message.file.name and problem.severity.value == "error" for problem in self._loaded)
        note = f" with {count(bad, 'error')}" if bad else ""
        self.luna.toast(f"saved {message.file.name}{note}", "warning" if bad else "information")
        self._show_tree()

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

    def ask_preview(self) -> None:
        """Draw samples once there is a library."""
        if self.view is not None and self.is_attached:
            self.samples.ask()

    def on_samples_pane_previewed(self, message: SamplesPane.Previewed) -> None:
        """Show the problems known so far; the lint follows when there is a pause."""
        message.stop()
        if message.problems != self._loaded:
            self._loaded = message.problems
            self._show_problems()
            self._lint_soon()

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
            self.samples.samples.focus()
        else:
            super().on_input_submitted(event)
