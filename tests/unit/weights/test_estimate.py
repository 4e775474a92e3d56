"""Before a conversion: exact room, memory and time from what this machine has measured, and nothing invented."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, NamedTuple

import pytest

from luna_engine.errors import ConversionError
from luna_engine.weights import convert, plan, rates
from luna_engine.weights.estimate import BOUND, MEASURED, SPARE_BYTES, WORKER_BOUND_BYTES, Estimator, estimate_all
from luna_engine.weights.queue import JobQueue
from luna_engine.weights.rates import COMMIT, START, VERIFY, Rates, Sample, learn, load_rates

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1024**2


class Usage(NamedTuple):
    total: int
    used: int
    free: int


class Memory(NamedTuple):
    available: int


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the disk have as many free bytes as the list says last."""
    room = [10 * 1024**3]
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(room[-1], 0, room[-1]))
    return room


def test_without_measurements_time_is_unknown_and_memory_is_the_bound(
    checkpoint: Path, tmp_path: Path, free: list[int]
) -> None:
    found = plan(checkpoint, "gguf_Q8_0")
    (cost,) = estimate_all([(found, tmp_path / "new" / "folder" / "out.gguf")], rates=Rates())
    assert (cost.output_bytes, cost.free_after_bytes) == (found.size_bytes, free[0] - found.size_bytes)
    assert (cost.peak_ram_bytes, cost.ram_source) == (WORKER_BOUND_BYTES, BOUND)
    assert (cost.duration_s, cost.duration_source, cost.problem) == (None, None, None)
    assert not (tmp_path / "new").exists()


def test_time_is_the_sum_of_measured_steps(checkpoint: Path, tmp_path: Path) -> None:
    found = plan(checkpoint, "gguf_Q8_0")
    by_step: dict[str, int] = {}
    for tensor in found.tensors:
        name = rates.step(tensor.source.dtype, tensor.dtype)
        by_step[name] = by_step.get(name, 0) + tensor.source.size_bytes
    seconds = {name: 0.001 * number for number, name in enumerate(by_step, 1)}
    known = Rates({**seconds, COMMIT: 0.0002, VERIFY: 0.0003, START: 0.5}, {found.kernel: 90 * MIB})
    (cost,) = estimate_all([(found, tmp_path / "out.gguf")], rates=known)
    expected = 0.5 + sum(size * seconds[name] for name, size in by_step.items()) + found.size_bytes * 0.0005
    assert cost.duration_s == pytest.approx(expected)
    assert (cost.duration_source, cost.peak_ram_bytes, cost.ram_source) == (MEASURED, 90 * MIB, MEASURED)


def test_a_step_never_measured_leaves_the_time_open_if_it_matters(checkpoint: Path, tmp_path: Path) -> None:
    found = plan(checkpoint, "gguf_Q8_0")
    known = Rates({"F16>F16": 1e-9, COMMIT: 1e-9, VERIFY: 1e-9})
    (cost,) = estimate_all([(found, tmp_path / "out.gguf")], rates=known)
    assert cost.duration_s is None


def test_a_batch_counts_the_room_of_all_and_names_what_is_missing(
    checkpoint: Path, tmp_path: Path, free: list[int]
) -> None:
    found = plan(checkpoint, "gguf_Q8_0")
    free.append(found.size_bytes + SPARE_BYTES + 1000)
    first, second = estimate_all([(found, tmp_path / name) for name in ("a.gguf", "b.gguf")], 1000, Rates())
    assert first.problem is None
    assert second.missing_bytes == found.size_bytes
    assert second.problem is not None
    assert second.problem.code == "disk-full"
    assert f"{free[-1]:,} are needed" in second.problem.message
    assert second.as_dict()["problems"] == ["disk-full"]


def test_a_source_that_is_used_as_it_is_costs_nothing(checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "once.safetensors", "bf16")
    found = plan(tmp_path / "once.safetensors", "bf16")
    cost = Estimator(10**18, Rates()).estimate(found, tmp_path / "out.safetensors")
    assert (found.is_at_target, cost.output_bytes, cost.duration_s, cost.problem) == (True, 0, 0.0, None)


