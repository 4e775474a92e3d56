"""`luna daemon logs`: read, search and follow a daemon's log through rotation and restarts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from luna_engine.errors import LunaError
from luna_tui.commands.daemon_group import group
from luna_tui.frame import output, verb

if TYPE_CHECKING:
    from collections.abc import Iterator

LEVELS = ("debug", "info", "warning", "error", "critical")
TAIL_BYTES = 256 * 1024
_FOLLOW_S = 0.2
_AGES = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a log; what is no JSON has text only."""

    text: str
    at: str | None = None
    level: str | None = None
    raw: str = ""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which lines are wanted."""

    pattern: re.Pattern[str] | None
    level: int
    since: str | None

    def accepts(self, line: Line) -> bool:
        """Tell whether a line passes; lines without level or time pass those tests."""
        if self.since is not None and line.at is not None and line.at < self.since:
            return False
        if line.level is not None and line.level in LEVELS and LEVELS.index(line.level) < self.level:
            return False
        return self.pattern is None or self.pattern.search(line.text) is not None


@verb(group, "logs")
@click.argument("name")
@click.option("--follow", is_flag=True, help="Go on with what is written from now on.")
@click.option("--lines", type=click.IntRange(min=0), default=100, show_default=True, help="Last lines to begin with.")
@click.option("--previous", is_flag=True, help="The run before.")
@click.option("--grep", metavar="REGEX", help="Only lines that match.")
@click.option("--context", type=click.IntRange(min=0), default=0, help="Lines around each match.")
@click.option("--level", type=click.Choice(LEVELS), default="debug", help="Least level.")
@click.option("--since", metavar="TIME", help="RFC 3339 in UTC, or an age such as 10m.")
@click.option("--output", "target", type=click.Path(dir_okay=False, path_type=Path), help="Write to a file instead.")
def logs(
    name: str,
    follow: bool,  # noqa: FBT001 - click's flag
    lines: int,
    previous: bool,  # noqa: FBT001 - click's flag
    grep: str | None,
    context: int,
    level: str,
    since: str | None,
    target: Path | None,
) -> int:
    """Show the log of a daemon."""
    from luna_daemon.identity import DaemonPlaces, check_name

    places = DaemonPlaces(check_name(name))
    path = places.previous_log if previous else places.log
    if not path.exists():
        raise LunaError("log-missing", f"{path} does not exist", f"luna daemon start {name} begins one")
    wanted = Filter(_pattern(grep), LEVELS.index(level), _since(since))
    with path.open("rb") as file:
        rows, rest = _tail(file, is_going_on=follow)
        _show(rows, wanted, context, lines, target)
        if follow and target is None:
            for line in _follow(path, file, rest):
                if wanted.accepts(line):
                    _print(line)
    return 0


def _show(rows: list[Line], wanted: Filter, context: int, lines: int, target: Path | None) -> None:
    chosen = _with_context(rows, wanted, context)[-lines:] if lines else []
    if target is not None:
        target.write_text("".join(f"{line.raw}\n" for line in chosen), "utf-8")
        output().note(f"{len(chosen)} lines written to {target}")
        return
    for line in chosen:
        _print(line)


def _pattern(text: str | None) -> re.Pattern[str] | None:
    if text is None:
        return None
    try:
        return re.compile(text)
    except re.error as error:
        raise click.BadParameter(f"no regular expression: {error}", param_hint="--grep") from error


def _since(text: str | None) -> str | None:
    if text is None:
        return None
    if re.fullmatch(r"\d+[smhd]", text):
        seconds = time.time() - int(text[:-1]) * _AGES[text[-1]]
        from luna_daemon.views import timestamp

        return timestamp(seconds)
    if not re.fullmatch(r"\d{4}-\d\d-\d\d(T[\d:.]+Z?)?", text):
        raise click.BadParameter("expected 2026-01-31T12:00:00Z or an age such as 10m", param_hint="--since")
    return text


def parse(raw: str) -> Line:
    """Read one line of a log."""
    if raw.startswith("{"):
        with contextlib.suppress(ValueError):
            record = json.loads(raw)
            message = str(record.get("message", ""))
            if record.get("exception"):
                message += f"\n{record['exception']}"
            return Line(message, record.get("at"), record.get("level"), raw)
    return Line(raw, raw=raw)


def _tail(file: BinaryIO, *, is_going_on: bool) -> tuple[list[Line], bytes]:
    """Read the last 256 KiB; if the log is followed from there, half a line at the end is kept for later."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - TAIL_BYTES))
    *rows, rest = file.read().split(b"\n")
    if not is_going_on:
        rows, rest = [*rows, rest], b""
    if size > TAIL_BYTES:
        rows = rows[1:]  # the first is only the rest of a line
    return [_decoded(row) for row in rows if row], rest


def _decoded(row: bytes) -> Line:
    return parse(row.decode("utf-8", "replace").rstrip("\r"))


def _with_context(lines: list[Line], wanted: Filter, context: int) -> list[Line]:
    hits = [index for index, line in enumerate(lines) if wanted.accepts(line)]
    shown = sorted({near for hit in hits for near in range(hit - context, hit + context + 1) if 0 <= near < len(lines)})
    return [lines[index] for index in shown]


def _follow(path: Path, file: BinaryIO, rest: bytes) -> Iterator[Line]:
    """Yield new lines for ever, through rotation and restarts (another inode under the same name)."""
    while True:
        block = file.read(65_536)
        if block:
            *rows, rest = (rest + block).split(b"\n")
            yield from (_decoded(row) for row in rows if row)
            continue
        with contextlib.suppress(FileNotFoundError):
            if not os.path.samestat(path.stat(), os.fstat(file.fileno())):
                file.close()
                file, rest = path.open("rb"), b""
                continue
        time.sleep(_FOLLOW_S)


def _print(line: Line) -> None:
    if output().json:
        record: dict[str, Any] = {"schema": "luna.daemon.log/1", "at": line.at, "level": line.level, "text": line.text}
        click.echo(json.dumps(record, ensure_ascii=False))
        return
    time_part = "" if line.at is None else f"{line.at[11:23]} "
    level = "" if line.level is None else f"{line.level.upper():<8} "
    click.echo(f"{time_part}{level}{line.text}")
