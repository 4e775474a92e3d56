"""`luna demo-models`: starts the worker that writes the demo files and shows how far it is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from luna_engine.errors import LunaError
from luna_engine.paths import checkout_root
from luna_engine.weights.demo.models import MODELS
from luna_tui import frame
from luna_tui.progress import Bar

if TYPE_CHECKING:
    from collections.abc import Iterator


@click.command("demo-models")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--only",
    metavar="NAME,...",
    help=f"Write these alone: {', '.join(MODELS)}.",
)
@frame.global_options
def command(folder: Path, only: str | None) -> None:
    """Write small random-weight model files in real formats to FOLDER, laid out as ComfyUI's models folder.

    The whole set takes 4.1 GB on disk; sd15 alone, 0.6 GB, is enough to try a text encoder, a VAE and a conversion.
    Same name, same bytes: a file is the same on every machine.
    """
    if frame.output().readonly:
        raise LunaError("read-only", "luna demo-models writes files and --readonly is set")
    names = _names(only)
    written = list(_run(folder, names))
    rows = [{**row, "path": str(folder / row["path"]), "what": MODELS[row["name"]].what} for row in written]
    text = "\n".join(f"{row['name']:<14} {row['disk_bytes'] / 1e6:>8.1f} MB  {row['path']}" for row in rows)
    frame.output().data("luna.demo-models/1", {"folder": str(folder), "models": rows}, text)


def _names(only: str | None) -> list[str]:
    names = list(MODELS) if only is None else [name.strip() for name in only.split(",") if name.strip()]
    unknown = [name for name in names if name not in MODELS]
    if unknown or not names:
        raise click.BadParameter(
            f"{', '.join(unknown) or 'nothing'} is no demo model; known: {', '.join(MODELS)}", param_hint="--only"
        )
    return names


def _run(folder: Path, names: list[str]) -> Iterator[dict[str, Any]]:
    worker = subprocess.Popen(
        [sys.executable, "-m", "luna_engine.weights.demo", str(folder.absolute()), *names],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        cwd=checkout_root(),
    )
    with worker, Bar(frame.output()) as bar:
        try:
            assert worker.stdout is not None  # noqa: S101 - a pipe was asked for
            for line in worker.stdout:
                event = json.loads(line)
                if "error" in event:
                    raise LunaError(**event["error"])
                bar.update(event["name"], event["done_bytes"], event["size_bytes"], event)
                if "disk_bytes" in event:
                    yield event
        except BaseException:
            worker.terminate()  # Ctrl-C as well: the part file goes with the worker
            raise
        problem = worker.stderr.read() if worker.stderr is not None else ""
    if worker.returncode:
        raise LunaError("worker-failed", problem.strip().splitlines()[-1] if problem.strip() else "no message")