def test_too_little_memory_forbids_the_conversion(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luna_engine.weights.estimate.psutil.virtual_memory", lambda: Memory(WORKER_BOUND_BYTES - 7))
    (cost,) = estimate_all([(plan(checkpoint, "bf16"), tmp_path / "out.safetensors")], rates=Rates())
    assert cost.problem is not None
    assert (cost.problem.code, cost.missing_ram_bytes) == ("memory-short", 7)


def test_a_disk_that_does_not_suffice_is_refused_before_the_first_byte(
    checkpoint: Path, tmp_path: Path, free: list[int]
) -> None:
    size = plan(checkpoint, "bf16").size_bytes
    free.append(size + SPARE_BYTES - 1)
    with pytest.raises(ConversionError) as caught:
        convert(checkpoint, tmp_path / "out" / "a.safetensors", "bf16")
    assert caught.value.code == "disk-full"
    assert list((tmp_path / "out").iterdir()) == []


def test_measurements_are_kept_per_machine_and_small_ones_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = {"F16>Q8_0": (100 * MIB, 0.5), "F16>F32": (1000, 0.1), COMMIT: (50 * MIB, 0.1), START: (0, 0.7)}
    learned = learn(Sample(steps, "lanes", 80 * MIB), tmp_path)
    assert learned == load_rates(tmp_path)
    assert learned.seconds == {"F16>Q8_0": 0.5 / (100 * MIB), COMMIT: 0.1 / (50 * MIB), START: 0.7}
    monkeypatch.setattr(rates, "machine", lambda: "another/2")
    assert load_rates(tmp_path) == Rates()
    learn(Sample({VERIFY: (8 * MIB, 1.0)}, "lanes", 70 * MIB), tmp_path)
    monkeypatch.undo()
    assert load_rates(tmp_path) == learned  # another machine's do not touch ours
    again = learn(Sample({"F16>Q8_0": (100 * MIB, 1.0)}, "lanes", 81 * MIB), tmp_path)
    assert again.seconds["F16>Q8_0"] == 1.0 / (100 * MIB)
    assert again.memory == {"lanes": 81 * MIB}


@pytest.mark.parametrize("text", ["", "[]", '{"version": 99}', '{"version": 1, "machines": 3}', "{"])
def test_a_damaged_file_of_measurements_counts_as_none(tmp_path: Path, text: str) -> None:
    rates.rates_file(tmp_path).write_text(text, "utf-8")
    assert load_rates(tmp_path) == Rates()
    learn(Sample({VERIFY: (8 * MIB, 1.0)}, "lanes", 1), tmp_path)
    assert load_rates(tmp_path).seconds == {VERIFY: 1.0 / (8 * MIB)}


def test_a_worker_leaves_what_it_measured(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "_WORTH_MEASURING", 1)  # in this process only: the worker keeps to whole sizes
    queue = JobQueue.open(tmp_path / "state")
    job = queue.submit(checkpoint, "bf16", tmp_path / "out")
    worker = queue.start(job.id)
    assert worker is not None
    assert worker.wait(120) == 0
    known = load_rates(tmp_path / "state")
    assert known.seconds[START] > 0
    assert known.memory["numpy"] > 10 * MIB
    result = queue.store.load(job.id).result
    assert result is not None
    steps = result["steps"]
    sample = Sample({**{name: tuple(pair) for name, pair in steps.items()}, VERIFY: (1, 1e-9)}, "numpy", 1)
    learn(sample, tmp_path / "other")
    found = plan(checkpoint, "bf16")
    (cost,) = estimate_all([(found, tmp_path / "o")], rates=load_rates(tmp_path / "other"))
    expected = sum(spent for size, spent in steps.values() if size) + found.size_bytes * 1e-9
    assert cost.duration_s == pytest.approx(expected)
