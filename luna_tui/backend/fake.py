"""A backend made of recorded data: for tests, goldens and screenshots. Verbs are written down in ``calls``.

Scenes: ``normal``, ``empty``, ``error`` (reading fails after the first time), ``no-gpu``. Times are fixed.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from luna_tui.backend import scenes
from luna_tui.backend.fake_weights import FakeWeights
from luna_tui.views import (
    DaemonDraft,
    DaemonsView,
    EventRow,
    EventsView,
    FieldProblem,
    FormChoices,
    GpusView,
    LinksView,
    Outcome,
    SupervisorView,
)

if TYPE_CHECKING:
    from pathlib import Path

    from luna_engine.errors import LunaError

SCENES = ("normal", "empty", "error", "no-gpu")


class FakeDaemons:
    """The daemons port over a recorded scene; verbs change the recorded state as the real ones would."""

    def __init__(self, scene: str, calls: list[tuple[str, ...]]) -> None:
        self._scene = scene
        self._calls = calls
        self.view = DaemonsView(scenes.NOW, SupervisorView("supervising", 4001), scenes.daemons(scene))
        self.drafts: dict[str, DaemonDraft] = {}
        self.problems: tuple[FieldProblem, ...] = ()

    def open(self) -> None:
        """Hold nothing."""

    def close(self) -> None:
        """Hold nothing."""

    def snapshot(self) -> DaemonsView:
        """Return the recorded daemons."""
        return self.view

    def _set(self, name: str, **changes: Any) -> None:
        rows = tuple(dataclasses.replace(row, **changes) if row.name == name else row for row in self.view.daemons)
        self.view = dataclasses.replace(self.view, daemons=rows)

    def start(self, name: str) -> Outcome:
        """Record a start."""
        self._calls.append(("daemons.start", name))
        self._set(name, state="starting", pid=50001, reason=None)
        return Outcome.done(f"{name} is starting")

    def stop(self, name: str) -> Outcome:
        """Record a stop."""
        self._calls.append(("daemons.stop", name))
        self._set(name, state="stopped", pid=None, reason="stopped by you")
        return Outcome.done(f"{name} has stopped")

    def restart(self, name: str) -> Outcome:
        """Record a restart."""
        self._calls.append(("daemons.restart", name))
        self._set(name, state="starting", reason=None)
        return Outcome.done(f"{name} is starting again")

    def kill(self, name: str) -> Outcome:
        """Record a kill."""
        self._calls.append(("daemons.kill", name))
        self._set(name, state="stopped", pid=None, reason="killed by you")
        return Outcome.done(f"{name} was killed")

    def adopt(self) -> Outcome:
        """Record an adoption."""
        self._calls.append(("daemons.adopt",))
        return Outcome.done("nothing new to adopt")

    def forget(self, name: str) -> Outcome:
        """Record a removal."""
        self._calls.append(("daemons.forget", name))
        rows = tuple(row for row in self.view.daemons if row.name != name)
        self.view = dataclasses.replace(self.view, daemons=rows)
        return Outcome.done(f"{name} is forgotten")

    def choices(self) -> FormChoices:
        """Return recorded choices."""
        return scenes.choices(self._scene)

    def draft(self, name: str) -> DaemonDraft:
        """Return the form of a recorded daemon."""
        row = next(row for row in self.view.daemons if row.name == name)
        return DaemonDraft(name, row.service_type, row.device, str(row.port), editing=name)

    def check(self, draft: DaemonDraft) -> tuple[FieldProblem, ...]:
        """Return the problems that the test set."""
        del draft
        return self.problems

    def save(self, draft: DaemonDraft) -> Outcome:
        """Record a save."""
        self._calls.append(("daemons.save", draft.name))
        self.drafts[draft.name] = draft
        return Outcome.done(f"{draft.name} is set up")


class FakeGpus:
    """The GPU port over a recorded scene."""

    def __init__(self, scene: str, calls: list[tuple[str, ...]]) -> None:
        self._scene = scene
        self._calls = calls

    def snapshot(self) -> GpusView:
        """Return recorded cards."""
        return scenes.gpus(self._scene)

    def reset_peaks(self) -> Outcome:
        """Record a reset."""
        self._calls.append(("gpus.reset_peaks",))
        return Outcome.done("peaks start again from now")


class FakeEvents:
    """The events port in memory."""

    def __init__(self, scene: str) -> None:
        self._scene = scene
        self.recorded: list[EventRow] = []
        self.logs: tuple[tuple[str, str], ...] = ()
        self._unread = 2 if scene == "normal" else 0

    def snapshot(self) -> EventsView:
        """Return recorded events, what this session did first."""
        view = scenes.events(self._scene)
        return dataclasses.replace(view, events=(*reversed(self.recorded), *view.events), logs=self.logs)

    def record(self, event: EventRow) -> None:
        """Keep an event."""
        self.recorded.append(dataclasses.replace(event, at=scenes.NOW, id=f"new{len(self.recorded)}"))

    def unread(self) -> int:
        """Return the recorded number."""
        return self._unread

    def mark_read(self) -> None:
        """Forget it."""
        self._unread = 0


class FakeLinks:
    """The LoRA port over a recorded scene."""

    def __init__(self, scene: str) -> None:
        self._scene = scene

    def snapshot(self) -> LinksView:
        """Return recorded files."""
        return scenes.links(self._scene)


class _Failing:
    """Wraps a port: ``snapshot`` raises, everything else goes through."""

    def __init__(self, port: Any, error: LunaError) -> None:
        self._port = port
        self._error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._port, name)

    def snapshot(self) -> Any:
        """Fail as recorded."""
        raise self._error


class FakeBackend:
    """All ports over one scene.

    Args:
        scene: one of `SCENES`.
        weights, wildcards: ports to use for screens 3 and 4; without, screen 3 shows a recorded shelf.
        logs: a folder that gets the recorded logs; none are shown without it.
    """

    def __init__(
        self, scene: str = "normal", *, weights: Any = None, wildcards: Any = None, logs: Path | None = None
    ) -> None:
        self.calls: list[tuple[str, ...]] = []
        base = "empty" if scene == "error" else scene
        self.daemons: Any = FakeDaemons(base, self.calls)
        self.gpus: Any = FakeGpus(base, self.calls)
        self.events: Any = FakeEvents(base)
        self.links: Any = FakeLinks(base)
        self.weights: Any = FakeWeights(base, self.calls) if weights is None else weights
        if logs is not None:
            self._add_logs(scenes.write_logs(logs))
        self.wildcards = wildcards
        if scene == "error":
            self.weights = _Failing(self.weights, scenes.FOLDER_AWAY) if weights is None else weights
            self.daemons = _Failing(self.daemons, scenes.SETTINGS_BROKEN)
            self.gpus = _Failing(self.gpus, scenes.GPU_BROKEN)
            self.links = _Failing(self.links, scenes.ROOT_GONE)
            self.events = _Failing(self.events, scenes.EVENTS_BROKEN)

    def _add_logs(self, logs: dict[str, str]) -> None:
        for name, path in logs.items():
            self.daemons._set(name, log_path=path)  # noqa: SLF001 - the recorded daemons are this module's own
        self.events.logs = tuple(logs.items())

    def role(self) -> str:
        """Return the recorded role."""
        return "supervising"

    def farewell(self) -> str:
        """Say nothing."""
        return ""

    def open(self) -> None:
        """Hold nothing."""

    def close(self) -> None:
        """Close a port that was lent."""
        if hasattr(self.weights, "close"):
            self.weights.close()
