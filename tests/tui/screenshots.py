"""Export every screen of the application as SVG: ``python -m tests.tui.screenshots [--models DIR] [--only NAME]``.

Daemons, cards, LoRAs and events are the recorded scene of `luna_tui.backend.scenes`; the Weights screen shows DIR (what
``luna demo-models`` wrote) with a real conversion under way, the Wildcards screen the bundled library.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna_engine.settings import Settings, WeightsSettings
from luna_tui.app import LunaApp
from luna_tui.backend import scenes
from luna_tui.backend.fake import FakeBackend

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from textual.pilot import Pilot

OUT = Path(__file__).resolve().parents[2] / "docs" / "screenshots"
SIZE = (120, 36)


@dataclasses.dataclass(frozen=True)
class Shot:
    name: str
    screen: str
    prepare: Callable[[Pilot[None]], Awaitable[None]] | None = None
    size: tuple[int, int] = SIZE


async def settled(pilot: Pilot[None]) -> None:
    for _ in range(4):
        await pilot.app.workers.wait_for_complete()
        await pilot.pause(0.1)


async def open_form(pilot: Pilot[None]) -> None:
    await pilot.press("c")
    await settled(pilot)


async def second_daemon(pilot: Pilot[None]) -> None:
    await pilot.press("j")
    await settled(pilot)


async def start_conversion(pilot: Pilot[None]) -> None:
    """Queue a conversion of the largest checkpoint and look while it runs."""
    from luna_engine.weights.queue import JobQueue

    root = Path(os.environ["LUNA_MODELS"])
    files = await asyncio.to_thread(lambda: sorted(root.rglob("*sdxl*.safetensors"), key=os.path.getsize))
    source = files[-1] if files else None
    if source is None:
        return
    queue = JobQueue.open()
    out = Path(os.environ["LUNA_HOME"]) / "out"
    out.mkdir(exist_ok=True)
    job = queue.submit(source, "gguf_Q8_0", out)
    queue.run_next()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        progress = queue.progress(job.id)
        if progress is not None and progress.total_bytes and (progress.done_bytes or 0) > 0.3 * progress.total_bytes:
            break
        await pilot.pause(0.05)
    await pilot.press("ctrl+r")
    await settled(pilot)


async def wildcard_samples(pilot: Pilot[None]) -> None:
    """Open characters.yaml; the samples are those of the address under the cursor."""
    await pilot.press("j", "j", "enter")
    await pilot.pause(1.0)
    await settled(pilot)


SHOTS = (
    Shot("overview", "overview"),
    Shot("overview-crash", "overview", second_daemon),
    Shot("daemon-form", "overview", open_form),
    Shot("gpu", "gpu"),
    Shot("weights", "weights", start_conversion),
    Shot("wildcards", "wildcards", wildcard_samples),
    Shot("links", "links"),
    Shot("events", "events"),
    Shot("overview-80x24", "overview", None, (80, 24)),
    Shot("overview-40x12", "overview", None, (40, 12)),
)


def backend(logs: Path, models: Path | None) -> FakeBackend:
    from luna_tui.backend.weights import LocalWeights
    from luna_tui.backend.wildcards import LocalWildcards

    paths = (str(models),) if models else ()
    settings = Settings(weights=WeightsSettings(paths=paths))
    return FakeBackend("normal", logs=logs, weights=LocalWeights(settings), wildcards=LocalWildcards(settings))


async def take(shot: Shot, models: Path | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ports: Any = backend(Path(folder), models)
        app = LunaApp(ports, start=shot.screen, clock=lambda: scenes.NOW)
        async with app.run_test(size=shot.size) as pilot:
            await pilot.pause(0.5)
            await settled(pilot)
            if shot.prepare is not None:
                await shot.prepare(pilot)
            OUT.mkdir(parents=True, exist_ok=True)
            (OUT / f"{shot.name}.svg").write_text(app.export_screenshot(title="luna-tui"), "utf-8")
        for port in (ports.weights, ports.wildcards):
            if hasattr(port, "close"):
                port.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, help="a folder that luna demo-models wrote")
    parser.add_argument("--only", help="the name of one picture")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"LUNA_HOME": home, "TZ": "UTC", "LUNA_MODELS": str(options.models or home)}
        time.tzset()
        for shot in SHOTS:
            if options.only in {None, shot.name}:
                asyncio.run(take(shot, options.models))
                print(OUT / f"{shot.name}.svg")


if __name__ == "__main__":
    main()
