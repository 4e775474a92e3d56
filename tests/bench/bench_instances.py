"""What a second ComfyUI on the same daemon adds in memory, over what CLIP and VAE add to a ComfyUI that holds them.

`python -m tests.bench.bench_instances [--write]`, with COMFYUI_PATH (and COMFYUI_PYTHON) naming a ComfyUI; the demo
SD1.5 files are taken from LUNA_DEMO_MODELS or made. Real ComfyUI processes and a real daemon, on the CPU. PSS: memory
that processes share counts once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.clients_worker import pss_bytes
from tests.bench.report import load, publish
from tests.nodes.processes import REPO, DaemonHandle, free_port, prepare_base, running_comfy
from tests.nodes.workflows import Prompt, node, succeeds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.nodes.processes import ComfyServer

CLIP, VAE = "demo-clip_l.safetensors", "demo-sd15_vae.safetensors"
SIDE = 256
LOCAL = {"clip": node("CLIPLoader", clip_name=CLIP, type="stable_diffusion"), "vae": node("VAELoader", vae_name=VAE)}
SHARED = {
    "clip": node("LunaDaemonCLIPLoader", clip_name1=CLIP, clip_name2="None"),
    "vae": node("LunaDaemonVAELoader", vae_name=VAE),
}


def warm_up() -> Prompt:
    """Build a prompt that uses no model, so that what every run needs is there before anything is measured."""
    return {
        "image": node("EmptyImage", width=SIDE, height=SIDE, batch_size=1, color=0x406080),
        "probe": node("LunaTestProbe", value=["image", 0], name="warm"),
    }


def workflow(loaders: Prompt) -> Prompt:
    """Build two encodes of text, an encode and a decode of a picture."""
    prompt: Prompt = {**loaders, "image": node("EmptyImage", width=SIDE, height=SIDE, batch_size=1, color=0x804020)}
    for role, text in (("positive", "a red cat on a chair"), ("negative", "blurry")):
        prompt[role] = node("CLIPTextEncode", clip=["clip", 0], text=text)
        prompt[f"probe-{role}"] = node("LunaTestProbe", value=[role, 0], name=role)
    prompt["latent"] = node("VAEEncode", pixels=["image", 0], vae=["vae", 0])
    prompt["decoded"] = node("VAEDecode", samples=["latent", 0], vae=["vae", 0])
    prompt["probe"] = node("LunaTestProbe", value=["decoded", 0], name="decoded")
    return prompt


@contextlib.contextmanager
def comfy(folder: Path, models: Path, environment: dict[str, str]) -> Iterator[ComfyServer]:
    """Run a ComfyUI that has worked once without a model."""
    folder.mkdir()
    extra = prepare_base(folder, models)
    with running_comfy(Path(os.environ["COMFYUI_PATH"]), folder, extra, environment) as server:
        succeeds(server.run(warm_up()))
        yield server


def demo_models(folder: Path) -> Path:
    """Return the demo models, made if need be."""
    if ready := os.environ.get("LUNA_DEMO_MODELS"):
        return Path(ready)
    command = [sys.executable, "-m", "luna_tui.cli", "demo-models", str(folder), "--only", "clip_l,sd15_vae"]
    subprocess.run(command, check=True, cwd=REPO, stdout=subprocess.DEVNULL)
    return folder


def measure(folder: Path) -> tuple[int, int, int]:
    """Return the bytes that CLIP and VAE add to one ComfyUI, and that a first and a second one add through a daemon."""
    models = demo_models(folder / "models")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("LUNA_")},
        "LUNA_HOME": str(folder / "home"),
        "LUNA_DAEMON_PORT": str(free_port()),
        "LUNA_DAEMON_VAE_PORT": str(free_port()),
        "LUNA_MODELS": str(models),
    }
    with comfy(folder / "alone", models, environment) as server:
        before = pss_bytes(server.process.pid)
        succeeds(server.run(workflow(LOCAL)))
        copy = pss_bytes(server.process.pid) - before
    (folder / "home").mkdir()
    handle = DaemonHandle(environment, preload="")
    handle.start()
    try:
        with (
            comfy(folder / "first", models, environment) as first,
            comfy(folder / "second", models, environment) as second,
        ):

            def total() -> int:
                assert handle.process is not None
                return sum(map(pss_bytes, (handle.process.pid, first.process.pid, second.process.pid)))

            held = [total()]
            for server in (first, second):
                succeeds(server.run(workflow(SHARED)))
                held.append(total())
    finally:
        handle.stop()
    return copy, held[1] - held[0], held[2] - held[1]


def main() -> None:
    """Measure and print, or publish."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    if not os.environ.get("COMFYUI_PATH"):
        parser.exit(2, "COMFYUI_PATH names no ComfyUI checkout\n")
    with tempfile.TemporaryDirectory() as name:
        copy, first, second = measure(Path(name))
    rows = (
        ("a ComfyUI with CLIP and VAE of its own", copy, 1.0),
        ("the first ComfyUI on the daemon, the daemon's copy included", first, first / copy),
    )
    lines = [f"| {name} | {size / 2**20:,.0f} | {ratio:.2f} |" for name, size, ratio in rows]
    table = "\n".join(
        [
            "| CLIP-L and SD1.5's VAE, CPU | adds PSS, MiB | of a full copy |",
            "|---|---|---|",
            *lines,
            f"| a second ComfyUI on the same daemon (bar ≤ 0.35) | {second / 2**20:,.0f} | **{second / copy:.2f}** |",
        ]
    )
    note = (
        f"Each runs two prompts through CLIP, and a picture of {SIDE}x{SIDE} through the VAE both ways; before that it "
        f"has run a prompt without a model, which is what the readings start from. Load average: {load()}."
    )
    publish("instances", "Memory of a second ComfyUI", table, write=given.write, note=note)


if __name__ == "__main__":
    main()
