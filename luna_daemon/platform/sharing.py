"""Whether the driver can pass a card's memory from one process of this system to another.

CUDA does so between processes of one Linux system that see each other: same boot, same pid and IPC namespaces (NVIDIA,
CUDA C++ Programming Guide, "Interprocess Communication"). Containers mostly do not; WSL2 never does.
"""

from __future__ import annotations

import sys
from pathlib import Path

_NAMESPACES = ("pid", "ipc")


def system_fault(release: Path = Path("/proc/sys/kernel/osrelease")) -> str | None:
    """Say why no process of this system can share a card's memory, None if they can."""
    if sys.platform != "linux":
        return f"CUDA shares no memory between processes on {sys.platform}"
    try:
        name = release.read_text("ascii")
    except OSError:
        return None  # the canary will tell
    return "CUDA shares no memory between processes under WSL2" if "microsoft" in name.lower() else None


def apart(pid: int | None, processes: Path = Path("/proc")) -> str | None:
    """Say why a process of this user cannot share a card's memory with this one, None if it can.

    Args:
        pid: as this process sees it; 0 or None for one that it cannot see.
        processes: where the kernel shows them.
    """
    if not pid:
        return "the client runs in a container or namespace of its own"
    for name in _NAMESPACES:
        try:
            mine, its = ((processes / one / "ns" / name).readlink() for one in ("self", str(pid)))
        except OSError as error:
            return f"the client's {name} namespace cannot be seen: {error.strerror}"
        if mine != its:
            return f"the client runs in another {name} namespace (a container)"
    return None
