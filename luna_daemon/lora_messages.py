"""Bodies of the LoRA commands: list, has, put, drop, validate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from luna_daemon.fields import invalid

if TYPE_CHECKING:
    from luna_daemon.fields import Fields

HASH_CHARACTERS = 128
LISTED_MAX = 100
"""Long lists stop here, with a total beside them."""


@dataclass(frozen=True, slots=True)
class LoraList:
    """Ask which LoRAs the daemon keeps."""

    @classmethod
    def decode(cls, fields: Fields) -> LoraList:  # noqa: ARG003 - it has no fields
        """Read all fields."""
        return cls()


@dataclass(frozen=True, slots=True)
class LoraRow:
    """One LoRA that is kept.

    Attributes:
        form: ``low_rank`` (can run beside the layers), ``merged`` or ``mixed``.
        source: the file id it was read from, None for one that was sent.
        weights: how many weights it changes.
    """

    hash: str
    form: str
    bytes: int
    weights: int
    source: str | None = None
    uses: int = 0
    in_use: bool = False

    @classmethod
    def decode(cls, fields: Fields) -> LoraRow:
        """Read all fields."""
        return cls(
            hash=fields.text("hash"),
            form=fields.text("form"),
            bytes=fields.integer("bytes"),
            weights=fields.integer("weights"),
            source=fields.text_or_none("source"),
            uses=fields.integer("uses", 0),
            in_use=fields.boolean("in_use", default=False),
        )


@dataclass(frozen=True, slots=True)
class Loras:
    """All LoRAs that are kept, the longest unused first."""

    entries: tuple[LoraRow, ...]

    @classmethod
    def decode(cls, fields: Fields) -> Loras:
        """Read all fields."""
        return cls(entries=fields.objects("entries", LoraRow.decode))


@dataclass(frozen=True, slots=True)
class LoraHas:
    """Ask which of these LoRAs the daemon keeps."""

    hashes: tuple[str, ...]

    @classmethod
    def decode(cls, fields: Fields) -> LoraHas:
        """Read all fields."""
        return cls(hashes=fields.texts("hashes", longest=HASH_CHARACTERS))


@dataclass(frozen=True, slots=True)
class LoraFound:
    """Which are here, and which must be sent."""

    present: tuple[str, ...]
    missing: tuple[str, ...]

    @classmethod
    def decode(cls, fields: Fields) -> LoraFound:
        """Read all fields."""
        return cls(present=fields.texts("present"), missing=fields.texts("missing"))


@dataclass(frozen=True, slots=True)
class LoraPut:
    """Give the daemon a LoRA: segment ``blob``, or a file by its id.

    Attributes:
        hash: BLAKE2b-256 of the content; must be given with a blob, and must be the file's if it is given with one.
    """

    hash: str | None = None
    id: str | None = None

    @classmethod
    def decode(cls, fields: Fields) -> LoraPut:
        """Read all fields."""
        body = cls(
            hash=fields.text_or_none("hash", longest=HASH_CHARACTERS),
            id=fields.text_or_none("id", longest=4096),
        )
        if body.hash is None and body.id is None:
            raise invalid(fields.place("hash"), "a blob needs its hash, a file its id")
        return body


@dataclass(frozen=True, slots=True)
class LoraMatch:
    """How a LoRA fits one loaded set; ``unmatched`` stops at 100 names."""

    matched: int
    unmatched: tuple[str, ...] = ()
    unmatched_total: int = 0

    @classmethod
    def decode(cls, fields: Fields) -> LoraMatch:
        """Read all fields."""
        return cls(
            matched=fields.integer("matched"),
            unmatched=fields.texts("unmatched"),
            unmatched_total=fields.integer("unmatched_total", 0),
        )


@dataclass(frozen=True, slots=True)
class LoraStored:
    """The LoRA is kept.

    Attributes:
        sets: id of each loaded set → how it fits; a set that it does not fit in shape is left out.
        unknown: names of the file that are for a text encoder and were not understood, 100 at most.
    """

    entry: LoraRow
    sets: dict[str, LoraMatch] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    unknown_total: int = 0

    @classmethod
    def decode(cls, fields: Fields) -> LoraStored:
        """Read all fields."""
        return cls(
            entry=fields.nested("entry", LoraRow.decode),
            sets=fields.table("sets", LoraMatch.decode, most=512),
            unknown=fields.texts("unknown"),
            unknown_total=fields.integer("unknown_total", 0),
        )


@dataclass(frozen=True, slots=True)
class LoraDrop:
    """Forget some LoRAs, or ``all``."""

    hashes: tuple[str, ...] = ()
    all: bool = False

    @classmethod
    def decode(cls, fields: Fields) -> LoraDrop:
        """Read all fields."""
        body = cls(
            hashes=fields.texts("hashes", longest=HASH_CHARACTERS),
            all=fields.boolean("all", default=False),
        )
        if bool(body.hashes) == body.all:
            raise invalid(fields.place("hashes"), "name hashes, or all")
        return body


@dataclass(frozen=True, slots=True)
class LoraDropped:
    """What was freed, and which stayed because a request runs with them."""

    freed_bytes: int
    in_use: tuple[str, ...] = ()

    @classmethod
    def decode(cls, fields: Fields) -> LoraDropped:
        """Read all fields."""
        return cls(freed_bytes=fields.integer("freed_bytes"), in_use=fields.texts("in_use"))


@dataclass(frozen=True, slots=True)
class LoraValidate:
    """Judge a LoRA against a set without keeping it: one that is here by its hash, or a file by its id."""

    set: str
    hash: str | None = None
    id: str | None = None

    @classmethod
    def decode(cls, fields: Fields) -> LoraValidate:
        """Read all fields."""
        body = cls(
            set=fields.text("set", longest=128),
            hash=fields.text_or_none("hash", longest=HASH_CHARACTERS),
            id=fields.text_or_none("id", longest=4096),
        )
        if (body.hash is None) == (body.id is None):
            raise invalid(fields.place("hash"), "either hash or id")
        return body


@dataclass(frozen=True, slots=True)
class LoraReport:
    """What a LoRA is and how it fits.

    Attributes:
        ranks: that occur, in order.
        problems: sentences; empty for a LoRA that fits whole. 100 at most.
    """

    hash: str
    form: str
    matched: int
    unmatched: tuple[str, ...] = ()
    unmatched_total: int = 0
    ranks: tuple[int, ...] = ()
    problems: tuple[str, ...] = ()

    @classmethod
    def decode(cls, fields: Fields) -> LoraReport:
        """Read all fields."""
        return cls(
            hash=fields.text("hash"),
            form=fields.text("form"),
            matched=fields.integer("matched"),
            unmatched=fields.texts("unmatched"),
            unmatched_total=fields.integer("unmatched_total", 0),
            ranks=fields.integers("ranks"),
            problems=fields.texts("problems"),
        )
