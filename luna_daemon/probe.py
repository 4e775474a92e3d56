"""Short questions to daemons with hard limits on the time, for whoever watches them. No retries, no reconnecting."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from luna_daemon.fields import decode_body, plain
from luna_daemon.link import Address, Link
from luna_daemon.messages import Ping, Pong, Shutdown
from luna_daemon.status_messages import DaemonStatus, StatusRequest
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from luna_daemon.fields import Body
    from luna_daemon.frames import WireTensor
    from luna_daemon.identity import Identity

ASK_SECONDS = 0.75


class Probe:
    """Keeps one connection per daemon and asks over it. Used by one thread at a time."""

    def __init__(self, client_name: str = "luna-supervisor", ask_s: float = ASK_SECONDS) -> None:
        self._client_name = client_name
        self._ask_s = ask_s
        self._links: dict[str, tuple[str, Link]] = {}

    def ping(self, identity: Identity) -> Pong | None:
        """Ask for a sign of life; None if there is no answer in time, or it is another run's."""
        header, _ = self._ask(identity, "ping", Ping())
        if header is None:
            return None
        pong = decode_body(Pong, header.get("body"), strict=False)
        return pong if pong.generation == identity.generation else None

    def status(self, identity: Identity) -> DaemonStatus | None:
        """Ask for the full status; None if there is no answer in time."""
        header, tensors = self._ask(identity, "status", StatusRequest("full"))
        if header is None or "json" not in tensors:
            return None
        return decode_body(DaemonStatus, json.loads(bytes(tensors["json"].data)), strict=False)

    def shutdown(self, identity: Identity, deadline_s: float, *, is_forced: bool = False) -> bool:
        """Ask a daemon to finish and exit; tell whether it heard."""
        header, _ = self._ask(identity, "shutdown", Shutdown(int(deadline_s * 1000), is_forced))
        return header is not None

    def _ask(self, identity: Identity, command: str, body: Body) -> tuple[dict[str, Any] | None, dict[str, WireTensor]]:
        try:
            link = self._link(identity)
            header = {"cmd": command, "body": plain(body), "deadline_ms": int(self._ask_s * 1000)}
            request, pending = link.start(header, ())
            if not link.wait(pending, time.monotonic() + self._ask_s, None):
                link.forget(request)
                return None, {}
        except (OSError, DaemonError):
            return None, {}
        answer = pending.header
        return (answer, pending.tensors) if answer is not None and answer.get("ok") is True else (None, {})

    def _link(self, identity: Identity) -> Link:
        generation, link = self._links.get(identity.name, ("", None))
        if link is not None and generation == identity.generation and link.is_usable:
            return link
        self.forget(identity.name)
        made = Link(Address(identity.host, identity.port or 0, identity.socket), self._client_name, self._ask_s)
        self._links[identity.name] = (identity.generation, made)
        return made

    def forget(self, name: str) -> None:
        """Close the connection to a daemon."""
        _, link = self._links.pop(name, ("", None))
        if link is not None:
            link.close()

    def close(self) -> None:
        """Close all connections."""
        for name in list(self._links):
            self.forget(name)
