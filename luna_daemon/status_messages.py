"""The daemon's status: what it is, holds and does. Plain records that the engine, the server and the faces share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luna_daemon.messages import Downgrade

if TYPE_CHECKING:
    from luna_daemon.fields import Fields

DETAILS = ("brief", "full")


@dataclass(frozen=True, slots=True)
class StatusRequest:
    """``brief`` leaves sets, caches, clients and downgrades empty."""

    detail: str = "full"

    @classmethod
    def decode(cls, fields: Fields) -> StatusRequest:
        """Read all fields."""
        return cls(detail=fields.choice("detail", DETAILS, "full"))


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """The device in bytes; None is unknown. ``reason`` says why this device was taken."""

    kind: str
    uuid: str | None = None
    name: str | None = None
    reason: str | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    torch_allocated_bytes: int | None = None
    torch_reserved_bytes: int | None = None
    other_bytes: int | None = None

    @classmethod
    def decode(cls, fields: Fields) -> DeviceStatus:
        """Read all fields."""
        return cls(
            kind=fields.text("kind"),
            uuid=fields.text_or_none("uuid"),
            name=fields.text_or_none("name"),
            reason=fields.text_or_none("reason"),
            total_bytes=fields.integer_or_none("total_bytes"),
            free_bytes=fields.integer_or_none("free_bytes"),
            torch_allocated_bytes=fields.integer_or_none("torch_allocated_bytes"),
            torch_reserved_bytes=fields.integer_or_none("torch_reserved_bytes"),
            other_bytes=fields.integer_or_none("other_bytes"),
        )


@dataclass(frozen=True, slots=True)
class PartStatus:
    """One part of a set. ``id`` is ``root/name`` or None when it was put; ``content`` is its hash."""

    role: str
    id: str | None
    content: str | None
    bytes: int

    @classmethod
    def decode(cls, fields: Fields) -> PartStatus:
        """Read all fields."""
        return cls(
            role=fields.text("role"),
            id=fields.text_or_none("id"),
            content=fields.text_or_none("content"),
            bytes=fields.integer("bytes"),
        )


@dataclass(frozen=True, slots=True)
class SetStatus:
    """One set: where it is, how large, who uses it. ``last_used_s`` is its age in seconds, None if never used."""

    set: str
    family: str
    parts: tuple[PartStatus, ...]
    precision: str
    place: str
    bytes: int
    pinned: bool = False
    default: bool = False
    leases: int = 0
    uses: int = 0
    last_used_s: float | None = None

    @classmethod
    def decode(cls, fields: Fields) -> SetStatus:
        """Read all fields."""
        return cls(
            set=fields.text("set"),
            family=fields.text("family"),
            parts=fields.objects("parts", PartStatus.decode),
            precision=fields.text("precision"),
            place=fields.text("place"),
            bytes=fields.integer("bytes"),
            pinned=fields.boolean("pinned", default=False),
            default=fields.boolean("default", default=False),
            leases=fields.integer("leases", 0),
            uses=fields.integer("uses", 0),
            last_used_s=fields.number_or_none("last_used_s"),
        )


@dataclass(frozen=True, slots=True)
class CacheStatus:
    """One cache: bytes, cap, entries and what happened to it."""

    bytes: int
    cap_bytes: int
    entries: int
    hits: int = 0
    misses: int = 0
    evictions: int = 0

    @classmethod
    def decode(cls, fields: Fields) -> CacheStatus:
        """Read all fields."""
        return cls(
            bytes=fields.integer("bytes"),
            cap_bytes=fields.integer("cap_bytes"),
            entries=fields.integer("entries"),
            hits=fields.integer("hits", 0),
            misses=fields.integer("misses", 0),
            evictions=fields.integer("evictions", 0),
        )


@dataclass(frozen=True, slots=True)
class LaneStatus:
    """One queue: requests waiting and running, their payload bytes, the age of the oldest, how long one runs already.

    ``stalled``: what runs takes over 60 s and five times what its like take.
    """

    depth: int
    running: int
    bytes: int
    oldest_ms: float | None = None
    running_ms: float | None = None
    stalled: bool = False

    @classmethod
    def decode(cls, fields: Fields) -> LaneStatus:
        """Read all fields."""
        return cls(
            depth=fields.integer("depth"),
            running=fields.integer("running"),
            bytes=fields.integer("bytes"),
            oldest_ms=fields.number_or_none("oldest_ms"),
            running_ms=fields.number_or_none("running_ms"),
            stalled=fields.boolean("stalled", default=False),
        )


@dataclass(frozen=True, slots=True)
class ClientStatus:
    """One connection.

    Attributes:
        transport: the fastest way that its tensors have.
        reason: why they have no faster one, as far as the client asked for it.
    """

    name: str
    pid: int
    transport: str
    in_flight: int
    requests: int
    reason: str | None = None

    @classmethod
    def decode(cls, fields: Fields) -> ClientStatus:
        """Read all fields."""
        return cls(
            name=fields.text("name"),
            pid=fields.integer("pid"),
            transport=fields.text("transport"),
            in_flight=fields.integer("in_flight"),
            requests=fields.integer("requests"),
            reason=fields.text_or_none("reason"),
        )


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts since the start; ``errors`` by code."""

    requests: int = 0
    cancelled: int = 0
    errors: dict[str, int] = field(default_factory=dict)

    @classmethod
    def decode(cls, fields: Fields) -> Totals:
        """Read all fields."""
        return cls(
            requests=fields.integer("requests"),
            cancelled=fields.integer("cancelled"),
            errors=fields.scalars("errors", (int,)),
        )


