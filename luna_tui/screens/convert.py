"""The dialog before a conversion: tick precisions, read the plan, confirm. Nothing is written before."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, ClassVar, cast

from textual.binding import Binding
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import Button, Static

from luna_engine.weights.precisions import PRECISIONS
from luna_tui.plain import clean, content
from luna_tui.screens.tabbing import TAB_BINDINGS
from luna_tui.widgets.tick import Tick
from luna_tui.wording import count, duration, size

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.binding import BindingType

    from luna_tui.app import LunaApp
    from luna_tui.backend.weights_views import PlanView

_FIRST = "gguf_Q8_0"


class ConvertDialog(ModalScreen[tuple[str, ...]]):
    """Choose precisions for ``paths``. Dismisses with the labels, or with None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "leave"),
        Binding("ctrl+s", "confirm", "convert", priority=True),
        *TAB_BINDINGS,
    ]

    class Planned(Message):
        """A plan was made for the precisions that were ticked when it began."""

        def __init__(self, labels: tuple[str, ...], plans: tuple[PlanView, ...]) -> None:
            super().__init__()
            self.labels = labels
            self.plans = plans

    def __init__(self, paths: tuple[str, ...]) -> None:
        super().__init__()
        self._paths = paths
        self._plans: tuple[PlanView, ...] = ()

    def compose(self) -> ComposeResult:
        """Yield ticks, plan and answers."""
        names = [PurePath(path).name for path in self._paths]
        with VerticalScroll(id="dialog", classes="reader") as box:
            box.border_title = content(f"convert {names[0]}" if len(names) == 1 else f"convert {len(names)} sources")
            box.border_subtitle = "space ticks · ctrl+s converts · esc leaves"
            with Horizontal(classes="boxes"):
                for label in PRECISIONS:
                    yield Tick(label, value=label == _FIRST, id=f"to-{label}")
            yield Static("reading the headers …", id="plan")
            with Horizontal(classes="buttons"):
                yield Button("Cancel", id="no")
                yield Button("Convert", id="yes", variant="primary", disabled=True)

    def on_mount(self) -> None:
        """Plan what is ticked at first."""
        self.query(Tick).first().focus()
        self._plan()

    @property
    def labels(self) -> tuple[str, ...]:
        """The ticked precisions."""
        return tuple(label for label in PRECISIONS if self.query_one(f"#to-{label}", Tick).value)

    def on_tick_changed(self) -> None:
        """Plan anew."""
        self._plan()

    def _plan(self) -> None:
        labels = self.labels
        self.query_one("#yes", Button).disabled = True

        def work() -> None:
            backend = cast("LunaApp", self.app).backend
            plans = backend.weights.plan(self._paths, labels) if labels else ()
            self.post_message(self.Planned(labels, plans))

        self.run_worker(work, thread=True, exclusive=True, group="plan", exit_on_error=False, name="plan")

    def on_convert_dialog_planned(self, message: ConvertDialog.Planned) -> None:
        """Show the plan unless the ticks have changed since."""
        message.stop()
        if message.labels != self.labels:
            return
        self._plans = message.plans
        self.query_one("#plan", Static).update(plan_text(message.plans))
        self.query_one("#yes", Button).disabled = not self._can_convert

    @property
    def _can_convert(self) -> bool:
        return bool(self._plans) and all(plan.problem is None for plan in self._plans)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Answer with the pressed button."""
        if event.button.id == "yes":
            self.action_confirm()
        else:
            self.dismiss(None)

    def action_confirm(self) -> None:
        """Convert what was planned; a plan with a problem cannot be confirmed."""
        if self._can_convert and not self.query_one("#yes", Button).disabled:
            self.dismiss(self.labels)

    def action_leave(self) -> None:
        """Convert nothing."""
        self.dismiss(None)


def plan_text(plans: tuple[PlanView, ...]) -> Content:
    """Return a plan for reading: what goes where, how large, and what forbids it."""
    if not plans:
        return Content.styled("tick at least one precision", "$foreground-muted")
    return Content("\n\n").join(_entry(plan) for plan in plans)


def _entry(plan: PlanView) -> Content:
    name = Content.styled(clean(f"{PurePath(plan.source).name} → {plan.precision}"), "b")
    if plan.problem is not None:
        hint = f" → {plan.problem.hint}" if plan.problem.hint else ""
        return Content("\n").join(
            [name, Content.styled(clean(f"{plan.problem.code}: {plan.problem.message}{hint}"), "$text-error")]
        )
    if plan.is_at_target:
        return Content("\n").join([name, Content("it has that precision already and is used as it is")])
    lines = [
        f"{size(plan.output_bytes)}, {size(plan.free_after_bytes)} stay free, {size(plan.peak_ram_bytes)} of memory",
        "time not measured here yet" if plan.duration_s is None else f"about {duration(plan.duration_s)}",
        f"{count(plan.quantised, 'tensor')} packed, {plan.kept:,} kept in 16 bits or more, {plan.reshaped:,} reshaped",
        f"{PurePath(plan.destination).name} in",
        str(PurePath(plan.destination).parent),
    ]
    return Content("\n").join([name, *(content(line) for line in lines)])
