"""Bodies of the control commands: hello, auth, ping, status, cancel, shutdown, open_shm."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luna_daemon.frames import MIB

if TYPE_CHECKING:
    from luna_daemon.fields import Fields

MAGIC = "luna-daemon"
PROTOCOL = 1
SERVICE_TYPES = ("full", "clip", "vae")


@dataclass(frozen=True, slots=True)
class ClientInfo:
    """Who connects, for the status of the daemon."""

    name: str
    version: str
    pid: int

    @classmethod
    def decode(cls, fields: Fields) -> ClientInfo:
        """Read all fields."""
        return cls(
            name=fields.text("name", longest=128),
            version=fields.text("version", longest=64),
            pid=fields.integer("pid"),
        )


@dataclass(frozen=True, slots=True)
class CudaOffer:
    """What a client that could map CUDA memory runs on."""

    uuid: str
    torch: str
    allocator: str
    expandable_segments: bool

    @classmethod
    def decode(cls, fields: Fields) -> CudaOffer:
        """Read all fields."""
        return cls(
            uuid=fields.text("uuid", longest=128),
            torch=fields.text("torch", longest=64),
            allocator=fields.text("allocator", longest=64),
            expandable_segments=fields.boolean("expandable_segments"),
        )


@dataclass(frozen=True, slots=True)
class TensorOffer:
    """The ways in which a client could exchange tensors; inline always works."""

    boot_id: str | None = None
    shm: bool = False
    cuda: CudaOffer | None = None

    @classmethod
    def decode(cls, fields: Fields) -> TensorOffer:
        """Read all fields."""
        return cls(
            boot_id=fields.text_or_none("boot_id", longest=64),
            shm=fields.boolean("shm", default=False),
            cuda=fields.nested_or_none("cuda", CudaOffer.decode),
        )


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of a client. Magic and protocol are judged before the rest is read strictly."""

    nonce: str
    client: ClientInfo
    protocol: tuple[int, int] = (PROTOCOL, PROTOCOL)
    magic: str = MAGIC
    tensors: TensorOffer = field(default_factory=TensorOffer)

    @classmethod
    def decode(cls, fields: Fields) -> Hello:
        """Read all fields."""
        low, high = _pair(fields)
        return cls(
            magic=fields.text("magic", longest=64),
            protocol=(low, high),
            nonce=fields.text("nonce", longest=64),
            client=fields.nested("client", ClientInfo.decode),
            tensors=fields.nested_or_none("tensors", TensorOffer.decode) or TensorOffer(),
        )


def _pair(fields: Fields) -> tuple[int, int]:
    values = fields.integers("protocol", 1, 1_000_000, most=2)
    return (values[0], values[1]) if len(values) == 2 else (0, 0)  # (0, 0) overlaps with nothing


@dataclass(frozen=True, slots=True)
class Challenge:
    """TCP only: the daemon shows that it knows the token and asks the same of the client."""

    nonce: str
    proof: str

    @classmethod
    def decode(cls, fields: Fields) -> Challenge:
        """Read all fields."""
        return cls(nonce=fields.text("nonce", longest=64), proof=fields.text("proof", longest=64))


@dataclass(frozen=True, slots=True)
class Auth:
    """TCP only: the client's proof of the token."""

    proof: str

    @classmethod
    def decode(cls, fields: Fields) -> Auth:
        """Read all fields."""
        return cls(proof=fields.text("proof", longest=64))


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """The device that a daemon computes on. ``total_bytes`` is None while unknown."""

    kind: str
    uuid: str | None = None
    name: str | None = None
    total_bytes: int | None = None

    @classmethod
    def decode(cls, fields: Fields) -> DeviceInfo:
        """Read all fields."""
        return cls(
            kind=fields.text("kind"),
            uuid=fields.text_or_none("uuid"),
            name=fields.text_or_none("name"),
            total_bytes=fields.integer_or_none("total_bytes"),
        )


