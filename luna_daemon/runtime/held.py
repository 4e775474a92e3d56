"""A set that the daemon knows: what it was loaded from, where its weights are, who uses it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from luna_daemon.engine_seam import SetOnDiskError
from luna_daemon.runtime.backend import Place
from luna_daemon.status_messages import SetStatus

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from luna_daemon.model_messages import EncoderFacts, Expect, LanguageFacts, VaeFacts
    from luna_daemon.runtime.backend import ModelSet, NamedTensor
    from luna_daemon.status_messages import PartStatus


@dataclass(frozen=True, slots=True)
class WantedPart:
    """A part to load: from a file (``path``, with its id if it has one) or from a finished upload (``content``)."""

    role: str
    path: Path | None = None
    id: str | None = None
    content: str | None = None
    expect: Expect | None = None


@dataclass(frozen=True, slots=True)
class SetFacts:
    """What is known of a set wherever its weights are."""

    encoders: Mapping[str, EncoderFacts]
    vae: VaeFacts | None
    names: tuple[NamedTensor, ...]
    language: LanguageFacts | None = None


@dataclass(slots=True)
class HeldSet:
    """A set and its book-keeping.

    Attributes:
        wanted: what it was loaded from, to load it again.
        users: batches that run with it now; a set with users stays where it is.
    """

    id: str
    family: str
    precision: str
    parts: tuple[PartStatus, ...]
    wanted: tuple[WantedPart, ...]
    facts: SetFacts
    loaded: ModelSet | None
    is_pinned: bool = False
    is_default: bool = False
    users: int = 0
    uses: int = 0
    last_used: float | None = field(default_factory=time.monotonic)

    @property
    def model(self) -> ModelSet:
        """The weights.

        Raises:
            SetOnDiskError: they have to be read first.
        """
        if self.loaded is None:
            raise SetOnDiskError(self.id)
        return self.loaded

    @property
    def place(self) -> Place:
        """Where the weights are."""
        return Place.DISK if self.loaded is None else self.loaded.place

    @property
    def size_bytes(self) -> int:
        """Bytes that all parts hold, or would hold, in memory."""
        return sum(part.bytes for part in self.parts)

    @property
    def held_bytes(self) -> int:
        """Bytes held now."""
        return 0 if self.loaded is None else self.size_bytes

    @property
    def roles(self) -> frozenset[str]:
        """Roles of the parts."""
        return frozenset(part.role for part in self.parts)

    def touch(self) -> None:
        """Count a use."""
        self.uses += 1
        self.last_used = time.monotonic()

    def status(self, leases: int = 0) -> SetStatus:
        """Return what the daemon's status says of it."""
        age = time.monotonic() - self.last_used if self.uses and self.last_used is not None else None
        return SetStatus(
            set=self.id,
            family=self.family,
            parts=self.parts,
            precision=self.precision,
            place=self.place.value,
            bytes=self.held_bytes,
            pinned=self.is_pinned,
            default=self.is_default,
            leases=leases,
            uses=self.uses,
            last_used_s=age,
        )
