"""The reader of a model file's header: what it is, why, and every tensor, filtered while typing."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, ClassVar, cast

from textual.binding import Binding
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from luna_engine.errors import LunaError
from luna_tui.plain import content
from luna_tui.widgets.table import Cell, Column, ListTable, Row
from luna_tui.wording import size

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.binding import BindingType

    from luna_engine.weights import Inspection
    from luna_tui.app import LunaApp

_COLUMNS = (
    Column("name", "TENSOR", 30, flex=True),
    Column("dtype", "TYPE", 8),
    Column("shape", "SHAPE", 18, drop=1),
    Column("bytes", "BYTES", 9, align="right", drop=2),
)


class HeaderDialog(ModalScreen[None]):
    """Show one file's header."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "leave", "leave"),
        Binding("slash", "find", "filter"),
    ]

    class Read(Message):
        """The header was read, or the error it met."""

        def __init__(self, found: Inspection | None, problem: LunaError | None) -> None:
            super().__init__()
            self.found = found
            self.problem = problem

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def compose(self) -> ComposeResult:
        """Yield facts, filter and tensors."""
        with Vertical(id="dialog", classes="reader header-reader") as box:
            box.border_title = content(PurePath(self._path).name)
            box.border_subtitle = "/ filters · esc leaves"
            yield Static("reading …", id="facts")
            yield Input(id="tensor-filter", placeholder="words of a tensor's name", compact=True)
            yield ListTable(_COLUMNS, id="tensor-list", empty="no such tensor")

    def on_mount(self) -> None:
        """Read off the UI thread."""
        self.query_one(ListTable).focus()
        self.run_worker(self._read, thread=True, exit_on_error=False, name="header")

    def _read(self) -> None:
        found, problem = None, None
        try:
            found = cast("LunaApp", self.app).backend.weights.inspect(self._path)
        except LunaError as error:
            problem = error
        self.post_message(self.Read(found, problem))

    def on_header_dialog_read(self, message: HeaderDialog.Read) -> None:
        """Show what was read."""
        message.stop()
        facts = self.query_one("#facts", Static)
        if message.found is None:
            facts.update(content(str(message.problem)))
            return
        facts.update(Content("\n").join([content(line) for line in facts_of(message.found)]))
        self.query_one(ListTable).set_rows(
            [
                Row(
                    tensor.name,
                    (
                        Cell(tensor.name),
                        Cell(tensor.dtype),
                        Cell(" x ".join(map(str, tensor.shape)) or "scalar"),
                        Cell(size(tensor.size_bytes)),
                    ),
                    (tensor.name, tensor.dtype, tensor.shape, tensor.size_bytes),
                )
                for tensor in message.found.tensors
            ]
        )

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter while typing."""
        event.stop()
        self.query_one(ListTable).set_filter(event.value)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Go to the list."""
        event.stop()
        self.query_one(ListTable).focus()

    def action_find(self) -> None:
        """Go to the filter."""
        self.query_one("#tensor-filter").focus()

    def action_leave(self) -> None:
        """Leave the filter first, then the dialog."""
        if self.query_one("#tensor-filter").has_focus:
            self.query_one(ListTable).focus()
        else:
            self.dismiss(None)


def facts_of(found: Inspection) -> list[str]:
    """Return what is known about a file as lines."""
    lines = [f"{found.name} · {found.precision}, {found.form.value} · {size(found.size_bytes)}"]
    lines += [
        f"{part.name}: {part.parameters / 1e6:,.1f} M parameters, {size(part.size_bytes)}, {', '.join(part.dtypes)}"
        for part in found.components
    ]
    if found.prediction:
        lines.append(f"prediction: {found.prediction}")
    if found.evidence:
        lines.append(f"because of {', '.join(found.evidence)}")
    lines += [f"open: {question}" for question in found.open_questions]
    return lines
