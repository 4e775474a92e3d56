"""What both containers say about a file, in one form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file. ``shape`` is row-major (GGUF's stored order reversed); ``offset`` counts from byte 0.

    ``part`` is the number of the file among the header's.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int
    part: int = 0


@dataclass(frozen=True, slots=True)
class Header:
    """A header that passed every check. ``sha256`` is that of its bytes: it changes when names or shapes do.

    ``parts`` are the files of a model that is cut into several: sizes are then sums over them.
    """

    path: Path
    container: str
    size_bytes: int
    header_bytes: int
    sha256: str
    metadata: Mapping[str, Any]
    tensors: tuple[TensorInfo, ...]
    parts: tuple[Path, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """Return the files that tensors are in, as their ``part`` counts."""
        return self.parts or (self.path,)
