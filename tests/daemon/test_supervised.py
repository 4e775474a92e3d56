"""The state machine of one daemon, with its world scripted and its clock in hand."""

from __future__ import annotations

import random
import signal
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from luna_daemon.identity import ExitRecord, Identity
from luna_daemon.launch import Ended
from luna_daemon.messages import Pong
from luna_daemon.restarts import RestartRules
from luna_daemon.status_messages import LaneStatus
from luna_daemon.supervised import Supervised
from luna_engine.errors import DaemonError
from luna_engine.settings import DaemonInstance

if TYPE_CHECKING:
    from luna_daemon.status_messages import DaemonStatus


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now + 1e9


@dataclass
class ScriptedProcess:
    pid: int
    create_time: float = 1.0
    end: Ended | None = None
    signals: list[int] = field(default_factory=list)
    obeys: frozenset[int] = frozenset({signal.SIGTERM, signal.SIGKILL})

    def ended(self) -> Ended | None:
        return self.end

    def send(self, number: int) -> bool:
        self.signals.append(number)
        if number in self.obeys:
            self.end = Ended(signal=number)
        return True

    def close(self) -> None:
        return


NOTHING_ELSE = {"rss_bytes": None, "peak_rss_bytes": None, "phase_done": None}


class ScriptedWorld:
    """Launches processes that answer what the test says."""

    def __init__(self) -> None:
        self.processes: list[ScriptedProcess] = []
        self.alive: Identity | None = None
        self.says: str | None = "ready"
        self.record: ExitRecord | None = None
        self.hears_shutdown = True
        self.shutdowns = 0
        self.lock_holder: ScriptedProcess | None = None
        self.queue: dict[str, LaneStatus] = {}

    def identity(self, name: str) -> Identity | None:
        return self.alive

    def orphan(self, name: str) -> ScriptedProcess | None:
        return self.lock_holder

    def launch(self, name: str, instance: DaemonInstance) -> ScriptedProcess:
        pid = 100 + len(self.processes)
        self.processes.append(ScriptedProcess(pid))
        self.alive = identity_of(name, pid)
        return self.processes[-1]

    def found(self, identity: Identity) -> ScriptedProcess:
        self.processes.append(ScriptedProcess(identity.pid))
        return self.processes[-1]

    def ping(self, identity: Identity) -> Pong | None:
        return None if self.says is None else Pong(None, identity.generation, self.says, None, None, 1)

    def status(self, identity: Identity) -> DaemonStatus | None:
        return cast("DaemonStatus", SimpleNamespace(queue=self.queue, **NOTHING_ELSE)) if self.queue else None

    def shutdown(self, identity: Identity, deadline_s: float, *, is_forced: bool) -> bool:
        self.shutdowns += 1
        return self.hears_shutdown

    def exit_record(self, name: str) -> ExitRecord | None:
        return self.record

    def note_asked(self, name: str, process: ScriptedProcess, generation: str | None) -> None:
        self.record = ExitRecord(process.pid, generation, 0.0, None, "killed as asked", asked=True)

    def note_stay_down(self, name: str) -> None:
        return

    def forget(self, name: str) -> None:
        return


def identity_of(name: str, pid: int) -> Identity:
    return Identity(name, pid, 1.0, "boot", f"g{pid}", "full", "cpu", "127.0.0.1", 1, None, "log", 1, "d", 0.0)


class Stage:
    """A supervised daemon with its world and clock."""

    def __init__(self, **instance: object) -> None:
        self.clock = FakeClock()
        self.world = ScriptedWorld()
        self.said: list[str] = []
        rules = RestartRules(random.Random(3))
        self.daemon = Supervised(
            "d",
            DaemonInstance(**instance),  # type: ignore[arg-type]  # a test's shorthand
            self.world,  # type: ignore[arg-type]  # scripted processes
            self.clock,
            lambda level, code, message: self.said.append(code),
            rules=rules,
        )

    def step(self, seconds: float = 0.0, *, may_restart: bool = True) -> str:
        self.clock.now += seconds
        self.daemon.step(may_restart=may_restart)
        return self.daemon.state.value

    def started(self) -> Stage:
        self.daemon.start()
        assert self.step() == "ready"
        return self

    def die(self, ended: Ended) -> str:
        self.world.processes[-1].end = ended
        self.world.alive = None
        return self.step()


