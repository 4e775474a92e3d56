"""A connection that is kept: made when needed and anew after a restart; harmless requests are repeated."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from luna_daemon import address
from luna_daemon.device_memory import DeviceTensor
from luna_daemon.error_records import error_from
from luna_daemon.fields import decode_body, plain
from luna_daemon.holds import Holds
from luna_daemon.link import Link
from luna_daemon.link_memory import MemoryWish
from luna_daemon.protocol import COMMANDS, Did, Lane, Progress, Timing
from luna_daemon.stream import ConnectionLostError
from luna_daemon.transport import SHM, SHM_FROM_BYTES
from luna_engine.errors import DaemonError, DaemonUnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Self

    from luna_daemon.device_memory import DeviceMemory
    from luna_daemon.fields import Body
    from luna_daemon.frames import WireTensor
    from luna_daemon.messages import Welcome
    from luna_daemon.progress import Report
    from luna_daemon.watch_messages import Event

RECONNECT_AFTER_S = (0.1, 0.2, 0.4, 0.8, 1.5)
INTERACTIVE = "interactive"
_NO_TIMING = Timing()
GRACE_S = 2.0  # the daemon answers `daemon-timeout` itself; the client gives up only a little later


@dataclass(frozen=True, slots=True)
class Reply:
    """The whole answer to one request."""

    body: Any
    tensors: dict[str, WireTensor]
    did: Did | None
    timing: Timing


class KeptConnection:
    """One address and the connection to it. Thread-safe."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        timeout_s: float,
        transport: str,
        name: str,
        shm_from_bytes: int = SHM_FROM_BYTES,
        device_memory: DeviceMemory | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.timeout_s = timeout_s
        self.name = name
        self.request_timeout_s = address.request_timeout()
        self._transport = transport
        self._wish = MemoryWish(shm_from_bytes, device_memory)
        self._lock = threading.Lock()
        self._link: Link | None = None
        self._is_closed = False
        self.holds = Holds()

    def close(self) -> None:
        """Close the connection. The daemon gives up what this client still waits for."""
        with self._lock:
            self._is_closed = True
            link, self._link = self._link, None
        if link is not None:
            link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def welcome(self) -> Welcome:
        """What the daemon said of itself when the current connection was made."""
        return self._usable_link().welcome

    @property
    def generation(self) -> str:
        """The run of the daemon that the current connection leads to; it differs after a restart."""
        return self.welcome.generation

    @property
    def transport(self) -> str:
        """The fastest way that tensors have on the current connection now: ``inline``, ``shm`` or ``cuda_ipc``."""
        return self._usable_link().transport_name

    @property
    def transport_reason(self) -> str | None:
        """Why there is no faster way, None if there cannot be one or nobody asked for it."""
        return self._usable_link().transport_reason

    def call(
        self,
        command: str,
        body: Body,
        tensors: Sequence[WireTensor] = (),
        *,
        poll: Callable[[], None] | None = None,
        timeout_s: float | None = None,
        priority: str = INTERACTIVE,
        trace: str | None = None,
        on_part: Callable[[Any], None] | None = None,
        on_progress: Report | None = None,
    ) -> Reply:
        """Send one request and wait for its reply; after a lost connection repeat it once where that is harmless.

        ``trace`` (a W3C traceparent) appears in every log line and event of the request. ``on_part`` gets what comes
        before the reply, on this thread; where it is given, nothing is repeated. ``on_progress`` is told what is done,
        of how much, in what unit, where the command tells.
        """
        row = COMMANDS[command]
        seconds = self.request_timeout_s if timeout_s is None else timeout_s
        header: dict[str, Any] = {"cmd": command, "body": plain(body)}
        if row.lane is not Lane.NOW:
            header["deadline_ms"] = max(1, int(seconds * 1000))
            if priority != INTERACTIVE:
                header["priority"] = priority
        if trace is not None:
            header["trace"] = trace
        if on_progress is not None:
            header["progress"] = True
        try:
            self._release_leases()
            return self._exchange(row.name, header, tensors, seconds, poll, on_part or _listener(on_progress))
        except ConnectionLostError as lost:
            if not row.repeatable or self._is_closed or on_part is not None:
                raise self._unreachable(lost) from lost
        except DaemonError as error:
            if error.code != "transport-failed" or not row.repeatable:
                raise
            self._do_without(error)
        self._reconnect(poll)
        try:
            return self._exchange(row.name, header, tensors, seconds, poll, on_part or _listener(on_progress))
        except ConnectionLostError as lost:
            raise self._unreachable(lost) from lost

    def next_event(self, timeout_s: float, *, poll: Callable[[], None] | None = None) -> Event | None:
        """Wait for the next event of what was subscribed to; None if none came in time.

        Raises:
            DaemonUnreachableError: the connection was lost, and the subscription with it: subscribe again.
        """
        link = self._link
        if link is None:
            raise self._unreachable(ConnectionLostError("there is no connection"))
        try:
            return link.wait_event(time.monotonic() + timeout_s, poll)
        except ConnectionLostError as lost:
            raise self._unreachable(lost) from lost

    def _exchange(
        self,
        command: str,
        header: dict[str, Any],
        tensors: Sequence[WireTensor],
        seconds: float,
        poll: Callable[[], None] | None,
        on_part: Callable[[Any], None] | None,
    ) -> Reply:
        link = self._usable_link()
        if COMMANDS[command].moves_tensors:
            if any(isinstance(tensor, DeviceTensor) for tensor in tensors):
                link.open_arena(poll)
            link.open_shared(poll)
        request, pending = link.start(header, tensors)
        try:
            is_answered = link.wait(pending, time.monotonic() + seconds + GRACE_S, poll, on_part)
        except BaseException:
            self._give_up(link, request)
            raise
        if not is_answered:
            self._give_up(link, request)
            raise DaemonError("daemon-timeout", f"no answer to {command} within {seconds:g} s")
        if pending.error is not None:
            raise pending.error
        return _reply(command, cast("dict[str, Any]", pending.header), pending.tensors)

    def _do_without(self, error: DaemonError) -> None:
        """Leave a connection whose memory beside the socket went wrong; the next ones are made without that way."""
        with self._lock:
            link, self._link = self._link, None
            self._wish = self._wish.without((error.details or {}).get("via", SHM), error.message)
        if link is not None:
            link.close()

    def _release_leases(self) -> None:
        for name in self.holds.released():
            link = self._usable_link()
            ignored, _ = link.start({"cmd": "lease", "body": {"set": name, "release": True}}, ())
            link.forget(ignored)

    def _give_up(self, link: Link, request: int) -> None:
        link.forget(request)
        try:
            ignored, _ = link.start({"cmd": "cancel", "body": {"request": request}}, ())
        except DaemonError:
            return  # the connection is gone, and with it the request
        link.forget(ignored)

    def _usable_link(self) -> Link:
        link = self._link  # read once: without the lock, which only making or closing a connection needs
        if link is not None and link.is_usable:
            return link
        with self._lock:
            if self._is_closed:
                raise ConnectionLostError("this client was closed")
            if self._link is None or not self._link.is_usable:
                self._link = self._open()
            return self._link

    def _open(self) -> Link:
        where = address.find(self.host, self.port, self._transport)
        try:
            return Link(where, self.name, self.timeout_s, wish=self._wish)
        except (OSError, ConnectionLostError) as error:
            raise self._unreachable(error) from error

    def _reconnect(self, poll: Callable[[], None] | None) -> None:
        for index, seconds in enumerate(RECONNECT_AFTER_S):
            _sleep(seconds, poll)
            try:
                self._usable_link()
            except DaemonUnreachableError:
                if index == len(RECONNECT_AFTER_S) - 1:
                    raise
            else:
                return

    def _unreachable(self, error: Exception) -> DaemonUnreachableError:
        return address.unreachable(self.host, self.port, error)


def _listener(on_progress: Report | None) -> Callable[[Any], None] | None:
    """Return what takes the body of a part to whoever wants to know how far a request is."""
    if on_progress is None:
        return None

    def take(body: Any) -> None:
        facts = decode_body(Progress, body, strict=False)
        on_progress(facts.done, facts.total, facts.unit)

    return take


def _sleep(seconds: float, poll: Callable[[], None] | None) -> None:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if poll is not None:
            poll()
        time.sleep(min(left, 0.1))


def _reply(command: str, header: dict[str, Any], tensors: dict[str, WireTensor]) -> Reply:
    if header.get("ok") is not True:
        raise error_from(header.get("error"))
    row = COMMANDS[command]
    raw = json.loads(bytes(tensors["json"].data)) if row.reply_as_json else header.get("body")
    did = header.get("did")
    if did is not None and isinstance(raw, dict) and "did" in getattr(row.reply, "__slots__", ()):
        raw = {**raw, "did": did}
    return Reply(
        body=decode_body(row.reply, raw, strict=False),
        tensors=tensors,
        did=None if did is None else decode_body(Did, did, strict=False),
        timing=decode_body(Timing, header["ms"], strict=False) if "ms" in header else _NO_TIMING,
    )