@dataclass(frozen=True, slots=True)
class EngineSnapshot:
    """The engine's share of the status; made on the executor thread, read by any.

    Attributes:
        backend: ``native`` or ``comfy``, None before the probe; ``backend_reason`` says why this one.
        caches: by name, such as ``results`` or ``uploads``.
        downgrades: the last ten.
    """

    device: DeviceStatus
    backend: str | None = None
    backend_reason: str | None = None
    sets: tuple[SetStatus, ...] = ()
    caches: dict[str, CacheStatus] = field(default_factory=dict)
    downgrades: tuple[Downgrade, ...] = ()


@dataclass(frozen=True, slots=True)
class DaemonStatus:
    """Everything a daemon says of itself.

    Attributes:
        state: ``loading``, ``ready``, ``busy`` or ``stopping``; ``phase`` is what a loading daemon does.
        addresses: ``unix:PATH`` and ``HOST:PORT`` it listens on.
        rss_bytes, peak_rss_bytes: resident memory of the process.
    """

    version: str
    protocol: int
    name: str
    generation: str
    service_type: str
    addresses: tuple[str, ...]
    pid: int
    state: str
    phase: str | None
    phase_s: float | None
    phase_done: float | None
    uptime_s: float
    rss_bytes: int | None
    peak_rss_bytes: int | None
    backend: str | None
    backend_reason: str | None
    device: DeviceStatus
    sets: tuple[SetStatus, ...] = ()
    caches: dict[str, CacheStatus] = field(default_factory=dict)
    queue: dict[str, LaneStatus] = field(default_factory=dict)
    clients: tuple[ClientStatus, ...] = ()
    totals: Totals = field(default_factory=Totals)
    downgrades: tuple[Downgrade, ...] = ()

    @classmethod
    def decode(cls, fields: Fields) -> DaemonStatus:
        """Read all fields."""
        return cls(
            version=fields.text("version"),
            protocol=fields.integer("protocol"),
            name=fields.text("name"),
            generation=fields.text("generation"),
            service_type=fields.text("service_type"),
            addresses=fields.texts("addresses"),
            pid=fields.integer("pid"),
            state=fields.text("state"),
            phase=fields.text_or_none("phase"),
            phase_s=fields.number_or_none("phase_s"),
            phase_done=fields.number_or_none("phase_done"),
            uptime_s=fields.number("uptime_s"),
            rss_bytes=fields.integer_or_none("rss_bytes"),
            peak_rss_bytes=fields.integer_or_none("peak_rss_bytes"),
            backend=fields.text_or_none("backend"),
            backend_reason=fields.text_or_none("backend_reason"),
            device=fields.nested("device", DeviceStatus.decode),
            sets=fields.objects("sets", SetStatus.decode),
            caches=fields.table("caches", CacheStatus.decode),
            queue=fields.table("queue", LaneStatus.decode),
            clients=fields.objects("clients", ClientStatus.decode),
            totals=fields.nested_or_none("totals", Totals.decode) or Totals(),
            downgrades=fields.objects("downgrades", Downgrade.decode),
        )

    def as_record(self) -> dict[str, Any]:
        """Return it as JSON-ready data, unknown values as None."""
        from luna_daemon.fields import plain

        return {name: plain(getattr(self, name)) for name in self.__slots__}
