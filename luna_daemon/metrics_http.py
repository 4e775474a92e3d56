"""The metrics over HTTP on loopback, for Prometheus. Off unless asked for.

A web page must not read it, whatever it tricks the browser into: GET only, a Host that names this machine (so that no
foreign name can be rebound to it), nothing for requests with an Origin, no CORS headers, and the daemon's token for
everything but the sign of life.
"""

from __future__ import annotations

import hmac
import logging
import socket
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from luna_daemon.exposition import CONTENT_TYPE
from luna_daemon.stream import wait_readable

if TYPE_CHECKING:
    from collections.abc import Callable

HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
AT_ONCE = 8
WHOLE_SECONDS = 10.0
_SLICE_S = 0.25
_log = logging.getLogger("luna.metrics")


class MetricsServer:
    """Answers ``/livez`` to anybody and ``/metrics`` to who shows the token, in at most eight threads.

    Args:
        listening: a bound TCP socket.
        render: returns the metrics.
        token: shown as ``Authorization: Bearer <hex>``.
    """

    def __init__(self, listening: socket.socket, render: Callable[[], bytes], token: bytes) -> None:
        self._listening = listening
        self.render = render
        self._expected = f"Bearer {token.hex()}".encode()
        self._slots = threading.BoundedSemaphore(AT_ONCE)
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="luna-metrics", daemon=True)

    @property
    def url(self) -> str:
        """Return where the metrics are."""
        host, port = self._listening.getsockname()[:2]
        return f"http://{host}:{port}/metrics"

    def is_token(self, given: str) -> bool:
        """Compare an Authorization header in constant time."""
        return hmac.compare_digest(given.encode("utf-8", "replace"), self._expected)

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
            if not wait_readable(self._listening, _SLICE_S) or not self._slots.acquire(timeout=_SLICE_S):
                continue
            try:
                accepted, address = self._listening.accept()
            except OSError as error:
                self._slots.release()
                _log.warning("accept failed: %s", error.strerror, extra={"code": "accept-failed"})
                self._is_closed.wait(_SLICE_S)
                continue
            thread = threading.Thread(target=self._answer, args=(accepted, address), name="luna-http", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # out of threads
                accepted.close()
                self._slots.release()
                self._is_closed.wait(_SLICE_S)

    def _answer(self, accepted: socket.socket, address: Any) -> None:
        """Answer one request; a client that dawdles is cut off, however it spreads its bytes."""
        limit = threading.Timer(WHOLE_SECONDS, _cut, (accepted,))
        limit.daemon = True
        limit.start()
        try:
            with accepted:
                _Handler(accepted, address, self)  # type: ignore[arg-type]  # the stdlib's own server is not needed
        except OSError:
            return  # the client went away
        except Exception:  # noqa: BLE001 - border of the thread, logged with its traceback
            _log.exception("a metrics request failed", extra={"code": "internal"})
        finally:
            limit.cancel()
            self._slots.release()


def _cut(accepted: socket.socket) -> None:
    try:
        accepted.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it is down already


class _Handler(BaseHTTPRequestHandler):
    """One connection, one request: HTTP/1.0 closes after it."""

    server: MetricsServer  # type: ignore[assignment]  # see MetricsServer._answer
    timeout = 5.0

    def parse_request(self) -> bool:
        """Refuse what is no GET before any method is looked up."""
        if not super().parse_request():
            return False
        if self.command != "GET":
            self.reply(HTTPStatus.METHOD_NOT_ALLOWED, b"GET only\n")
            return False
        return True

    def do_GET(self) -> None:
        """Answer."""
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or _without_port(hosts[0]) not in HOSTS:
            self.reply(HTTPStatus.MISDIRECTED_REQUEST, b"this host is not served here\n")
        elif "Origin" in self.headers:
            self.reply(HTTPStatus.FORBIDDEN, b"not for web pages\n")
        elif self.path == "/livez":
            self.reply(HTTPStatus.OK, b"ok\n")
        elif not self.server.is_token(self.headers.get("Authorization", "")):
            self.reply(HTTPStatus.UNAUTHORIZED, b"show the daemon's token in hex: Authorization: Bearer ...\n")
        elif self.path == "/metrics":
            self.reply(HTTPStatus.OK, self.server.render(), CONTENT_TYPE)
        else:
            self.reply(HTTPStatus.NOT_FOUND, b"/livez and /metrics are here\n")

    def reply(self, status: HTTPStatus, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        """Send an answer and nothing that a browser could share."""
        self.send_response_only(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the stdlib's name
        """Say nothing: the stdlib would write what a stranger sent to standard error."""


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name.lower() if colon and port.isdigit() and name and name != "[:" else host.lower()
