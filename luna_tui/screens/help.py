"""Two plain readers: the keys that work here, and the last actions as command lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from luna_tui import actions
from luna_tui.plain import clean
from luna_tui.widgets.chrome import key_name

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.binding import BindingType

_LIST_KEYS = (
    ("j k ↓ ↑", "row by row"),
    ("g G", "first and last row"),
    ("ctrl+d ctrl+u", "half a page"),
    ("enter", "open the row; the whole line of a log"),
)


class Reader(ModalScreen[None]):
    """A scrolling text that any of its closing keys leaves."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark,f1,at", "close", "close"),
        Binding("j,down", "scroll(1)", "down", show=False),
        Binding("k,up", "scroll(-1)", "up", show=False),
    ]

    def __init__(self, title: str, text: Content) -> None:
        super().__init__()
        self._title = title
        self._text = text

    def compose(self) -> ComposeResult:
        """Yield the text."""
        with VerticalScroll(id="dialog", classes="reader") as box:
            box.border_title = Content(clean(self._title))
            box.border_subtitle = "esc closes"
            yield Static(self._text)

    def action_close(self) -> None:
        """Leave."""
        self.dismiss(None)

    def action_scroll(self, lines: int) -> None:
        """Scroll by lines."""
        self.query_one("#dialog").scroll_relative(y=lines, animate=False)


def help_text(screen: str, about: str, *, readonly: bool) -> Content:
    """Return the help of a screen from the action table."""
    parts: list[Content] = [Content(about), Content("")]
    own = [action for action in actions.on_screen(screen) if action.screens]
    common = [action for action in actions.on_screen(screen) if not action.screens]
    for heading, rows in (("On this screen", own), ("Everywhere", common)):
        parts.append(Content.styled(heading, "b $accent"))
        for action in rows:
            if action.mutates and readonly:
                continue
            keys = " ".join(key_name(key) for key in action.keys.split(","))
            line = Content.assemble(Content.styled(f"  {keys:<14}", "b"), Content(action.help))
            parts.append(line)
            if action.cli:
                parts.append(Content.styled(f"{'':16}{action.cli.format(target='NAME')}", "$foreground-muted"))
        parts.append(Content(""))
    parts.append(Content.styled("In lists and logs", "b $accent"))
    parts += [Content.assemble(Content.styled(f"  {keys:<14}", "b"), Content(meaning)) for keys, meaning in _LIST_KEYS]
    parts.append(Content.assemble(Content.styled(f"  {'ctrl+p':<14}", "b"), Content("every action by name")))
    return Content("\n").join(parts)


def command_text(commands: list[str]) -> Content:
    """Return the last actions as command lines, newest first."""
    if not commands:
        return Content("Nothing done yet. Each action that has a command line will stand here.")
    return Content("\n").join(Content(clean(command)) for command in reversed(commands))
