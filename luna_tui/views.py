"""What the screens show: frozen snapshots made by the backend off the UI thread. Absent is None, never 0.

The weights and wildcards screens keep their views beside their ports.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luna_engine.errors import LunaError


@dataclass(frozen=True, slots=True)
class Failure:
    """An error in a form the screens can show."""

    code: str
    message: str
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a verb of a port did. ``message`` is one sentence for the toast and the event list."""

    ok: bool
    message: str
    code: str = "done"
    hint: str | None = None

    @classmethod
    def done(cls, message: str) -> Outcome:
        """Return a success."""
        return cls(ok=True, message=message)

    @classmethod
    def failed(cls, error: LunaError) -> Outcome:
        """Return what an expected failure says."""
        return cls(ok=False, message=error.message, code=error.code, hint=error.hint)


@dataclass(frozen=True, slots=True)
class SupervisorView:
    """Who watches the daemons: ``role`` is ``supervising``, ``viewer`` or ``unwatched``."""

    role: str = "unwatched"
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class SetView:
    """A set of models a daemon knows, with the bytes of its parts."""

    name: str
    family: str
    parts: tuple[str, ...] = ()
    bytes: int | None = None
    precision: str | None = None
    place: str | None = None
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class ExitView:
    """How the last process of a daemon ended."""

    at: float | None
    code: int | None
    signal: int | None
    reason: str
    peak_ram_bytes: int | None = None
    peak_vram_bytes: int | None = None
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DaemonRow:
    """One daemon: what is configured, what runs, and why it is in its state."""

    name: str
    service_type: str
    state: str
    device: str
    port: int | None
    host: str = "127.0.0.1"
    reason: str | None = None
    pid: int | None = None
    adopted: bool = False
    restarts_total: int = 0
    backoff_s: float | None = None
    phase: str | None = None
    phase_fraction: float | None = None
    uptime_s: float | None = None
    rss_bytes: int | None = None
    vram_bytes: int | None = None
    queue_depth: int | None = None
    backend: str | None = None
    precision: str | None = None
    clients: tuple[str, ...] = ()
    sets: tuple[SetView, ...] = ()
    last_exit: ExitView | None = None
    log_path: str | None = None
    configured: bool = True
    autostart: bool = False


@dataclass(frozen=True, slots=True)
class DaemonsView:
    """All daemons at one moment. ``problems`` are settings that were ignored, as sentences."""

    at: float
    supervisor: SupervisorView = SupervisorView()
    daemons: tuple[DaemonRow, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process with memory on a card, and where the number comes from (nvml, self-report, remainder)."""

    pid: int | None
    label: str
    kind: str
    bytes: int | None
    source: str
    create_time: float | None = None
    peak_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class GpuCard:
    """One card. ``lost`` holds the reason when the driver no longer answers for it."""

    uuid: str
    index: int
    name: str
    vendor: str = "nvidia"
    total_bytes: int | None = None
    used_bytes: int | None = None
    free_bytes: int | None = None
    peak_bytes: int | None = None
    peak_at: float | None = None
    util_percent: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    history: tuple[float, ...] = ()
    processes: tuple[GpuProcess, ...] = ()
    lost: str | None = None


@dataclass(frozen=True, slots=True)
class MemoryView:
    """The machine's main memory and the processes of Luna in it."""

    total_bytes: int
    used_bytes: int
    available_bytes: int
    processes: tuple[GpuProcess, ...] = ()


@dataclass(frozen=True, slots=True)
class GpusView:
    """All cards at one moment; ``reason`` says why there are none, or what the provider cannot tell."""

    at: float
    provider: str
    version: str | None = None
    reason: Failure | None = None
    cards: tuple[GpuCard, ...] = ()
    memory: MemoryView | None = None


@dataclass(frozen=True, slots=True)
class EventRow:
    """Something that happened. ``count`` > 1 when repeats within ten seconds were folded."""

    id: str
    at: float
    level: str
    source: str
    code: str
    message: str
    hint: str | None = None
    command: str | None = None
    count: int = 1


@dataclass(frozen=True, slots=True)
class EventsView:
    """The newest events first, and what a reader should open for a source's log."""

    at: float
    events: tuple[EventRow, ...] = ()
    logs: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class LinkRow:
    """A LoRA or embedding file and what its header says."""

    path: str
    name: str
    kind: str
    root: str
    bytes: int
    base: str | None = None
    evidence: str | None = None
    rank: int | None = None
    encoders: tuple[str, ...] = ()
    triggers: tuple[str, ...] = ()
    problem: Failure | None = None


@dataclass(frozen=True, slots=True)
class LinksView:
    """All LoRAs and embeddings of the roots that were searched."""

    at: float
    roots: tuple[str, ...] = ()
    rows: tuple[LinkRow, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file that can serve a set: the parts its header shows."""

    path: str
    name: str
    family: str
    parts: tuple[str, ...]
    bytes: int


@dataclass(frozen=True, slots=True)
class FormChoices:
    """What the start form offers."""

    names: tuple[str, ...] = ()
    devices: tuple[tuple[str, str], ...] = (("cpu", "cpu"),)
    sets: tuple[str, ...] = ()
    files: tuple[ModelFile, ...] = ()
    roots: tuple[str, ...] = ()
    free_port: int = 19283


@dataclass(frozen=True, slots=True)
class DaemonDraft:
    """What the start form holds. ``set_name`` names a configured set; ``file`` makes a new set of its parts."""

    name: str
    service_type: str = "full"
    device: str = "cpu"
    port: str = ""
    precision: str = "auto"
    set_name: str | None = None
    file: str | None = None
    preload: bool = True
    autostart: bool = False
    restart: bool = True
    editing: str | None = None


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """A mistake in one field of a form."""

    field: str
    message: str
