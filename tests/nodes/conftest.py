"""A real headless ComfyUI with Luna as a node pack, and a real daemon beside it, one of each for all tests here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.nodes.processes import REPO, ComfyServer, DaemonHandle, free_port, prepare_base, running_comfy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager


@pytest.fixture(scope="session")
def demo_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the demo SD1.5 files: the one LUNA_DEMO_MODELS names, or a new one."""
    if ready := os.environ.get("LUNA_DEMO_MODELS"):
        return Path(ready)
    folder = tmp_path_factory.mktemp("demo-models")
    wanted = "sd15,lora_sd15,ti_sd15"
    command = [sys.executable, "-m", "luna_tui.cli", "demo-models", str(folder), "--only", wanted]
    subprocess.run(command, check=True, cwd=REPO, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture(scope="session")
def nodes_environment(tmp_path_factory: pytest.TempPathFactory, demo_models: Path) -> dict[str, str]:
    """One environment for daemon and ComfyUI: the same Luna home and ports of their own."""
    home = tmp_path_factory.mktemp("nodes-luna-home")
    (home / "config").mkdir()
    allowed = json.dumps([str(tmp_path_factory.getbasetemp())])
    (home / "config" / "settings.toml").write_text(f"allowed_roots = {allowed}\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LUNA_")}
    return {
        **kept,
        "LUNA_HOME": str(home),
        "LUNA_DAEMON_PORT": str(free_port()),
        "LUNA_DAEMON_VAE_PORT": str(free_port()),
        "LUNA_MODELS": str(demo_models),
    }


@pytest.fixture(scope="session")
def daemon(nodes_environment: dict[str, str], demo_models: Path) -> Iterator[DaemonHandle]:
    """Run the daemon for all tests of this folder."""
    checkpoint = demo_models / "checkpoints" / "demo-sd15.safetensors"
    settings = Path(nodes_environment["LUNA_HOME"]) / "config" / "settings.toml"
    with settings.open("a") as file:
        file.write(f'[daemon.sets.demo]\nfamily = "sd15"\nl = "{checkpoint}"\nvae = "{checkpoint}"\ndefault = true\n')
    handle = DaemonHandle(nodes_environment)
    handle.start()
    yield handle
    handle.stop()


@pytest.fixture
def only_the_demo_set(daemon: DaemonHandle) -> Iterator[None]:
    """Unload the other families afterwards: tests of the session count on one set, and the machine has other guests."""
    yield
    for family in ("flux", "sd3", "sdxl", "z-image"):
        daemon.forget(family)


@pytest.fixture(scope="session")
def start_comfy(
    tmp_path_factory: pytest.TempPathFactory,
    demo_models: Path,
    nodes_environment: dict[str, str],
    daemon: DaemonHandle,
) -> Callable[[], AbstractContextManager[ComfyServer]]:
    """Return what runs another ComfyUI with this clone as its node pack, until its block ends."""
    root = os.environ.get("COMFYUI_PATH")
    if not root:
        pytest.skip("COMFYUI_PATH names no ComfyUI checkout")

    def start() -> AbstractContextManager[ComfyServer]:
        base = tmp_path_factory.mktemp("comfyui")
        return running_comfy(Path(root), base, prepare_base(base, demo_models), nodes_environment)

    return start


@pytest.fixture(scope="session")
def comfy_server(start_comfy: Callable[[], AbstractContextManager[ComfyServer]]) -> Iterator[ComfyServer]:
    """Run ComfyUI with this clone as its node pack."""
    with start_comfy() as server:
        yield server
