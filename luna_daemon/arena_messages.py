"""Bodies of open_cuda: an arena of the card is leased, tried from both sides, used or given back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from luna_daemon.frames import MIB

if TYPE_CHECKING:
    from luna_daemon.fields import Fields

STEPS = ("lease", "confirm", "release")
LEASE, CONFIRM, RELEASE = STEPS
HALF_BYTES = 64 * MIB
REASON_LENGTH_MAX = 300


@dataclass(frozen=True, slots=True)
class OpenCuda:
    """One step towards tensors that stay on the card.

    Attributes:
        step: ``lease`` asks for an arena; ``confirm`` says that the client could read it and has written to it;
            ``release`` gives it back, used or not.
        up_bytes, down_bytes: with ``lease``: for what the client sends, and for what the daemon sends.
        generation: with the others: of the lease.
        canary: with ``confirm``: SHA-256 of the KiB that the client wrote at the start of its range.
        reason: with ``release``: why the client does not use it, for the daemon's status.
    """

    step: str = LEASE
    up_bytes: int = HALF_BYTES
    down_bytes: int = HALF_BYTES
    generation: int | None = None
    canary: str | None = None
    reason: str | None = None

    @classmethod
    def decode(cls, fields: Fields) -> OpenCuda:
        """Read all fields."""
        return cls(
            step=fields.choice("step", STEPS, LEASE),
            up_bytes=fields.integer("up_bytes", HALF_BYTES, 4096),
            down_bytes=fields.integer("down_bytes", HALF_BYTES, 4096),
            generation=fields.integer_or_none("generation", 0),
            canary=fields.text_or_none("canary", longest=64),
            reason=fields.text_or_none("reason", longest=REASON_LENGTH_MAX),
        )


@dataclass(frozen=True, slots=True)
class CudaOpened:
    """The lease. All but its generation come with the step ``lease`` only.

    Attributes:
        uuid: of the card that the arena lies on.
        handle: what the driver opens it by, in hex.
        size_bytes: of the whole arena. The client's range is its beginning, the daemon's follows at ``up_bytes``.
        canary: SHA-256 of the KiB that the daemon wrote at the start of its range.
    """

    generation: int
    uuid: str | None = None
    handle: str | None = None
    size_bytes: int | None = None
    up_bytes: int | None = None
    down_bytes: int | None = None
    canary: str | None = None

    @classmethod
    def decode(cls, fields: Fields) -> CudaOpened:
        """Read all fields."""
        return cls(
            generation=fields.integer("generation"),
            uuid=fields.text_or_none("uuid"),
            handle=fields.text_or_none("handle"),
            size_bytes=fields.integer_or_none("size_bytes"),
            up_bytes=fields.integer_or_none("up_bytes"),
            down_bytes=fields.integer_or_none("down_bytes"),
            canary=fields.text_or_none("canary"),
        )
