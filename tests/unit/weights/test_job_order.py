"""Waiting jobs are reordered and held; a running one stops between two chunks and goes on where it was."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from luna_engine.errors import LunaError
from luna_engine.weights.jobs import JobState
from luna_engine.weights.queue import JobQueue, in_order
from luna_tui.cli import luna
from luna_tui.frame import run
from tests.synthetic_models import TINY_SDXL, write_holes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DEADLINE_S = 60.0


@pytest.fixture
def queue() -> JobQueue:
    return JobQueue.open()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_holes(tmp_path / "checkpoints" / "tiny.safetensors", TINY_SDXL)


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def order(queue: JobQueue) -> list[str]:
    return [job.precision for job in in_order(queue.jobs())]


def test_jobs_are_started_by_age_until_one_is_moved_and_new_ones_come_last(queue: JobQueue, source: Path) -> None:
    first, second, third = (queue.submit(source, label) for label in ("bf16", "gguf_F16", "gguf_BF16"))
    assert order(queue) == ["bf16", "gguf_F16", "gguf_BF16"]
    assert queue.move(third.id, 1) == 1
    assert order(queue) == ["gguf_BF16", "bf16", "gguf_F16"]
    assert queue.move(third.id, 99) == 3
    queue.move(second.id, 1)
    queue.submit(source, "fp8_e4m3fn")
    assert order(queue) == ["gguf_F16", "bf16", "gguf_BF16", "fp8_e4m3fn"]
    queue.cancel(first.id)
    with pytest.raises(LunaError, match="only waiting jobs"):
        queue.move(first.id, 1)


def test_a_paused_job_keeps_its_place_and_is_not_started(queue: JobQueue, source: Path) -> None:
    first, second = queue.submit(source, "bf16"), queue.submit(source, "gguf_F16")
    queue.pause(first.id)
    started = queue.run_next()
    assert started is not None
    assert started.id == second.id
    until(lambda: queue.store.load(second.id).state.is_over)
    assert queue.run_next() is None
    assert order(queue) == ["bf16"]
    queue.pause(first.id, is_paused=False)
    assert queue.run_next() is not None
    until(lambda: queue.store.load(first.id).state.is_over)
    with pytest.raises(LunaError, match="done already"):
        queue.pause(first.id)


def test_a_running_job_stops_between_chunks_goes_on_and_can_be_cancelled_meanwhile(
    queue: JobQueue, tmp_path: Path
) -> None:
    name = "input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight"
    large = write_holes(tmp_path / "checkpoints" / "large.safetensors", {**TINY_SDXL, name: (800_000, 4096)})
    job = queue.submit(large, "bf16")
    queue.run_next()

    def done() -> int:
        progress = queue.progress(job.id)
        return (progress.done_bytes or 0) if progress is not None else 0

    def stands() -> bool:
        """Tell whether two different lines tell of the same bytes."""
        lines = [json.loads(line) for line in queue.store.lines_path(job.id).read_text().splitlines()[-2:]]
        return len({line["at"] for line in lines}) == 2 and len({line["done_bytes"] for line in lines}) == 1

    until(lambda: done() > 0)
    queue.pause(job.id)
    until(stands)
    held = done()
    queue.pause(job.id, is_paused=False)
    until(lambda: done() > held)
    queue.pause(job.id)
    queue.cancel(job.id)
    until(lambda: queue.store.load(job.id).state is JobState.CANCELLED)
    until(lambda: not queue.is_paused(job.id))
    assert list((tmp_path / "unet").rglob("*.part")) == []


def test_the_command_pauses_moves_and_says_so(
    queue: JobQueue, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = queue.submit(source, "bf16"), queue.submit(source, "gguf_F16")
    assert run(luna, ["weights", "jobs", first.id, "--pause", "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)["jobs"]
    assert (record["state"], record["paused"]) == ("queued", True)
    assert run(luna, ["weights", "jobs", second.id, "--move", "1"]) == 0
    assert order(queue) == ["gguf_F16", "bf16"]
    assert run(luna, ["weights", "jobs"]) == 0
    assert "queued, paused" in capsys.readouterr().out
    for words in ([first.id, second.id, "--move", "1"], ["--pause"], [first.id, "--pause", "--move", "1"]):
        assert run(luna, ["weights", "jobs", *words]) == 2
    assert run(luna, ["weights", "jobs", first.id, "--resume", "--readonly"]) == 1
    assert queue.is_paused(first.id)
