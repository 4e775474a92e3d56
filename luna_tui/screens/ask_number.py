"""A dialog that asks for an integer."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from luna_tui.plain import content

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.binding import BindingType

_MOST_DIGITS = 100


class NumberDialog(ModalScreen[int]):
    """Dismisses with the number, or with None."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "leave")]

    def __init__(self, title: str, value: int) -> None:
        super().__init__()
        self._title = title
        self._value = value

    def compose(self) -> ComposeResult:
        """Yield the field."""
        with Vertical(id="dialog") as box:
            box.border_title = content(self._title)
            box.border_subtitle = "enter takes · esc leaves"
            yield Input(str(self._value), id="number")
            yield Static("any integer; 0 and negative ones are seeds like any other", id="number-problem",
                         classes="hint")  # fmt: skip

    def on_mount(self) -> None:
        """Type at once."""
        self.query_one("#number").focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Take an integer."""
        event.stop()
        text = event.value.strip()
        digits = text.removeprefix("-")
        if digits.isascii() and digits.isdigit() and len(digits) <= _MOST_DIGITS:
            self.dismiss(int(text))
        else:
            self.query_one("#number-problem", Static).update(content(f"{text[:40]!r} is no integer"))

    def action_leave(self) -> None:
        """Take nothing."""
        self.dismiss(None)
