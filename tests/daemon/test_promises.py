"""The six promises at the top of DAEMON.md, each held against a real daemon with real arithmetic on small models."""

from __future__ import annotations

import pickle
import signal
import time
from array import array
from typing import TYPE_CHECKING

import pytest

from luna_daemon.client import DaemonClient
from luna_daemon.encode_messages import LoraUse
from luna_daemon.protocol import Part, PutModel, TokenItem, TokenRows, VaeDecode, WireTensor
from luna_engine.errors import DaemonError, DaemonUnreachableError
from tests.bench.soak import lora_blobs
from tests.bench.tiny_daemon import PART_ID, TinyDaemon

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest.importorskip("instant_clip_tokenizer", reason="no wheel for this Python")
IDS = [49406, *range(320, 395), 49407]
LATENT = WireTensor("latent", "f32", (1, 4, 8, 8), memoryview(array("f", [0.1] * 256)).cast("B"))


@pytest.fixture
def client(tiny: TinyDaemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[DaemonClient]:
    monkeypatch.setenv("LUNA_HOME", str(tiny.home))
    with DaemonClient.connect("127.0.0.1", tiny.port, name="promises") as made:
        yield made


def load(client: DaemonClient) -> str:
    return client.load_model([Part("l", id=PART_ID), Part("vae", id=PART_ID)]).set


def encode(client: DaemonClient, set_id: str, *loras: LoraUse, ids: list[int] = IDS) -> memoryview:
    segment = WireTensor("ids", "i32", (len(ids),), memoryview(array("i", ids)).cast("B"))
    item = TokenItem({"l": TokenRows((len(ids),), "ids")}, loras=loras)
    body, tensors = client.encode_tokens(set=set_id, items=[item], tensors=[segment], cache="bypass")
    return tensors[body.items[0].cond].data


def test_same_numbers(tiny: TinyDaemon, client: DaemonClient) -> None:
    """What comes over the wire is what transformers computes of the same file, within 1e-5 in fp32.

    tests/daemon/runtime holds both backends to ComfyUI's own classes, bit for bit where `exact` promises that.
    """
    import torch
    from safetensors.torch import load_file
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=1, vocab_size=49408,
        eos_token_id=49407, bos_token_id=49406, pad_token_id=49407,
    )  # fmt: skip
    stored = load_file(tiny.home.parent / "models" / PART_ID)
    prefix = "cond_stage_model.transformer."
    model = CLIPTextModel(config).eval()
    known = model.state_dict()
    named = {name.removeprefix(prefix): value.float() for name, value in stored.items() if name.startswith(prefix)}
    shorter = {name.removeprefix("text_model."): value for name, value in named.items()}
    weights = named if named.keys() & known.keys() else shorter
    model.load_state_dict({name: value for name, value in weights.items() if name in known}, strict=False)
    with torch.inference_mode():
        expected = model(torch.tensor([IDS])).last_hidden_state
    found = torch.frombuffer(bytearray(encode(client, load(client))), dtype=torch.float32).reshape(expected.shape)
    assert (found - expected).abs().max().item() <= 1e-5


def test_nothing_of_a_lora_survives_a_request(client: DaemonClient) -> None:
    """Whatever fails, is cancelled or was merged: without a recipe the answer is bit for bit what it was."""
    set_id = load(client)
    before = bytes(encode(client, set_id))
    blobs = lora_blobs()
    for hash_, blob in blobs.items():
        client.lora_put(blob, hash=hash_)
    changed = set()
    for turn in range(24):  # the third use makes a recipe hot
        hash_ = list(blobs)[turn % 3]
        changed.add(bytes(encode(client, set_id, LoraUse(hash_, 0.8))))
        if turn % 4 == 1:
            with pytest.raises(DaemonError) as caught:
                encode(client, set_id, LoraUse(hash_, 0.8), LoraUse("0" * 64, 1.0))
            assert caught.value.code == "lora-missing"
        if turn % 4 == 2:
            with pytest.raises(DaemonError) as caught:
                encode(client, set_id, LoraUse(hash_, 0.8), ids=[10**6] * 77)
            assert caught.value.code == "token-invalid"
        assert bytes(encode(client, set_id)) == before
    assert before not in changed