@dataclass(frozen=True, slots=True)
class Welcome:
    """The daemon accepts the connection and says what it is.

    Attributes:
        state: ``loading``, ``ready``, ``busy`` or ``stopping``.
        sets: ids of the loaded sets.
        limits: the fields of `luna_daemon.frames.Limits`.
        transports: beside inline, each with ``ok`` or the reason why not.
    """

    protocol: int
    version: str
    name: str
    generation: str
    service_type: str
    state: str
    backend: str | None
    device: DeviceInfo
    commands: tuple[str, ...]
    sets: tuple[str, ...]
    limits: dict[str, int]
    transports: dict[str, str]

    @classmethod
    def decode(cls, fields: Fields) -> Welcome:
        """Read all fields."""
        return cls(
            protocol=fields.integer("protocol"),
            version=fields.text("version"),
            name=fields.text("name"),
            generation=fields.text("generation"),
            service_type=fields.choice("service_type", SERVICE_TYPES),
            state=fields.text("state"),
            backend=fields.text_or_none("backend"),
            device=fields.nested("device", DeviceInfo.decode),
            commands=fields.texts("commands"),
            sets=fields.texts("sets"),
            limits=fields.scalars("limits", (int,)),
            transports=fields.scalars("transports", (str,)),
        )


@dataclass(frozen=True, slots=True)
class Ping:
    """Ask whether the daemon lives. The nonce comes back."""

    nonce: str | None = None

    @classmethod
    def decode(cls, fields: Fields) -> Ping:
        """Read all fields."""
        return cls(nonce=fields.text_or_none("nonce", longest=64))


@dataclass(frozen=True, slots=True)
class Pong:
    """Sign of life. ``phase`` is what a loading daemon does, ``phase_s`` for how long already."""

    nonce: str | None
    generation: str
    state: str
    phase: str | None
    phase_s: float | None
    uptime_ms: int

    @classmethod
    def decode(cls, fields: Fields) -> Pong:
        """Read all fields."""
        return cls(
            nonce=fields.text_or_none("nonce"),
            generation=fields.text("generation"),
            state=fields.text("state"),
            phase=fields.text_or_none("phase"),
            phase_s=fields.number_or_none("phase_s"),
            uptime_ms=fields.integer("uptime_ms"),
        )


@dataclass(frozen=True, slots=True)
class Cancel:
    """Give up one request of the same connection."""

    request: int

    @classmethod
    def decode(cls, fields: Fields) -> Cancel:
        """Read all fields."""
        return cls(request=fields.integer("request", low=1))


