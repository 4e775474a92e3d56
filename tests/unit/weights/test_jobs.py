"""The queue: workers are real processes, jobs are files that survive them."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from luna_engine.errors import LunaError
from luna_engine.weights.jobs import Job, JobState, JobStore
from luna_engine.weights.locking import is_alive
from luna_engine.weights.queue import JobQueue
from tests.synthetic_models import TINY_SDXL, random_values, write_holes, write_values

if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE_S = 30.0


@pytest.fixture
def queue(tmp_path: Path) -> JobQueue:
    return JobQueue.open(tmp_path / "state")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_values(tmp_path / "checkpoints" / "tiny.safetensors", random_values(TINY_SDXL, "F32"))


@pytest.fixture
def large_source(tmp_path: Path) -> Path:
    """Write a source of 4 GB of holes: converting it takes seconds, long enough to interfere."""
    name = "input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight"
    return write_holes(tmp_path / "checkpoints" / "large.safetensors", {**TINY_SDXL, name: (500_000, 4096)})


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def ended(queue: JobQueue, job: Job) -> Job:
    until(lambda: queue.store.load(job.id).state.is_over)
    return queue.store.load(job.id)


def converting(queue: JobQueue, job: Job) -> bool:
    progress = queue.progress(job.id)
    return progress is not None and progress.phase == "convert"


def starts(queue: JobQueue, job: Job) -> int:
    return queue.store.lines_path(job.id).read_text().count('"event": "started"')


def test_a_job_runs_in_a_detached_worker_and_tells_how_far_it_is(queue: JobQueue, source: Path) -> None:
    job = queue.submit(source, "Q8_0")
    assert (job.state, job.precision) == (JobState.QUEUED, "gguf_Q8_0")
    started = queue.run_next()
    assert started is not None
    assert started.id == job.id
    assert os.getsid(started.pid) == started.pid  # a session of its own: it survives this one
    done = ended(queue, job)
    assert done.state is JobState.DONE, done.error
    assert done.result is not None
    assert done.result["state"] == "done"
    assert Path(done.destination).stat().st_size == job.output_bytes == done.result["size_bytes"]
    lines = [json.loads(line) for line in queue.store.lines_path(job.id).read_text().splitlines()]
    assert [lines[0]["event"], lines[-1]["event"]] == ["queued", "done"]
    assert {"plan", "convert", "commit", "verify"} <= {line["phase"] for line in lines}
    assert {line["schema"] for line in lines} == {"luna.weights.job/1"}


def test_without_an_output_folder_the_file_goes_where_comfyui_lists_it(queue: JobQueue, source: Path) -> None:
    job = queue.submit(source, "bf16")
    assert job.destination == str(source.parent.parent / "unet" / "optimized" / "tiny_bf16_unet.safetensors")


def test_a_job_that_another_face_has_started_is_not_started_again(queue: JobQueue, source: Path) -> None:
    job = queue.submit(source, "Q8_0")
    assert queue.run_next() is not None
    assert queue.start(job.id) is None
    assert ended(queue, job).state is JobState.DONE
    assert starts(queue, job) == 1


def test_a_supervisor_without_a_screen_starts_waiting_jobs(queue: JobQueue, source: Path) -> None:
    jobs = [queue.submit(source, label) for label in ("Q8_0", "bf16")]
    stop = threading.Event()
    thread = threading.Thread(target=queue.tend, args=(stop,))
    thread.start()
    states = [ended(queue, job).state for job in jobs]
    stop.set()
    thread.join()
    assert states == [JobState.DONE, JobState.DONE]


def test_what_cannot_be_converted_is_refused_before_it_is_queued(queue: JobQueue, tmp_path: Path) -> None:
    with pytest.raises(LunaError) as caught:
        queue.submit(tmp_path / "gone.safetensors", "bf16")
    assert caught.value.code == "file-missing"
    assert queue.jobs() == ()


def test_one_worker_at_a_time_oldest_first(queue: JobQueue, source: Path, large_source: Path) -> None:
    first, second = queue.submit(large_source, "Q8_0"), queue.submit(source, "Q8_0")
    started = queue.run_next()
    assert started is not None
    assert started.id == first.id
    assert queue.run_next() is None
    until(lambda: converting(queue, first))
    queue.cancel(first.id)
    assert ended(queue, first).state is JobState.CANCELLED
    started = queue.run_next()
    assert started is not None
    assert started.id == second.id
    assert ended(queue, second).state is JobState.DONE


def test_cancel_stops_the_worker_and_takes_its_part_file(queue: JobQueue, large_source: Path) -> None:
    job = queue.submit(large_source, "Q8_0")
    queue.run_next()
    until(lambda: converting(queue, job))
    queue.cancel(job.id)
    stopped = ended(queue, job)
    assert stopped.state is JobState.CANCELLED
    folder = large_source.parent.parent / "unet" / "optimized"
    until(lambda: list(folder.iterdir()) == [])
    with pytest.raises(LunaError) as caught:
        queue.cancel(job.id)
    assert caught.value.code == "job-over"


def test_a_cancel_that_comes_before_the_worker_listens_holds(queue: JobQueue, large_source: Path) -> None:
    job = queue.submit(large_source, "Q8_0")
    queue.run_next()
    queue.cancel(job.id)
    until(lambda: queue.settle()[0].state.is_over)
    assert queue.store.load(job.id).state is JobState.CANCELLED
    assert queue.run_next() is None


def test_a_queued_job_is_cancelled_at_once(queue: JobQueue, source: Path) -> None:
    job = queue.submit(source, "Q8_0")
    assert queue.cancel(job.id).state is JobState.CANCELLED
    assert queue.run_next() is None
    assert queue.retry(job.id).state is JobState.QUEUED


def test_a_killed_worker_is_noticed_and_its_job_runs_again(queue: JobQueue, large_source: Path) -> None:
    before = large_source.stat()
    job = queue.submit(large_source, "Q8_0")
    started = queue.run_next()
    assert started is not None
    until(lambda: converting(queue, job))
    assert started.pid is not None
    os.kill(started.pid, signal.SIGKILL)
    until(lambda: not is_alive(started.pid, started.create_time))
    assert queue.store.load(job.id).state is JobState.RUNNING  # the dead cannot write
    again = queue.run_next()
    assert again is not None
    assert (again.id, again.attempts) == (job.id, 2)
    until(lambda: starts(queue, job) == 2 and converting(queue, job))
    folder = large_source.parent.parent / "unet" / "optimized"
    until(lambda: len([path for path in folder.iterdir() if path.suffix == ".part"]) == 1)
    queue.cancel(job.id)
    assert ended(queue, job).state is JobState.CANCELLED
    until(lambda: list(folder.iterdir()) == [])
    assert large_source.stat().st_mtime_ns == before.st_mtime_ns


def test_a_job_whose_worker_dies_three_times_has_failed(queue: JobQueue, source: Path) -> None:

    job = queue.submit(source, "Q8_0")
    dead = dataclasses.replace(job, state=JobState.RUNNING, pid=2**22 + 5, create_time=1.0, attempts=3)
    queue.store.save(dead)
    assert queue.run_next() is None
    failed = queue.store.load(job.id)
    assert failed.state is JobState.FAILED
    assert failed.error is not None
    assert failed.error["code"] == "convert-failed"


def test_a_failed_job_keeps_code_and_hint_and_can_be_retried(queue: JobQueue, source: Path) -> None:
    job = queue.submit(source, "Q8_0")
    data = source.read_bytes()
    source.write_bytes(data[:-40])
    queue.run_next()
    failed = ended(queue, job)
    assert failed.state is JobState.FAILED
    assert failed.error is not None
    assert failed.error["code"] == "file-damaged"
    assert failed.error["hint"]
    source.write_bytes(data)
    queue.retry(job.id)
    queue.run_next()
    assert ended(queue, job).state is JobState.DONE


def test_job_files_are_private_and_unknown_fields_are_kept(queue: JobQueue, source: Path) -> None:
    job = queue.submit(source, "Q8_0")
    path = queue.store.folder / f"{job.id}.json"
    assert path.stat().st_mode & 0o777 == 0o600
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "from_the_future": [1]}))
    queue.cancel(job.id)
    assert json.loads(path.read_text())["from_the_future"] == [1]


def test_jobs_of_another_version_are_left_out_and_left_alone(queue: JobQueue, source: Path) -> None:
    queue.submit(source, "Q8_0")
    strange = queue.store.folder / "20990101T000000-ffff.json"
    strange.write_text('{"version": 99}')
    assert len(queue.jobs()) == 1
    assert strange.read_text() == '{"version": 99}'


@pytest.mark.parametrize("name", ["../x", "", "a/b", "a b"])
def test_a_job_id_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(LunaError) as caught:
        JobStore.open(tmp_path).load(name)
    assert caught.value.code == "job-missing"


def test_reading_headers_jobs_and_plans_loads_no_tensor_library(source: Path) -> None:
    code = (
        "import sys; from luna_engine.weights import inspect, plan; from luna_engine.weights.queue import JobQueue;"
        "from luna_engine.weights.catalog import scan; from pathlib import Path; p = Path(sys.argv[1]);"
        "inspect(p); plan(p, 'Q8_0'); JobQueue.open().submit(p, 'bf16'); list(scan([p.parent]));"
        "print([name for name in ('numpy', 'torch', 'gguf', 'numba', 'safetensors') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, source], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_worker_is_gentle_with_the_machine(queue: JobQueue, large_source: Path) -> None:
    job = queue.submit(large_source, "Q8_0")
    started = queue.run_next()
    assert started is not None
    until(lambda: converting(queue, job))
    assert psutil.Process(started.pid).nice() >= 10
    queue.cancel(job.id)
    ended(queue, job)
