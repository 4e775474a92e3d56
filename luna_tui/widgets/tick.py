"""A box to tick. Textual's own draws the same sign in another colour when it is empty; here the sign itself differs."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

if TYPE_CHECKING:
    from textual.binding import BindingType


class Tick(Widget, can_focus=True):
    """``[x] label``; space, enter or a click turns it."""

    DEFAULT_CSS = """
    Tick { width: auto; height: 1; }
    Tick:focus { background: $primary 25%; text-style: bold; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("space,enter", "turn", "turn", show=False)]

    value: reactive[bool] = reactive(default=False)

    class Changed(Message):
        """It was turned."""

        def __init__(self, tick: Tick) -> None:
            super().__init__()
            self.tick = tick

        @property
        def control(self) -> Tick:
            """The box that sent it."""
            return self.tick

    def __init__(self, label: str, *, value: bool = False, id: str) -> None:  # noqa: A002 - Textual's word
        super().__init__(id=id)
        self._label = label
        self.set_reactive(Tick.value, value)

    def render(self) -> Content:
        """Draw box and label."""
        box = Content.styled("[x]", "b $accent") if self.value else Content.styled("[ ]", "$foreground-muted")
        return Content.assemble(box, f" {self._label}")

    def action_turn(self) -> None:
        """Turn it."""
        self.value = not self.value
        self.post_message(self.Changed(self))

    def on_click(self) -> None:
        """Turn it."""
        self.action_turn()
