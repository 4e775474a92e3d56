"""The seam between the server and what runs models: options in, one method per model command. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from luna_daemon.arenas import NoDeviceMemory
    from luna_daemon.device_memory import DeviceMemory
    from luna_daemon.frames import WireTensor
    from luna_daemon.runtime.leases import Leases
    from luna_daemon.status_messages import EngineSnapshot
    from luna_engine.settings import ModelSet

Check = Callable[[], None]
OnPhase = Callable[[str, "float | None"], None]
Answer = tuple[Any, "list[WireTensor]"]
OnDevice = Callable[[Callable[[], Any]], Any]
"""Runs short work on the device's thread, between batches, and returns what it gives or raises what it raises."""


def here(work: Callable[[], Any]) -> Any:
    """Run it on the thread that asks: the `OnDevice` of an engine without lanes."""
    return work()


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What the command line and the settings ask of the engine.

    Attributes:
        device: ``cpu``, ``cuda:N``, ``GPU-<uuid>``, or None for the default of the service type.
        backend: ``auto``, ``native`` or ``comfy``.
        preload: names of ``sets`` to load before the daemon is ready.
        vram_budget_bytes, ram_budget_bytes: None is no budget.
        threads: None is the number of physical cores.
        roots: model roots by the name that file ids begin with.
        is_exact: treat every request to encode as one that asks for ``exact``.
        lora_cache_bytes: what sent and read LoRAs may hold.
        shares_card: whether clients may map memory of the card (CUDA IPC).
    """

    service_type: str = "full"
    device: str | None = None
    backend: str = "auto"
    comfyui: Path | None = None
    precision: str = "auto"
    clip_precision: str | None = None
    vae_precision: str | None = None
    preload: tuple[str, ...] = ()
    sets: Mapping[str, ModelSet] | None = None
    roots: Mapping[str, Path] | None = None
    vram_budget_bytes: int | None = None
    ram_budget_bytes: int | None = None
    threads: int | None = None
    is_exact: bool = False
    lora_cache_bytes: int = 2 * 1024**3
    shares_card: bool = True


class SetOnDiskError(DaemonError):
    """A set had to leave memory and must be read again before it computes: `ModelEngine.bring` does that."""

    def __init__(self, set_id: str) -> None:
        super().__init__("daemon-loading", f"set {set_id} is being read from disk", retry_after_ms=1000)
        self.set_id = set_id


class Steps(Protocol):
    """The check of a command whose answer may come in parts."""

    def __call__(self) -> None:
        """Raise on cancel or deadline; let others through."""
        ...

    def quiet(self) -> None:
        """Raise on cancel or deadline; let nobody through, for the middle of a model's run."""
        ...

    def tell(self, part: Mapping[str, Any]) -> None:
        """Send a part of the answer."""
        ...


class Encoding(Protocol):
    """An encode request that was looked at: valid, tokenised, what is in memory already found.

    Attributes:
        key: requests of equal keys may share a batch; None runs alone.
        rows: how many rows of tokens are still to be computed; 0 if all results are in memory.
        row_bytes: what one of them takes at most while it runs.
    """

    key: Hashable | None
    rows: int
    row_bytes: int


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of a batch: an answer for each request, and the seconds until the model was in place."""

    answers: tuple[Answer, ...]
    load_s: float = 0.0


class ModelEngine(Protocol):
    """What `luna_daemon.runtime.engine.Engine` offers.

    Two threads call it. Everything that touches a device or a loaded model runs on the device's: `start`, the commands
    of the device lane, `prepare`, `encode`. The commands of the load lane run on the loader's, beside it: they read and
    check files there and hand the rest to the device's thread by the `OnDevice` of `start`. `snapshot`, `group`,
    `recall` and the commands of the lane *now* may be called on any thread.

    Whatever needs a set that had to leave memory raises SetOnDiskError; `bring` reads it on the loader's thread.
    A command takes the decoded body, the segments by name and a check that raises on cancel or deadline, and returns
    the reply's body and segments. Failures are DaemonError with the codes of the protocol table.
    """

    def start(self, on_phase: OnPhase, on_device: OnDevice = here) -> None:
        """Import torch, take the device, probe the backend, preload, warm up."""
        ...

    def group(self, body: Any) -> Hashable | None:
        """Say at once which requests a request might be batched with; None for one that runs alone."""
        ...

    def prepare(self, body: Any, segments: Mapping[str, WireTensor], check: Check) -> Encoding:
        """Look at a request that has a group."""
        ...

    def row_cap(self, encoding: Encoding) -> int:
        """Return how many rows like its own may run at once now."""
        ...

    def encode(self, batch: Sequence[Encoding], check: Check) -> Ran:
        """Encode prepared requests of one key together."""
        ...

    def bring(self, set_id: str, check: Check) -> None:
        """Read a set from disk, on the loader's thread."""
        ...

    @property
    def device_memory(self) -> DeviceMemory | NoDeviceMemory:
        """The memory of the card that it computes on, for sharing; none before it has started. Any thread may ask."""

    @property
    def leases(self) -> Leases:
        """Who needs which set."""

    def recall(self, body: Any, segments: Mapping[str, WireTensor]) -> Answer | None:
        """Answer a request of the device lane from memory, on any thread and at once; None if it must be run."""
        ...

    def snapshot(self) -> EngineSnapshot:
        """Return the engine's share of the status."""
        ...
