"""`luna daemon`: start, stop, watch and configure the model servers."""

from __future__ import annotations

import dataclasses
import json
import signal
import threading
from typing import TYPE_CHECKING, Any

import click

from luna_engine import settings as settings_file
from luna_engine.errors import LunaError
from luna_engine.settings import DaemonInstance
from luna_tui.commands import daemon_logs
from luna_tui.commands.daemon_group import group
from luna_tui.commands.daemon_text import instance_from, status_table, toml_of
from luna_tui.frame import now, output, verb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from luna_daemon.views import DaemonView

__all__ = ["daemon_logs", "group"]  # importing daemon_logs registers its verb

WAITS = ("ready", "started", "none")


def _names(names: tuple[str, ...], *, is_all: bool) -> tuple[str, ...]:
    if bool(names) == is_all:
        raise click.UsageError("name the daemons, or give --all")
    if not is_all:
        return names
    from luna_daemon import identity

    running = {found.name for found in identity.live_identities()}
    return tuple(sorted(running | settings_file.load().daemons.keys()))


def _each(verb_name: str, names: Iterable[str], act: Callable[[str], dict[str, Any]]) -> int:
    """Do something to several daemons; one failure does not keep the others from being done."""
    results: list[dict[str, Any]] = []
    failures: list[LunaError] = []
    for name in names:
        try:
            results.append({"name": name, "ok": True, **act(name)})
        except LunaError as error:
            failures.append(error)
            results.append({"name": name, "ok": False, "error": error.as_dict()})
    text = "\n".join(f"{row['name']}: {row['outcome']}" for row in results if row["ok"])
    output().data(f"luna.daemon.{verb_name}/1", {"daemons": results}, text)
    if len(failures) == 1 and len(results) == 1:
        raise failures[0]
    for failure in failures:
        output().note(f"luna: {failure}")
    return 1 if failures else 0


@verb(group, "start", mutates=True)
@click.argument("names", nargs=-1, required=True)
@click.option("-t", "--service-type", type=click.Choice(["full", "clip", "vae"]), help="What to serve.")
@click.option("-d", "--device", help="cpu, cuda:N or GPU-<uuid>.")
@click.option("-p", "--port", type=int, help="TCP port on loopback.")
@click.option("--backend", type=click.Choice(["auto", "native", "comfy"]), help="What runs the models.")
@click.option("--precision", type=click.Choice(["auto", "fp16", "bf16", "fp32"]), help="Of all models.")
@click.option("--preload", help="Sets of the settings to load first, separated by commas.")
@click.option("--threads", type=int, help="CPU threads.")
@click.option("--metrics-port", type=int, help="HTTP port on loopback for Prometheus.")
@click.option("--wait", type=click.Choice(WAITS), default="ready", show_default=True, help="Return when it is.")
@click.option("--timeout", type=float, default=120.0, show_default=True, help="Seconds to wait.")
def start(names: tuple[str, ...], wait: str, timeout: float, **given: Any) -> int:
    """Start daemons that do not run. Options given here are kept in the settings."""
    from luna_daemon.control import ensure, instance_for

    changes = {key: value for key, value in given.items() if value is not None}
    if changes and len(names) > 1:
        raise click.UsageError("options belong to one daemon: start them one by one")
    if changes:
        _save(names[0], [f"{key}={value}" for key, value in changes.items()])

    def act(name: str) -> dict[str, Any]:
        instance = instance_for(name, settings_file.load())
        found = ensure(name, wait=wait, timeout_s=timeout, instance=instance)
        pid = None if found is None else found.pid
        where = "" if found is None else f", pid {found.pid}, port {found.port}"
        return {
            "outcome": f"{'started' if wait == 'none' else wait}{where}",
            "pid": pid,
            "port": None if found is None else found.port,
            "generation": None if found is None else found.generation,
        }

    return _each("start", names, act)


@verb(group, "stop", mutates=True)
@click.argument("names", nargs=-1)
@click.option("--all", "is_all", is_flag=True, help="Every daemon.")
@click.option("--force", is_flag=True, help="End the process at once, whatever it does.")
@click.option("--timeout", type=float, default=30.0, show_default=True, help="Seconds to wait.")
def stop(names: tuple[str, ...], is_all: bool, force: bool, timeout: float) -> int:  # noqa: FBT001 - click's flags
    """Stop daemons: let them finish, after 10 s SIGTERM, after 10 more SIGKILL."""
    from luna_daemon import control

    def act(name: str) -> dict[str, Any]:
        was_running = control.stop(name, kill=force, timeout_s=timeout)
        return {"outcome": "stopped" if was_running else "did not run"}

    return _each("stop", _names(names, is_all=is_all), act)


@verb(group, "restart", mutates=True)
@click.argument("names", nargs=-1)
@click.option("--all", "is_all", is_flag=True, help="Every daemon.")
@click.option("--force", is_flag=True, help="End the process at once, whatever it does.")
@click.option("--timeout", type=float, default=120.0, show_default=True, help="Seconds to wait until it is ready.")
def restart(names: tuple[str, ...], is_all: bool, force: bool, timeout: float) -> int:  # noqa: FBT001 - click's flags
    """Stop and start daemons."""
    from luna_daemon import control

    def act(name: str) -> dict[str, Any]:
        instance = control.instance_for(name, settings_file.load())
        control.stop(name, kill=force)
        found = control.ensure(name, timeout_s=timeout, instance=instance)
        return {"outcome": "ready" + ("" if found is None else f", pid {found.pid}, port {found.port}")}

    return _each("restart", _names(names, is_all=is_all), act)


