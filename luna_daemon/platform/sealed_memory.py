"""Nameless shared memory of a fixed size (Linux memfd): made and sealed by the daemon, mapped by both sides.

It has no name in any file system and is gone with its last holder, however that one ends. The seals keep a peer from
cutting it short, which would kill whoever reads it.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys

from luna_engine.errors import DaemonError

# Numbers of Linux' fcntl interface (fcntl.h); Python names only the first six, from 3.9 and on Linux.
_ADD_SEALS, _GET_SEALS = 1033, 1034
_SEAL_SEAL, _SEAL_SHRINK, _SEAL_GROW, _SEAL_FUTURE_WRITE = 0x01, 0x02, 0x04, 0x10


def missing() -> str | None:
    """Say why this system has no sealed memory, None if it has."""
    if sys.platform != "linux" or not hasattr(os, "memfd_create"):
        return f"{sys.platform} has no sealed shared memory"
    return None


def create(name: str, size_bytes: int, *, peer_may_write: bool) -> tuple[int, mmap.mmap]:
    """Make and map memory, then seal it.

    Args:
        name: shown in ``/proc/<pid>/maps`` only.
        size_bytes: can never change afterwards.
        peer_may_write: False keeps everybody who maps it from now on from writing.

    Returns:
        The descriptor to pass on, and this process's writable mapping.

    Raises:
        DaemonError: ``transport-failed`` with the system's reason: no memory, no address space, no descriptors.
    """
    reason = missing()
    if reason is not None:
        raise DaemonError("transport-failed", reason)
    descriptor = None
    try:
        descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, size_bytes)
        mapping = mmap.mmap(descriptor, size_bytes)
        _seal(descriptor, _SEAL_SEAL | _SEAL_SHRINK | _SEAL_GROW | (0 if peer_may_write else _SEAL_FUTURE_WRITE))
    except (OSError, ValueError) as error:
        if descriptor is not None:
            os.close(descriptor)
        raise _failed("make", size_bytes, error) from error
    return descriptor, mapping


def _seal(descriptor: int, seals: int) -> None:
    import fcntl

    fcntl.fcntl(descriptor, _ADD_SEALS, seals)


def attach(descriptor: int, size_bytes: int, *, is_writable: bool) -> mmap.mmap:
    """Map memory that the daemon made.

    Raises:
        DaemonError: ``transport-failed``: it cannot be mapped, is smaller than said, or could be cut short.
    """
    import fcntl

    try:
        seals = fcntl.fcntl(descriptor, _GET_SEALS)
        if not seals & _SEAL_SHRINK or os.fstat(descriptor).st_size < size_bytes:
            raise OSError(errno.EINVAL, "it is not sealed, or smaller than said")
        return mmap.mmap(descriptor, size_bytes, access=mmap.ACCESS_WRITE if is_writable else mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise _failed("map", size_bytes, error) from error


def _failed(what: str, size_bytes: int, error: Exception) -> DaemonError:
    why = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return DaemonError("transport-failed", f"cannot {what} {size_bytes} bytes of shared memory: {why}")
