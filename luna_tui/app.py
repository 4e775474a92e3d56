"""The Textual application: six screens as modes, theme, palette, toasts and the backend's life. Under 300 lines."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, ClassVar

from textual.app import App, SystemCommand
from textual.binding import Binding

from luna_engine import paths
from luna_tui import actions, glyphs
from luna_tui.plain import clean
from luna_tui.themes import THEMES
from luna_tui.views import EventRow

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from textual.binding import BindingType
    from textual.filter import LineFilter
    from textual.screen import Screen

    from luna_tui.backend.protocol import Backend
    from luna_tui.screens.base import LunaScreen

_log = logging.getLogger(__name__)

# id, label, module:class. A screen is imported when it is first opened.
SCREENS = (
    ("overview", "Overview", "luna_tui.screens.overview:OverviewScreen"),
    ("gpu", "GPU", "luna_tui.screens.gpu:GpuScreen"),
    ("weights", "Weights", "luna_tui.screens.weights:WeightsScreen"),
    ("wildcards", "Wildcards", "luna_tui.screens.wildcards:WildcardsScreen"),
    ("links", "Links", "luna_tui.screens.links:LinksScreen"),
    ("events", "Events", "luna_tui.screens.events:EventsScreen"),
)
_REMEMBERED = 20
_START_S = 2.0
_HANG_UP_S = 5.0
# Asked before leaving. Returns True if nothing is lost; else asks, and calls its argument if the answer allows.
QuitGuard = Callable[[Callable[[], None]], bool]


class CrashReport(Exception):  # noqa: N818 - what the terminal shows in place of a page of locals
    """An unexpected error, written to a file and told in two lines."""

    def __init__(self, error: BaseException, file: Path) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.file = file

    def __rich__(self) -> str:
        from rich.markup import escape

        return f"luna-tui ended by an error: {escape(clean(str(self)))}\nThe traceback is in {escape(str(self.file))}"


class LunaApp(App[None]):
    """luna-tui. It owns nothing that must outlive it: daemons, jobs and events belong to the house."""

    TITLE = "luna"
    # With screen 1: styles that a screen brings along make Textual parse all of them once more.
    CSS_PATH = ["styles/base.tcss", "styles/overview.tcss"]  # noqa: RUF012 - Textual declares it so
    DEFAULT_MODE = "overview"
    ENABLE_COMMAND_PALETTE = True
    HORIZONTAL_BREAKPOINTS = [  # noqa: RUF012 - Textual declares it so
        (0, "-narrow"),
        (80, "-normal"),
        (120, "-wide"),
    ]
    VERTICAL_BREAKPOINTS = [(0, "-low"), (15, "-short"), (24, "-tall")]  # noqa: RUF012 - likewise
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(key, f"run('{action.id}')", action.label, show=False, id=action.id,
                priority=key.startswith("alt+") or key == "ctrl+q")
        for action in actions.GLOBAL
        for key in action.keys.split(",")
    ]  # fmt: skip

    def __init__(
        self,
        backend: Backend,
        *,
        start: str = "overview",
        readonly: bool = False,
        plain: bool = False,
        theme: str | None = None,
        keys: dict[str, str] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        self.backend = backend
        self.readonly = readonly
        self.glyphs = glyphs.ASCII if plain else glyphs.UNICODE
        self._signs: list[LineFilter] = [resolve_name("luna_tui.ascii_filter:AsciiSigns")()] if plain else []
        self.crash_file: Path | None = None
        self.commands_done: list[str] = []
        self.quit_guards: dict[str, QuitGuard] = {}
        self._start = start
        self._clock = clock
        for mode, _, target in SCREENS:
            self.add_mode(mode, partial(self._make_screen, target))
        for own in THEMES:
            self.register_theme(own)
        self.theme = theme if theme in self.available_themes else THEMES[0].name
        self._complaints = [f"no theme {theme}: {self.theme} is used"] if theme not in {None, self.theme} else []
        self._complaints += [f"keys.{name}: no such action" for name in keys or {} if name not in actions.TABLE]
        self.set_keymap({name: key for name, key in (keys or {}).items() if name in actions.TABLE and key})

    @property
    def screen_labels(self) -> tuple[tuple[int, str, str], ...]:
        """The screens as (number, id, label)."""
        return tuple((number, *entry[:2]) for number, entry in enumerate(SCREENS, 1))

    def _make_screen(self, target: str) -> Screen[Any]:
        screen: Screen[Any] = resolve_name(target)()
        screen.set_class(self.glyphs.ascii, "-ascii")
        screen.set_class(self.no_color, "-mono")
        return screen

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Give the own variables a value in every theme."""
        return {"luna-tab": "#3b4a7a", "luna-tab-text": "#ffffff"}

    def on_mount(self) -> None:
        """Open what runs in the background, off the UI thread."""
        if self._start != self.DEFAULT_MODE:
            self.switch_mode(self._start)
        if not self.is_headless:
            self._settle_in()
        for complaint in self._complaints:
            self.toast(complaint, "warning")
            self.record(EventRow("", 0.0, "warning", "settings", "settings-ignored", complaint))
        self.run_worker(self._open, thread=True, exit_on_error=False, name="open")

    def _settle_in(self) -> None:
        """Do what only a real terminal needs: leave in order on signals, collect garbage again after the start."""
        self.set_timer(_START_S, _collect_again)
        if os.name == "posix":
            for number in (signal.SIGTERM, signal.SIGHUP):
                asyncio.get_running_loop().add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: int) -> None:
        """Leave as `q` would, so that the terminal is given back, with the exit code of the signal.

        After a hang-up there may be no terminal left: Textual's writer thread dies of that, its queue fills up and
        leaving would wait for it for ever. So a hang-up ends the process in any case.
        """
        if number == signal.SIGHUP:
            last_resort = threading.Timer(_HANG_UP_S, os._exit, (128 + number,))
            last_resort.daemon = True
            last_resort.start()
        self.exit(return_code=128 + number)

    def _open(self) -> None:
        try:
            self.backend.open()
        except Exception as error:  # noqa: BLE001 - a task border: the application is of use without the supervisor
            _log.exception("the backend did not open")
            self.call_from_thread(self.toast, f"{type(error).__name__}: {error}", "error")

    def on_unmount(self) -> None:
        """Let go of the supervisor; daemons keep running."""
        self.backend.close()

    # -- actions ---------------------------------------------------------------------------------------------

    def action_run(self, action_id: str) -> None:
        """Run a global action: the screen's own handler comes first."""
        handler = actions.TABLE[action_id].handler
        owner = self.screen if hasattr(self.screen, handler) else self
        getattr(owner, handler)()

    def go(self, mode: str) -> None:
        """Show one of the six screens."""
        if len(self.screen_stack) == 1:
            self.switch_mode(mode)

    def do_screen_overview(self) -> None:
        """Show screen 1."""
        self.go("overview")

    def do_screen_gpu(self) -> None:
        """Show screen 2."""
        self.go("gpu")

    def do_screen_weights(self) -> None:
        """Show screen 3."""
        self.go("weights")

    def do_screen_wildcards(self) -> None:
        """Show screen 4."""
        self.go("wildcards")

    def do_screen_links(self) -> None:
        """Show screen 5."""
        self.go("links")

    def do_screen_events(self) -> None:
        """Show screen 6."""
        self.go("events")

    def do_app_help(self) -> None:
        """Show the keys that work on this screen."""
        from luna_tui.screens.help import Reader, help_text

        screen: LunaScreen = self.screen  # type: ignore[assignment]  # dialogs do not reach global keys
        text = help_text(screen.SCREEN_ID, screen.ABOUT, readonly=self.readonly)
        self.push_screen(Reader(f"help: {screen.SCREEN_ID}", text))

    def do_app_command_line(self) -> None:
        """Show the last actions as command lines."""
        from luna_tui.screens.help import Reader, command_text

        self.push_screen(Reader("last actions as commands", command_text(self.commands_done)))

    def do_app_quit(self) -> None:
        """Leave, after every guard that a screen put into ``quit_guards`` agrees."""
        self._leave(list(self.quit_guards.values()))

    def _leave(self, guards: list[QuitGuard]) -> None:
        for index, guard in enumerate(guards):
            if not guard(partial(self._leave, guards[index + 1 :])):
                return
        self.exit()

    def get_line_filters(self) -> Sequence[LineFilter]:
        """Return what Textual passes each drawn line through."""
        return [*super().get_line_filters(), *self._signs]

    # -- what screens ask for --------------------------------------------------------------------------------

    def clock_text(self) -> str:
        """Return the time for row 1."""
        return time.strftime("%H:%M:%S", time.localtime(self._clock()))

    def toast(self, message: str, severity: str = "information") -> None:
        """Show a short message made of foreign text."""
        seconds = {"information": 5.0, "warning": 8.0}.get(severity, 15.0)
        self.notify(clean(message), severity=severity, timeout=seconds, markup=False)  # type: ignore[arg-type]  # the three words

    def remember(self, command: str | None) -> None:
        """Keep a command line for `@`."""
        if command:
            self.commands_done = [*self.commands_done, command][-_REMEMBERED:]

    def record(self, event: EventRow) -> None:
        """Keep an event, off the UI thread."""
        self.run_worker(partial(self.backend.events.record, event), thread=True, exit_on_error=False, name="record")

    def copy(self, text: str) -> None:
        """Copy to the terminal's clipboard (OSC 52) and say so."""
        self.copy_to_clipboard(text.encode("utf-8", "replace").decode("utf-8"))
        self.toast("copied through the terminal (OSC 52; tmux needs `set -g set-clipboard on`)")

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """List every action of the screen, and the themes, in the palette."""
        screen_id = getattr(screen, "SCREEN_ID", "")
        for action in actions.on_screen(screen_id):
            if action.mutates and self.readonly:
                continue
            target = screen if hasattr(screen, action.handler) else self
            if hasattr(target, action.handler):
                about = f"{action.help}  {action.cli.format(target='NAME') if action.cli else ''}".rstrip()
                yield SystemCommand(f"{action.label}: {action.id}", about, partial(self._run_on, screen, action.id))
        for name in sorted(self.available_themes):
            yield SystemCommand(f"theme: {name}", "Use this theme for now.", partial(setattr, self, "theme", name))

    def _run_on(self, screen: Screen[Any], action_id: str) -> None:
        self.call_later(screen.action_run if hasattr(screen, "action_run") else self.action_run, action_id)

    def _handle_exception(self, error: Exception) -> None:
        """End with a traceback file and two lines instead of a page of local variables.

        The one private method of Textual that is overridden: there is no public hook before its own report.
        """
        if not isinstance(error, CrashReport):
            self.crash_file = write_crash(error)
            report = CrashReport(error, self.crash_file)
            report.__cause__ = error
            error = report
        super()._handle_exception(error)


def _collect_again() -> None:
    """Take up collecting that the entry put off; what the start made is kept out of it for good."""
    gc.freeze()
    gc.enable()


def write_crash(error: BaseException) -> Path:
    """Write a traceback into the state folder and return its path."""
    folder = paths.private_dir("crashes")
    file = folder / time.strftime("luna-tui-%Y%m%d-%H%M%S.txt")
    file.write_text("".join(traceback.format_exception(type(error), error, error.__traceback__)), "utf-8")
    return file
