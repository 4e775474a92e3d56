"""What differs between operating systems. Only POSIX is built; elsewhere the first use says so."""

from __future__ import annotations

import os
from typing import NoReturn

if os.name == "posix":
    from luna_daemon.platform.posix import (
        FileLock,
        ProcessWatch,
        boot_id,
        create_time,
        peer_pid,
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
        "peer_pid",
        "peer_uid",
        "prepare_private_folder",
        "send_signal",
        "socket_folder",
        "spawn_detached",
    ]
else:

    def __getattr__(name: str) -> NoReturn:
        """Refuse at use, not at import: ComfyUI on Windows shall still load Luna's other nodes."""
        from luna_engine.errors import DaemonError

        if name.startswith("__"):
            raise AttributeError(name)
        raise DaemonError(
            "platform-unsupported",
            f"daemons run on Linux, WSL2 and macOS so far, not on {os.name}",
            "on Windows use WSL2",
        )
