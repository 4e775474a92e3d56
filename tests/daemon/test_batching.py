"""What runs together, who may lengthen it, and that one request's trouble stays its own."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from luna_daemon.engine_seam import Ran, SetOnDiskError
from luna_daemon.protocol import COMMANDS
from luna_daemon.runtime.batching import ALONE_MS, SHARED_MS, Gathering
from luna_daemon.runtime.costs import Costs
from luna_daemon.runtime.executor import Executor
from luna_daemon.runtime.queue import FairQueue, Job
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Answers = dict[int, Any]
CAP = 16


@dataclass
class Looked:
    """What the engine of these tests makes of a request: its row's length decides what it fits to."""

    request: int
    key: Any
    rows: int = 1
    row_bytes: int = 1


def job(
    client: str, request: int, answers: Answers | None = None, *, length: int | None = 77, cost: float = 1.0
) -> Job:
    def finish(which: Job, answer: Any) -> None:
        if answers is not None:
            answers[which.request] = answer

    made = Job(client, request, COMMANDS["ping"], length, {}, time.monotonic() + 60, finish)
    made.group, made.cost = "text", cost
    return made


def look(which: Job) -> bool:
    which.prepared = Looked(which.request, which.body)
    return True


class WatchedQueue(FairQueue):
    """Counts the waits for others to join; nobody comes in them but what ``late`` puts."""

    def __init__(self, *jobs: Job) -> None:
        super().__init__()
        self.waits = 0
        self.late: list[Job] = []
        for one in jobs:
            self.put(one)

    def wait_after(self, mark: int, seconds: float) -> bool:
        self.waits += 1
        if not self.late:
            return False
        self.put(self.late.pop(0))
        return True


def gathered(queue: FairQueue, gathering: Gathering | None = None) -> list[int]:
    head = queue.take()
    assert isinstance(head, Job)
    look(head)
    return [one.request for one in (gathering or Gathering(queue, look, lambda _: CAP)).gather(head)]


def test_what_fits_runs_together_and_what_does_not_keeps_its_turn() -> None:
    queue = WatchedQueue(job("a", 1), job("b", 2, length=64), job("c", 3), job("d", 4))
    assert gathered(queue) == [1, 3, 4]
    left = queue.take()
    assert isinstance(left, Job)
    assert (left.request, left.prepared.key) == (2, 64)


def test_a_request_that_runs_alone_takes_nobody_with_it() -> None:
    queue = WatchedQueue(job("a", 1, length=None), job("b", 2, length=None))
    assert gathered(queue) == [1]
    assert queue.facts()[0] == 1


def test_a_batch_ends_at_the_row_cap_and_the_rest_waits() -> None:
    queue = WatchedQueue(*(job(f"c{number}", number) for number in range(CAP + 3)))
    assert len(gathered(queue)) == CAP
    assert queue.facts()[0] == 3


def test_a_flood_of_one_client_does_not_make_the_batch_of_another_long() -> None:
    costly = SHARED_MS
    flood = [job("greedy", number, cost=costly) for number in range(8)]
    queue = WatchedQueue(*flood, job("modest", 100, cost=costly))
    assert gathered(queue) == [0, 100]
    cheap = [job("greedy", number, cost=SHARED_MS / 10) for number in range(8)]
    assert len(gathered(WatchedQueue(*cheap, job("modest", 100, cost=SHARED_MS / 10)))) == 9


@pytest.mark.parametrize("length", [77, None])
def test_s16_a_flood_of_one_client_keeps_the_others_within_three_times_their_time(length: int | None) -> None:
    """Simulated: every request takes 100 ms of the device, a batch the sum of its own; the flood never ends."""
    queue, cost, now, number = FairQueue(), 100.0, 0.0, 0
    gathering = Gathering(queue, look, lambda _: CAP)
    chance, arrives, took = random.Random(1), 0.0, []
    waiting: Job | None = None
    while len(took) < 300:
        while queue.facts()[0] < 32:
            number += 1
            queue.put(job("greedy", number, length=length, cost=cost))
        if waiting is None and arrives <= now:
            waiting = job("modest", -1, length=length, cost=cost)
            queue.put(waiting)
        head = queue.take()
        assert isinstance(head, Job)
        look(head)
        batch = gathering.gather(head)
        gathering.ended(batch)
        now += cost * len(batch)
        if waiting in batch:
            took.append(now - arrives)
            waiting, arrives = None, now + chance.uniform(0, 500)
    assert sorted(took)[int(len(took) * 0.99) - 1] <= 3 * cost


