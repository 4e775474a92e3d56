"""A question with more than two answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, Static

from luna_tui.plain import content
from luna_tui.screens.tabbing import TAB_BINDINGS

if TYPE_CHECKING:
    from textual import events
    from textual.app import ComposeResult
    from textual.binding import BindingType


class ChoiceDialog(ModalScreen[str]):
    """Ask; the answer is the key of a choice. The first choice has the focus and is what ``esc`` answers.

    Args:
        title: the question.
        text: what is at stake.
        choices: (key, label) pairs; the keys are single letters.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stay", "stay"),
        Binding("left", "app.focus_previous", "left", show=False),
        Binding("right", "app.focus_next", "right", show=False),
        *TAB_BINDINGS,
    ]

    def __init__(self, title: str, text: str, choices: tuple[tuple[str, str], ...]) -> None:
        super().__init__()
        self._title = title
        self._text = text
        self._choices = choices

    def compose(self) -> ComposeResult:
        """Yield question and answers."""
        with Vertical(id="dialog", classes="ask") as box:
            box.border_title = content(self._title)
            yield Static(content(self._text), classes="loss")
            with Horizontal(classes="buttons"):
                for key, label in self._choices:
                    yield Button(content(f"{label} ({key})"), id=f"choice-{key}")

    def on_mount(self) -> None:
        """Put the focus where nothing is lost."""
        self.query(Button).first().focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Answer with the pressed button."""
        self.dismiss((event.button.id or "").removeprefix("choice-"))

    def on_key(self, event: events.Key) -> None:
        """Answer with a choice's letter."""
        if any(event.key == key for key, _ in self._choices):
            event.stop()
            self.dismiss(event.key)

    def action_stay(self) -> None:
        """Answer with the first choice."""
        self.dismiss(self._choices[0][0])
