"""One daemon under supervision: its state machine, advanced by looking at its process, its identity and its answers."""

from __future__ import annotations

import dataclasses
import signal
import time
from typing import TYPE_CHECKING, Any, Protocol

from luna_daemon import identity as records
from luna_daemon import launch
from luna_daemon.identity import DaemonPlaces, ExitRecord, Identity
from luna_daemon.launch import Ended, FoundProcess
from luna_daemon.process_exits import ASKED, LOCK, words_for
from luna_daemon.restarts import RestartRules
from luna_daemon.views import DaemonState, DaemonView, LastExit, Phase, StopStage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from luna_daemon.launch import Process
    from luna_daemon.messages import Pong
    from luna_daemon.status_messages import DaemonStatus
    from luna_engine.settings import DaemonInstance

PING_EVERY_S = 2.0
PING_WHILE_STARTING_S = 0.2
MISSES_MAX = 3
START_LIMIT_S = 30.0
LADDER_S = 10.0
_DOWN = frozenset({"stopped", "crashed", "backoff", "failed"})
_STAGES = ("drain", "terminate", "kill")


class Clock(Protocol):
    """Time, so that tests may own it."""

    def monotonic(self) -> float:
        """Seconds that never jump."""
        ...

    def time(self) -> float:
        """Seconds since 1970."""
        ...


class SystemClock:
    """The machine's own time."""

    def monotonic(self) -> float:
        """Seconds that never jump."""
        return time.monotonic()

    def time(self) -> float:
        """Seconds since 1970."""
        return time.time()


class World(Protocol):
    """What the state machine does to the outside; `RealWorld` does it, tests of its logic script it."""

    def identity(self, name: str) -> Identity | None:
        """Return the identity of a live daemon."""
        ...

    def launch(self, name: str, instance: DaemonInstance) -> Process:
        """Start a process."""
        ...

    def found(self, identity: Identity) -> Process:
        """Watch a process that runs already."""
        ...

    def ping(self, identity: Identity) -> Pong | None:
        """Ask for a sign of life."""
        ...

    def status(self, identity: Identity) -> DaemonStatus | None:
        """Ask for the status."""
        ...

    def shutdown(self, identity: Identity, deadline_s: float, *, is_forced: bool) -> bool:
        """Ask to stop."""
        ...

    def exit_record(self, name: str) -> ExitRecord | None:
        """Return what was written about the last end."""
        ...

    def note_asked(self, name: str, process: Process, generation: str | None) -> None:
        """Write down that the process about to be killed is killed on purpose."""
        ...

    def note_stay_down(self, name: str) -> None:
        """Write down that a daemon that is down shall not be started again."""
        ...

    def forget(self, name: str) -> None:
        """Close what is kept for a daemon."""
        ...


class RealWorld:
    """Processes, files and sockets."""

    def __init__(self, command: Sequence[str], probe: object) -> None:
        from luna_daemon.probe import Probe

        self._command = tuple(command)
        self._probe = probe if isinstance(probe, Probe) else Probe()

    def identity(self, name: str) -> Identity | None:
        """Return the identity of a live daemon; a provably dead one is removed."""
        found = records.read_identity(name)
        if found is None:
            return None
        if found.is_alive():
            return found
        current = records.read_identity(name)
        if current == found:
            DaemonPlaces(name).identity.unlink(missing_ok=True)
        return None

    def launch(self, name: str, instance: DaemonInstance) -> Process:
        """Start a process."""
        return launch.launch(name, instance, self._command)

    def found(self, identity: Identity) -> Process:
        """Watch a process that runs already."""
        return FoundProcess(identity.pid, identity.create_time)

    def ping(self, identity: Identity) -> Pong | None:
        """Ask for a sign of life."""
        return self._probe.ping(identity)

    def status(self, identity: Identity) -> DaemonStatus | None:
        """Ask for the status."""
        return self._probe.status(identity)

    def shutdown(self, identity: Identity, deadline_s: float, *, is_forced: bool) -> bool:
        """Ask to stop."""
        return self._probe.shutdown(identity, deadline_s, is_forced=is_forced)

    def exit_record(self, name: str) -> ExitRecord | None:
        """Return what was written about the last end."""
        return records.read_exit(name)

    def note_asked(self, name: str, process: Process, generation: str | None) -> None:
        """Write down that the process about to be killed is killed on purpose."""
        record = ExitRecord(process.pid, generation, time.time(), None, "killed as asked", asked=True)
        records.write_record(DaemonPlaces(name).exit, record)

    def note_stay_down(self, name: str) -> None:
        """Write down that a daemon that is down shall not be started again."""
        record = ExitRecord(0, None, time.time(), None, "stopped by you", asked=True)
        records.write_record(DaemonPlaces(name).exit, record)

    def forget(self, name: str) -> None:
        """Close what is kept for a daemon."""
        self._probe.forget(name)

    def close(self) -> None:
        """Close all connections."""
        self._probe.close()


