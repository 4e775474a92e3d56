"""A real daemon process with real weights for the proxies, one for all tests of this folder."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from safetensors.torch import load_file

from luna_daemon.client import DaemonClient
from luna_daemon.model_messages import Part
from luna_daemon.proxy import DaemonCLIP, DaemonVAE
from luna_daemon.remote import RemoteSet
from luna_daemon.sources import ServedSet
from tests.daemon.runtime.proxies.stand_ins_of_comfyui import Host, LetterTokenizer, sent
from tests.nodes.processes import DaemonHandle, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch


@pytest.fixture(scope="session")
def daemon(model_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonHandle]:
    home = tmp_path_factory.mktemp("proxy-home")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LUNA_", "COMFYUI"))}
    environment |= {"LUNA_HOME": str(home), "LUNA_DAEMON_PORT": str(free_port()), "LUNA_MODELS": str(model_root)}
    handle = DaemonHandle({**environment, "CUDA_VISIBLE_DEVICES": ""}, preload="vae/vae.safetensors")
    handle.start()
    yield handle
    handle.stop()


@pytest.fixture(scope="session")
def client(daemon: DaemonHandle) -> Iterator[DaemonClient]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUNA_HOME", daemon.environment["LUNA_HOME"])
        with DaemonClient.connect("127.0.0.1", daemon.port) as made:
            yield made


@pytest.fixture(autouse=True)
def daemons_home(daemon: DaemonHandle, luna_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUNA_HOME", daemon.environment["LUNA_HOME"])


@pytest.fixture(scope="session")
def clip_tensors(model_root: Path) -> dict[str, torch.Tensor]:
    """CLIP-L under the names of ComfyUI's state dict."""
    alone = load_file(model_root / "clip/l.safetensors")
    return {f"clip_l.transformer.{name}": tensor for name, tensor in alone.items()}


@pytest.fixture
def clip(client: DaemonClient, clip_tensors: dict[str, torch.Tensor]) -> DaemonCLIP:
    return DaemonCLIP(RemoteSet(lambda: client, sent(lambda: clip_tensors), Host()), LetterTokenizer())


@pytest.fixture
def vae(client: DaemonClient) -> DaemonVAE:
    loaded = client.load_model([Part("vae", id="vae/vae.safetensors")], family="sd15")
    return DaemonVAE(RemoteSet(lambda: client, ServedSet(loaded.set), Host()))
