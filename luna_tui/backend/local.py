"""The real backend: ports on this machine, put together."""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any

from luna_tui.backend.daemons import LocalDaemons
from luna_tui.backend.events import EventLog
from luna_tui.views import EventRow

if TYPE_CHECKING:
    from luna_engine.settings import Settings
    from luna_tui.backend.gpus import LocalGpus
    from luna_tui.backend.links import LocalLinks
    from luna_tui.views import GpusView


class LocalBackend:
    """Ports over the supervisor, the driver, the settings and the state folder.

    Args:
        settings: as loaded at start; daemons re-read the file when it changes.
        readonly: changing verbs are refused here too, not only hidden by the screens.
    """

    def __init__(self, settings: Settings, *, readonly: bool = False) -> None:
        self.settings = settings
        self.readonly = readonly
        self.events = EventLog()
        self.daemons = LocalDaemons(self.events.record, self._cards, readonly=readonly)

    @functools.cached_property
    def gpus(self) -> LocalGpus:
        """The GPU port."""
        from luna_tui.backend.gpus import LocalGpus

        return LocalGpus(self.daemons.last_seen)

    @functools.cached_property
    def links(self) -> LocalLinks:
        """The LoRA port."""
        from luna_tui.backend.links import LocalLinks

        return LocalLinks(self.settings)

    @functools.cached_property
    def weights(self) -> Any:
        """The weights port, `luna_tui.backend.weights.LocalWeights(settings, readonly=)`."""
        return self._later("luna_tui.backend.weights", "LocalWeights")

    @functools.cached_property
    def wildcards(self) -> Any:
        """The wildcards port, `luna_tui.backend.wildcards.LocalWildcards(settings, readonly=)`."""
        return self._later("luna_tui.backend.wildcards", "LocalWildcards")

    def _later(self, module: str, name: str) -> Any:
        return getattr(importlib.import_module(module), name)(self.settings, readonly=self.readonly)

    def _cards(self) -> GpusView:
        return self.gpus.snapshot()

    def role(self) -> str:
        """Return who watches, for row 1."""
        supervisor = self.daemons.supervisor()
        if supervisor.role == "viewer":
            return f"viewer, pid {supervisor.pid} supervises"
        return supervisor.role if supervisor.role == "supervising" else ""

    def farewell(self) -> str:
        """Return which daemons go on without a watcher, if any."""
        running = [daemon for daemon in self.daemons.last_seen() if daemon.pid is not None]
        if not running or self.daemons.supervisor().role == "viewer":
            return ""
        noun = "1 daemon keeps" if len(running) == 1 else f"{len(running)} daemons keep"
        return f"{noun} running, unwatched: `luna daemon supervise` watches, `luna daemon stop --all` ends them."

    def open(self) -> None:
        """Become the supervisor if nobody is."""
        self.daemons.open()
        for problem in self.settings.problems:
            message = f"{problem.key}: {problem.message}"
            self.events.record(EventRow("", 0.0, "warning", "settings", "settings-ignored", message))

    def close(self) -> None:
        """Stop watching and let go of what is held; daemons and jobs go on."""
        self.daemons.close()
        for name in ("gpus", "weights", "wildcards"):
            port = self.__dict__.get(name)  # cached: only what was used has something to close
            if port is not None and hasattr(port, "close"):
                port.close()
