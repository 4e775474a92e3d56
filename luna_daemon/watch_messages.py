"""Bodies for those who watch a daemon: events, metrics, and closing or opening its admission."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luna_daemon.fields import invalid

if TYPE_CHECKING:
    from luna_daemon.fields import Fields

TOPICS = ("state", "model", "request", "queue", "memory", "lora", "downgrade", "stalled", "log")
GAP = "gap"


def _topics(fields: Fields) -> tuple[str, ...]:
    topics = fields.texts("topics", most=64, longest=32)
    for index, topic in enumerate(topics):
        if topic not in TOPICS and fields.strict:
            raise invalid(f"{fields.place('topics')}[{index}]", f"{topic!r} is none of {', '.join(TOPICS)}")
    return tuple(dict.fromkeys(topics))


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Send events of these topics from now on, or from number ``from_seq`` on where they are still kept."""

    topics: tuple[str, ...]
    from_seq: int | None = None

    @classmethod
    def decode(cls, fields: Fields) -> Subscribe:
        """Read all fields."""
        topics = _topics(fields)
        if not topics and fields.strict:
            raise invalid(fields.place("topics"), f"name at least one of {', '.join(TOPICS)}")
        return cls(topics, fields.integer_or_none("from_seq"))


@dataclass(frozen=True, slots=True)
class Subscribed:
    """``seq`` is the number of the newest event; ``missed`` counts those from ``from_seq`` on that are not kept."""

    seq: int
    missed: int

    @classmethod
    def decode(cls, fields: Fields) -> Subscribed:
        """Read all fields."""
        return cls(fields.integer("seq"), fields.integer("missed"))


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Send no more events of these topics; none named means all."""

    topics: tuple[str, ...] = ()

    @classmethod
    def decode(cls, fields: Fields) -> Unsubscribe:
        """Read all fields."""
        return cls(_topics(fields))


@dataclass(frozen=True, slots=True)
class Unsubscribed:
    """The topics that are still sent."""

    topics: tuple[str, ...] = ()

    @classmethod
    def decode(cls, fields: Fields) -> Unsubscribed:
        """Read all fields."""
        return cls(fields.texts("topics"))


@dataclass(frozen=True, slots=True)
class Drain:
    """Take no new work; what still waits at the deadline is refused. ``reopen`` takes work again."""

    deadline_ms: int = 10_000
    reopen: bool = False

    @classmethod
    def decode(cls, fields: Fields) -> Drain:
        """Read all fields."""
        return cls(
            deadline_ms=fields.integer("deadline_ms", 10_000, 0, 3_600_000),
            reopen=fields.boolean("reopen", default=False),
        )


@dataclass(frozen=True, slots=True)
class Drained:
    """Requests that wait and run as the command is answered."""

    queued: int
    running: int

    @classmethod
    def decode(cls, fields: Fields) -> Drained:
        """Read all fields."""
        return cls(fields.integer("queued"), fields.integer("running"))


@dataclass(frozen=True, slots=True)
class MetricsRequest:
    """Ask for all numbers in Prometheus' text format."""

    @classmethod
    def decode(cls, fields: Fields) -> MetricsRequest:  # noqa: ARG003 - it has none
        """Read all fields."""
        return cls()


@dataclass(frozen=True, slots=True)
class MetricsReply:
    """Segment ``text`` is UTF-8 in Prometheus' text format, version 0.0.4."""

    @classmethod
    def decode(cls, fields: Fields) -> MetricsReply:  # noqa: ARG003 - it has none
        """Read all fields."""
        return cls()


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a daemon. Travels as a header of its own, without a request.

    Attributes:
        event: what happened; ``gap`` stands for ``body["missed"]`` events that the subscriber was too slow for.
        topic: one of `TOPICS`, or ``gap``.
        seq: counts all events of a generation from 1; a gap carries that of the last event before it.
        at_ms: wall time in milliseconds.
    """

    event: str
    topic: str
    seq: int
    at_ms: int
    generation: str
    body: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def decode(cls, fields: Fields) -> Event:
        """Read all fields."""
        body = fields.take("body")
        return cls(
            event=fields.text("event"),
            topic=fields.text("topic"),
            seq=fields.integer("seq"),
            at_ms=fields.integer("at_ms"),
            generation=fields.text("generation"),
            body=body if isinstance(body, dict) else {},
        )