def test_starting_loading_ready_busy_follow_the_daemon_s_own_word() -> None:
    stage = Stage()
    stage.daemon.start()
    assert stage.daemon.state.value == "starting"
    for said in ("loading", "ready", "busy"):
        stage.world.says = said
        assert stage.step(2.0) == said


def test_a_crash_backs_off_counts_down_and_is_counted_up() -> None:
    stage = Stage().started()
    assert stage.die(Ended(code=1)) == "backoff"
    view = stage.daemon.view()
    assert view.backoff_s is not None
    assert 0.8 <= view.backoff_s <= 1.2
    assert view.restarts_total == 0
    assert stage.step(0.5) == "backoff"
    stage.step(0.8)
    assert stage.step() == "ready"
    assert stage.daemon.view().restarts_total == 1
    assert len(stage.world.processes) == 2
    assert stage.said == ["daemon-ended", "restarting"]


def test_the_restart_count_is_remembered_by_the_next_supervisor() -> None:
    stage = Stage().started()
    stage.die(Ended(signal=9))
    stage.step(2.0)
    assert Stage().daemon.view().restarts_total == 1
    last = Stage().daemon.view().last_exit
    assert last is not None
    assert last.signal == 9


def test_a_viewer_restarts_nothing() -> None:
    stage = Stage().started()
    stage.step(may_restart=False)
    stage.world.processes[-1].end = Ended(code=1)
    stage.world.alive = None
    for _ in range(100):
        stage.step(5.0, may_restart=False)
    assert len(stage.world.processes) == 1


def test_a_viewer_shows_the_supervisor_s_back_off() -> None:
    stage = Stage().started()
    stage.die(Ended(code=1))
    viewer = Stage()
    viewer.step(may_restart=False)
    view = viewer.daemon.view()
    assert view.state.value == "backoff"
    assert view.backoff_s is not None
    viewer.clock.now += 100
    viewer.step(may_restart=False)
    assert viewer.daemon.state.value == "crashed"
    assert "nobody supervised" in str(viewer.daemon.view().reason)


@pytest.mark.parametrize(("code", "words"), [(66, "preload"), (69, "device"), (71, "port"), (78, "settings")])
def test_an_exit_that_would_repeat_itself_fails_in_words(code: int, words: str) -> None:
    stage = Stage().started()
    assert stage.die(Ended(code=code)) == "failed"
    assert words in str(stage.daemon.view().reason)
    for _ in range(10):
        assert stage.step(60.0) == "failed"


def test_exit_0_is_never_restarted_whoever_asked() -> None:
    stage = Stage().started()
    assert stage.die(Ended(code=0)) == "stopped"
    assert stage.step(100.0) == "stopped"


def test_a_daemon_that_was_beaten_to_the_lock_gives_way_to_the_winner() -> None:
    stage = Stage()
    stage.daemon.start()
    stage.world.processes[-1].end = Ended(code=73)
    stage.world.alive = identity_of("d", 999)
    stage.step()
    assert stage.step() == "ready"
    assert (stage.daemon.view().pid, stage.daemon.view().adopted) == (999, True)


def test_a_running_daemon_is_adopted_and_its_silent_end_is_a_crash() -> None:
    stage = Stage()
    stage.world.alive = identity_of("d", 55)
    assert stage.step() == "ready"
    assert stage.daemon.view().adopted
    assert stage.die(Ended()) == "backoff"
    assert "without a word" in str(stage.daemon.view().reason)


def test_an_adopted_daemon_s_own_word_about_its_end_counts() -> None:
    stage = Stage()
    stage.world.alive = identity_of("d", 55)
    stage.step()
    stage.world.record = ExitRecord(55, "g55", 0.0, 71, "port 5 is taken by pid 7", peak_rss_bytes=77)
    assert stage.die(Ended()) == "failed"
    view = stage.daemon.view()
    assert "pid 7" in str(view.reason)
    assert view.last_exit is not None
    assert (view.last_exit.code, view.last_exit.peak_ram_bytes) == (71, 77)


def test_three_misses_are_unresponsive_shown_and_never_killed() -> None:
    stage = Stage().started()
    stage.world.says = None
    assert [stage.step(2.0) for _ in range(3)] == ["ready", "ready", "unresponsive"]
    for _ in range(50):
        stage.step(2.0)
    assert stage.world.processes[-1].signals == []
    stage.world.says = "ready"
    assert stage.step(2.0) == "ready"


