"""Where the bytes of a file that is about to be written go."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a tensor's bytes go. ``offset`` counts from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Layout:
    """A file to be written: its header (all bytes before the data), its slots and its exact size."""

    header: bytes
    slots: tuple[Slot, ...]
    size_bytes: int
