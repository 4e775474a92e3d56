"""One draw, walked step by step: the text so far, and what was chosen last."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from luna_tui.plain import clean
from luna_tui.widgets.wrapping import clean_offset, clean_text

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.binding import BindingType

    from luna_engine.wildcards import Choice, Step


class StepsDialog(ModalScreen[None]):
    """Shows the steps of one sample; the first is the template as written."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,S", "leave", "leave"),
        Binding("right,space,n,l,enter", "go(1)", "next", show=False),
        Binding("left,p,h,backspace", "go(-1)", "previous", show=False),
        Binding("home,g", "go(-100000)", "first", show=False),
        Binding("end,G", "go(100000)", "last", show=False),
        Binding("down,j", "scroll(1)", "down", show=False),
        Binding("up,k", "scroll(-1)", "up", show=False),
    ]

    def __init__(self, steps: tuple[Step, ...], seed: int) -> None:
        super().__init__()
        self._steps = steps
        self._seed = seed
        self.at = 0

    def compose(self) -> ComposeResult:
        """Yield text and choices."""
        with VerticalScroll(id="dialog", classes="reader steps") as box:
            box.border_subtitle = "→ next · ← back · esc closes"
            yield Static("", id="step")

    def on_mount(self) -> None:
        """Show the template."""
        self._show()

    def action_go(self, by: int) -> None:
        """Go to another step."""
        self.at = max(0, min(self.at + by, len(self._steps) - 1))
        self._show()

    def _show(self) -> None:
        step = self._steps[self.at]
        box = self.query_one("#dialog")
        box.border_title = Content(f"step {self.at} of {len(self._steps) - 1} · seed {self._seed}")
        new = step.choices[step.first_new :]
        text = Content(clean_text(step.text))
        for choice in new:
            if choice.span is not None:
                start, end = (clean_offset(step.text, at) for at in choice.span)
                text = text.stylize("$text-accent bold underline", start, end)
        lines = [text, Content("")]
        lines += [_told(choice) for choice in new] or [Content.styled("nothing is drawn yet", "$text-muted")]
        self.query_one("#step", Static).update(Content("\n").join(lines))

    def action_scroll(self, lines: int) -> None:
        """Scroll by lines."""
        self.query_one("#dialog").scroll_relative(y=lines, animate=False)

    def action_leave(self) -> None:
        """Close."""
        self.dismiss(None)


def _told(choice: Choice) -> Content:
    """Return one choice: construct, value, share, place."""
    place = f"{choice.file}:{choice.line}" if choice.file else "written in the template"
    pool = f"1 of {choice.pool_size}" if choice.pool_size > 1 else "the only one"
    return Content.assemble(
        (clean(choice.site_text), "$text-muted"),
        (" → ", "$text-muted"),
        (clean(choice.value) or "(nothing)", "$text-accent bold"),
        (f"  {choice.probability * 100:.3g} %, {pool}  {clean(place)}", "$text-muted"),
    )
