"""Queues: whose turn it is, what is turned away, and that every request is answered exactly once."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luna_daemon.frames import Limits
from luna_daemon.protocol import COMMANDS
from luna_daemon.runtime.executor import Executor
from luna_daemon.runtime.queue import Admission, FairQueue, Job
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable

Answers = list[tuple[int, Any]]


def job(
    client: str, request: int, answers: Answers | None = None, *, is_bulk: bool = False, seconds: float = 60
) -> Job:
    def finish(which: Job, answer: Any) -> None:
        if answers is not None:
            answers.append((which.request, answer))

    return Job(client, request, COMMANDS["ping"], None, {}, time.monotonic() + seconds, finish, is_bulk=is_bulk)


class OneByOne:
    """A lane without batches."""

    def __init__(self, run: Callable[[Job], Any]) -> None:
        self._run = run

    def run(self, which: Job, check: Any) -> Any:
        return self._run(which)

    def row_cap(self, which: Job) -> int:
        return 1


def order(queue: FairQueue) -> list[int]:
    queue.close()
    taken = []
    while (one := queue.take()) is not None:
        taken.append(one.request)
    return taken


# DAEMON S16
def test_clients_take_turns_however_many_requests_one_has() -> None:
    queue = FairQueue()
    for request in range(1, 6):
        queue.put(job("greedy", request))
    queue.put(job("modest", 100))
    queue.put(job("other", 200))
    assert order(queue) == [1, 100, 200, 2, 3, 4, 5]


def test_interactive_comes_first_and_bulk_gets_every_eighth_turn() -> None:
    queue = FairQueue()
    for request in range(1, 21):
        queue.put(job("a", request))
    for request in range(101, 104):
        queue.put(job("b", request, is_bulk=True))
    taken = order(queue)
    assert [index for index, request in enumerate(taken) if request > 100] == [7, 15, 22]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=40))
def test_nothing_is_lost_and_each_client_keeps_its_order(asked: list[tuple[str, bool]]) -> None:
    queue = FairQueue()
    for request, (client, is_bulk) in enumerate(asked):
        queue.put(job(client, request, is_bulk=is_bulk))
    assert queue.facts()[0] == len(asked)
    taken = order(queue)
    assert sorted(taken) == list(range(len(asked)))
    for which in {*asked}:
        mine = [request for request in taken if asked[request] == which]
        assert mine == sorted(mine)


def test_a_removed_job_is_not_taken_and_cannot_be_removed_twice() -> None:
    queue = FairQueue()
    first, second = job("a", 1), job("a", 2)
    queue.put(first)
    queue.put(second)
    assert queue.remove(first)
    assert not queue.remove(first)
    assert order(queue) == [2]
    assert not queue.remove(second)


LIMITS = Limits(connection_requests=2, connection_bytes=100, total_requests=3, total_bytes=150)


@pytest.mark.parametrize(
    ("before", "client", "nbytes"),
    [
        ([("a", 1), ("a", 1)], "a", 1),
        ([("a", 90)], "a", 11),
        ([("a", 1), ("b", 1), ("c", 1)], "d", 1),
        ([("a", 90), ("b", 50)], "c", 11),
        ([], "a", 101),
    ],
)
def test_each_limit_turns_away_and_lets_in_again(before: list[tuple[str, int]], client: str, nbytes: int) -> None:
    admission = Admission(LIMITS)
    for name, size in before:
        admission.enter(name, size)
    with pytest.raises(DaemonError) as caught:
        admission.enter(client, nbytes)
    assert caught.value.code == "daemon-busy"
    assert caught.value.retry_after_ms
    for name, size in before:
        admission.leave(name, size, 0.01)
    admission.enter(client, min(nbytes, 100))
    assert admission.of(client) == 1


def test_the_time_to_come_back_follows_the_service_time() -> None:
    admission = Admission(Limits(total_requests=1))
    for _ in range(50):
        admission.enter("a", 0)
        admission.leave("a", 0, 4.0)
    admission.enter("a", 0)
    with pytest.raises(DaemonError) as caught:
        admission.enter("b", 0)
    assert caught.value.retry_after_ms is not None
    assert 3500 < caught.value.retry_after_ms < 4500


def test_an_executor_answers_each_job_once_whatever_happens() -> None:
    answers: Answers = []
    gate, running = threading.Event(), threading.Event()

    def run(which: Job) -> tuple[Any, list[Any]]:
        running.set()
        if which.request == 1:
            gate.wait(5)
        if which.request == 3:
            raise ZeroDivisionError
        which.check()
        return which.request, []

    executor = Executor("test", OneByOne(run))
    executor.start()
    jobs = [job("a", request, answers) for request in range(1, 6)]
    for one in jobs[:4]:
        executor.queue.put(one)
    running.wait(5)
    assert executor.cancel(jobs[1]) == "removed"
    assert executor.cancel(jobs[0]) == "stopping"
    executor.queue.put(job("b", 5, answers, seconds=-1))
    gate.set()
    assert executor.wait_idle(5)
    codes = {request: answer.code if isinstance(answer, DaemonError) else answer for request, answer in answers}
    assert len(answers) == 5
    assert codes == {1: "cancelled", 2: "cancelled", 3: "internal", 4: (4, []), 5: "daemon-timeout"}
    assert executor.cancel(jobs[3]) == "finished"
    executor.queue.close()


def test_a_first_step_that_fails_is_told_and_no_job_runs() -> None:
    told: list[BaseException] = []

    def fail() -> None:
        raise RuntimeError("no device")

    executor = Executor("test", OneByOne(lambda which: (which.request, [])), fail, told.append)
    answers: Answers = []
    executor.queue.put(job("a", 1, answers))
    executor.start()
    deadline = time.monotonic() + 5
    while not told:
        assert time.monotonic() < deadline
    assert str(told[0]) == "no device"
    assert answers == []