@dataclass(frozen=True, slots=True)
class Cancelled:
    """What became of it: ``removed`` (was queued), ``stopping`` (runs), ``finished`` or ``unknown``."""

    outcome: str

    @classmethod
    def decode(cls, fields: Fields) -> Cancelled:
        """Read all fields."""
        return cls(outcome=fields.text("outcome"))


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Drain and exit 0. With ``force`` queued requests are answered ``daemon-draining`` at once."""

    deadline_ms: int = 10_000
    force: bool = False

    @classmethod
    def decode(cls, fields: Fields) -> Shutdown:
        """Read all fields."""
        return cls(
            deadline_ms=fields.integer("deadline_ms", 10_000, 0, 3_600_000),
            force=fields.boolean("force", default=False),
        )


@dataclass(frozen=True, slots=True)
class ShutdownReply:
    """``accepted`` is false when the daemon is stopping already."""

    accepted: bool

    @classmethod
    def decode(cls, fields: Fields) -> ShutdownReply:
        """Read all fields."""
        return cls(accepted=fields.boolean("accepted"))


@dataclass(frozen=True, slots=True)
class OpenShm:
    """Ask for shared memory of this connection: bytes each way, and the size from which the daemon shall use it."""

    up_bytes: int = 64 * MIB
    down_bytes: int = 64 * MIB
    from_bytes: int = 256 * 1024

    @classmethod
    def decode(cls, fields: Fields) -> OpenShm:
        """Read all fields."""
        return cls(
            up_bytes=fields.integer("up_bytes", 64 * MIB, 4096),
            down_bytes=fields.integer("down_bytes", 64 * MIB, 4096),
            from_bytes=fields.integer("from_bytes", 256 * 1024, 1),
        )


@dataclass(frozen=True, slots=True)
class ShmOpened:
    """Two descriptors come with this reply: memory for what the client sends, and for what the daemon sends."""

    generation: int
    up_bytes: int
    down_bytes: int

    @classmethod
    def decode(cls, fields: Fields) -> ShmOpened:
        """Read all fields."""
        return cls(
            generation=fields.integer("generation"),
            up_bytes=fields.integer("up_bytes"),
            down_bytes=fields.integer("down_bytes"),
        )


OUT_OF_MEMORY = "out-of-memory"
"""The reason of a downgrade that the lack of memory forced."""


@dataclass(frozen=True, slots=True)
class Downgrade:
    """Luna did something other than asked: what, instead of what, and why."""

    asked: str = field(metadata={"wire": "from"})
    did: str = field(metadata={"wire": "to"})
    reason: str

    @classmethod
    def decode(cls, fields: Fields) -> Downgrade:
        """Read all fields; on the wire they are called from, to and reason."""
        return cls(asked=fields.text("from"), did=fields.text("to"), reason=fields.text("reason"))

    def as_wire(self) -> dict[str, Any]:
        """Return the JSON record."""
        return {"from": self.asked, "to": self.did, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class LoraDid:
    """How a LoRA was applied.

    Attributes:
        path: ``side`` (low-rank products beside the layers), ``merged`` or ``exact``.
        unmatched: how many of its weights the set does not have.
    """

    hash: str
    path: str
    unmatched: int = 0

    @classmethod
    def decode(cls, fields: Fields) -> LoraDid:
        """Read all fields."""
        return cls(hash=fields.text("hash"), path=fields.text("path"), unmatched=fields.integer("unmatched", 0))


@dataclass(frozen=True, slots=True)
class Did:
    """What the daemon did for one request; travels beside the body of a reply.

    Attributes:
        place_before: where the set was when the request began: ``device``, ``host`` or ``disk``.
        rows, requests: size of the batch it ran in.
        tiled: ``no``, ``asked`` or ``oom``.
        transport: ``in`` and ``out``: how tensors came and went; ``reason`` where that was not the best way.
        crop: ``[height, width]`` in pixels that were kept, None if nothing was cut off.
        loras: of all prompts that were computed, each LoRA and path once.
    """

    backend: str | None = None
    set: str | None = None
    place_before: str | None = None
    rows: int | None = field(default=None, metadata={"wire": "batch.rows"})
    requests: int | None = field(default=None, metadata={"wire": "batch.requests"})
    cached: bool = False
    tiled: str = "no"
    crop: tuple[int, ...] | None = None
    downgraded: tuple[Downgrade, ...] = ()
    transport: dict[str, str] = field(default_factory=dict)
    loras: tuple[LoraDid, ...] = ()

    @classmethod
    def decode(cls, fields: Fields) -> Did:
        """Read all fields."""
        batch = fields.scalars("batch", (int,))
        crop = fields.integers("crop")
        return cls(
            backend=fields.text_or_none("backend"),
            set=fields.text_or_none("set"),
            place_before=fields.text_or_none("place_before"),
            rows=batch.get("rows"),
            requests=batch.get("requests"),
            cached=fields.boolean("cached", default=False),
            tiled=fields.text("tiled", "no"),
            crop=crop or None,
            downgraded=fields.objects("downgraded", Downgrade.decode),
            transport=fields.scalars("transport", (str,)),
            loras=fields.objects("loras", LoraDid.decode),
        )

    def as_wire(self) -> dict[str, Any]:
        """Return the JSON record."""
        batch = None if self.rows is None else {"rows": self.rows, "requests": self.requests or 1}
        return {
            "backend": self.backend,
            "set": self.set,
            "place_before": self.place_before,
            "loras": [{"hash": one.hash, "path": one.path, "unmatched": one.unmatched} for one in self.loras],
            "batch": batch,
            "cached": self.cached,
            "tiled": self.tiled,
            "crop": None if self.crop is None else list(self.crop),
            "downgraded": [entry.as_wire() for entry in self.downgraded],
            "transport": self.transport,
        }


@dataclass(frozen=True, slots=True)
class Progress:
    """Body of a part: how far a request is that was sent with ``progress``."""

    done: int
    total: int
    unit: str

    @classmethod
    def decode(cls, fields: Fields) -> Progress:
        """Read all fields."""
        return cls(done=fields.integer("done"), total=fields.integer("total"), unit=fields.text("unit"))


@dataclass(frozen=True, slots=True)
class Timing:
    """Where a request's time went, in milliseconds."""

    queue: float = 0.0
    window: float = 0.0
    load: float = 0.0
    run: float = 0.0

    @classmethod
    def decode(cls, fields: Fields) -> Timing:
        """Read all fields."""
        return cls(
            queue=fields.number("queue", 0.0),
            window=fields.number("window", 0.0),
            load=fields.number("load", 0.0),
            run=fields.number("run", 0.0),
        )
