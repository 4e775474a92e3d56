"""Export every screen of the application as SVG: ``python -m tests.tui.screenshots --models DIR``.

``--only wildcards`` takes the picture of that screen alone.

Nothing is staged: real daemons serve the models that ``luna demo-models DIR`` wrote, one is killed until it backs off,
a client encodes, a conversion runs. Only the GPU screen shows the recorded scene of `luna_tui.backend.scenes`, so that
a machine without cards can take the picture. LUNA_HOME is a temporary folder.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna_daemon.client import DaemonClient
from luna_daemon.encode_messages import TextItem
from luna_engine import paths, settings
from luna_tui.app import LunaApp
from luna_tui.backend import scenes
from luna_tui.backend.fake import FakeBackend
from luna_tui.backend.local import LocalBackend
from luna_tui.widgets.samples import Samples
from luna_tui.widgets.table import ListTable

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual.pilot import Pilot

    from luna_tui.views import DaemonRow

OUT = Path(__file__).resolve().parents[2] / "docs" / "screenshots"
WIDTH = 120
KILLS = 4
SETTINGS = """
[daemon.sets.sdxl]
family = "sdxl"
l = "checkpoints/demo-sdxl.safetensors"
g = "checkpoints/demo-sdxl.safetensors"

[daemon.sets.sd15]
family = "sd15"
l = "checkpoints/demo-sd15.safetensors"

[daemon.sets.sdxl-vae]
family = "sdxl"
vae = "vae/demo-sdxl_vae.safetensors"

[daemons.clip]
service_type = "clip"
port = {clip}
preload = ["sdxl", "sd15"]

[daemons.spare]
port = {spare}

[daemons.vae]
service_type = "vae"
port = {vae}
preload = ["sdxl-vae"]
"""


def save(app: LunaApp, name: str) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    file = OUT / f"{name}.svg"
    file.write_text(app.export_screenshot(title="luna-tui"), "utf-8")
    print(file)


async def settled(pilot: Pilot[None]) -> None:
    for _ in range(3):
        await pilot.app.workers.wait_for_complete()
        await pilot.pause(0.1)


async def until(pilot: Pilot[None], condition: Callable[[], Any], what: str, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never saw {what}"
        await pilot.pause(0.05)


async def shoot(pilot: Pilot[None], name: str, height: int, *keys: str, width: int = WIDTH) -> None:
    await pilot.resize_terminal(width, height)
    await pilot.press(*keys)
    await pilot.press("ctrl+r")
    await settled(pilot)
    save(pilot.app, name)  # type: ignore[arg-type]  # the pilot knows no more than App


def free_ports(first: int, number: int) -> list[int]:
    found: list[int] = []
    port = first
    while len(found) < number:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                found.append(port)
        port += 1
    return found


class House:
    """The real daemons behind the pictures."""

    def __init__(self) -> None:
        clip, vae, spare = free_ports(settings.CLIP_PORT, 3)
        file = paths.settings_file()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(SETTINGS.format(clip=clip, vae=vae, spare=spare).lstrip(), "utf-8")
        self._port = clip
        self.backend = LocalBackend(settings.load())

    def row(self, name: str) -> DaemonRow:
        return next(row for row in self.backend.daemons.last_seen() if row.name == name)

    def encode(self) -> DaemonClient:
        """Encode a prompt as the nodes' client does and stay connected."""
        client = DaemonClient.connect("127.0.0.1", self._port, name="comfyui")
        for row in client.status().sets:
            client.encode_text(set=row.set, items=[TextItem("a lighthouse in the fog, oil on canvas")])
        return client

    async def start(self, pilot: Pilot[None]) -> None:
        for name in ("clip", "vae"):
            await asyncio.to_thread(self.backend.daemons.start, name)
        await until(pilot, lambda: {self.row(name).state for name in ("clip", "vae")} == {"ready"}, "ready daemons")

    async def crash(self, pilot: Pilot[None], times: int) -> None:
        """Kill the VAE daemon again and again; it comes back later each time."""
        for _ in range(times):
            await until(pilot, lambda: self.row("vae").state == "ready", "a ready vae")
            os.kill(self.row("vae").pid or 0, signal.SIGKILL)
            await until(pilot, lambda: self.row("vae").state == "backoff", "back-off")

    def stop(self) -> None:
        for row in self.backend.daemons.last_seen():
            if row.pid is not None:
                os.kill(row.pid, signal.SIGKILL)


