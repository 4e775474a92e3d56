"""The product's daemon, engine and arithmetic, on architectures shrunk until a request takes milliseconds.

Run by path like `server.py`. Reliability runs need 10^5 requests and care about leaks and order, not about size: so
CLIP-L is 2 layers of 64 here and the VAE 32 channels wide. Everything else is what users run.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from luna_daemon import identity, process
from luna_daemon.client import DaemonClient
from luna_engine.errors import DaemonUnreachableError
from tests.bench import footprint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from luna_daemon.engine_seam import EngineOptions, ModelEngine
    from luna_daemon.runtime.clip_text import ClipShape

NAME = "tiny"
FILE = "tiny.safetensors"
PART_ID = f"checkpoints/{FILE}"
WIDTH = 64
VAE_WIDTHS = (32, 32, 32, 32)
START_S = 120.0


def _clip_shape() -> ClipShape:
    from luna_daemon.runtime.clip_text import END, ClipShape

    return ClipShape(layers=2, width=WIDTH, activation="quick_gelu", pad=END)


def shrink() -> None:
    """Make this process's native backend expect the small architectures; imports torch."""
    from luna_daemon.runtime import autoencoder, encoder_files, families, parts

    shape = _clip_shape()
    replaced: Mapping[str, Any] = {
        "l": dataclasses.replace(parts.CLIP_L, shapes=((WIDTH, WIDTH),)),
        "vae": dataclasses.replace(parts.VAE, shapes=((32, 4, 3, 3),)),
    }
    parts.KINDS = {**parts.KINDS, **replaced}
    for module in [module for name, module in list(sys.modules.items()) if name.startswith("luna_daemon.runtime.")]:
        if hasattr(module, "KINDS"):
            module.KINDS = parts.KINDS
    encoder_files._CLIP = {**encoder_files._CLIP, "l": shape}
    family = dataclasses.replace(families.FAMILIES["sd15"], shapes={"l": shape})
    families.FAMILIES["sd15"] = family  # type: ignore[index]  # a dict behind a Mapping
    autoencoder._WIDTHS = VAE_WIDTHS


def write_model(folder: Path) -> None:
    """Write a checkpoint of the small architectures with seeded weights."""
    import torch
    from safetensors.torch import save_file

    from luna_daemon.runtime import clip_text

    generator = torch.Generator().manual_seed(7)

    def filled(prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
        return {
            prefix + name: (
                torch.randn(size, generator=generator) * 0.1 + ("norm" in name and name.endswith("weight"))
            ).half()
            for name, size in shapes.items()
        }

    tensors = filled("cond_stage_model.transformer.", clip_text.expected_shapes(_clip_shape()))
    tensors |= filled("first_stage_model.", _vae_shapes())
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / FILE)


def _vae_shapes() -> dict[str, tuple[int, ...]]:
    """Return the names of the small VAE; this process's own notion of a VAE stays what it is."""
    from luna_daemon.runtime import autoencoder

    widths = autoencoder._WIDTHS
    autoencoder._WIDTHS = VAE_WIDTHS
    try:
        return autoencoder.expected_shapes(autoencoder.SD)
    finally:
        autoencoder._WIDTHS = widths


class TinyDaemon:
    """The process, with its own home and models below a folder."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.home = folder / "home"
        self.home.mkdir(parents=True, exist_ok=True)
        os.environ["LUNA_HOME"] = str(self.home)
        models = folder / "models"
        if not (models / "checkpoints" / FILE).exists():
            write_model(models / "checkpoints")
        self._footprint = folder / "footprint.json"
        environ = {**os.environ, "LUNA_MODELS": str(models), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        environ[footprint.ENVIRONMENT] = str(self._footprint)
        command = [sys.executable, __file__, "--name", NAME, "--device", "cpu", "--port", "0", "--threads", "1"]
        with (folder / "start.log").open("wb") as log:
            self.process = subprocess.Popen([*command, *arguments], env=environ, stdout=log, stderr=log, cwd=folder)
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            found = identity.read_identity(NAME)
            if found is not None and found.pid == self.process.pid and self._is_ready(found.port or 0):
                return
            time.sleep(0.05)
        log = identity.DaemonPlaces(NAME).log
        said = log.read_text("utf-8")[-2000:] if log.exists() else ""
        raise RuntimeError(f"the daemon did not become ready: {said}")

    @staticmethod
    def _is_ready(port: int) -> bool:
        try:
            with DaemonClient.connect("127.0.0.1", port) as client:
                return client.ping().state == "ready"
        except DaemonUnreachableError:
            return False  # not yet, or it has just ended

    @property
    def port(self) -> int:
        """Return its TCP port."""
        found = identity.read_identity(NAME)
        if found is None or found.port is None:
            raise RuntimeError("the daemon is gone")
        return found.port

    @property
    def socket(self) -> str:
        """Return the path of its Unix socket."""
        found = identity.read_identity(NAME)
        if found is None or found.socket is None:
            raise RuntimeError("the daemon is gone")
        return found.socket

    def footprint(self) -> footprint.Footprint:
        """Return what it holds once it has collected and trimmed."""
        return footprint.measure(self.process, self._footprint)

    def close(self) -> None:
        """End it."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)


def make(options: EngineOptions) -> ModelEngine:
    """Make the engine; what it must shrink is imported only now, on the executor's thread."""
    from luna_daemon.runtime.engine import Engine

    class TinyEngine(Engine):
        def start(self, *given: Any) -> None:
            shrink()
            super().start(*given)

    return TinyEngine(options)


if __name__ == "__main__":
    footprint.answer_signals()
    process.main(make)
