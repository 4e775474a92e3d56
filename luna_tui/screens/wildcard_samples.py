"""The samples pane of screen 4: what a template gives, why, and how likely; drawn in one worker at a time."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from textual.message import Message
from textual.widgets import Input, Static

from luna_engine.errors import LunaError
from luna_tui.plain import content
from luna_tui.screens.wildcard_rows import title_of_samples
from luna_tui.widgets.chrome import Pane
from luna_tui.widgets.odds import Odds
from luna_tui.widgets.samples import Samples

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from textual.app import ComposeResult

    from luna_engine.wildcards import Diagnostic, SiteOdds, Step
    from luna_tui.backend.wildcards import PreviewView, Wildcards

PROFILES = ("native", "dynamicprompts", "impact")
_STEP = 5
_MOST_SAMPLES = 50
_MOST_ODDS = 12


class SamplesPane(Pane):
    """Samples, odds and the prompt.

    Args:
        port: returns the wildcards port.
        subject: returns the address to sample while no prompt is typed.
        overlay: returns the file in the editor with its unsaved text, if a file is open.
    """

    class Previewed(Message):
        """Samples came from the worker, with the load problems of that moment."""

        def __init__(self, preview: PreviewView, problems: tuple[Diagnostic, ...]) -> None:
            super().__init__()
            self.preview = preview
            self.problems = problems

    class OddsTold(Message):
        """Odds came from the worker."""

        def __init__(self, title: str, sites: tuple[SiteOdds, ...]) -> None:
            super().__init__()
            self.title = title
            self.sites = sites

    class Stepped(Message):
        """One sample, draw by draw."""

        def __init__(self, steps: tuple[Step, ...], seed: int) -> None:
            super().__init__()
            self.steps = steps
            self.seed = seed

    class Failed(Message):
        """A worker met an expected error."""

        def __init__(self, error: LunaError) -> None:
            super().__init__()
            self.error = error

    def __init__(
        self,
        port: Callable[[], Wildcards],
        subject: Callable[[], str],
        overlay: Callable[[], tuple[Path, str | None] | None],
    ) -> None:
        super().__init__(id="samples", classes="side", title="samples")
        self._port = port
        self._subject = subject
        self._overlay = overlay
        self.seed = 0
        self.sample_count = 10
        self.profile = PROFILES[0]
        self.pins: dict[str, str] = {}
        self.rerolls: dict[str, int] = {}
        self.shows_odds = False
        self._drawn_for = ""
        self._is_drawing = False
        self._draw_again = False
        # Held, not queried for: a timer may fire while the application closes and the parts are gone already.
        self.samples = Samples()
        self.prompt = Input(placeholder="prompt> (empty: the address under the cursor)", id="prompt")
        self._odds = Odds("", id="odds")
        self._combinations = Static("", id="combinations")

    def compose(self) -> ComposeResult:
        """Yield samples, odds, number of combinations and prompt."""
        yield self.samples
        yield self._odds
        yield self._combinations
        yield self.prompt

    @property
    def template(self) -> str:
        """The typed prompt, else a reference to the address under the cursor."""
        return self.prompt.value or self._subject()

    # -- drawing

    def ask(self) -> None:
        """Draw samples in a worker; while one runs, at most one more waits."""
        if not self.is_attached:
            return
        if self._is_drawing:
            self._draw_again = True
            return
        self._is_drawing = True
        template, port, overlay = self.template, self._port(), self._overlay()
        if template != self._drawn_for:
            self._drawn_for = template
            self.pins, self.rerolls = {}, {}
        wanted, seed, profile = self.sample_count, self.seed, self.profile
        pins, rerolls = dict(self.pins), dict(self.rerolls)

        def work() -> None:
            try:
                if overlay is not None:
                    port.overlay(*overlay)
                preview = port.preview(template, wanted, seed, profile=profile, pins=pins, reroll=rerolls)
                self.post_message(self.Previewed(preview, port.problems()))
            except LunaError as error:
                self.post_message(self.Failed(error))

        self.run_worker(work, thread=True, group="preview", name="preview")

    def on_samples_pane_previewed(self, message: SamplesPane.Previewed) -> None:
        """Show them; the screen gets the message next."""
        self._is_drawing = False
        preview = message.preview
        self.samples.show(preview)
        self.set_title(title_of_samples(preview, self.profile, len(self.pins), len(self.rerolls)))
        number = "not known" if preview.combinations is None else f"{preview.combinations:,}, exact"
        self._combinations.update(content(f"combinations {number}"))
        self._go_on()
        if not self._is_drawing:
            self.ask_odds()

    def on_samples_pane_failed(self, message: SamplesPane.Failed) -> None:
        """Go on; the screen says what failed."""
        del message
        self._is_drawing = False
        self._go_on()

    def _go_on(self) -> None:
        if self._draw_again:
            self._draw_again = False
            self.ask()

    # -- odds and steps

    def ask_odds(self) -> None:
        """Ask for the odds of the choice's address under the cursor, else of the template, while they are shown."""
        if not self.shows_odds:
            return
        choice, port, profile = self.samples.choice, self._port(), self.profile
        if choice is not None and choice.address is not None:
            title, template, profile = choice.address, f"{{{choice.address}}}", PROFILES[0]
        else:
            title = template = self.template

        def work() -> None:
            try:
                self.post_message(self.OddsTold(title, port.odds(template, _MOST_ODDS, profile=profile)))
            except LunaError as error:
                self.post_message(self.Failed(error))

        self.run_worker(work, thread=True, group="odds", exclusive=True, name="odds")

    def on_samples_pane_odds_told(self, message: SamplesPane.OddsTold) -> None:
        """Show them."""
        message.stop()
        if self.shows_odds:
            width = max(20, self.size.width - 2)
            rows = max(3, min(_MOST_ODDS, self.size.height // 2 - 3))
            self._odds.show(message.title, message.sites, width, rows)

    def on_resize(self) -> None:
        """Show as many odds as there is room for now."""
        self.ask_odds()

    def on_samples_moved(self, message: Samples.Moved) -> None:
        """Tell the odds of the choice under the cursor."""
        message.stop()
        self.ask_odds()

    def turn_odds(self) -> None:
        """Show or hide the odds."""
        self.shows_odds = not self.shows_odds
        self._odds.display = self.shows_odds
        self.ask_odds()

    def ask_steps(self) -> None:
        """Walk the sample under the cursor."""
        sample, port, template = self.samples.sample, self._port(), self._drawn_for
        if sample is None:
            return
        profile, pins, rerolls = self.profile, dict(self.pins), dict(self.rerolls)

        def work() -> None:
            try:
                steps = port.steps(template, sample.seed, sample.index, profile=profile, pins=pins, reroll=rerolls)
                self.post_message(self.Stepped(steps, sample.seed))
            except LunaError as error:
                self.post_message(self.Failed(error))

        self.run_worker(work, thread=True, group="steps", exclusive=True, name="steps")

    # -- what the keys change

    def reroll_all(self) -> None:
        """Draw with new seeds."""
        self.seed = secrets.randbits(32)
        self.ask()

    def set_seed(self, seed: int | None) -> None:
        """Draw from a seed on; None changes nothing."""
        if seed is not None:
            self.seed = seed
            self.ask()

    def more(self) -> None:
        """Show more samples."""
        self.sample_count = min(_MOST_SAMPLES, self.sample_count + _STEP if self.sample_count > 1 else _STEP)
        self.ask()

    def fewer(self) -> None:
        """Show fewer samples."""
        self.sample_count = max(1, self.sample_count - _STEP)
        self.ask()

    def turn_profile(self) -> None:
        """Read the template in the next dialect."""
        self.profile = PROFILES[(PROFILES.index(self.profile) + 1) % len(PROFILES)]
        self.ask()

    def pin(self) -> bool:
        """Pin the choice under the cursor to its text, or free it again; tell whether there was one."""
        choice = self.samples.choice
        if choice is None:
            return False
        if choice.site in self.pins:
            del self.pins[choice.site]
        else:
            self.pins[choice.site] = choice.value
        self.ask()
        return True

    def reroll_site(self) -> bool:
        """Draw the site of the choice under the cursor anew; tell whether there was one."""
        choice = self.samples.choice
        if choice is None:
            return False
        self.pins.pop(choice.site, None)
        self.rerolls[choice.site] = self.rerolls.get(choice.site, 0) + 1
        self.ask()
        return True