async def conversion(pilot: Pilot[None]) -> None:
    """Queue a conversion of the largest checkpoint and wait until a third is done."""
    from luna_engine.weights.queue import JobQueue

    root = Path(os.environ["LUNA_MODELS"])
    source = max((root / "checkpoints").glob("*.safetensors"), key=os.path.getsize)
    queue = JobQueue.open()
    out = Path(os.environ["LUNA_HOME"]) / "out"
    out.mkdir(exist_ok=True)
    job = queue.submit(source, "gguf_Q8_0", out)
    queue.run_next()

    def is_under_way() -> bool:
        progress = queue.progress(job.id)
        return bool(progress and progress.total_bytes and (progress.done_bytes or 0) > 0.3 * progress.total_bytes)

    await until(pilot, is_under_way, "a conversion under way")


async def live() -> None:
    house = House()
    app = LunaApp(house.backend)
    async with app.run_test(size=(WIDTH, 26)) as pilot:
        await until(pilot, house.backend.daemons.last_seen, "the supervisor")
        client = None
        try:
            await house.start(pilot)
            client = await asyncio.to_thread(house.encode)
            await house.crash(pilot, KILLS)
            await shoot(pilot, "overview", 25)
            app.screen.query_one(ListTable).go_to("vae")
            await shoot(pilot, "overview-crash", 25)
            await shoot(pilot, "overview-80x24", 24, width=80)
            await shoot(pilot, "overview-40x12", 12, width=40)
            await shoot(pilot, "events", 28, "6")
            await shoot(pilot, "links", 22, "5")
            await shoot(pilot, "daemon-form", 25, "1", "c")
            await pilot.press("escape")
            await wildcards(pilot)
            await pilot.press("alt+3")
            await conversion(pilot)
            await shoot(pilot, "weights", 24)
        finally:
            if client is not None:
                client.close()
            house.stop()


async def wildcards(pilot: Pilot[None]) -> None:
    """Open a file of the bundled library, with choices and odds beside it."""
    await pilot.resize_terminal(WIDTH, 36)
    await pilot.press("alt+4")
    await until(pilot, lambda: any(found.sample for found in pilot.app.screen.query(Samples)), "samples")
    await pilot.press("j", "j", "enter")
    await until(pilot, lambda: pilot.app.screen.query("YamlEditor"), "the editor")
    await settled(pilot)
    await pilot.press("escape", "tab", "tab", "c", "b", "j", "j")
    await settled(pilot)
    save(pilot.app, "wildcards")  # type: ignore[arg-type]  # the pilot knows no more than App


async def wildcards_alone() -> None:
    app = LunaApp(LocalBackend(settings.load()), start="wildcards")
    async with app.run_test(size=(WIDTH, 36)) as pilot:
        await wildcards(pilot)


async def recorded() -> None:
    app = LunaApp(FakeBackend("normal"), start="gpu", clock=lambda: scenes.NOW)
    async with app.run_test(size=(WIDTH, 22)) as pilot:
        await settled(pilot)
        save(app, "gpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, help="a folder that luna demo-models wrote")
    parser.add_argument("--only", choices=["wildcards"], help="this picture alone, which needs no models")
    options = parser.parse_args()
    if options.models is None and options.only is None:
        parser.error("--models is needed for all pictures")
    with tempfile.TemporaryDirectory(prefix="luna-") as home:
        os.environ |= {"LUNA_HOME": home, "TZ": "UTC"}
        time.tzset()
        if options.only:
            asyncio.run(wildcards_alone())
            return
        models = Path(home) / "models"  # the pictures name no folder of this machine
        models.symlink_to(options.models.resolve(), target_is_directory=True)
        os.environ["LUNA_MODELS"] = str(models)
        asyncio.run(live())
        asyncio.run(recorded())


if __name__ == "__main__":
    main()
