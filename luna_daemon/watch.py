"""The daemon's view of itself over time: counts, events, and a pulse once a second. Part of the service.

It sees requests come, end and run; it never touches the engine or the device.
"""

from __future__ import annotations

import collections
import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luna_daemon.events import EventBoard
from luna_daemon.fields import plain
from luna_daemon.messages import Downgrade
from luna_daemon.meter import Meter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from luna_daemon.runtime.queue import Job

PULSE_S = 1.0
STALLED_S = 60.0
STALLED_TIMES = 5.0
DOWNGRADES_KEPT = 10
_CHANGES = {
    "load_model": ("model", "loaded"),
    "unload_model": ("model", "unloaded"),
    "free": ("model", "freed"),
    "lora_put": ("lora", "put"),
    "lora_drop": ("lora", "dropped"),
}
_FACTS = ("set", "bytes", "place", "freed_bytes", "kept", "moved", "hash", "in_use")
_log = logging.getLogger("luna.watch")


@dataclass(frozen=True, slots=True)
class Pulse:
    """What the service shows every second: bodies of the ``queue`` and ``memory`` events, what runs, where sets are."""

    queue: Callable[[], dict[str, Any]]
    memory: Callable[[], dict[str, Any]]
    running: Callable[[], Mapping[str, Job | None]]
    places: Callable[[], Mapping[str, str]]


class Watch:
    """Counts and tells. Thread-safe."""

    def __init__(self, generation: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.meter = Meter()
        self.events = EventBoard(generation)
        self._clock = clock
        self._downgrades: collections.deque[Downgrade] = collections.deque(maxlen=DOWNGRADES_KEPT)
        self._stalled: dict[str, Job] = {}
        self._places: Mapping[str, str] = {}
        self._is_over = threading.Event()

    # requests

    def began(self, job: Job, client: str) -> None:
        """Tell that a request was admitted."""
        self.events.publish("request", "start", _request_facts(job, client))

    def ended(
        self, job: Job, client: str, outcome: str, ms: Mapping[str, float], did: Mapping[str, Any] | None = None
    ) -> None:
        """Count and tell the end of a request.

        Args:
            job: the request.
            client: its name.
            outcome: ``ok`` or the error's code.
            ms: its time by phase.
            did: as in its reply.
        """
        name = job.command.name
        self.meter.answered(name, outcome, ms)
        facts = _request_facts(job, client) | {"outcome": outcome, "ms": dict(ms)}
        if did is not None:
            self.meter.did(did)
            facts["batch"], facts["cached"] = did.get("batch"), did.get("cached")
            for entry in did.get("downgraded") or ():
                self.downgraded(Downgrade(str(entry["from"]), str(entry["to"]), str(entry["reason"])))
        self.events.publish("request", "end", facts)

    def changed(self, command: str, reply: Any) -> None:
        """Tell what a command changed about models and LoRAs, if it is one that does."""
        if command not in _CHANGES:
            return
        topic, event = _CHANGES[command]
        told = getattr(reply, "entry", reply)  # of a LoRA: its row
        facts = {name: plain(value) for name in _FACTS if (value := getattr(told, name, None)) is not None}
        self.events.publish(topic, event, facts)
        for name in getattr(reply, "evicted", ()):
            self.events.publish(topic, "evicted", {"set": name})

    def downgraded(self, what: Downgrade) -> None:
        """Remember and tell that something other than asked was done."""
        self._downgrades.append(what)
        self.events.publish("downgrade", "downgrade", what.as_wire())

    @property
    def downgrades(self) -> tuple[Downgrade, ...]:
        """Return the last ten."""
        return tuple(self._downgrades)

    # the pulse

    def start(self, pulse: Pulse) -> None:
        """Begin to beat."""
        threading.Thread(target=self._beat, args=(pulse,), name="luna-pulse", daemon=True).start()

    def stop(self) -> None:
        """Beat no more."""
        self._is_over.set()

    def _beat(self, pulse: Pulse) -> None:
        while not self._is_over.wait(PULSE_S):
            try:
                self.tick(pulse)
            except Exception:  # noqa: BLE001 - border of a task, logged with its traceback
                _log.exception("the pulse failed", extra={"code": "internal"})

    def tick(self, pulse: Pulse) -> None:
        """Look once: publish what somebody wants to see, and notice what runs far too long."""
        for topic, body in (("queue", pulse.queue), ("memory", pulse.memory)):
            if self.events.is_wanted(topic):
                self.events.publish(topic, topic, body())
        for lane, job in pulse.running().items():
            self._notice_stall(lane, job)
        before, self._places = self._places, pulse.places()
        for name, place in self._places.items():
            if before.get(name, place) != place:
                self.events.publish("model", "moved", {"set": name, "place": place, "from": before[name]})

    def _notice_stall(self, lane: str, job: Job | None) -> None:
        if job is None or job.started is None:
            self._stalled.pop(lane, None)
            return
        if self._stalled.get(lane) is job:
            return
        self._stalled.pop(lane, None)
        running_s = self._clock() - job.started
        usual_s = self.meter.usual_run_s(job.command.name)
        if running_s <= STALLED_S or (usual_s is not None and running_s <= STALLED_TIMES * usual_s):
            return
        self._stalled[lane] = job
        body = {"command": job.command.name, "request": job.request, "lane": lane, "running_s": round(running_s, 1)}
        self.events.publish("stalled", "stalled", body | {"usual_s": usual_s, "trace": job.trace})
        facts = {"code": "stalled"} | ({} if job.trace is None else {"trace": job.trace})
        _log.warning("%s runs for %.0f s already", job.command.name, running_s, extra=facts)

    def is_stalled(self, lane: str) -> bool:
        """Tell whether what runs in a lane was found to run far too long."""
        return lane in self._stalled


def _request_facts(job: Job, client: str) -> dict[str, Any]:
    facts = {"request": job.request, "command": job.command.name, "client": client, "lane": job.command.lane.value}
    return facts if job.trace is None else facts | {"trace": job.trace}