def test_no_answer_since_its_start_is_unresponsive_after_half_a_minute() -> None:
    stage = Stage()
    stage.world.says = None
    stage.daemon.start()
    assert stage.step(29.0) == "starting"
    assert stage.step(2.0) == "unresponsive"


def test_the_stop_ladder_drains_then_terminates_then_kills() -> None:
    stage = Stage().started()
    process = stage.world.processes[-1]
    process.obeys = frozenset({signal.SIGKILL})
    stage.daemon.stop()
    view = stage.daemon.view()
    assert view.state.value == "stopping"
    assert view.stop is not None
    assert (view.stop.stage, view.stop.next_in_s) == ("drain", 10.0)
    assert (stage.world.shutdowns, process.signals) == (1, [])
    stage.step(10.0)
    assert process.signals == [signal.SIGTERM]
    assert stage.daemon.view().stop is not None
    stage.step(10.0)
    assert process.signals == [signal.SIGTERM, signal.SIGKILL]
    stage.world.alive = None
    assert stage.step() == "stopped"
    assert stage.step(100.0) == "stopped"


def test_a_daemon_that_does_not_hear_is_terminated_at_once() -> None:
    stage = Stage().started()
    stage.world.hears_shutdown = False
    stage.daemon.stop()
    assert stage.world.processes[-1].signals == [signal.SIGTERM]


def test_restart_starts_again_after_the_end_and_is_no_crash() -> None:
    stage = Stage().started()
    stage.daemon.restart()
    stage.world.alive = None
    stage.world.processes[-1].end = Ended(code=0)
    stage.step()
    assert stage.step() == "ready"
    assert len(stage.world.processes) == 2
    assert stage.daemon.view().restarts_total == 0


def test_start_during_a_stop_is_kept_for_afterwards() -> None:
    stage = Stage().started()
    stage.daemon.stop()
    stage.daemon.start()
    stage.world.alive = None
    stage.world.processes[-1].end = Ended(code=0)
    stage.step()
    assert stage.step() == "ready"


def test_kill_is_noted_before_it_happens_and_not_restarted() -> None:
    stage = Stage().started()
    stage.daemon.kill()
    assert stage.world.record is not None
    assert stage.world.record.asked
    stage.world.alive = None
    assert stage.step() == "stopped"
    assert stage.step(100.0) == "stopped"


def test_stop_ends_a_back_off_and_start_ends_it_at_once() -> None:
    stage = Stage().started()
    stage.die(Ended(code=1))
    stage.daemon.stop()
    assert stage.step(100.0) == "stopped"
    stage.daemon.start()
    assert stage.step() == "ready"
    stage.die(Ended(code=1))
    stage.daemon.start()
    assert stage.step() == "ready"


def test_somebody_else_s_stop_ends_a_back_off() -> None:
    stage = Stage().started()
    stage.die(Ended(code=1))
    stage.world.record = ExitRecord(0, None, stage.clock.time() + 1, None, "stopped by you", asked=True)
    assert stage.step(0.1) == "stopped"
    assert stage.step(100.0) == "stopped"


def test_restart_off_leaves_a_crash_alone() -> None:
    stage = Stage(restart=False).started()
    assert stage.die(Ended(signal=11)) == "crashed"
    assert stage.step(1000.0) == "crashed"


def test_five_crashes_in_five_minutes_fail_until_the_user_starts_it() -> None:
    stage = Stage().started()
    states = []
    for _ in range(5):
        states.append(stage.die(Ended(code=1)))
        stage.step(20.0)
        stage.step(0.1)
    assert states == ["backoff"] * 4 + ["failed"]
    stage.daemon.start()
    assert stage.step() == "ready"


def test_an_unknown_number_is_none() -> None:
    view = Stage().daemon.view()
    assert (view.pid, view.rss_bytes, view.vram_bytes, view.backoff_s, view.last_exit) == (None,) * 5


@pytest.mark.parametrize(
    ("code", "asked", "state", "words"),
    [
        (71, False, "failed", "port"),
        (1, False, "crashed", "exit code 1"),
        (None, False, "crashed", "told so"),
        (0, True, "stopped", "told so"),
        (None, True, "stopped", "told so"),
    ],
)
def test_an_end_that_nobody_watched_is_read_from_the_daemon_s_own_record(
    code: int | None,
    asked: bool,  # noqa: FBT001 - a parameter of the table above
    state: str,
    words: str,
) -> None:
    for may_restart in (True, False):
        stage = Stage()
        stage.world.record = ExitRecord(5, "g", stage.clock.time(), code, "told so", asked=asked)
        assert stage.step(may_restart=may_restart) == state
        assert words in str(stage.daemon.view().reason)
        assert stage.world.processes == []


