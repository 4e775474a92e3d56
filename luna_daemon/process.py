"""The life of a daemon process: lock, sockets, identity, engine, ready, drain, exit code."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

from luna_daemon import auth, identity, listener, logs, options, platform, process_exits
from luna_daemon.events import LogEvents
from luna_daemon.identity import DaemonPlaces, ExitRecord, Identity
from luna_daemon.messages import PROTOCOL
from luna_daemon.reporting import peak_rss_bytes
from luna_daemon.service import DaemonService
from luna_engine import settings
from luna_engine.errors import LunaError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import FrameType

    from luna_daemon.engine_seam import EngineOptions, ModelEngine
    from luna_daemon.metrics_http import MetricsServer
    from luna_daemon.options import DaemonOptions

    _Listening = listener.Listener | MetricsServer

    EngineFactory = Callable[[EngineOptions], ModelEngine]

EXIT_BY_CODE = {
    "port-taken": process_exits.PORT,
    "lock-held": process_exits.LOCK,
    "path-unsafe": process_exits.SETTINGS,
    "device-unusable": process_exits.DEVICE,
    "device-lost": process_exits.DEVICE_LOST,
    "model-missing": process_exits.PRELOAD,
    "file-missing": process_exits.PRELOAD,
    "file-damaged": process_exits.PRELOAD,
    "wrong-type": process_exits.PRELOAD,
    "component-missing": process_exits.PRELOAD,
}
TERM_DRAIN_S = 10.0
_LOCK_PATIENCE_S = 0.3
_log = logging.getLogger("luna.process")


def default_engine(given: EngineOptions) -> ModelEngine:
    """Make the engine that runs real models."""
    from luna_daemon.runtime.engine import Engine

    return Engine(given)


def run(arguments: Sequence[str], engine_factory: EngineFactory = default_engine) -> int:
    """Run a daemon until it is asked to stop.

    Args:
        arguments: the command line without the program.
        engine_factory: makes the engine from its options; tests of the wire bring a small one of their own.

    Returns:
        The exit code: 0 asked, 66 preload file, 69 device, 71 port taken, 73 lock held, 75 device lost, 78 settings.
    """
    try:
        given = settings.load()
        parsed = options.parse(arguments, given)
    except LunaError as error:
        return _refuse(error, None, process_exits.SETTINGS)
    places = DaemonPlaces(parsed.name)
    lock = platform.FileLock(places.lock)
    if not _acquire(lock):
        return _refuse(_lock_held(parsed.name, lock.holder()), parsed.start_log, process_exits.LOCK)
    try:
        engine = engine_factory(options.engine_options(parsed, given))
        service = DaemonService(parsed.name, parsed.service_type, engine, auth.ensure_token())
    except LunaError as error:
        code = EXIT_BY_CODE.get(error.code, process_exits.SETTINGS)
        identity.write_record(places.exit, _exit_record(None, code, str(error)))
        return _refuse(error, None, code)
    logs.begin(places, service.generation, parsed.start_log)
    logging.getLogger().addHandler(LogEvents(service.watch.events))
    faulthandler.enable()
    return _serve(parsed, places, service)


def _acquire(lock: platform.FileLock) -> bool:
    """Take the lock; somebody who only looks may hold it for a moment."""
    deadline = time.monotonic() + _LOCK_PATIENCE_S
    while not lock.acquire():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _lock_held(name: str, holder: int | None) -> LunaError:
    return LunaError(
        "lock-held",
        f"a daemon called {name} runs already{f' as pid {holder}' if holder else ''}",
        f"stop it with: luna daemon stop {name}; or give this one another --name",
    )


def _refuse(error: LunaError, start_log: Path | None, code: int) -> int:
    print(f"luna-daemon: {error}", file=sys.stderr, flush=True)  # noqa: T201 - before there is a log
    if start_log is not None and code == process_exits.LOCK:
        start_log.unlink(missing_ok=True)  # the daemon that runs has its own log
    return code


def _exit_record(generation: str | None, code: int, reason: str) -> ExitRecord:
    peak = peak_rss_bytes()
    return ExitRecord(os.getpid(), generation, time.time(), code, reason, asked=code == 0, peak_rss_bytes=peak)


def _serve(parsed: DaemonOptions, places: DaemonPlaces, service: DaemonService) -> int:
    listeners: list[_Listening] = []
    try:
        _catch_signals(service)  # before the identity tells anybody whom to signal
        listeners = _listen(parsed, places, service)
        for one in listeners:
            one.start()
        service.start()
        while not service.wait(1.0):  # in slices, so that Python runs the signal handlers
            pass
        code, reason = _outcome(service)
    except LunaError as error:
        _log.error("%s", error, extra={"code": error.code})
        code, reason = EXIT_BY_CODE.get(error.code, process_exits.FAILED), str(error)
    for one in listeners:
        one.close()
    service.close_connections()
    identity.write_record(places.exit, _exit_record(service.generation, code, reason))
    places.identity.unlink(missing_ok=True)
    (parsed.socket or places.socket).unlink(missing_ok=True)
    _log.info("exit %d: %s", code, reason)
    return code


def _listen(parsed: DaemonOptions, places: DaemonPlaces, service: DaemonService) -> list[_Listening]:
    """Open the sockets and write the identity that names them; nobody is answered yet."""
    tcp = None if parsed.port is None else listener.bind_tcp(parsed.host, parsed.port)
    port = None if tcp is None else int(tcp.getsockname()[1])
    path = parsed.socket or places.socket
    listeners: list[_Listening] = [listener.Listener(service, listener.bind_unix(path), None)]
    service.addresses = (f"unix:{path}",)
    if tcp is not None and port is not None:
        listeners.append(listener.Listener(service, tcp, port))
        service.addresses += (f"{parsed.host}:{port}",)
    if parsed.metrics_port is not None:
        from luna_daemon.exposition import require_library
        from luna_daemon.metrics_http import MetricsServer  # with it comes http.server, which few need

        require_library()
        server = MetricsServer(listener.bind_tcp("127.0.0.1", parsed.metrics_port), service.metrics, service.token)
        listeners.append(server)
        service.addresses += (server.url,)
    places.exit.unlink(missing_ok=True)
    identity.write_record(places.identity, _identity(parsed, places, service, port, path))
    _log.info("listening on %s", ", ".join(service.addresses))
    return listeners


def _identity(
    parsed: DaemonOptions, places: DaemonPlaces, service: DaemonService, port: int | None, path: Path
) -> Identity:
    return Identity(
        name=parsed.name,
        pid=os.getpid(),
        create_time=platform.create_time(os.getpid()) or time.time(),
        boot_id=platform.boot_id(),
        generation=service.generation,
        service_type=parsed.service_type,
        device=parsed.device,
        host=parsed.host,
        port=port,
        socket=str(path),
        log=str(places.log),
        protocol=PROTOCOL,
        digest=identity.digest_of(options.without_start_log(sys.argv[1:])),
        started_at=time.time(),
    )


def _catch_signals(service: DaemonService) -> None:
    def stop(number: int, _frame: FrameType | None) -> None:
        if not service.stop(TERM_DRAIN_S, f"asked by {signal.Signals(number).name}"):
            service.finish()  # asked twice: no more patience

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _outcome(service: DaemonService) -> tuple[int, str]:
    failure = service.failure
    if failure is None:
        return service.exit_code, service.exit_reason
    code = process_exits.FAILED
    if isinstance(failure, LunaError):
        code = EXIT_BY_CODE.get(failure.code, process_exits.SETTINGS)
        _log.error("%s", failure, extra={"code": failure.code})
    else:
        _log.critical("the engine did not start", exc_info=failure, extra={"code": "internal"})
    return code, str(failure)


def main(engine_factory: EngineFactory = default_engine) -> None:
    """Console entry. Leaves without Python's own tear-down: threads of tensor libraries do not survive it well."""
    code = run(sys.argv[1:], engine_factory)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
