"""The form of a daemon: checked while typing, a port is tried at once; ctrl+s saves or goes to the first mistake."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, ClassVar, cast

from textual.binding import Binding
from textual.containers import Horizontal, VerticalScroll
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import Input, Label, Select, Static

from luna_engine.errors import LunaError
from luna_tui.plain import clean, content
from luna_tui.screens.tabbing import TAB_BINDINGS
from luna_tui.views import DaemonDraft, FieldProblem, FormChoices, Outcome
from luna_tui.widgets.tick import Tick
from luna_tui.wording import size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from textual.app import ComposeResult
    from textual.binding import BindingType
    from textual.widget import Widget

    from luna_tui.app import LunaApp

_log = logging.getLogger(__name__)

_TYPES = (("full: text encoders and VAE", "full"), ("clip: text encoders", "clip"), ("vae: VAE", "vae"))
_PRECISIONS = tuple((name, name) for name in ("auto", "fp16", "bf16", "fp32"))
_NONE = "none"
_READING = "reading"
# field -> label; a problem names one of these
_LABELS = {
    "name": "Name",
    "service_type": "Service",
    "device": "Device",
    "port": "Port",
    "model": "Models",
    "precision": "Precision",
}


class DaemonForm(ModalScreen[str | None]):
    """Set up a daemon, or change one. Dismisses with its name when saved."""

    CSS_PATH = "../styles/daemon_form.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "cancel", "cancel"),
        Binding("ctrl+s", "save", "save", priority=True),
        *TAB_BINDINGS,
    ]

    class Ready(Message):
        """What the form offers was read, or why not."""

        def __init__(self, choices: FormChoices, draft: DaemonDraft, problem: str) -> None:
            super().__init__()
            self.choices = choices
            self.draft = draft
            self.problem = problem

    class Checked(Message):
        """The form was checked; ``saved`` if it was written too."""

        def __init__(
            self, problems: tuple[FieldProblem, ...], saved: Outcome | None, name: str, *, wants_save: bool
        ) -> None:
            super().__init__()
            self.problems = problems
            self.saved = saved
            self.name = name
            self.wants_save = wants_save

    def __init__(self, editing: str | None) -> None:
        super().__init__()
        self._editing = editing
        self._choices = FormChoices()
        self._draft = DaemonDraft("", editing=editing)
        self._is_ready = False
        self._is_checking = False
        self._is_stale = False
        self._wants_save = False

    @property
    def luna(self) -> LunaApp:
        """The application, typed."""
        return cast("LunaApp", self.app)

    def compose(self) -> ComposeResult:
        """Yield the fields; choices come when they are read."""
        with VerticalScroll(id="dialog", classes="form") as box:
            box.border_title = content(f"edit {self._editing}" if self._editing else "new daemon")
            box.border_subtitle = "ctrl+s saves · esc leaves"
            yield from self._row("name", Input(id="name", placeholder="clip", max_length=32, compact=True))
            yield from self._row("service_type", _select("service_type", _TYPES, "full"))
            yield from self._row("device", _select("device", (("cpu", "cpu"),), "cpu"))
            yield from self._row("port", Input(id="port", type="integer", max_length=5, compact=True))
            yield from self._row("model", _select("model", (("reading the model folders …", _READING),), _READING))
            yield from self._row("precision", _select("precision", _PRECISIONS, "auto"))
            with Horizontal(classes="boxes"):
                yield Tick("load at start", value=True, id="preload")
                yield Tick("start with Luna", id="autostart")
                yield Tick("restart after a crash", value=True, id="restart")
            yield Static(id="form-foot")

    @staticmethod
    def _row(field: str, widget: Widget) -> ComposeResult:
        with Horizontal(classes="field"):
            yield Label(_LABELS[field])
            yield widget
        yield Static(id=f"problem-{field}", classes="problem")

    def on_mount(self) -> None:
        """Read the choices off the UI thread."""
        for field in _LABELS:
            self.query_one(f"#problem-{field}").display = False
        self.query_one("#name").focus()
        self.run_worker(self._read, thread=True, exit_on_error=False, name="form choices")

    def _read(self) -> None:
        daemons = self.luna.backend.daemons
        problem = ""
        choices, draft = FormChoices(), self._draft
        try:
            choices = daemons.choices()
            if self._editing:
                draft = daemons.draft(self._editing)
        except LunaError as error:
            problem = str(error)
        self.post_message(self.Ready(choices, draft, problem))

    def on_daemon_form_ready(self, message: DaemonForm.Ready) -> None:
        """Fill the form in."""
        self._choices, self._draft = message.choices, message.draft
        draft = message.draft
        with self.prevent(Input.Changed, Select.Changed):
            devices = list(message.choices.devices)
            if draft.device not in {value for value, _ in devices}:
                devices.append((draft.device, f"{draft.device} (not here now)"))
            _fill(self.query_one("#device", Select), ((clean(label), value) for value, label in devices), draft.device)
            _fill(
                self.query_one("#model", Select), self._models(), f"set:{draft.set_name}" if draft.set_name else _NONE
            )
            name = self.query_one("#name", Input)
            if not name.value:
                name.value = draft.name or self._free_name()
                name.action_select_all()  # what is typed now takes the place of the suggestion
            port = self.query_one("#port", Input)
            port.value = port.value or draft.port or str(message.choices.free_port)
            self.query_one("#service_type", Select).value = draft.service_type
            self.query_one("#precision", Select).value = draft.precision
            for box in ("preload", "autostart", "restart"):
                self.query_one(f"#{box}", Tick).value = getattr(draft, box)
        self._is_ready = True
        self._foot(message.problem)
        self._check()

    def _models(self) -> Iterable[tuple[str, str]]:
        yield "none: sets come later", _NONE
        for name in self._choices.sets:
            yield clean(f"set {name}"), f"set:{name}"
        for file in self._choices.files:
            parts = " ".join(file.parts)
            yield clean(f"{file.name}  ·  {file.family}: {parts}, {size(file.bytes)}"), f"file:{file.path}"

    def _free_name(self) -> str:
        taken = set(self._choices.names)
        return next(name for name in ("luna", *(f"luna-{n}" for n in range(2, 99))) if name not in taken)

    def _foot(self, problem: str = "") -> None:
        foot = self.query_one("#form-foot", Static)
        if problem:
            foot.update(content(problem, "$text-error"))
        elif not self._choices.roots:
            foot.update(content("No model folder is set: settings `models`, LUNA_MODELS or COMFYUI_PATH name one."))
        elif not self._choices.files:
            foot.update(content(f"No text encoder or VAE below {', '.join(self._choices.roots)}."))
        else:
            foot.update("")

    # -- checking and saving ---------------------------------------------------------------------------------

    def draft(self) -> DaemonDraft:
        """Return what the form holds."""
        model = str(self.query_one("#model", Select).value)
        kind, _, value = model.partition(":")
        return dataclasses.replace(
            self._draft,
            name=self.query_one("#name", Input).value.strip(),
            service_type=str(self.query_one("#service_type", Select).value),
            device=str(self.query_one("#device", Select).value),
            port=self.query_one("#port", Input).value.strip(),
            precision=str(self.query_one("#precision", Select).value),
            set_name=value if kind == "set" else None,
            file=value if kind == "file" else None,
            preload=self.query_one("#preload", Tick).value,
            autostart=self.query_one("#autostart", Tick).value,
            restart=self.query_one("#restart", Tick).value,
        )

    def on_input_changed(self, event: Input.Changed) -> None:
        """Check what is typed."""
        event.stop()
        self._check()

    def on_select_changed(self, event: Select.Changed) -> None:
        """Check what is chosen."""
        event.stop()
        self._check()

    def _check(self, *, save: bool = False) -> None:
        """Check what the form holds now; one check at a time, so that an old answer never covers a newer one."""
        self._wants_save = self._wants_save or save
        if not self._is_ready:
            return
        if self._is_checking:
            self._is_stale = True
            return
        self._is_checking, self._is_stale = True, False
        draft, save = self.draft(), self._wants_save
        self._wants_save = False
        self.run_worker(
            lambda: self._check_in_thread(draft, save=save), thread=True, exit_on_error=False, name="form check"
        )

    def _check_in_thread(self, draft: DaemonDraft, *, save: bool) -> None:
        daemons = self.luna.backend.daemons
        saved = None
        try:
            problems = daemons.check(draft)
            if save and not problems:
                saved = daemons.save(draft)
        except LunaError as error:
            problems, saved = (), Outcome.failed(error)
        except Exception as error:  # noqa: BLE001 - a task border: the form must not wait for an answer for ever
            _log.exception("the form could not be checked")
            broken = LunaError("internal", f"{type(error).__name__}: {error}", "see luna-tui.log in the state folder")
            problems, saved = (), Outcome.failed(broken)
        self.post_message(self.Checked(problems, saved, draft.name, wants_save=save))

    def on_daemon_form_checked(self, message: DaemonForm.Checked) -> None:
        """Show mistakes beside their fields; leave when saved."""
        self._is_checking = False
        if self._is_stale and message.saved is None:
            self._check(save=message.wants_save)
            return
        found = {problem.field: problem.message for problem in reversed(message.problems)}
        for field in _LABELS:
            line = self.query_one(f"#problem-{field}", Static)
            line.display = field in found
            line.update(content(found.get(field, "")))
        if message.problems and message.wants_save:
            self.query_one(f"#{message.problems[0].field}").focus()
        if message.saved is None:
            return
        if message.saved.ok:
            self.luna.toast(message.saved.message)
            self.dismiss(message.name)
        else:
            self._foot(message.saved.message)

    def action_save(self) -> None:
        """Save, or go to the first mistake."""
        self._check(save=True)

    def action_cancel(self) -> None:
        """Leave without saving."""
        self.dismiss(None)


def _select(name: str, options: Iterable[tuple[str, str]], value: str) -> Select[str]:
    return Select(options, value=value, allow_blank=False, id=name, compact=True)


def _fill(select: Select[str], options: Iterable[tuple[str, str]], value: str) -> None:
    entries = list(options)
    select.set_options(entries)
    values = [entry for _, entry in entries]
    select.value = value if value in values else values[0]
