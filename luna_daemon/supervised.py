"""One daemon under supervision: its state machine, advanced by looking at its process, its identity and its answers."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from luna_daemon import launch, restart_memory
from luna_daemon.identity import DaemonPlaces
from luna_daemon.launch import Ended
from luna_daemon.process_exits import ASKED, LOCK, NO_RESTART, words_for
from luna_daemon.restart_memory import Memory
from luna_daemon.restarts import RestartRules
from luna_daemon.views import DaemonState, DaemonView, LastExit, Phase, StopStage
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable

    from luna_daemon.identity import ExitRecord, Identity
    from luna_daemon.launch import Process
    from luna_daemon.messages import Pong
    from luna_daemon.status_messages import DaemonStatus
    from luna_daemon.world import Clock, World
    from luna_engine.settings import DaemonInstance

PING_EVERY_S = 2.0
PING_WHILE_STARTING_S = 0.2
MISSES_MAX = 3
START_LIMIT_S = 30.0
LADDER_S = 10.0
ORPHAN_EVERY_S = 5.0
_SAME_END_S = 2.0  # a supervisor notes an end a little after the daemon did
_DOWN = frozenset({"stopped", "crashed", "backoff", "failed"})
_STAGES = ("drain", "terminate", "kill")


def orphan_error(name: str, pid: int) -> DaemonError:
    """Return what every verb answers while somebody unknown has a daemon's place."""
    return DaemonError(
        "daemon-orphan",
        f"pid {pid} holds the lock of {name} and left no identity by which it could be reached",
        "look what it is, and end it yourself",
        details={"pid": pid},
    )


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
        self._unresponsive_since: float | None = None
        self._stalled: frozenset[str] = frozenset()
        self._next_orphan_look = 0.0
        kept = restart_memory.read(name)
        self.restarts_total, self.last_exit = kept.restarts_total, kept.last_exit

    # what people ask for

    @property
    def state(self) -> DaemonState:
        """Return the state."""
        return self._state

    def start(self) -> None:
        """Start it unless it runs; crashes of before are forgiven.

        Raises:
            DaemonError: ``daemon-orphan`` if a process that cannot be reached has its place.
        """
        self._refuse_orphan()
        self._rules.forgive()
        self._backoff_until = None
        if self._stage is not None:
            self._starts_again = True
        elif self._process is None and not self._adopt():
            self._launch()

    def _refuse_orphan(self) -> None:
        """Neither ask nor end a process that nobody can say is the daemon; who it is, a person has to see."""
        if self._state is DaemonState.ORPHAN and self._process is not None:
            raise orphan_error(self.name, self._process.pid)

    def stop(self, *, is_forced: bool = False) -> None:
        """Begin the stop ladder; from back-off, stay down.

        Raises:
            DaemonError: ``daemon-orphan``, as for `start`.
        """
        self._refuse_orphan()
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
        """End its process without asking it.

        Raises:
            DaemonError: ``daemon-orphan``, as for `start`.
        """
        self._refuse_orphan()
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
        if self._state is DaemonState.ORPHAN:
            self._look_at_orphan()
            return
        if self._stage is not None and self._clock.monotonic() >= self._stage_until:
            self._begin_stage(self._stage + 1)
        if self._clock.monotonic() >= self._next_ping:
            self._look()

    def _look_at_orphan(self) -> None:
        """See whether it has an identity after all, as one has that only took long to write it."""
        found = self._world.identity(self.name)
        if found is not None and self._process is not None:
            self._process.close()
            self._process = None
            self._adopt()

    def _find_orphan(self) -> bool:
        """Look now and then for a process that has had the lock for a while, and no identity."""
        now = self._clock.monotonic()
        if now < self._next_orphan_look:
            return False
        self._next_orphan_look = now + ORPHAN_EVERY_S
        found = self._world.orphan(self.name)
        if found is None:
            return False
        self._forget_run()
        self._process = found
        self._is_adopted = True
        self._backoff_until = None
        reason = f"pid {found.pid} holds its lock and left no identity; end it yourself"
        self._enter(DaemonState.ORPHAN, reason)
        self._tell("error", "daemon-orphan", f"{self.name}: {reason}")
        return True

    def _step_down(self) -> None:
        if self._adopt() or self._find_orphan():
            return
        if not self._is_holder or self._since is None:
            self._read_on()
        if self._is_holder and self._backoff_until is not None:
            self._wait_out(self._backoff_until)

    def _wait_out(self, until: float) -> None:
        record = self._world.exit_record(self.name)
        if record is not None and record.asked and record.at > self._ended_at:
            self._backoff_until = None
            self._enter(DaemonState.STOPPED, record.reason)
        elif self._clock.monotonic() >= until:
            self._backoff_until = None
            self.restarts_total += 1
            self._tell("info", "restarting", f"{self.name} is started again, restart {self.restarts_total}")
            self._launch()

    def _read_on(self) -> None:
        """Take over what is written about a daemon that is down: by its supervisor, or by itself when nobody looked."""
        kept = restart_memory.read(self.name)
        self.restarts_total, self.last_exit = kept.restarts_total, kept.last_exit
        record = self._world.exit_record(self.name)
        if record is not None and (kept.last_exit is None or record.at > kept.last_exit.at + _SAME_END_S):
            self._read_exit(record)
        elif kept.state == "backoff":
            wait_s = -60.0 if kept.backoff_until is None else kept.backoff_until - self._clock.time()
            if wait_s > -5.0:
                self._enter(DaemonState.BACKOFF, kept.reason)
                self._backoff_until = self._clock.monotonic() + wait_s
            else:
                self._enter(DaemonState.CRASHED, f"{kept.reason}; nobody supervised it then")
        elif kept.state in _DOWN:
            self._enter(DaemonState(kept.state), kept.reason)

    def _read_exit(self, record: ExitRecord) -> None:
        if record.asked or record.code == ASKED:
            self._enter(DaemonState.STOPPED, record.reason)
            return
        words = words_for(Ended(code=record.code), record.reason)
        self.last_exit = LastExit(record.at, record.code, None, words, record.peak_rss_bytes)
        self._enter(DaemonState.FAILED if record.code in NO_RESTART else DaemonState.CRASHED, words)

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
        self._unresponsive_since = None
        self._stalled = frozenset()
        self._next_orphan_look = 0.0
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
        self._unresponsive_since = None
        self._tell_stalled()
        if self._stage is None:
            self._enter(DaemonState(pong.state), None)

    def _tell_stalled(self) -> None:
        """Tell once of a lane whose request runs far too long; the daemon itself is the judge of that."""
        lanes = {} if self._status is None else self._status.queue
        stalled = frozenset(name for name, lane in lanes.items() if lane.stalled)
        for name in sorted(stalled - self._stalled):
            running_s = (lanes[name].running_ms or 0.0) / 1000
            self._tell(
                "warning", "stalled", f"{self.name}: a request on lane {name} runs for {running_s:.0f} s already"
            )
        self._stalled = stalled

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
        if self._state is DaemonState.UNRESPONSIVE:
            self._kill_if_told(now)

    def _kill_if_told(self, now: float) -> None:
        """End a process that has been silent for as long as its settings allow; by default that is for ever."""
        if self._unresponsive_since is None:
            self._unresponsive_since = now
            return
        limit_s, silent_s = self.instance.kill_after_s, now - self._unresponsive_since
        if limit_s is not None and silent_s >= limit_s and self._is_holder and self._process is not None:
            self._tell("error", "daemon-killed", f"{self.name} did not answer for {silent_s:.0f} s and is killed")
            self._process.send(signal.SIGKILL)  # not asked for by a person: it counts as a crash and is started again

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
        left = None if self._backoff_until is None else self._backoff_until - self._clock.monotonic()
        until = None if left is None else self._clock.time() + left
        kept = Memory(self.restarts_total, self.last_exit, self._state.value, self._reason, until)
        restart_memory.write(self.name, kept)

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
