"""NVIDIA cards through NVML (nvidia-ml-py): no CUDA context, so the monitor itself costs no VRAM.

The driver's "not available" and its all-ones number become None here and nowhere else. Start is retried each 30 s, so
that a driver loaded later is found.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar

from luna_tui.telemetry.protocol import CardSample, ProcessSample, Sample
from luna_tui.views import Failure

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

T = TypeVar("T")
_RETRY_S = 30.0
_ALL_ONES = 2**64 - 1

# NVML's return codes (nvml.h): what they mean for a person.
_REASONS = {
    9: ("nvml-no-driver", "the NVIDIA driver is not loaded", "load it, or use the CPU"),
    12: ("nvml-missing", "libnvidia-ml is not installed: no NVIDIA driver here", "daemons can run on the CPU"),
    4: ("nvml-forbidden", "the NVIDIA driver refuses this user", "add the user to the video group"),
    15: ("nvml-gpu-lost", "the card fell off the bus", "reboot needed"),
    18: ("nvml-mismatch", "driver and library versions differ", "reboot needed"),
}


class NvmlProvider:
    """Samples of all NVIDIA cards. Used by one thread."""

    def __init__(self, library: ModuleType | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._library: Any = library
        self._clock = clock
        self._is_open = False
        self._failure: Failure | None = None
        self._tried_at: float | None = None
        self._version: str | None = None

    def sample(self) -> Sample:
        """Return all cards; a card in trouble says so and the others go on."""
        if not self._is_open and not self._open():
            return Sample("nvml", None, self._failure)
        nvml = self._library
        try:
            count = int(nvml.nvmlDeviceGetCount())
        except nvml.NVMLError as error:
            self._failure = self._reason(error)
            self._is_open = False
            return Sample("nvml", self._version, self._failure)
        if count == 0:
            reason = Failure("nvml-no-card", "the NVIDIA driver finds no card", "daemons can run on the CPU")
            return Sample("nvml", self._version, reason)
        return Sample("nvml", self._version, None, tuple(self._card(index) for index in range(count)))

    def close(self) -> None:
        """Let go of the driver."""
        if self._is_open:
            self._is_open = False
            self._try(self._library.nvmlShutdown)

    def _open(self) -> bool:
        now = self._clock()
        if self._tried_at is not None and now - self._tried_at < _RETRY_S:
            return False
        self._tried_at = now
        if self._library is None:
            import pynvml

            self._library = pynvml
        try:
            self._library.nvmlInit()
        except self._library.NVMLError as error:
            self._failure = self._reason(error)
            return False
        self._is_open = True
        self._version = _text(self._try(self._library.nvmlSystemGetDriverVersion))
        return True

    def _card(self, index: int) -> CardSample:
        nvml = self._library
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            uuid = _text(nvml.nvmlDeviceGetUUID(handle)) or f"index-{index}"
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        except nvml.NVMLError as error:
            return CardSample(f"index-{index}", index, "?", lost=self._reason(error).message)
        rates = self._try(nvml.nvmlDeviceGetUtilizationRates, handle)
        power = self._try(nvml.nvmlDeviceGetPowerUsage, handle)
        return CardSample(
            uuid,
            index,
            _text(self._try(nvml.nvmlDeviceGetName, handle)) or "?",
            total_bytes=_number(memory.total),
            used_bytes=_number(memory.used),
            free_bytes=_number(memory.free),
            util_percent=None if rates is None else _number(rates.gpu),
            temperature_c=_number(self._try(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)),
            power_w=None if power is None else power / 1000,
            processes=self._processes(handle),
        )

    def _processes(self, handle: Any) -> tuple[ProcessSample, ...]:
        """Merge compute and graphics lists by pid: a process may stand in both with the same bytes."""
        found: dict[int, int | None] = {}
        for name in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses"):
            for process in self._try(getattr(self._library, name), handle) or ():
                used = _number(process.usedGpuMemory)
                known = found.get(process.pid)
                found[process.pid] = used if known is None else max(known, used or 0)
        return tuple(ProcessSample(pid, used) for pid, used in sorted(found.items()))

    def _try(self, function: Callable[..., T], *arguments: Any) -> T | None:
        """Call the driver; a card that cannot tell one thing still tells the others."""
        try:
            return function(*arguments)
        except self._library.NVMLError:
            return None

    def _reason(self, error: Any) -> Failure:
        code = getattr(error, "value", None)
        if code in _REASONS:
            return Failure(*_REASONS[code])
        return Failure("nvml-error", f"NVML: {error}", "see nvidia-smi")


def _number(value: Any) -> int | None:
    return None if value is None or value == _ALL_ONES else int(value)


def _text(value: Any) -> str | None:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
