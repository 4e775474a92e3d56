"""The real daemon: `server.py` as a process with real models, asked over its sockets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from luna_daemon.client import DaemonClient
from luna_daemon.encode_messages import EncodeText, TextItem, VaeDecode
from luna_daemon.model_messages import Part
from luna_daemon.tensors import from_torch, to_torch
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from luna_daemon.runtime.engine import Engine

SERVER = Path(__file__).resolve().parents[3] / "luna_daemon/server.py"
START_S = 120.0

pytest.importorskip("instant_clip_tokenizer", reason="no wheel for this Python")


class Daemon:
    """A daemon process and where it answers."""

    def __init__(self, home: Path, *arguments: str, roots: Path | None = None) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("LUNA_", "COMFYUI"))}
        environ |= {"LUNA_HOME": str(home), "CUDA_VISIBLE_DEVICES": ""}
        if roots is not None:
            environ["LUNA_MODELS"] = str(roots)
        self.home = home
        self.log = home / "start.log"
        command = [
            sys.executable,
            str(SERVER),
            "--device",
            "cpu",
            "--port",
            "0",
            "--threads",
            "1",
            "--name",
            "real",
            *arguments,
        ]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environ, cwd=home)

    def wait_ready(self) -> tuple[str, int]:
        """Wait until it is ready and return its address."""
        record = self.home / "state/run/real.json"
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            if record.exists():
                place = json.loads(record.read_text("utf-8"))
                if self._is_ready(place["host"], place["port"]):
                    return place["host"], place["port"]
            time.sleep(0.05)
        raise AssertionError(f"not ready: {self.log.read_text('utf-8')}")

    def _is_ready(self, host: str, port: int) -> bool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LUNA_HOME", str(self.home))
            with DaemonClient.connect(host, port) as client:
                return client.ping().state == "ready"

    def stop(self) -> None:
        """End it."""
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(30)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("daemon-home")


@pytest.fixture(scope="module")
def address(home: Path, model_root: Path) -> Iterator[tuple[str, int]]:
    daemon = Daemon(home, "--preload", str(model_root / "checkpoints/parts.safetensors"), roots=model_root)
    try:
        yield daemon.wait_ready()
    finally:
        daemon.stop()


@pytest.fixture(params=["tcp", "auto"])
def client(
    request: pytest.FixtureRequest, address: tuple[str, int], home: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DaemonClient]:
    monkeypatch.setenv("LUNA_HOME", str(home))
    with DaemonClient.connect(*address, transport=request.param) as made:
        yield made


def test_text_over_the_socket_is_what_the_engine_computes(client: DaemonClient, engine: Engine) -> None:
    items = (TextItem("a (cat:1.3) on a chair"), TextItem("embedding:luna_two", layer=-2))
    reply, tensors = client.encode_text(set="sd15", items=items)
    expected, plain = engine.encode_text(EncodeText("sd15", items), {}, lambda: None)
    assert reply.items == expected.items
    assert {name: bytes(tensor.data) for name, tensor in tensors.items()} == {
        tensor.name: bytes(tensor.data) for tensor in plain
    }


def test_an_image_goes_there_and_back(client: DaemonClient, engine: Engine) -> None:
    latent = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    wire = from_torch("latent", latent)
    _, image = client.vae_decode(set="sd15", latent=wire)
    _, (expected,) = engine.vae_decode(VaeDecode("sd15"), {"latent": wire}, lambda: None)
    assert bytes(image.data) == bytes(expected.data)
    reply, back = client.vae_encode(set="sd15", pixels=from_torch("pixels", to_torch(image)))
    assert back.shape == (2, 4, 4, 4)
    assert reply.did is not None
    assert reply.did.crop is None


def test_status_has_the_set_with_its_bytes(client: DaemonClient) -> None:
    status = client.status()
    (loaded,) = status.sets
    assert (status.state, status.backend, status.device.kind) == ("ready", "native", "cpu")
    assert loaded.bytes == sum(part.bytes for part in loaded.parts) > 800_000_000
    assert (status.rss_bytes or 0) > loaded.bytes


def test_errors_arrive_with_code_and_hint_and_the_daemon_goes_on(client: DaemonClient) -> None:
    for call, code in (
        (lambda: client.encode_text(set="sdxl", items=(TextItem("x"),)), "model-missing"),
        (lambda: client.load_model(parts=(Part("l", id="embeddings/luna_two.safetensors"),)), "wrong-type"),
        (lambda: client.load_model(parts=(Part("l", id="clip/../../secret"),)), "path-outside"),
        (lambda: client.load_model(parts=(Part("l", id="models/clip/nowhere"),)), "model-missing"),
    ):
        with pytest.raises(DaemonError) as caught:
            call()
        assert (caught.value.code, bool(caught.value.hint)) == (code, True)
    assert client.ping().state == "ready"


def test_a_set_is_loaded_by_id_and_unloaded(client: DaemonClient) -> None:
    told: list[tuple[int, int, str]] = []
    vae = (Part("vae", id="vae/vae.safetensors"),)
    loaded = client.load_model(parts=vae, precision="bf16", on_progress=lambda *facts: told.append(facts))
    assert loaded.facts.vae is not None
    assert told == sorted(told)
    assert told[-1] == (4 * 83_653_863, 4 * 83_653_863, "bytes")  # fp16 in the file: hashed once, read once
    assert client.unload_model(set=loaded.set).freed_bytes == loaded.bytes


def test_a_model_sent_over_the_wire_is_the_one_in_the_file(client: DaemonClient, model_root: Path) -> None:
    data = (model_root / "vae/vae.safetensors").read_bytes()
    content = next(part.content for part in client.status().sets[0].parts if part.role == "vae")
    assert content is not None
    assert client.upload_model(content, memoryview(data)) == f"content:{content}"
    loaded = client.load_model(parts=(Part("vae", content=content),), precision="bf16")
    assert loaded.content == {"vae": content}
    client.unload_model(set=loaded.set)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--preload", "nowhere/x.safetensors"), 66),
        (("--preload", "embeddings/luna_two.safetensors"), 66),
        (("--backend", "comfy"), 78),
        (("--device", "cuda:7"), 69),
    ],
)
def test_a_start_that_cannot_be_ends_with_its_exit_code(
    tmp_path: Path, model_root: Path, arguments: tuple[str, ...], code: int
) -> None:
    daemon = Daemon(tmp_path, *arguments, roots=model_root)
    try:
        assert daemon.process.wait(START_S) == code
        record = json.loads((tmp_path / "state/run/real.exit.json").read_text("utf-8"))
        assert record["code"] == code
    finally:
        daemon.stop()
