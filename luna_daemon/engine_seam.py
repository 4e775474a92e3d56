"""The seam between the server and what runs models: options in, one method per model command. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from luna_daemon.frames import WireTensor
    from luna_daemon.status_messages import EngineSnapshot
    from luna_engine.settings import ModelSet

Check = Callable[[], None]
OnPhase = Callable[[str, "float | None"], None]
Answer = tuple[Any, "list[WireTensor]"]


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
    exact: bool = False


class ModelEngine(Protocol):
    """What `luna_daemon.runtime.engine.Engine` offers.

    `start` and the model methods run on the executor or loader thread, one at a time; `snapshot`, `recall` and
    `list_models` on any. A model method takes the decoded body, the segments by name and a check that raises on cancel
    or deadline, and returns the reply's body and segments. Failures are DaemonError with the codes of the protocol
    table.
    """

    def start(self, on_phase: OnPhase) -> None:
        """Import torch, take the device, probe the backend, preload, warm up."""
        ...

    def recall(self, body: Any, segments: Mapping[str, WireTensor]) -> Answer | None:
        """Answer a request of the device lane from memory, on any thread and at once; None if it must be run."""
        ...

    def snapshot(self) -> EngineSnapshot:
        """Return the engine's share of the status."""
        ...
