"""What the daemons looked like a moment ago, for fingerprints: `IS_CHANGED` may neither call a daemon nor raise.

A thread asks both services every two seconds, begun by the first node that wants to know and ended when none has
asked for ten minutes. People without a daemon node in their workflow never have it.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luna_daemon.selection import choose_set
from luna_daemon.services import Services
from luna_engine.errors import LunaError

if TYPE_CHECKING:
    from collections.abc import Callable

    from luna_daemon.client import DaemonClient
    from luna_daemon.model_messages import SetRow

INTERVAL_S = 2.0
IDLE_S = 600.0
FIRST_LOOK_S = 2.5
_SERVICES = Services()


def services() -> Services:
    """Return the connections of this ComfyUI."""
    return _SERVICES


@dataclass(frozen=True, slots=True)
class Look:
    """One service as last seen: the daemon's generation and sets, or the code of why there is none."""

    generation: str
    rows: tuple[SetRow, ...] = ()


class Health:
    """The background look at both services."""

    def __init__(self, connections: Services) -> None:
        self._connections = connections
        self._lock = threading.Lock()
        self._looked = threading.Event()
        self._looks: dict[str, Look] = {}
        self._asked_at = 0.0
        self._thread: threading.Thread | None = None

    def look(self, service: str) -> Look:
        """Return the last look at ``text`` or ``vae``; the first caller waits for the first look, briefly."""
        with self._lock:
            self._asked_at = time.monotonic()
            if self._thread is None:
                self._looked.clear()
                self._thread = threading.Thread(target=self._run, name="luna-health", daemon=True)
                self._thread.start()
        self._looked.wait(FIRST_LOOK_S)
        return self._looks.get(service, Look("unknown"))

    def _run(self) -> None:
        while True:
            self._looks = {
                "text": _look_at(self._connections.text),
                "vae": _look_at(self._connections.vae),
            }
            self._looked.set()
            time.sleep(INTERVAL_S)
            with self._lock:
                if time.monotonic() - self._asked_at > IDLE_S:
                    self._thread = None
                    return


def _look_at(connect: Callable[[], DaemonClient]) -> Look:
    try:
        client = connect()
        return Look(client.ping().generation, client.list_models(loaded=True).sets)
    except LunaError as error:
        return Look(error.code)


_HEALTH = Health(_SERVICES)


def served(component: str, family: str) -> str:
    """Name what the daemon would use for a request: a set id, or the code of the error there would be."""
    look = _HEALTH.look(component)
    if not look.rows:
        return look.generation
    try:
        return choose_set(look.rows, component, family).id
    except LunaError as error:
        return f"{error.code} {','.join(sorted(row.id for row in look.rows))}"


def generations() -> str:
    """Name the two running daemons; changes when one starts, stops or is restarted."""
    return f"{_HEALTH.look('text').generation} {_HEALTH.look('vae').generation}"
