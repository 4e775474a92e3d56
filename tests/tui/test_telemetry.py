"""Cards: the NVML provider against a scripted driver, and what the screen and the command make of it."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from luna_tui.backend.gpus import LocalGpus
from luna_tui.cli import luna
from luna_tui.frame import run
from luna_tui.telemetry.none import NoGpu
from luna_tui.telemetry.nvml import NvmlProvider
from luna_tui.views import DaemonRow, Failure

if TYPE_CHECKING:
    from collections.abc import Callable

GIB = 1024**3
ALL_ONES = 2**64 - 1


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"error {value}")
        self.value = value


def driver(**changes: Any) -> Any:
    """Return a module that answers as pynvml does for one card with two processes."""

    def fail(code: int) -> Callable[..., Any]:
        def raiser(*_: Any) -> Any:
            raise NVMLError(code)

        return raiser

    process = SimpleNamespace(pid=os.getpid(), usedGpuMemory=2 * GIB)
    functions: dict[str, Any] = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlSystemGetDriverVersion": lambda: b"580.95",
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetUUID": lambda _: "GPU-1",
        "nvmlDeviceGetName": lambda _: "NVIDIA H100",
        "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(total=80 * GIB, used=5 * GIB, free=75 * GIB),
        "nvmlDeviceGetUtilizationRates": lambda _: SimpleNamespace(gpu=91),
        "nvmlDeviceGetTemperature": lambda *_: 67,
        "nvmlDeviceGetPowerUsage": lambda _: 310_500,
        "nvmlDeviceGetComputeRunningProcesses": lambda _: [process],
        "nvmlDeviceGetGraphicsRunningProcesses": lambda _: [process, SimpleNamespace(pid=2, usedGpuMemory=None)],
        "NVML_TEMPERATURE_GPU": 0,
        "NVMLError": NVMLError,
    }
    functions |= {name: fail(value) if isinstance(value, int) else value for name, value in changes.items()}
    return SimpleNamespace(**functions)


def test_a_card_in_bytes_with_processes_merged_by_pid() -> None:
    sample = NvmlProvider(driver()).sample()
    assert (sample.version, sample.reason) == ("580.95", None)
    card = sample.cards[0]
    assert (card.total_bytes, card.used_bytes, card.free_bytes) == (80 * GIB, 5 * GIB, 75 * GIB)
    assert (card.util_percent, card.temperature_c, card.power_w) == (91, 67, 310.5)
    assert {process.pid: process.bytes for process in card.processes} == {os.getpid(): 2 * GIB, 2: None}


def test_what_the_driver_does_not_tell_is_none_never_zero() -> None:
    unknown = SimpleNamespace(total=ALL_ONES, used=ALL_ONES, free=ALL_ONES)
    library = driver(
        nvmlDeviceGetMemoryInfo=lambda _: unknown, nvmlDeviceGetUtilizationRates=3, nvmlDeviceGetPowerUsage=3,
        nvmlDeviceGetTemperature=3,
    )  # fmt: skip
    card = NvmlProvider(library).sample().cards[0]
    assert (card.total_bytes, card.used_bytes, card.util_percent, card.power_w) == (None, None, None, None)


@pytest.mark.parametrize(
    ("code", "name"), [(9, "nvml-no-driver"), (12, "nvml-missing"), (18, "nvml-mismatch"), (999, "nvml-error")]
)
def test_a_driver_that_does_not_start_says_why(code: int, name: str) -> None:
    sample = NvmlProvider(driver(nvmlInit=code)).sample()
    assert sample.cards == ()
    assert sample.reason is not None
    assert sample.reason.code == name


def test_starting_is_tried_again_after_a_while() -> None:
    now = [0.0]
    library = driver(nvmlInit=9)
    provider = NvmlProvider(library, clock=lambda: now[0])
    assert provider.sample().reason is not None
    library.nvmlInit = lambda: None
    assert provider.sample().reason is not None, "not at once: a missing driver costs time"
    now[0] = 31.0
    assert provider.sample().reason is None


def test_a_lost_card_says_so_and_the_others_go_on() -> None:
    def uuid(index: int) -> str:
        if index == 0:
            raise NVMLError(15)
        return f"GPU-{index}"

    sample = NvmlProvider(driver(nvmlDeviceGetCount=lambda: 2, nvmlDeviceGetUUID=uuid)).sample()
    assert sample.cards[0].lost is not None
    assert sample.cards[1].used_bytes == 5 * GIB


def test_rows_add_up_to_what_is_used_and_daemons_have_names() -> None:
    daemon = DaemonRow("clip", "clip", "ready", "cuda:0", 19283, pid=os.getpid())
    card = LocalGpus(lambda: (daemon,), NvmlProvider(driver())).snapshot().cards[0]
    assert sum(row.bytes or 0 for row in card.processes) == card.used_bytes
    assert [row.label for row in card.processes if row.kind == "daemon"] == ["luna clip"]
    assert [row.kind for row in card.processes][-1] == "remainder"


def test_a_daemon_reports_itself_where_the_driver_hides_bytes() -> None:
    daemon = DaemonRow("clip", "clip", "ready", "cuda:0", 19283, pid=2, vram_bytes=GIB)
    card = LocalGpus(lambda: (daemon,), NvmlProvider(driver())).snapshot().cards[0]
    row = next(row for row in card.processes if row.pid == 2)
    assert (row.bytes, row.source) == (GIB, "self-report")


def test_peaks_stay_until_they_are_reset() -> None:
    used = [9 * GIB]
    library = driver(
        nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(total=80 * GIB, used=used[0], free=80 * GIB - used[0])
    )
    gpus = LocalGpus(tuple, NvmlProvider(library))
    gpus.snapshot()
    used[0] = 4 * GIB
    gpus._last = None
    assert gpus.snapshot().cards[0].peak_bytes == 9 * GIB
    gpus.reset_peaks()
    assert gpus.snapshot().cards[0].peak_bytes == 4 * GIB


def test_without_a_card_the_reason_and_main_memory_stand_there() -> None:
    view = LocalGpus(tuple, NoGpu(Failure("nvml-missing", "no driver", None))).snapshot()
    assert view.reason == Failure("nvml-missing", "no driver", None)
    assert view.memory is not None
    assert 0 < view.memory.used_bytes < view.memory.total_bytes


def test_luna_gpu_prints_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(luna, ["gpu", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["schema"] == "luna.gpu/1"
    assert bool(record["devices"]) is not bool(record["provider"]["reason"])
    assert record["memory"]["total_bytes"] > 0


@pytest.mark.gpu
def test_the_real_driver_answers() -> None:
    sample = NvmlProvider().sample()
    assert sample.reason is None
    assert all(card.total_bytes for card in sample.cards)