def test_a_new_supervisor_continues_a_back_off() -> None:
    stage = Stage().started()
    stage.die(Ended(code=1))
    later = Stage()
    assert later.step() == "backoff"
    later.step(2.0)
    assert later.step() == "ready"
    assert later.daemon.view().restarts_total == 1


def test_a_silent_daemon_is_killed_only_where_the_settings_say_so_and_then_started_again() -> None:
    stage = Stage(kill_after_s=30.0).started()
    stage.world.says = None
    process = stage.world.processes[-1]
    for _ in range(16):
        stage.step(2.0)
    assert process.signals == []
    for _ in range(4):
        if not process.signals:
            stage.step(2.0)
    assert process.signals == [signal.SIGKILL]
    stage.world.alive = None
    assert stage.step(0.1) == "backoff"
    assert stage.said == ["daemon-killed", "daemon-ended"]


def test_a_daemon_that_answers_again_in_time_is_not_killed() -> None:
    stage = Stage(kill_after_s=30.0).started()
    for _ in range(3):
        stage.world.says = None
        for _ in range(10):
            stage.step(2.0)
        assert stage.daemon.state.value == "unresponsive"
        stage.world.says = "ready"
        assert stage.step(2.0) == "ready"
    assert stage.world.processes[-1].signals == []


def test_a_viewer_kills_nothing() -> None:
    stage = Stage(kill_after_s=1.0).started()
    stage.world.says = None
    for _ in range(20):
        stage.step(2.0, may_restart=False)
    assert stage.world.processes[-1].signals == []


def test_a_stalled_request_is_told_once() -> None:
    stage = Stage().started()
    stage.world.queue = {"device": LaneStatus(0, 1, 0, running_ms=75_000.0, stalled=True)}
    for _ in range(3):
        stage.step(2.0)
    assert stage.said == ["stalled"]
    stage.world.queue = {"device": LaneStatus(0, 0, 0)}
    stage.step(2.0)
    stage.world.queue = {"device": LaneStatus(0, 1, 0, running_ms=75_000.0, stalled=True)}
    stage.step(2.0)
    assert stage.said == ["stalled", "stalled"]


def test_who_holds_the_lock_without_an_identity_is_an_orphan_shown_and_never_touched() -> None:
    stage = Stage()
    assert stage.step() == "stopped"
    stage.world.lock_holder = ScriptedProcess(77)
    assert stage.step(5.0) == "orphan"
    view = stage.daemon.view()
    assert (view.pid, view.state.is_running) == (77, True)
    assert view.reason is not None
    assert "77" in view.reason
    for verb in (stage.daemon.start, stage.daemon.stop, stage.daemon.kill, stage.daemon.restart):
        with pytest.raises(DaemonError) as caught:
            verb()
        assert caught.value.code == "daemon-orphan"
    assert stage.world.lock_holder.signals == []
    assert stage.world.shutdowns == 0
    assert len(stage.world.processes) == 0


def test_an_orphan_that_shows_its_identity_is_adopted() -> None:
    stage = Stage()
    stage.world.lock_holder = ScriptedProcess(77)
    assert stage.step() == "orphan"
    stage.world.alive = identity_of("d", 77)
    assert stage.step(1.0) == "ready"
    assert stage.daemon.view().adopted


def test_two_kills_by_the_system_for_memory_in_a_row_are_enough() -> None:
    """Whose memory grew before SIGKILL came was probably ended by the system, and would be again."""
    stage = Stage().started()
    for expected in ("backoff", "failed"):
        stage.daemon._first_rss = 100
        stage.daemon._status = cast("DaemonStatus", SimpleNamespace(rss_bytes=200, peak_rss_bytes=300))
        assert stage.die(Ended(signal=signal.SIGKILL)) == expected
        stage.daemon._status = None
        if expected == "backoff":
            assert "OOM killer" in (stage.daemon.view().reason or "")
            for _ in range(100):
                if stage.step(1.0) == "ready":
                    break
    assert "twice in a row" in (stage.daemon.view().reason or "")
