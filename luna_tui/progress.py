"""Progress on stderr: a rich bar on a terminal, else a plain line each 10 s or JSON lines, by ``--progress``."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from typing_extensions import Self

    from luna_tui.frame import Output

_PLAIN_EVERY_S = 10.0


class Bar:
    """A row per task, in bytes. Use as a context manager so that the terminal is left tidy.

    Args:
        output: says which form is wanted.
        clock: seconds that only grow; tests give their own.
    """

    def __init__(self, output: Output, clock: Callable[[], float] = time.monotonic) -> None:
        mode = output.progress
        if mode == "auto":
            mode = "none" if output.quiet else "rich" if sys.stderr.isatty() else "plain"
        self._mode = mode
        self._clock = clock
        self._spoken: dict[str, float] = {}
        self._rich: Any = None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Self:
        if self._mode == "rich":
            self._rich = _rich_bar()
            self._rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rich is not None:
            self._rich.stop()

    def update(self, name: str, done: int, total: int, event: Mapping[str, Any] | None = None) -> None:
        """Show that ``done`` of ``total`` bytes of task ``name`` are done; ``event`` is what JSON readers get."""
        if self._mode == "json":
            click.echo(json.dumps(event if event is not None else {"name": name, "done_bytes": done}), err=True)
        elif self._mode == "plain":
            self._speak(name, done, total)
        elif self._rich is not None:
            if name not in self._tasks:
                self._tasks[name] = self._rich.add_task(name, total=total)
            self._rich.update(self._tasks[name], completed=done, total=total)

    def _speak(self, name: str, done: int, total: int) -> None:
        last = self._spoken.setdefault(name, self._clock())
        if done < total and self._clock() - last < _PLAIN_EVERY_S:
            return
        if done >= total and last == float("inf"):
            return
        self._spoken[name] = float("inf") if done >= total else self._clock()
        percent = 100 * done // total if total else 100
        click.echo(f"{name}: {percent} % of {total / 1e6:.1f} MB", err=True)


def _rich_bar() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    # Names come from files: shown as text, never as markup.
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
