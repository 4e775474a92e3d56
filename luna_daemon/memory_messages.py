"""Bodies of the commands about memory: give some back, take or give back a lease."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luna_daemon.fields import Fields

FREE_CLASSES = ("results", "merged", "loras", "idle_models", "all")


@dataclass(frozen=True, slots=True)
class Free:
    """Give memory back. With ``bytes`` only as much as that, in the order of the classes; idle models leave the device.

    Attributes:
        what: ``results``, ``merged``, ``loras``, ``idle_models`` or ``all``.
    """

    what: str = "all"
    bytes: int | None = None

    @classmethod
    def decode(cls, fields: Fields) -> Free:
        """Read all fields."""
        return cls(what=fields.choice("what", FREE_CLASSES, "all"), bytes=fields.integer_or_none("bytes", 1))


@dataclass(frozen=True, slots=True)
class Freed:
    """Bytes given back, by class; ``moved`` are the sets that left the device."""

    freed_bytes: dict[str, int] = field(default_factory=dict)
    moved: tuple[str, ...] = ()

    @classmethod
    def decode(cls, fields: Fields) -> Freed:
        """Read all fields."""
        return cls(freed_bytes=fields.scalars("freed_bytes", (int,)), moved=fields.texts("moved"))


@dataclass(frozen=True, slots=True)
class Lease:
    """Hold a set for this connection, or give it back with ``release``. A connection that loads a set holds it."""

    set: str
    release: bool = False

    @classmethod
    def decode(cls, fields: Fields) -> Lease:
        """Read all fields."""
        return cls(set=fields.text("set", longest=128), release=fields.boolean("release", default=False))


@dataclass(frozen=True, slots=True)
class Leased:
    """How many leases the set has now."""

    leases: int

    @classmethod
    def decode(cls, fields: Fields) -> Leased:
        """Read all fields."""
        return cls(leases=fields.integer("leases"))
