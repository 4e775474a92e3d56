"""What the keys of screen 4 do: a mix-in of the screen, so that the table of actions finds its handlers."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from textual.message import Message
from textual.widgets import Input

from luna_engine.errors import LunaError
from luna_tui.glyphs import Tone
from luna_tui.screens.ask_number import NumberDialog
from luna_tui.screens.lists import ListScreen
from luna_tui.screens.pick import PickDialog
from luna_tui.screens.steps import StepsDialog
from luna_tui.screens.wildcard_rows import reference_to
from luna_tui.screens.wildcard_samples import SamplesPane
from luna_tui.widgets.table import Cell, Column, ListTable, Row
from luna_tui.widgets.tree_table import TreeTable, node_key

if TYPE_CHECKING:
    from luna_engine.wildcards import Diagnostic, Use
    from luna_tui.backend.wildcards import LibraryView, Wildcards
    from luna_tui.screens.wildcard_editor import EditorPane
    from luna_tui.screens.wildcard_files import FileEditors
    from luna_tui.widgets.samples import Samples

_INSERT_COLUMNS = (
    Column("address", "ADDRESS", 30, flex=True),
    Column("kind", "KIND", 6, drop=1),
    Column("items", "ITEMS", 7, align="right"),
)
_USE_COLUMNS = (
    Column("reference", "REFERENCE", 26, flex=True),
    Column("place", "PLACE", 30, flex=True),
    Column("how", "", 10, drop=1),
)


class WildcardActions(ListScreen):
    """Handlers of screen 4."""

    view: LibraryView | None
    library_tree: TreeTable
    editor: EditorPane
    samples: SamplesPane

    class UsesFound(Message):
        """Where an address is used."""

        def __init__(self, address: str, uses: tuple[Use, ...]) -> None:
            super().__init__()
            self.address = address
            self.uses = uses

    # -- parts

    @property
    def port(self) -> Wildcards:
        """The wildcards port."""
        raise NotImplementedError

    @property
    def files(self) -> FileEditors:
        """The open files."""
        return self.editor.files

    @property
    def problem_list(self) -> ListTable:
        """The list of problems."""
        return self.query_one("#problem-list", ListTable)

    def problem_of(self, key: str) -> Diagnostic | None:
        """Return a problem by its row's key."""
        raise NotImplementedError

    def tell_summary(self) -> None:
        """Renew row 1."""
        raise NotImplementedError

    # -- the editor

    def do_app_back(self) -> None:
        """Undo one layer: the find bar first."""
        if not self.editor.close_find():
            super().do_app_back()

    def do_pane_previous(self) -> None:
        """Find backwards while the find bar has the focus; else go to the pane before."""
        if isinstance(self.focused, Input) and self.focused.id == "find":
            self.editor.find_back()
        else:
            super().do_pane_previous()

    def do_item_save(self) -> None:
        """Save the file in the editor."""
        self.files.save_current()

    def do_wildcards_find(self) -> None:
        """Find in the file that is open."""
        self.editor.find()

    def do_wildcards_definition(self) -> None:
        """Go to what the reference under the cursor names."""
        self.editor.go_to_definition()

    def do_wildcards_back(self) -> None:
        """Go back to where one was."""
        self.editor.go_back()

    def do_wildcards_external(self) -> None:
        """Open the file in the user's own editor."""
        self.editor.open_external()

    # -- problems

    def open_problem(self, key: str) -> None:
        """Go to a problem; at its place already, mend it if that is known how."""
        problem = self.problem_of(key)
        if problem is None or problem.file is None:
            return
        buffer = self.files.current_buffer
        line, column = problem.line or 1, problem.column or 1
        is_there = buffer is not None and buffer.file.name == problem.file and buffer.editor.place == (line, column)
        if is_there and buffer is not None and problem.fix is not None:
            if not buffer.editor.read_only:
                buffer.editor.apply_fix(problem.fix)
                self.luna.toast("mended; ctrl+z takes it back")
            return
        root = self.port.root_of(problem.file)
        if root is None:
            self.luna.toast(f"{problem.file} is no longer there", "warning")
        else:
            self.editor.go(root, problem.file, line, column)

    def do_wildcards_next_problem(self) -> None:
        """Go to the next problem."""
        table = self.problem_list
        if not table.shown:
            self.luna.toast("no problems")
            return
        buffer = self.files.current_buffer
        at_problem = table.current is not None and buffer is not None and self.focused is buffer.editor
        following = (table.cursor + 1) % len(table.shown) if at_problem else table.cursor
        table.go_to(table.shown[following].key)
        self.open_problem(table.shown[following].key)

    # -- samples

    def do_wildcards_reroll(self) -> None:
        """Draw with new seeds."""
        self.samples.reroll_all()

    def do_wildcards_more(self) -> None:
        """Show more samples."""
        self.samples.more()

    def do_wildcards_fewer(self) -> None:
        """Show fewer samples."""
        self.samples.fewer()

    def do_wildcards_seed(self) -> None:
        """Ask for a seed."""
        self.app.push_screen(NumberDialog("seed of the samples", self.samples.seed), self.samples.set_seed)

    def do_wildcards_profile(self) -> None:
        """Read the prompt in the next dialect."""
        self.samples.turn_profile()
        self.tell_summary()

    def do_wildcards_choices(self) -> None:
        """Show where each word came from."""
        self.samples.samples.turn_choices()

    def do_wildcards_odds(self) -> None:
        """Show how likely each text is."""
        self.samples.turn_odds()
        self._remember("odds", self.samples.template)

    def do_wildcards_steps(self) -> None:
        """Walk the sample under the cursor."""
        self.samples.ask_steps()
        self._remember("steps", self.samples.template)

    def _remember(self, verb: str, target: str) -> None:
        """Keep the same thing as a command line, for `@`."""
        self.luna.remember(f"luna wildcards {verb} {shlex.quote(target)}")

    def on_samples_pane_stepped(self, message: SamplesPane.Stepped) -> None:
        """Show the steps."""
        message.stop()
        self.app.push_screen(StepsDialog(message.steps, message.seed))

    def on_samples_pane_failed(self, message: SamplesPane.Failed) -> None:
        """Say what failed."""
        message.stop()
        error = message.error
        self.luna.toast(f"{error.message} → {error.hint}" if error.hint else error.message, "error")

    def do_wildcards_pin(self) -> None:
        """Keep the text of a choice in all samples, or free it."""
        if not self.samples.pin():
            self.luna.toast("put the cursor on a choice first: c shows them", "warning")

    def do_wildcards_reroll_site(self) -> None:
        """Draw one choice anew."""
        if not self.samples.reroll_site():
            self.luna.toast("put the cursor on a choice first: c shows them", "warning")

    def do_wildcards_prompt(self) -> None:
        """Type a prompt."""
        self.open_pane("samples")
        self.call_after_refresh(self.samples.prompt.focus)

    def on_samples_opened(self, message: Samples.Opened) -> None:
        """Go where a choice stands."""
        message.stop()
        choice = message.choice
        root = self.port.root_of(choice.file) if choice.file is not None else None
        if choice.file is None or root is None:
            self.luna.toast("this stands in the prompt itself")
        else:
            self.editor.go(root, choice.file, choice.line or 1, choice.column or 1)

    # -- the library

    def do_wildcards_insert(self) -> None:
        """Pick an address and put a reference to it into the prompt or the file."""
        if self.view is None:
            return
        nodes = {node_key(node): node for top in self.view.nodes for node in top.walk() if not node.is_note}
        rows = [
            Row(key, (Cell(node.address), Cell(node.kind, Tone.DIM), Cell(f"{node.items:,}", Tone.DIM)))
            for key, node in nodes.items()
        ]
        port, target = self.port, self.focused

        def describe(key: str) -> str:
            sample = port.preview(f"{{{nodes[key].address}}}", 1, 0).samples[0].text
            return f"for example: {sample[:200]}"

        def taken(key: str | None) -> None:
            if key is not None:
                self._insert(nodes[key].address, into_prompt=isinstance(target, Input) and target.id == "prompt")

        self.app.push_screen(PickDialog("insert a reference", _INSERT_COLUMNS, rows, describe), taken)

    def _insert(self, address: str, *, into_prompt: bool) -> None:
        buffer = self.files.current_buffer
        if into_prompt or buffer is None or buffer.editor.read_only:
            self.samples.prompt.insert_text_at_cursor(reference_to(address, None, self.samples.profile))
            self.do_wildcards_prompt()
            return
        home = buffer.file.name.rpartition(".")[0] if buffer.file.path.suffix.lower() != ".txt" else None
        buffer.editor.insert(reference_to(address, home, "native"))
        self.open_pane("editor")

    def do_wildcards_uses(self) -> None:
        """Look where the address under the tree's cursor is used."""
        node, port = self.library_tree.node, self.port
        if node is None:
            return
        address = node.address
        self._remember("uses", address)

        def work() -> None:
            try:
                self.post_message(self.UsesFound(address, port.uses(address)))
            except LunaError as error:
                self.post_message(SamplesPane.Failed(error))

        self.run_worker(work, thread=True, group="uses", exclusive=True, name="uses")

    def on_wildcard_actions_uses_found(self, message: WildcardActions.UsesFound) -> None:
        """Show them; enter goes to one."""
        message.stop()
        uses = [use for use in message.uses if use.file is not None]
        if not uses:
            self.luna.toast(f"no file of the library uses {message.address}")
            return
        rows = [
            Row(
                str(number),
                (
                    Cell(use.reference),
                    Cell(f"{use.file}:{use.line}:{use.column}", Tone.DIM),
                    Cell("names it" if use.is_direct else "holds it", Tone.DIM),
                ),
            )
            for number, use in enumerate(uses)
        ]

        def taken(key: str | None) -> None:
            use = uses[int(key)] if key is not None else None
            if use is not None and use.file is not None:
                self.editor.go(use.root or 0, use.file, use.line, use.column)

        self.app.push_screen(PickDialog(f"where {message.address} is used", _USE_COLUMNS, rows), taken)
