"""Opening a model file for positioned reads, and the words for what is no model file at all.

Files are read, never mapped: a mapped file that another program truncates kills the process.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING, BinaryIO

from luna_engine.errors import InputFileError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PRETENDERS = (
    (b"version https://git-lfs", "a git-LFS pointer, not a model: run `git lfs pull`, or download the file itself"),
    (b"<!DOCTYPE", "a download page, not a model: download the file itself"),
    (b"<!doctype", "a download page, not a model: download the file itself"),
    (b"<html", "a download page, not a model: download the file itself"),
    (b"<?xml", "a web answer, not a model: download the file itself"),
)
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"


def damaged(path: Path, what: str, hint: str | None = None) -> InputFileError:
    """Return the error for a file whose bytes cannot be a model's."""
    return InputFileError(
        "file-damaged", f"{path.name}: {what}", hint or "copy or download the file again", file=str(path)
    )


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file unbuffered and give it with its size.

    Raises:
        InputFileError: ``file-missing``, ``wrong-type`` (a folder, a device) or ``file-unreadable``.
    """
    try:
        with path.open("rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputFileError("wrong-type", f"{path} is no regular file", file=str(path))
            yield file, status.st_size
    except FileNotFoundError as error:
        raise InputFileError(
            "file-missing", f"there is no {path}", "check the path; `luna weights list` shows what is known",
            file=str(path),
        ) from error  # fmt: skip
    except IsADirectoryError as error:
        raise InputFileError("wrong-type", f"{path} is a folder", "name a file in it", file=str(path)) from error
    except PermissionError as error:
        raise InputFileError(
            "file-unreadable", f"{path}: {error.strerror}", "allow yourself to read it", file=str(path)
        ) from error


def read_at(file: BinaryIO, offset: int, count: int) -> bytes:
    """Read up to ``count`` bytes at ``offset``; fewer only at the end of the file."""
    file.seek(offset)
    parts: list[bytes] = []
    while count > 0 and (part := file.read(count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def is_pickle(start: bytes) -> bool:
    """Tell whether a file's first bytes are those of a torch archive or a pickle."""
    return start.startswith((_ZIP, _PICKLE))


def pretender(start: bytes) -> str | None:
    """Say what a text file that bears a model's name really is, or None."""
    return next((words for mark, words in _PRETENDERS if start.startswith(mark)), None)
