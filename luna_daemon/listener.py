"""Listening sockets: accept, authenticate, serve; a thread for each connection."""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
import time
from typing import TYPE_CHECKING

import psutil

from luna_daemon import platform
from luna_daemon.connection import Connection
from luna_daemon.stream import wait_readable, widen
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from pathlib import Path

    from luna_daemon.service import DaemonService

_log = logging.getLogger("luna.listener")
_SLICE_S = 0.25


def bind_unix(path: Path) -> socket.socket:
    """Listen on a Unix socket that only this user reaches. The caller holds the daemon's lock, so a left-over goes.

    Raises:
        DaemonError: ``path-unsafe`` if the folder is not private.
    """
    platform.prepare_private_folder(path.parent)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(old)
    listener.listen(64)
    return listener


def bind_tcp(host: str, port: int) -> socket.socket:
    """Listen on a loopback TCP port; port 0 lets the system choose.

    Raises:
        DaemonError: ``port-taken``, naming the holder where the system tells.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(64)
    except OSError as error:
        listener.close()
        if error.errno not in {errno.EADDRINUSE, errno.EACCES}:
            raise
        raise DaemonError(
            "port-taken",
            f"port {port} on {host} is taken by {_holder(port)}",
            "choose another port with --port, or stop that program",
        ) from error
    return listener


def _holder(port: int) -> str:
    try:
        for entry in psutil.net_connections("tcp"):
            if entry.laddr and entry.laddr.port == port and entry.status == psutil.CONN_LISTEN and entry.pid:
                return f"pid {entry.pid} ({psutil.Process(entry.pid).name()})"
    except psutil.Error:
        return "another program"
    return "another program"


class Listener:
    """The accept loop of one listening socket."""

    def __init__(self, service: DaemonService, listening: socket.socket, port: int | None) -> None:
        self._service = service
        self._listening = listening
        self._port = port
        self._unauthenticated = threading.BoundedSemaphore(service.limits.unauthenticated)
        self._connections = threading.BoundedSemaphore(service.limits.connections)
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="luna-accept", daemon=True)

    def start(self) -> None:
        """Start to accept."""
        self._thread.start()

    def close(self) -> None:
        """Accept no more."""
        self._is_closed.set()
        self._thread.join(2.0)
        self._listening.close()

    def _loop(self) -> None:
        while not self._is_closed.is_set():
            if not wait_readable(self._listening, _SLICE_S):
                continue
            if not self._take_slots():
                continue
            try:
                accepted, _ = self._listening.accept()
            except OSError as error:
                self._give_slots()
                if not self._is_closed.is_set():
                    _log.warning("accept failed: %s", error.strerror, extra={"code": "accept-failed"})
                    time.sleep(0.1)  # out of descriptors: connections that end give some back
                continue
            thread = threading.Thread(target=self._serve, args=(accepted,), name="luna-reader", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # out of threads: connections that end give some back
                accepted.close()
                self._give_slots()
                _log.warning("no thread for a connection", extra={"code": "accept-failed"})
                time.sleep(0.1)

    def _take_slots(self) -> bool:
        """Wait a moment for a free connection and a free handshake; a flood waits in the backlog, not in threads."""
        if not self._connections.acquire(timeout=_SLICE_S):
            return False
        if not self._unauthenticated.acquire(timeout=_SLICE_S):
            self._connections.release()
            return False
        return True

    def _give_slots(self) -> None:
        self._unauthenticated.release()
        self._connections.release()

    def _serve(self, accepted: socket.socket) -> None:
        try:
            with accepted:
                if self._port is not None:
                    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                widen(accepted)
                connection = Connection(self._service, accepted, self._port)
                try:
                    is_welcome = connection.handshake()
                finally:
                    self._unauthenticated.release()
                if is_welcome:
                    self._serve_client(connection)
        except Exception:  # noqa: BLE001 - border of the thread, logged with its traceback
            _log.exception("a connection failed", extra={"code": "internal"})
        finally:
            self._connections.release()

    def _serve_client(self, connection: Connection) -> None:
        self._service.add(connection)
        try:
            connection.serve()
        finally:
            self._service.remove(connection)