@verb(group, "status")
@click.argument("names", nargs=-1)
@click.option("--watch", is_flag=True, help="Print again whenever something changes.")
@click.option("--interval", type=float, default=2.0, show_default=True, help="Seconds between looks.")
def status(names: tuple[str, ...], watch: bool, interval: float) -> int:  # noqa: FBT001 - click's flag
    """Show daemons: state, device, memory, sets. Exit 1 if one failed, 3 if a named one does not run."""
    from luna_daemon.supervisor import Supervisor

    supervisor = Supervisor(kind="luna daemon status")
    stopped = threading.Event()
    shown: list[Any] | None = None
    try:
        while True:
            supervisor.step()
            views = _chosen(supervisor.snapshot(), names)
            signature = [(view.state, view.pid, view.restarts_total, view.reason) for view in views]
            if signature != shown:
                shown = signature
                _show(supervisor, views)
            if not watch or stopped.wait(interval):
                return _status_code(views, names)
    finally:
        supervisor.close()


def _chosen(views: tuple[DaemonView, ...], names: tuple[str, ...]) -> tuple[DaemonView, ...]:
    unknown = set(names) - {view.name for view in views}
    if unknown:
        known = ", ".join(view.name for view in views) or "none"
        raise LunaError("daemon-unknown", f"no daemon {min(unknown)!r}; known: {known}")
    return tuple(view for view in views if not names or view.name in names)


def _show(supervisor: Any, views: tuple[DaemonView, ...]) -> None:
    holder = supervisor.holder()
    record = None if holder is None else holder.as_record()
    fields = {"supervisor": record, "daemons": [view.as_record() for view in views]}
    output().data("luna.daemon.status/1", fields, status_table(views, holder))


def _status_code(views: tuple[DaemonView, ...], names: tuple[str, ...]) -> int:
    states = {view.state.value for view in views}
    if states & {"failed", "backoff", "crashed"}:
        return 1
    return 3 if names and states & {"stopped", "unresponsive", "orphan"} else 0


@verb(group, "supervise")
@click.option("--take-over", is_flag=True, help="Ask whoever supervises now to let go.")
def supervise(take_over: bool) -> int:  # noqa: FBT001 - click's flag
    """Watch daemons until interrupted: adopt, restart with back-off, stop nothing at the end."""
    from luna_daemon.supervisor import Supervisor, SupervisorEvent
    from luna_engine.weights.queue import JobQueue

    def tell(event: SupervisorEvent) -> None:
        if output().json:
            click.echo(json.dumps({"schema": "luna.event/1", **dataclasses.asdict(event), "at": now()}))
        else:
            click.echo(f"{now()} {event.level}: {event.message}")

    supervisor = Supervisor(kind="luna daemon supervise", on_event=tell)
    _take_lock(supervisor, take_over=take_over)
    stop_event = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop_event.set())
    threading.Thread(target=JobQueue.open().tend, args=(stop_event,), name="conversions", daemon=True).start()
    output().note("supervising; Ctrl+C ends it, the daemons run on")
    supervisor.run(stop_event)
    return 0


def _take_lock(supervisor: Any, *, take_over: bool) -> None:
    if supervisor.try_lock():
        return
    holder = supervisor.holder()
    who = "another process" if holder is None else f"{holder.kind}, pid {holder.pid}"
    if not take_over:
        raise LunaError("lock-held", f"{who} supervises already", "luna daemon supervise --take-over asks it to let go")
    supervisor.request_takeover()
    waited = threading.Event()
    for _ in range(50):
        if supervisor.try_lock():
            return
        waited.wait(0.1)
    raise LunaError("lock-held", f"{who} did not let go within 5 s", "it may hang; end it yourself")


@verb(group, "configure", mutates=True)
@click.argument("name")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a field, e.g. device=cpu.")
@click.option("--remove", is_flag=True, help="Remove the daemon from the settings.")
@click.option("--dry-run", is_flag=True, help="Show what would be written.")
def configure(name: str, changes: tuple[str, ...], remove: bool, dry_run: bool) -> int:  # noqa: FBT001 - click's flags
    """Write a daemon to the settings."""
    if remove and changes:
        raise click.UsageError("--remove and --set exclude each other")
    if remove:
        if not dry_run and not settings_file.remove_daemon(name):
            raise LunaError("daemon-unknown", f"no daemon {name!r} is configured")
        output().data("luna.daemon.configure/1", {"name": name, "removed": not dry_run}, f"{name}: removed")
        return 0
    toml = _save(name, list(changes), is_dry=dry_run)
    output().data("luna.daemon.configure/1", {"name": name, "toml": toml, "written": not dry_run}, toml.rstrip())
    return 0


def _save(name: str, changes: list[str], *, is_dry: bool = False) -> str:
    from luna_daemon.identity import check_name

    given = settings_file.load()
    base = given.daemons.get(check_name(name)) or _first(name, changes, given)
    instance = instance_from(base, changes)
    if is_dry:
        return toml_of(name, instance)
    toml = settings_file.save_daemon(name, instance)
    output().note(f"[daemons.{name}] written to the settings")
    return toml


def _first(name: str, changes: list[str], given: settings_file.Settings) -> DaemonInstance:
    kinds = [change.partition("=")[2] for change in changes if change.replace("-", "_").startswith("service_type=")]
    kind = kinds[-1] if kinds else name if name in {"clip", "vae"} else "full"
    return DaemonInstance(service_type=kind, port=given.daemon.vae_port if kind == "vae" else given.daemon.port)
