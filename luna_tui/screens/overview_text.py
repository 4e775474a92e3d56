"""How a daemon is written: its row, its detail and the strip of cards. Pure functions from views to content."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.content import Content

from luna_tui.glyphs import Tone, tone_of
from luna_tui.logtail import parse_line
from luna_tui.plain import clean
from luna_tui.widgets.table import Cell, Column, Row
from luna_tui.wording import UNKNOWN, clock, duration, gib, number, size

if TYPE_CHECKING:
    from luna_tui.glyphs import Glyphs
    from luna_tui.views import DaemonRow, ExitView, GpusView
    from luna_tui.widgets.facts import Fact

_STYLES = {
    Tone.GOOD: "$text-success",
    Tone.BUSY: "$text-accent",
    Tone.WARN: "$text-warning",
    Tone.BAD: "$text-error",
    Tone.DIM: "$foreground-muted",
    Tone.NORMAL: "",
    Tone.ACCENT: "$accent",
}


def columns() -> tuple[Column, ...]:
    """Return the columns; below 120 cells SETS, UP, PID, QUEUE, RESTARTS leave in that order."""
    return (
        Column("name", "NAME", 9),
        Column("type", "TYPE", 4, drop=1),
        Column("state", "STATE", 15),
        Column("device", "DEVICE", 8, drop=2),
        Column("port", "PORT", 5, drop=3),
        Column("pid", "PID", 7, align="right", drop=7),
        Column("up", "UP", 7, align="right", drop=8),
        Column("restarts", "RESTARTS", 8, align="right", drop=5),
        Column("memory", "MEMORY", 9, align="right"),
        Column("queue", "QUEUE", 5, align="right", drop=6),
        Column("sets", "SETS / REASON", 18, flex=True, drop=9),
    )


def state_text(daemon: DaemonRow, glyphs: Glyphs) -> str:
    """Return glyph and word, with the countdown or the percent."""
    text = f"{glyphs.state(daemon.state)} {daemon.state}"
    if daemon.state == "backoff" and daemon.backoff_s is not None:
        return f"{text} {max(0, round(daemon.backoff_s))} s"
    if daemon.state == "loading" and daemon.phase_fraction is not None:
        return f"{text} {daemon.phase_fraction * 100:.0f} %"
    return text


def row_of(daemon: DaemonRow, glyphs: Glyphs) -> Row:
    """Return a daemon's row."""
    tone = tone_of(daemon.state)
    memory = daemon.vram_bytes or daemon.rss_bytes
    why = daemon.reason or daemon.phase or ", ".join(f"{entry.name} {' '.join(entry.parts)}" for entry in daemon.sets)
    quiet = Tone.DIM if daemon.state == "stopped" else None
    cells = (
        Cell(daemon.name, quiet),
        Cell(daemon.service_type, quiet),
        Cell(state_text(daemon, glyphs), tone),
        Cell(daemon.device, quiet),
        Cell(number(daemon.port).replace(",", ""), quiet),
        Cell(number(daemon.pid).replace(",", ""), Tone.DIM),
        Cell(duration(daemon.uptime_s), Tone.DIM),
        Cell(str(daemon.restarts_total), Tone.WARN if daemon.restarts_total else Tone.DIM),
        Cell(size(memory), quiet),
        Cell(number(daemon.queue_depth), Tone.DIM if not daemon.queue_depth else None),
        Cell(why or "", tone if tone in {Tone.BAD, Tone.WARN} else Tone.DIM),
    )
    order = (
        daemon.name, daemon.service_type, daemon.state, daemon.device, daemon.port, daemon.pid, daemon.uptime_s,
        daemon.restarts_total, memory, daemon.queue_depth, why or "",
    )  # fmt: skip
    return Row(daemon.name, cells, order)


