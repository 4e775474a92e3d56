"""What happens in the daemon, told to whoever subscribed. A slow subscriber gets a gap; nobody waits for it."""

from __future__ import annotations

import collections
import logging
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

from luna_daemon.watch_messages import GAP, TOPICS

if TYPE_CHECKING:
    from collections.abc import Iterable

BUFFERED_MAX = 1024
KEPT_MAX = 1024
_AT_ONCE = 64
_CLOGGED_S = 0.05


class Sink(Protocol):
    """Where a subscriber's events go."""

    @property
    def is_clogged(self) -> bool:
        """Tell whether it still has earlier ones to deliver."""
        ...

    def send_event(self, record: dict[str, Any]) -> None:
        """Take one event; never waits."""
        ...


class _Subscriber:
    """Topics of one sink and what it was not sent yet."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.topics: set[str] = set()
        self._waiting: collections.deque[dict[str, Any]] = collections.deque()
        self._missed = 0
        self._last_seq = 0

    def add(self, record: dict[str, Any]) -> None:
        if len(self._waiting) < BUFFERED_MAX and not self._missed:
            self._waiting.append(record)
        else:
            self._missed += 1

    @property
    def is_waiting(self) -> bool:
        return bool(self._waiting or self._missed)

    def take(self, generation: str) -> list[dict[str, Any]]:
        """Return the next few; once all that were kept are taken, the gap that followed them."""
        taken = [self._waiting.popleft() for _ in range(min(_AT_ONCE, len(self._waiting)))]
        if taken:
            self._last_seq = taken[-1]["seq"]
        if self._missed and not self._waiting:
            taken.append(_record(GAP, GAP, self._last_seq, generation, {"missed": self._missed}))
            self._missed = 0
        return taken


class EventBoard:
    """The events of one run of the daemon. Thread-safe; `publish` costs microseconds and never raises or waits."""

    def __init__(self, generation: str) -> None:
        self._generation = generation
        self._wake = threading.Condition()
        self._seq = 0
        self._kept: collections.deque[dict[str, Any]] = collections.deque(maxlen=KEPT_MAX)
        self._subscribers: dict[Sink, _Subscriber] = {}
        self._thread: threading.Thread | None = None

    def publish(self, topic: str, event: str, body: dict[str, Any]) -> None:
        """Tell that something happened.

        Args:
            topic: one of `TOPICS`.
            event: what, in one or two words with dashes; never a name or text that came from a client.
            body: JSON-ready facts; never prompt text, secrets or paths.
        """
        with self._wake:
            self._seq += 1
            record = _record(topic, event, self._seq, self._generation, body)
            self._kept.append(record)
            for subscriber in self._subscribers.values():
                if topic in subscriber.topics:
                    subscriber.add(record)
            if self._subscribers:
                self._wake.notify()

    def is_wanted(self, topic: str) -> bool:
        """Tell whether anybody subscribed to a topic."""
        with self._wake:
            return any(topic in subscriber.topics for subscriber in self._subscribers.values())

    def subscribe(self, sink: Sink, topics: Iterable[str], from_seq: int | None) -> tuple[int, int]:
        """Send a sink these topics too.

        Returns:
            The number of the newest event, and how many from ``from_seq`` on are not kept any more.
        """
        with self._wake:
            subscriber = self._subscribers.setdefault(sink, _Subscriber(sink))
            new = set(topics) - subscriber.topics
            subscriber.topics |= new
            missed = 0
            if from_seq is not None:
                oldest = self._kept[0]["seq"] if self._kept else self._seq + 1
                missed = max(0, oldest - max(1, from_seq))
                for record in self._kept:
                    if record["seq"] >= from_seq and record["topic"] in new:
                        subscriber.add(record)
            if self._thread is None:
                self._thread = threading.Thread(target=self._deliver, name="luna-events", daemon=True)
                self._thread.start()
            self._wake.notify()
            return self._seq, missed

    def unsubscribe(self, sink: Sink, topics: Iterable[str]) -> tuple[str, ...]:
        """Stop sending topics, or all; return those that are still sent."""
        with self._wake:
            subscriber = self._subscribers.get(sink)
            if subscriber is None:
                return ()
            subscriber.topics -= set(topics) or set(TOPICS)
            if not subscriber.topics:
                del self._subscribers[sink]
            return tuple(topic for topic in TOPICS if topic in subscriber.topics)

    def forget(self, sink: Sink) -> None:
        """Drop a subscriber that is gone."""
        with self._wake:
            self._subscribers.pop(sink, None)

    def _deliver(self) -> None:
        while True:
            with self._wake:
                while not (ready := self._ready()):
                    is_clogged = any(one.is_waiting for one in self._subscribers.values())
                    self._wake.wait(_CLOGGED_S if is_clogged else None)
                batches = [(one.sink, one.take(self._generation)) for one in ready]
            for sink, records in batches:
                for record in records:
                    sink.send_event(record)

    def _ready(self) -> list[_Subscriber]:
        return [one for one in self._subscribers.values() if one.is_waiting and not one.sink.is_clogged]


def _record(topic: str, event: str, seq: int, generation: str, body: dict[str, Any]) -> dict[str, Any]:
    return {
        "event": event,
        "topic": topic,
        "seq": seq,
        "at_ms": int(time.time() * 1000),
        "generation": generation,
        "body": body,
    }


class LogEvents(logging.Handler):
    """Publishes log lines of level warning and up."""

    def __init__(self, board: EventBoard) -> None:
        super().__init__(logging.WARNING)
        self._board = board

    def emit(self, record: logging.LogRecord) -> None:
        """Publish one line."""
        body: dict[str, Any] = {"level": record.levelname.lower(), "message": record.getMessage()[:2000]}
        for name in ("code", "trace"):
            value = getattr(record, name, None)
            if value is not None:
                body[name] = value
        self._board.publish("log", "line", body)
