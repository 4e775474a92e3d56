"""Events that came over a connection and wait for whoever wants them. The oldest go first when nobody does."""

from __future__ import annotations

import collections
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from luna_daemon.fields import decode_body
from luna_daemon.watch_messages import GAP, Event

if TYPE_CHECKING:
    from collections.abc import Mapping

KEPT_MAX = 4096


class Inbox:
    """The events of one connection, in order. Filled by whoever reads, emptied by whoever asks."""

    def __init__(self) -> None:
        self._events: collections.deque[Event] = collections.deque()
        self._missed = 0

    @property
    def is_done(self) -> bool:
        """Tell whether there is one, in the words that waiting for a reply uses."""
        return bool(self._events)

    def put(self, header: Mapping[str, Any]) -> None:
        """Take an event in."""
        self._events.append(decode_body(Event, header, strict=False))
        if len(self._events) > KEPT_MAX:
            lost = self._events.popleft()
            self._missed += lost.body.get("missed", 1) if lost.event == GAP else 1

    def take(self) -> Event | None:
        """Return the next event, first of all a gap for those that nobody took in time; None if there is none."""
        if not self._events:
            return None
        if self._missed:
            missed, self._missed = self._missed, 0
            first = self._events[0]
            return replace(first, event=GAP, topic=GAP, seq=first.seq - 1, body={"missed": missed})
        return self._events.popleft()