def facts_of(daemon: DaemonRow, glyphs: Glyphs) -> list[Fact]:
    """Return label, value and style of what is known of one daemon."""
    style = _STYLES[tone_of(daemon.state)]
    facts: list[Fact] = [("state", state_text(daemon, glyphs), f"b {style}".strip())]
    if daemon.phase:
        bar = "" if daemon.phase_fraction is None else f"  {glyphs.bar(daemon.phase_fraction, 20)}"
        facts.append(("phase", daemon.phase + bar, ""))
    if daemon.reason:
        facts.append(("reason", daemon.reason, style))
    address = f"{daemon.host}:{daemon.port}" if daemon.port else UNKNOWN
    facts.append(("address", f"{address}  ·  {daemon.service_type} on {daemon.device}", ""))
    if daemon.pid is not None:
        adopted = "  ·  adopted" if daemon.adopted else ""
        facts.append(("process", f"{daemon.pid}  ·  up {duration(daemon.uptime_s)}{adopted}", ""))
        facts.append(("memory", f"RSS {size(daemon.rss_bytes)}  ·  VRAM {size(daemon.vram_bytes)}", ""))
    if daemon.backend:
        facts.append(("backend", daemon.backend, ""))
    facts += _sets(daemon)
    if daemon.clients:
        facts.append(("clients", ", ".join(daemon.clients), ""))
    facts.append(("restarts", str(daemon.restarts_total), "$text-warning" if daemon.restarts_total else ""))
    if daemon.last_exit is not None:
        facts += _exit(daemon.last_exit)
    if not daemon.configured:
        facts.append(("settings", "not in the settings: it was started elsewhere", "$text-warning"))
    return facts


def _sets(daemon: DaemonRow) -> list[Fact]:
    facts: list[Fact] = []
    for entry in daemon.sets:
        words = [entry.name, " ".join(entry.parts), size(entry.bytes), entry.precision or "", entry.place or ""]
        if entry.pinned:
            words.append("pinned")
        facts.append(("set", "  ".join(word for word in words if word), ""))
    return facts


def _exit(last: ExitView) -> list[Fact]:
    how = f"signal {last.signal}" if last.signal is not None else f"code {number(last.code)}"
    words = last.reason if last.reason.startswith(how) else f"{how}: {last.reason}"
    facts: list[Fact] = [("last exit", f"{clock(last.at)}  {words}", "")]
    if last.peak_ram_bytes is not None:
        facts.append(("", f"peak RSS {size(last.peak_ram_bytes)}, VRAM {size(last.peak_vram_bytes)}", ""))
    lines = [parse_line(line.encode("utf-8", "surrogateescape")).text for line in last.lines[-4:]]
    facts += [("", line, "$foreground-muted") for line in lines]
    return facts


def strip(view: GpusView, glyphs: Glyphs) -> Content:
    """Return one line with a bar per card, or the machine's memory and why there is no card."""
    parts: list[Content] = []
    for card in view.cards:
        if card.lost:
            parts.append(Content.styled(f"cuda:{card.index} {clean(card.lost)}", "$text-error"))
            continue
        parts.append(_bar(f"cuda:{card.index}", card.used_bytes, card.total_bytes, glyphs))
    if view.memory is not None:
        parts.append(_bar("RAM", view.memory.used_bytes, view.memory.total_bytes, glyphs))
    if not view.cards and view.reason is not None:
        parts.append(Content.styled(f"no GPU: {clean(view.reason.message)}", "$foreground-muted"))
    return Content("   ").join(parts)


def _bar(label: str, used: int | None, total: int | None, glyphs: Glyphs) -> Content:
    fraction = used / total if used is not None and total else 0.0
    style = "$text-error" if fraction > 0.95 else "$text-warning" if fraction > 0.85 else "$primary"
    return Content.assemble(
        Content.styled(f"{label} ", "$foreground-muted"),
        Content.styled(glyphs.bar(fraction, 16), style),
        f" {gib(used)}/{gib(total)} GiB",
    )
