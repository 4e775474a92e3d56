"""What a converted file says about itself: by which Luna, from which source, with which error.

The values that are known only at the end (hashes, errors) get places of fixed width in the header.
"""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import luna_engine

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from luna_engine.weights.containers.records import Header

# Raised whenever a change here makes other bytes from the same source.
RULES = 1

FP8_LAYOUT = "luna.fp8_layout"
CONVOLUTIONS = "luna.convolutions"  # absent: those of the mix
_HASH_WIDTH = 64
_ERRORS_WIDTH = 4096
_CARRIED_LIMIT = 64 * 1024
_NOT_CARRIED = ("_quantization_metadata", "modelspec.thumbnail")


@dataclass(frozen=True, slots=True)
class SourceStamp:
    """Which source, and which state of it. ``path`` is relative to its root and never absolute.

    Of a source of several files ``path`` is the first, ``size_bytes`` their sum, ``mtime_ns`` the latest.
    """

    path: str
    root_id: str
    name: str
    size_bytes: int
    mtime_ns: int
    header_sha256: str


@dataclass(frozen=True, slots=True)
class Findings:
    """What the conversion found out. Hashes are hex, ``errors`` holds figures per class of tensors."""

    source_sha256: str
    data_sha256: str
    errors: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Provenance:
    """What a file claims about itself, read back."""

    version: str
    rules: int
    precision: str
    stamp: SourceStamp
    source_sha256: str
    data_sha256: str
    created: str
    kernel: str
    errors: Mapping[str, Any]
    fp8_layout: str = ""
    convolutions: str = "mix"


def entries(stamp: SourceStamp, precision: str, kernel: str, created: str, findings: Findings | None) -> dict[str, str]:
    """Return the ``luna.*`` strings; without ``findings`` their places are blank but as wide."""
    errors = "" if findings is None else json.dumps(findings.errors, separators=(",", ":"))
    if len(errors) > _ERRORS_WIDTH:
        errors = "{}"
    return {
        "luna.version": luna_engine.__version__,
        "luna.rules": str(RULES),
        "luna.precision": precision,
        "luna.source.path": stamp.path,
        "luna.source.root_id": stamp.root_id,
        "luna.source.name": stamp.name,
        "luna.source.size_bytes": str(stamp.size_bytes),
        "luna.source.mtime_ns": str(stamp.mtime_ns),
        "luna.source.header_sha256": stamp.header_sha256,
        "luna.source.sha256": (findings.source_sha256 if findings else "").ljust(_HASH_WIDTH),
        "luna.data_sha256": (findings.data_sha256 if findings else "").ljust(_HASH_WIDTH),
        "luna.kernel": kernel,
        "luna.created": created,
        "luna.errors": errors.ljust(_ERRORS_WIDTH),
    }


def carried(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the source's own metadata that a person or ComfyUI reads and that still holds for the copy."""
    return {
        key: value
        for key, value in metadata.items()
        if isinstance(value, str)
        and key not in _NOT_CARRIED
        and not key.startswith(("luna.", "general."))
        and len(value) <= _CARRIED_LIMIT
    }


def stamp_of(header: Header, root: Path, root_id: str) -> SourceStamp:
    """Return the stamp of a source as it is now."""
    size, mtime_ns = state_of(header.files)
    return SourceStamp(
        header.path.absolute().relative_to(root).as_posix(),
        root_id,
        header.path.name,
        size,
        mtime_ns,
        header.sha256,
    )


def state_of(files: Iterable[Path]) -> tuple[int, int]:
    """Return size and time of a source of one or several files: the sum, and the latest."""
    found = [file.stat() for file in files]
    return sum(status.st_size for status in found), max(status.st_mtime_ns for status in found)


def read(metadata: Mapping[str, Any]) -> Provenance | None:
    """Read back what `entries` wrote; None for a file that Luna did not make."""
    try:
        stamp = SourceStamp(
            metadata["luna.source.path"],
            metadata["luna.source.root_id"],
            metadata["luna.source.name"],
            int(metadata["luna.source.size_bytes"]),
            int(metadata["luna.source.mtime_ns"]),
            metadata["luna.source.header_sha256"],
        )
        return Provenance(
            metadata["luna.version"],
            int(metadata["luna.rules"]),
            metadata["luna.precision"],
            stamp,
            metadata["luna.source.sha256"].strip(),
            metadata["luna.data_sha256"].strip(),
            metadata["luna.created"],
            metadata["luna.kernel"],
            json.loads(metadata["luna.errors"].strip() or "{}"),
            metadata.get(FP8_LAYOUT, ""),
            metadata.get(CONVOLUTIONS, "mix"),
        )
    except (KeyError, ValueError, AttributeError, TypeError):
        return None


def now() -> str:
    """Return the time in UTC to the second, always 20 characters."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
