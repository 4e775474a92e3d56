"""The daemon's half of a handshake: who connects, with which protocol, and does it know the token."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from luna_daemon import auth, frames, platform
from luna_daemon.fields import decode_body, plain
from luna_daemon.messages import MAGIC, PROTOCOL, Auth, Challenge, Hello
from luna_daemon.stream import ConnectionLostError, wait_readable
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from luna_daemon.messages import Welcome
    from luna_daemon.stream import FrameReader

HANDSHAKE_SECONDS = 2.0


class Rejected(Exception):  # noqa: N818 - a signal to the connection
    """The handshake failed; ``error`` is told to the peer, None if it spoke no Luna at all."""

    def __init__(self, error: DaemonError | None, why: str) -> None:
        super().__init__(why)
        self.error = error


class Handshake:
    """One handshake on an accepted socket.

    Args:
        link, reader: the connection.
        send: sends one header.
        token: of this user.
        port: the TCP port it came through, None for a Unix socket.
    """

    def __init__(
        self,
        link: socket.socket,
        reader: FrameReader,
        send: Callable[[dict[str, Any]], None],
        token: bytes,
        port: int | None,
    ) -> None:
        self._socket = link
        self._reader = reader
        self._send = send
        self._token = token
        self._port = port
        self._deadline = time.monotonic() + HANDSHAKE_SECONDS

    def run(self, welcome: Callable[[Hello], Welcome]) -> Hello:
        """Let the client say hello and prove itself, and welcome it; return what it said.

        Raises:
            Rejected: it may not stay.
            ConnectionLostError: it went.
        """
        if self._port is None and platform.peer_uid(self._socket) != os.getuid():
            raise Rejected(
                DaemonError("daemon-auth", "this socket belongs to another user"), "a foreign user connected"
            )
        request, raw = self._frame("hello")
        _check_version(raw)
        hello: Hello = _body(Hello, raw)
        if not auth.is_nonce(hello.nonce):
            raise Rejected(DaemonError("request-invalid", "body.nonce: expected 32 bytes in hex"), "bad nonce")
        if self._port is not None:
            request = self._prove(request, hello, self._port)
        self._send({"id": request, "ok": True, "body": plain(welcome(hello))})
        return hello

    def _prove(self, request: int, hello: Hello, port: int) -> int:
        nonce = auth.new_nonce()
        mine = auth.proof(self._token, "server", port, hello.nonce, nonce)
        self._send({"id": request, "ok": True, "body": plain(Challenge(nonce, mine))})
        request, raw = self._frame("auth")
        expected = auth.proof(self._token, "client", port, hello.nonce, nonce)
        if not auth.is_proof(_body(Auth, raw).proof, expected):
            raise Rejected(
                DaemonError(
                    "daemon-auth",
                    "the client does not know this user's token",
                    "both sides must run as the same user with the same LUNA_HOME",
                ),
                "a wrong token",
            )
        return request

    def _frame(self, command: str) -> tuple[int, Any]:
        left = self._deadline - time.monotonic()
        if not self._reader.has_bytes and not wait_readable(self._socket, left):
            raise Rejected(None, "nothing was said in time")
        try:
            left = max(0.0, self._deadline - time.monotonic())
            announced = self._reader.announced(frames.HELLO_BYTES_MAX, 0, left)
        except ConnectionLostError:
            raise
        except DaemonError as error:
            raise Rejected(None, f"no Luna frame: {error.message}") from error
        request, name = announced.header.get("id"), announced.header.get("cmd")
        if type(request) is not int or request < 1 or name != command:
            raise Rejected(None, f"expected {command}")
        return request, announced.header.get("body")


def _check_version(raw: Any) -> None:
    """Judge magic and protocol before anything else, so that any future client gets a clear answer."""
    said = raw if isinstance(raw, dict) else {}
    magic, offered = said.get("magic"), said.get("protocol")
    is_range = isinstance(offered, list) and len(offered) == 2 and all(type(item) is int for item in offered)
    low, high = offered if isinstance(offered, list) and is_range else (0, 0)
    if magic == MAGIC and low <= PROTOCOL <= high:
        return
    raise Rejected(
        DaemonError(
            "protocol-mismatch",
            f"this daemon speaks protocol {PROTOCOL} of {MAGIC}, the client offered {offered!r} of {magic!r}",
            "update the older of the two: both come from the same Luna version",
            details={"daemon": [PROTOCOL, PROTOCOL], "client": offered if is_range else None},
        ),
        "another protocol",
    )


def _body(kind: Any, raw: Any) -> Any:
    try:
        return decode_body(kind, raw, strict=True)
    except DaemonError as error:
        raise Rejected(error, error.message) from error