def test_a_client_that_is_alone_may_fill_its_batches_further() -> None:
    queue = WatchedQueue(*(job("only", number, cost=ALONE_MS / 4) for number in range(8)))
    assert len(gathered(queue)) == 4


def test_a_large_request_does_not_join_a_small_one() -> None:
    assert gathered(WatchedQueue(job("a", 1, cost=100.0), job("b", 2, cost=6400.0), job("c", 3, cost=150.0))) == [1, 3]


def test_a_lone_client_waits_for_nobody_and_several_wait_for_each_other() -> None:
    queue = WatchedQueue(job("a", 1))
    gathering = Gathering(queue, look, lambda _: CAP)
    assert gathered(queue, gathering) == [1]
    gathering.ended([job("a", 1)])
    queue.put(job("a", 2))
    assert gathered(queue, gathering) == [2]
    assert queue.waits == 0
    gathering.ended([job("a", 2), job("b", 3)])
    queue.put(job("a", 4))
    queue.late = [job("b", 5), job("c", 6)]
    assert gathered(queue, gathering) == [4, 5]
    assert queue.waits == 1


class Encoder:
    """A lane whose batches are written down; ``poison`` fails a batch of several, ``gate`` holds the first one."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate, self.entered = threading.Event(), threading.Event()
        self.poison: set[int] = set()
        self.checks: Callable[[], None] = lambda: None

    def run(self, which: Job, check: Callable[[], None]) -> Any:
        self.entered.set()
        self.gate.wait(5)
        check()
        return which.request, []

    def prepare(self, which: Job) -> Looked:
        if which.body == 0:
            raise DaemonError("token-invalid", "no such row")
        return Looked(which.request, which.body)

    def row_cap(self, which: Job) -> int:
        return CAP

    def encode(self, batch: Sequence[Looked], check: Callable[[], None]) -> Ran:
        self.batches.append([one.request for one in batch])
        self.entered.set()
        self.gate.wait(5)
        check()
        if self.poison & set(self.batches[-1]):
            raise ZeroDivisionError
        return Ran(tuple((one.request, []) for one in batch))


@pytest.fixture
def lane() -> Encoder:
    return Encoder()


def queued_behind_the_first(lane: Encoder, *jobs: Job) -> Executor:
    """Run the first job up to the gate, and queue the others meanwhile."""
    executor = Executor("test", lane)
    executor.costs.predict = lambda body, tensors: 1.0  # type: ignore[method-assign]
    executor.put(jobs[0])
    executor.start()
    assert lane.entered.wait(5)
    for one in jobs[1:]:
        executor.put(one)
    return executor


def outcome(answer: Any) -> Any:
    return answer.code if isinstance(answer, DaemonError) else answer[0]


def finished(executor: Executor, lane: Encoder, answers: Answers) -> dict[int, Any]:
    lane.gate.set()
    assert executor.wait_idle(5)
    executor.queue.close()
    return {request: outcome(answer) for request, answer in answers.items()}


def test_requests_that_came_meanwhile_run_as_one_batch(lane: Encoder) -> None:
    answers: Answers = {}
    executor = queued_behind_the_first(lane, *(job(f"c{number}", number, answers) for number in range(5)))
    assert finished(executor, lane, answers) == {number: number for number in range(5)}
    assert lane.batches == [[0], [1, 2, 3, 4]]


def test_a_request_that_breaks_its_batch_is_refused_alone(lane: Encoder) -> None:
    answers: Answers = {}
    lane.poison = {2}
    jobs = [job(f"c{number}", number, answers) for number in range(4)]
    executor = queued_behind_the_first(lane, *jobs, job("c9", 9, answers, length=0))
    assert finished(executor, lane, answers) == {0: 0, 1: 1, 2: "internal", 3: 3, 9: "token-invalid"}


def test_a_cancelled_member_loses_its_result_and_the_others_keep_theirs(lane: Encoder) -> None:
    answers: Answers = {}
    jobs = [job(f"c{number}", number, answers) for number in range(3)]
    executor = queued_behind_the_first(lane, *jobs)
    assert executor.cancel(jobs[0]) == "stopping"
    assert executor.cancel(jobs[2]) == "removed"
    assert finished(executor, lane, answers) == {0: "cancelled", 1: 1, 2: "cancelled"}


def test_an_exact_encode_lets_nobody_through(lane: Encoder) -> None:
    answers: Answers = {}
    exact = job("a", 1, answers)
    exact.group, exact.command = None, COMMANDS["encode_tokens"]
    executor = queued_behind_the_first(lane, exact, job("b", 2, answers))
    finished(executor, lane, answers)
    assert list(answers) == [1, 2]


def test_a_request_whose_model_is_on_disk_waits_and_comes_first_when_it_is_there(lane: Encoder) -> None:
    answers: Answers = {}
    away = {1, 2}
    absent: list[Job] = []
    prepare = lane.prepare

    def prepare_or_not(which: Job) -> Looked:
        if which.request in away:
            raise SetOnDiskError("s")
        return prepare(which)

    lane.prepare = prepare_or_not  # type: ignore[method-assign]
    executor = Executor("test", lane, on_absent=lambda which, name: absent.append(which))
    lane.gate.set()
    executor.start()
    for number in (1, 2, 3):
        executor.put(job("a", number, answers))
    deadline = time.monotonic() + 5
    while len(absent) < 2 or 3 not in answers:
        assert time.monotonic() < deadline
    assert list(answers) == [3]
    assert not executor.wait_idle(0)
    assert executor.cancel(absent[1]) == "stopping"
    away.clear()
    executor.resume(absent[0])
    executor.resume(absent[1])
    assert finished(executor, lane, answers) == {1: 1, 2: "cancelled", 3: 3}
    assert absent[0].load_s > 0


def test_a_long_request_lets_a_waiting_batch_through_at_its_next_step(lane: Encoder) -> None:
    answers: Answers = {}
    long = job("a", 1, answers)
    long.group = None
    executor = queued_behind_the_first(lane, long, job("b", 2, answers), job("c", 3, answers))
    assert {one.request for one in executor.running} == {1}
    assert finished(executor, lane, answers) == {1: 1, 2: 2, 3: 3}
    assert list(answers) == [2, 3, 1]
    assert lane.batches == [[2, 3]]


def test_work_of_the_daemon_is_done_between_jobs_and_its_failure_comes_back(lane: Encoder) -> None:
    answers: Answers = {}
    executor = queued_behind_the_first(lane, job("a", 1, answers), job("b", 2, answers))
    seen: list[Any] = []
    caller = threading.Thread(target=lambda: seen.append(executor.call(lambda: (list(answers), threading.get_ident()))))
    caller.start()
    deadline = time.monotonic() + 5
    while not executor.queue._calls:
        assert time.monotonic() < deadline
    finished(executor, lane, answers)
    caller.join()
    ((done_before, thread),) = seen
    assert (done_before, thread) == ([1], executor._thread.ident)


def test_a_failed_piece_of_work_fails_for_who_asked(lane: Encoder) -> None:
    executor = Executor("test", lane)
    executor.start()
    with pytest.raises(ZeroDivisionError):
        executor.call(lambda: 1 // 0)
    assert executor.call(lambda: executor.call(lambda: 5)) == 5  # on its own thread it needs no turn
    executor.queue.close()


def test_a_client_of_long_requests_gets_as_much_time_as_one_of_short_ones() -> None:
    queue = FairQueue()
    for number in range(6):
        queue.put(job("long", number, cost=50.0))
    for number in range(100, 140):
        queue.put(job("short", number, cost=10.0))
    taken = [queue.take() for _ in range(24)]
    spent = {client: sum(one.cost for one in taken if one.client == client) for client in ("long", "short")}  # type: ignore[union-attr]
    assert spent == {"long": 200.0, "short": 200.0}


def test_costs_are_learnt_by_kind_of_work_and_size() -> None:
    costs = Costs()
    body, latent = COMMANDS["vae_decode"].request, {"latent": latent_of(64)}
    decode = body("s")  # type: ignore[call-arg]
    first = costs.predict(decode, latent)
    for _ in range(60):
        done = job("a", 1, cost=costs.predict(decode, latent))
        done.body, done.tensors = decode, latent
        costs.learn([done], 800.0)
    assert costs.predict(decode, latent) == pytest.approx(800.0, rel=0.01)
    assert costs.predict(decode, {"latent": latent_of(128)}) == pytest.approx(3200.0, rel=0.01)
    assert first != costs.predict(decode, latent)


def latent_of(side: int) -> Any:
    from luna_daemon.frames import WireTensor

    return WireTensor("latent", "f32", (1, 4, side, side), memoryview(b""))
