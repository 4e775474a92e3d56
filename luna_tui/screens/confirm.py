"""The question before a loss: it names what is lost; a grave one wants the name typed."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Static

from luna_tui.plain import clean, content
from luna_tui.screens.tabbing import TAB_BINDINGS

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.binding import BindingType


class ConfirmDialog(ModalScreen[bool]):
    """Ask, with Cancel focused. ``typed`` is the word that must be typed; empty means a plain question."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,n", "no", "no"),
        Binding("y", "yes", "yes"),
        Binding("left,h", "app.focus_previous", "left", show=False),
        Binding("right,l", "app.focus_next", "right", show=False),
        *TAB_BINDINGS,
    ]

    def __init__(self, title: str, loss: str, typed: str = "") -> None:
        super().__init__()
        self._title = title
        self._loss = loss
        self._typed = typed

    def compose(self) -> ComposeResult:
        """Yield question, loss and answers."""
        with Vertical(id="dialog", classes="ask") as box:
            box.border_title = content(f"{self._title}?")
            yield Static(content(self._loss), classes="loss")
            if self._typed:
                yield Static(content(f"Type {self._typed} to go on."), classes="hint")
                yield Input(id="typed")
            with Horizontal(classes="buttons"):
                yield Button("Cancel", id="no")
                yield Button("Yes" if not self._typed else clean(self._title), id="yes", variant="error",
                             disabled=bool(self._typed))  # fmt: skip

    def on_mount(self) -> None:
        """Put the focus where nothing is lost."""
        self.query_one("#typed" if self._typed else "#no").focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Allow the answer once the word is right."""
        self.query_one("#yes", Button).disabled = event.value != self._typed

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Take the typed word as the answer."""
        if event.value == self._typed:
            self.dismiss(result=True)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Answer with the pressed button."""
        self.dismiss(event.button.id == "yes")

    def action_no(self) -> None:
        """Answer no."""
        self.dismiss(result=False)

    def action_yes(self) -> None:
        """Answer yes where a plain question is asked."""
        if not self._typed:
            self.dismiss(result=True)
