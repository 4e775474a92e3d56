"""What differs between operating systems. Only POSIX is built; elsewhere the import says so."""

from __future__ import annotations

import os

from luna_engine.errors import DaemonError

if os.name != "posix":
    raise DaemonError(
        "platform-unsupported",
        f"daemons run on Linux, WSL2 and macOS so far, not on {os.name}",
        "on Windows use WSL2",
    )

from luna_daemon.platform.posix import (
    FileLock,
    ProcessWatch,
    boot_id,
    create_time,
    peer_uid,
    prepare_private_folder,
    send_signal,
    socket_folder,
    spawn_detached,
)

__all__ = [
    "FileLock",
    "ProcessWatch",
    "boot_id",
    "create_time",
    "peer_uid",
    "prepare_private_folder",
    "send_signal",
    "socket_folder",
    "spawn_detached",
]