def test_it_says_what_it_did(client: DaemonClient) -> None:
    """What was other than asked is in the reply, and what was done is in status and metrics."""
    set_id = load(client)
    pixels = WireTensor("pixels", "f32", (1, 70, 75, 3), memoryview(bytes(70 * 75 * 3 * 4)))
    body, _ = client.vae_encode(set=set_id, pixels=pixels)
    assert body.did is not None
    assert body.did.crop == (64, 72)
    assert body.did.set == set_id
    assert body.did.transport["in"] == body.did.transport["out"] == "inline"
    assert body.did.tiled == "no"
    hash_, blob = next(iter(lora_blobs().items()))
    client.lora_put(blob, hash=hash_)
    encode(client, set_id, LoraUse(hash_, 1.0))
    status, text = client.status(), client.metrics()
    assert status.backend == "native"
    assert status.backend_reason
    assert status.device.reason
    assert {row.set for row in status.sets} >= {set_id}
    assert 'luna_requests_total{command="vae_encode",outcome="ok"}' in text
    assert "luna_lora_rows_total{path=" in text


def test_nobody_hangs(tiny: TinyDaemon, client: DaemonClient) -> None:
    """A daemon that is stopped is noticed by the deadline, and is as before when it goes on."""
    set_id = load(client)
    before = bytes(encode(client, set_id))
    tiny.process.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(DaemonError) as caught:
            client.call("vae_decode", VaeDecode(set_id), [LATENT], timeout_s=0.5)
        assert caught.value.code == "daemon-timeout"
        with pytest.raises(DaemonUnreachableError):
            DaemonClient.connect("127.0.0.1", tiny.port, timeout_s=0.5)
        assert time.monotonic() - began < 10.0, "every wait has an end"
    finally:
        tiny.process.send_signal(signal.SIGCONT)
    assert bytes(encode(client, set_id)) == before


class Bomb:
    """What a pickle that runs code looks like."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("the pickle ran",))


def test_no_code_comes_over_the_wire(tiny: TinyDaemon, client: DaemonClient) -> None:
    """A pickle is refused as a file, as an upload and as a LoRA; a path never leaves its root."""
    raw = pickle.dumps(Bomb())
    folder = tiny.home.parent / "models" / "checkpoints"
    (folder / "bomb.safetensors").write_bytes(raw)
    (folder / "bomb.ckpt").write_bytes(raw)
    codes = []
    asked = [
        "checkpoints/bomb.safetensors",
        "checkpoints/bomb.ckpt",
        "checkpoints/../../home/state/token",
        "/etc/passwd",
    ]
    for file_id in asked:
        with pytest.raises(DaemonError) as caught:
            client.load_model([Part("l", id=file_id)])
        codes.append(caught.value.code)
    assert set(codes) <= {"wrong-type", "file-damaged", "path-outside", "model-missing", "model-unsupported"}
    begun = client.put_model(PutModel("begin", content="0" * 64, nbytes=len(raw)))
    client.put_model(PutModel("chunk", upload=begun.upload, offset=0), [WireTensor.of_bytes("bytes", raw)])
    with pytest.raises(DaemonError) as caught:
        client.put_model(PutModel("commit", upload=begun.upload))
    assert caught.value.code in {"file-damaged", "tensor-invalid"}
    with pytest.raises(DaemonError) as caught:
        client.lora_put(raw, hash="0" * 64)
    assert caught.value.code == "lora-invalid"
    said = (tiny.home.parent / "start.log").read_text("utf-8", "replace")
    assert "the pickle ran" not in said


def test_it_starts_with_no_models_and_no_gpu_and_one_bad_request_never_takes_it_down(client: DaemonClient) -> None:
    """The small daemon was started without a preload on a machine whose cards are hidden; it serves on."""
    status = client.status()
    assert (status.device.kind, status.state) == ("cpu", "ready")
    with pytest.raises(DaemonError) as caught:
        client.encode_tokens(
            set="nothing", items=[TokenItem({"l": TokenRows((1,), "ids")})],
            tensors=[WireTensor("ids", "i32", (1,), memoryview(array("i", [1])).cast("B"))],
        )  # fmt: skip
    assert caught.value.code == "model-missing"
    assert client.ping().state == "ready"