class Supervised:
    """One daemon.

    Args:
        tell: called with level, code and sentence for what a person may want to know.
    """

    def __init__(
        self,
        name: str,
        instance: DaemonInstance,
        world: World,
        clock: Clock,
        tell: Callable[[str, str, str], None],
        *,
        is_configured: bool = True,
        rules: RestartRules | None = None,
    ) -> None:
        self.name = name
        self.instance = instance
        self.is_configured = is_configured
        self._world = world
        self._clock = clock
        self._tell = tell
        self._rules = rules or RestartRules()
        self._process: Process | None = None
        self._identity: Identity | None = None
        self._state = DaemonState.STOPPED
        self._reason: str | None = None
        self._since: float | None = None
        self._began = 0.0
        self._next_ping = 0.0
        self._misses = 0
        self._ready_since: float | None = None
        self._first_rss: int | None = None
        self._status: DaemonStatus | None = None
        self._phase: Phase | None = None
        self._is_adopted = False
        self._backoff_until: float | None = None
        self._stage: int | None = None
        self._stage_until = 0.0
        self._is_killing = False
        self._starts_again = False
        self._is_holder = False
        self._ended_at = 0.0
        memory = records.read_json(DaemonPlaces(name).memory) or {}
        self.restarts_total, self.last_exit = _remembered(memory)

    # what people ask for

    @property
    def state(self) -> DaemonState:
        """Return the state."""
        return self._state

    def start(self) -> None:
        """Start it unless it runs; crashes of before are forgiven."""
        self._rules.forgive()
        self._backoff_until = None
        if self._stage is not None:
            self._starts_again = True
        elif self._process is None and not self._adopt():
            self._launch()

    def stop(self, *, is_forced: bool = False) -> None:
        """Begin the stop ladder; from back-off, stay down."""
        self._starts_again = False
        if self._process is None and not self._adopt():
            self._backoff_until = None
            self._world.note_stay_down(self.name)
            self._enter(DaemonState.STOPPED, "stopped by you")
        elif self._stage is None:
            self._begin_stage(0, is_forced=is_forced)

    def restart(self) -> None:
        """Stop and start; from back-off, start at once."""
        if self._process is None and not self._adopt():
            self.start()
            return
        self.stop()
        self._starts_again = True

    def kill(self) -> None:
        """End its process without asking it."""
        self._starts_again = False
        if self._process is not None or self._adopt():
            self._kill()

    # the loop

    def step(self, *, may_restart: bool) -> None:
        """Look once and do what is due.

        Args:
            may_restart: this is the supervisor, not a viewer.
        """
        self._is_holder = may_restart
        if self._process is None:
            self._step_down()
            return
        ended = self._process.ended()
        if ended is not None:
            self._after_end(ended)
            return
        if self._stage is not None and self._clock.monotonic() >= self._stage_until:
            self._begin_stage(self._stage + 1)
        if self._clock.monotonic() >= self._next_ping:
            self._look()

    def _step_down(self) -> None:
        if self._adopt():
            return
        if not self._is_holder:
            self._read_on()
            return
        if self._backoff_until is None:
            return
        record = self._world.exit_record(self.name)
        if record is not None and record.asked and record.at > self._ended_at:
            self._backoff_until = None
            self._enter(DaemonState.STOPPED, record.reason)
        elif self._clock.monotonic() >= self._backoff_until:
            self._backoff_until = None
            self.restarts_total += 1
            self._tell("info", "restarting", f"{self.name} is started again, restart {self.restarts_total}")
            self._launch()

    def _read_on(self) -> None:
        """Take over what the supervisor wrote about a daemon that is down; a viewer sees only running ones itself."""
        memory = records.read_json(DaemonPlaces(self.name).memory) or {}
        state, reason, until = (memory.get(key) for key in ("state", "reason", "backoff_until"))
        if state not in _DOWN:
            return
        self.restarts_total, self.last_exit = _remembered(memory)
        wait_s = until - self._clock.time() if isinstance(until, float) else -60.0
        is_waiting = state == "backoff" and wait_s > -5.0
        if state == "backoff" and not is_waiting:
            state, reason = "crashed", f"{reason}; nobody supervises"
        self._enter(DaemonState(state), reason if isinstance(reason, str) else None)
        if is_waiting:
            self._backoff_until = self._clock.monotonic() + wait_s

    def _adopt(self) -> bool:
        found = self._world.identity(self.name)
        if found is None:
            return False
        self._forget_run()
        self._process = self._world.found(found)
        self._identity = found
        self._is_adopted = True
        self._backoff_until = None
        self._enter(DaemonState.STARTING, None)
        self._look()
        return True

    def _launch(self) -> None:
        self._forget_run()
        self._process = self._world.launch(self.name, self.instance)
        self._is_adopted = False
        self._enter(DaemonState.STARTING, None)

    def _forget_run(self) -> None:
        self._identity = None
        self._status = None
        self._phase = None
        self._misses = 0
        self._ready_since = None
        self._first_rss = None
        self._stage = None
        self._is_killing = False
        self._began = self._clock.monotonic()
        self._next_ping = 0.0

    def _look(self) -> None:
        now = self._clock.monotonic()
        pong = self._ask()
        if pong is None:
            self._missed(now)
            return
        self._misses = 0
        self._phase = None if pong.phase is None else Phase(pong.phase, self._phase_done())
        is_settled = pong.state in {"ready", "busy"}
        self._next_ping = now + (PING_EVERY_S if is_settled else PING_WHILE_STARTING_S)
        if is_settled:
            self._ready_since = now if self._ready_since is None else self._ready_since
            self._rules.note_ready(now - self._ready_since)
        if self._stage is None:
            self._enter(DaemonState(pong.state), None)

    def _ask(self) -> Pong | None:
        if self._identity is None and self._process is not None:
            found = self._world.identity(self.name)
            if found is not None and found.pid == self._process.pid:
                self._identity = found
        if self._identity is None:
            return None
        pong = self._world.ping(self._identity)
        if pong is not None:
            self._status = self._world.status(self._identity) or self._status
            if self._first_rss is None and self._status is not None and pong.state in {"ready", "busy"}:
                self._first_rss = self._status.rss_bytes
        return pong

    def _phase_done(self) -> float | None:
        return None if self._status is None else self._status.phase_done

    def _missed(self, now: float) -> None:
        is_starting = self._ready_since is None and self._state in {DaemonState.STARTING, DaemonState.LOADING}
        self._next_ping = now + (PING_WHILE_STARTING_S if is_starting else PING_EVERY_S)
        self._misses += 1
        if self._stage is not None:
            return
        if is_starting and now - self._began > START_LIMIT_S:
            self._enter(DaemonState.UNRESPONSIVE, f"no answer for {now - self._began:.0f} s since its start")
        elif not is_starting and self._misses >= MISSES_MAX:
            self._enter(DaemonState.UNRESPONSIVE, f"{self._misses} pings without an answer")

    # stopping and ends

    def _begin_stage(self, stage: int, *, is_forced: bool = False) -> None:
        if stage >= len(_STAGES):
            self._stage_until = self._clock.monotonic() + LADDER_S  # a process that even SIGKILL does not end
            return
        self._stage = stage
        self._stage_until = self._clock.monotonic() + LADDER_S
        self._enter(DaemonState.STOPPING, None)
        if _STAGES[stage] == "drain":
            heard = self._identity is not None and self._world.shutdown(self._identity, LADDER_S, is_forced=is_forced)
            if not heard:
                self._begin_stage(stage + 1)
        elif _STAGES[stage] == "terminate" and self._process is not None:
            self._process.send(signal.SIGTERM)
        else:
            self._kill()

    def _kill(self) -> None:
        if self._process is None:
            return
        self._is_killing = True
        generation = None if self._identity is None else self._identity.generation
        self._world.note_asked(self.name, self._process, generation)
        self._process.send(signal.SIGKILL)
        if self._stage is None:
            self._stage = len(_STAGES) - 1
            self._stage_until = self._clock.monotonic() + LADDER_S
            self._enter(DaemonState.STOPPING, None)

    def _after_end(self, ended: Ended) -> None:
        process, self._process = self._process, None
        record = self._record_of(process)
        self._world.forget(self.name)
        if process is not None:
            launch.keep_start_log(self.name, process)
            process.close()
        if ended.code is None and ended.signal is None and record is not None:
            ended = Ended(code=record.code)
        self._conclude(ended, record)

    def _record_of(self, process: Process | None) -> ExitRecord | None:
        record = self._world.exit_record(self.name)
        is_its = record is not None and process is not None and record.pid == process.pid
        return record if is_its else None

    def _conclude(self, ended: Ended, record: ExitRecord | None) -> None:
        was_asked = self._stage is not None or ended.code == ASKED or (record is not None and record.asked)
        has_grown = self._has_grown()
        reason = None if record is None else record.reason
        self._note_exit(ended, record, words_for(ended, reason, has_grown=has_grown and not was_asked))
        if ended.code == LOCK and self._adopt():
            return  # somebody else was faster; theirs is as good as ours
        self._stage = None
        if was_asked:
            self._after_asked(record)
            return
        decision = self._rules.after(
            ended, self._clock.monotonic(), reason, has_grown=has_grown, may_restart=self.instance.restart
        )
        self._tell("error", "daemon-ended", f"{self.name}: {decision.reason}")
        if decision.wait_s is None:
            state = DaemonState.FAILED if decision.is_failure else DaemonState.CRASHED
            self._enter(state, decision.reason)
        else:
            self._backoff_until = self._clock.monotonic() + decision.wait_s
            self._enter(DaemonState.BACKOFF if self._is_holder else DaemonState.CRASHED, decision.reason)

    def _after_asked(self, record: ExitRecord | None) -> None:
        if self._starts_again:
            self._starts_again = False
            self._launch()
            return
        words = "killed" if self._is_killing else "stopped"
        reason = f"{words} by you" if record is None or record.code == ASKED else record.reason
        self._enter(DaemonState.STOPPED, reason)

    def _has_grown(self) -> bool:
        if self._first_rss is None or self._status is None or self._status.rss_bytes is None:
            return False
        return self._status.rss_bytes > 1.2 * self._first_rss

    def _note_exit(self, ended: Ended, record: ExitRecord | None, words: str) -> None:
        peak = None if record is None else record.peak_rss_bytes
        if peak is None and self._status is not None:
            peak = self._status.peak_rss_bytes
        tail = launch.log_tail(self.name)
        self._ended_at = self._clock.time()
        self.last_exit = LastExit(self._ended_at, ended.code, ended.signal, words, peak, None, tail)

    def _remember(self) -> None:
        """Write what viewers and the next supervisor want to know."""
        left = None if self._backoff_until is None else self._backoff_until - self._clock.monotonic()
        record = {
            "restarts_total": self.restarts_total,
            "last_exit": None if self.last_exit is None else dataclasses.asdict(self.last_exit),
            "state": self._state.value,
            "reason": self._reason,
            "backoff_until": None if left is None else self._clock.time() + left,
        }
        records.write_record(DaemonPlaces(self.name).memory, record)

    def _enter(self, state: DaemonState, reason: str | None) -> None:
        is_new = state is not self._state
        if is_new:
            self._since = self._clock.time()
        self._state, self._reason = state, reason
        if is_new and self._is_holder:
            self._remember()

    def close(self) -> None:
        """Stop watching; the daemon lives on."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def view(self) -> DaemonView:
        """Return what there is to show."""
        now = self._clock.monotonic()
        places = DaemonPlaces(self.name)
        process, found, status = self._process, self._identity, self._status
        in_backoff = self._state is DaemonState.BACKOFF and self._backoff_until is not None
        return DaemonView(
            name=self.name,
            service_type=self.instance.service_type,
            state=self._state,
            device=self.instance.device if status is None else status.device.kind,
            port=self.instance.port if found is None or found.port is None else found.port,
            host="127.0.0.1" if found is None else found.host,
            reason=self._reason,
            since=self._since,
            device_uuid=None if status is None else status.device.uuid,
            pid=None if process is None else process.pid,
            create_time=None if process is None else process.create_time,
            generation=None if found is None else found.generation,
            adopted=self._is_adopted and process is not None,
            restarts_total=self.restarts_total,
            backoff_s=max(0.0, self._backoff_until - now) if in_backoff and self._backoff_until else None,
            phase=self._phase if self._state is DaemonState.LOADING else None,
            stop=self._stop_stage(now),
            rss_bytes=None if status is None or process is None else status.rss_bytes,
            vram_bytes=None if status is None else status.device.torch_reserved_bytes,
            last_exit=self.last_exit,
            log_path=str(places.log),
            previous_log_path=str(places.previous_log),
            configured=self.is_configured,
            autostart=self.instance.autostart,
            status=status if process is not None else None,
        )

    def _stop_stage(self, now: float) -> StopStage | None:
        if self._stage is None or self._process is None:
            return None
        return StopStage(_STAGES[self._stage], max(0.0, self._stage_until - now))


def _remembered(memory: dict[str, Any]) -> tuple[int, LastExit | None]:
    total, exit_ = memory.get("restarts_total"), memory.get("last_exit")
    count = total if isinstance(total, int) else 0
    if not isinstance(exit_, dict):
        return count, None
    try:
        return count, LastExit(**{**exit_, "log_tail": tuple(exit_.get("log_tail", ()))})
    except TypeError:
        return count, None  # written by another version
