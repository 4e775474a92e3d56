"""A dialog that asks for a path and says at once whether something is there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from luna_tui.plain import content

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.binding import BindingType


class PathDialog(ModalScreen[str]):
    """Ask for a file or folder that exists. Dismisses with its path, or with None."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "leave")]

    def __init__(self, title: str) -> None:
        super().__init__()
        self._title = title

    def compose(self) -> ComposeResult:
        """Yield the field."""
        with Vertical(id="dialog") as box:
            box.border_title = content(self._title)
            box.border_subtitle = "enter shows · esc leaves"
            yield Input(id="path", placeholder="/models/checkpoints")
            yield Static("", id="path-problem", classes="hint")

    def on_mount(self) -> None:
        """Type at once."""
        self.query_one("#path").focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Take the path if something is there."""
        event.stop()
        path = Path(event.value.strip()).expanduser()
        if event.value.strip() and path.exists():
            self.dismiss(str(path))
        else:
            self.query_one("#path-problem", Static).update(content(f"there is no {path}"))

    def action_leave(self) -> None:
        """Ask for nothing."""
        self.dismiss(None)
