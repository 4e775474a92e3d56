"""Screen 2: what each card holds and for whom, with the source of each number; without a card, why, and main memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.content import Content
from textual.widgets import Static

from luna_tui.glyphs import Tone
from luna_tui.plain import clean
from luna_tui.screens.base import LunaScreen
from luna_tui.widgets.chrome import Pane
from luna_tui.widgets.table import Cell, Column, ListTable, Row
from luna_tui.wording import UNKNOWN, clock, count, gib, size

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from luna_tui.glyphs import Glyphs
    from luna_tui.views import GpuCard, GpuProcess, GpusView, MemoryView

EMPTY = "nothing holds memory here"


class GpuScreen(LunaScreen):
    """Graphics cards."""

    SCREEN_ID = "gpu"
    ABOUT = (
        "What each card holds, and for whom. SOURCE says where a number comes from: nvml is the driver, self-report a "
        "daemon's own status, remainder what no row explains. "
        "Without a card the reason stands here, and main memory instead."
    )
    CSS_PATH = "../styles/gpu.tcss"
    PANES: ClassVar[tuple[str, ...]] = ("cards", "processes")

    def body(self) -> ComposeResult:
        """Yield bars and the list of processes."""
        columns = (
            Column("device", "DEVICE", 7),
            Column("pid", "PID", 8, align="right", drop=1),
            Column("what", "WHAT", 12, flex=True),
            Column("bytes", "BYTES", 10, align="right"),
            Column("source", "SOURCE", 12, drop=2),
            Column("peak", "PEAK", 10, align="right", drop=3),
        )
        yield Pane(Static(id="card-text"), id="cards")
        with Pane(id="processes", title="processes"):
            yield ListTable(columns, id="process-list", empty="reading …")

    def on_mount(self) -> None:
        """Start in the list."""
        super().on_mount()
        self.query_one("#process-list").focus()

    def load(self) -> GpusView:
        """Ask the driver."""
        return self.luna.backend.gpus.snapshot()

    def show(self, snapshot: GpusView) -> None:
        """Draw bars and rows."""
        pane = self.query_one("#cards", Pane)
        pane.set_title(_provider(snapshot))
        width = max(20, pane.size.width - 4)
        self.query_one("#card-text", Static).update(cards(snapshot, self.luna.glyphs, width))
        table = self.query_one("#process-list", ListTable)
        table.empty = EMPTY
        table.set_rows(rows(snapshot))
        used = sum(row.bytes or 0 for card in snapshot.cards for row in card.processes)
        self.query_one("#processes", Pane).set_title(
            f"processes · {size(used)} of VRAM" if snapshot.cards else "processes · main memory"
        )

    def do_gpu_reset_peak(self) -> None:
        """Forget the highest use seen."""
        self.verb("gpu.reset_peak", self.luna.backend.gpus.reset_peaks)


def _provider(view: GpusView) -> str:
    if not view.cards:
        return "no GPU"
    version = f" {view.version}" if view.version else ""
    return f"{count(len(view.cards), 'card')} · {view.provider.upper()}{version} · every 1 s"


def cards(view: GpusView, glyphs: Glyphs, width: int) -> Content:
    """Return the bars of all cards, or why there are none and the bar of main memory."""
    lines: list[Content] = []
    for card in view.cards:
        lines += card_lines(card, glyphs, width)
    if view.reason is not None:
        hint = f" → {view.reason.hint}" if view.reason.hint else ""
        lines.append(
            Content.assemble(
                (f"{clean(view.reason.code)}  ", "b $text-warning"),
                clean(view.reason.message),
                (clean(hint), "$foreground-muted"),
            )
        )
    if view.memory is not None:
        lines.append(_memory_line(view.memory, glyphs, width))
    return Content("\n").join(lines)


def card_lines(card: GpuCard, glyphs: Glyphs, width: int) -> list[Content]:
    """Return one or two lines of a card: bar with numbers, and its history where there is room."""
    head = Content.assemble((f"cuda:{card.index} ", "b $accent"), (clean(_short(card.name)), "b"), "  ")
    if card.lost:
        return [head + Content.styled(clean(card.lost), "b $text-error")]
    numbers = f" {gib(card.used_bytes)}/{gib(card.total_bytes)} GiB"
    facts = f"  free {gib(card.free_bytes)} · peak {gib(card.peak_bytes)} at {clock(card.peak_at)}"
    heat = f"  {_with(card.util_percent, ' %')}  {_with(card.temperature_c, ' °C')}  {_watts(card.power_w)}"
    if width < 76:
        facts = heat = ""
    bar_width = max(6, width - head.cell_length - len(numbers) - len(facts) - len(heat) - 1)
    used = card.used_bytes / card.total_bytes if card.used_bytes is not None and card.total_bytes else 0.0
    line = Content.assemble(
        head, (glyphs.bar(used, min(bar_width, 32)), _heat(used)), (numbers, "b"),
        (facts, "$foreground-muted"), heat,
    )  # fmt: skip
    if width < 76 or not card.history:
        return [line]
    top = float(card.total_bytes or max(card.history) or 1)
    room = max(10, width - 16)
    return [
        line,
        Content.assemble(
            ("  last minutes ", "$foreground-muted"), (glyphs.sparkline(list(card.history[-room:]), top), "$primary")
        ),
    ]


def _memory_line(memory: MemoryView, glyphs: Glyphs, width: int) -> Content:
    used = memory.used_bytes / memory.total_bytes
    bar = glyphs.bar(used, max(6, min(32, width - 40)))
    return Content.assemble(
        ("RAM    ", "b $accent"), (bar, _heat(used)), (f" {gib(memory.used_bytes)}/{gib(memory.total_bytes)} GiB", "b"),
        (f"  available {gib(memory.available_bytes)}" if width >= 60 else "", "$foreground-muted"),
    )  # fmt: skip


def rows(view: GpusView) -> list[Row]:
    """Return a row per process and remainder; without cards the daemons in main memory."""
    found = [_row(f"cuda:{card.index}", card.uuid, process) for card in view.cards for process in card.processes]
    if not view.cards and view.memory is not None:
        found = [_row("RAM", "ram", process) for process in view.memory.processes]
    return found


def _row(device: str, uuid: str, process: GpuProcess) -> Row:
    tone = {"daemon": Tone.ACCENT, "remainder": Tone.DIM}.get(process.kind, Tone.NORMAL)
    pid = UNKNOWN if process.pid is None else str(process.pid)
    cells = (
        Cell(device, Tone.DIM), Cell(pid, Tone.DIM), Cell(process.label, tone), Cell(size(process.bytes)),
        Cell(process.source, Tone.DIM), Cell(size(process.peak_bytes), Tone.DIM),
    )  # fmt: skip
    order = (device, process.pid, process.label, process.bytes, process.source, process.peak_bytes)
    return Row(f"{uuid}/{pid}/{process.kind}", cells, order)


def _short(name: str) -> str:
    return name.removeprefix("NVIDIA ").removeprefix("GeForce ")


def _with(value: int | None, unit: str) -> str:
    return UNKNOWN if value is None else f"{value}{unit}"


def _watts(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.0f} W"


def _heat(used: float) -> str:
    return "$text-error" if used > 0.95 else "$text-warning" if used > 0.85 else "$primary"
