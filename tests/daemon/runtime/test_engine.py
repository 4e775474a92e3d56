"""The engine as the server calls it: real model files, wire tensors in and out, typed errors for what cannot be."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from luna_daemon.encode_messages import (
    Encoded,
    EncodeText,
    EncodeTokens,
    LoraUse,
    ResultForm,
    TextItem,
    TokenItem,
    TokenRows,
    VaeDecode,
    VaeEncode,
)
from luna_daemon.engine_seam import EngineOptions
from luna_daemon.frames import WireTensor
from luna_daemon.model_messages import DescribeModel, Expect, ListModels, Loaded, LoadModel, Part, PutModel, UnloadModel
from luna_daemon.protocol import COMMANDS
from luna_daemon.runtime.engine import Engine
from luna_daemon.tensors import from_torch, to_torch
from luna_engine.errors import DaemonError
from luna_engine.settings import ModelSet

if TYPE_CHECKING:
    from collections.abc import Callable

pytest.importorskip("instant_clip_tokenizer", reason="no wheel for this Python")


def never() -> None:
    """Check nothing."""


def code_of(call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(DaemonError) as caught:
        call(*arguments)
    assert caught.value.message
    return caught.value.code


def fresh(roots: dict[str, Path], **more: Any) -> Engine:
    made = Engine(EngineOptions(device="cpu", roots=roots, threads=1, **more))
    made.start(lambda phase, done: None)
    return made


def by_name(tensors: list[WireTensor]) -> dict[str, torch.Tensor]:
    return {tensor.name: to_torch(tensor) for tensor in tensors}


def encode_text(engine: Engine, *items: TextItem, dtype: str = "f32") -> tuple[Encoded, dict[str, torch.Tensor]]:
    body = EncodeText("sd15", items, cache="bypass", result=ResultForm(dtype))
    reply, tensors = engine.encode_text(body, {}, never)
    return reply, by_name(tensors)


def token_request(
    ids: list[int], weights: list[float] | None = None, vectors: torch.Tensor | None = None, **more: Any
) -> tuple[EncodeTokens, dict[str, WireTensor]]:
    segments = {"ids": from_torch("ids", torch.tensor(ids, dtype=torch.int32))}
    if weights is not None:
        segments["weights"] = from_torch("weights", torch.tensor(weights, dtype=torch.float64))
    if vectors is not None:
        segments["vectors"] = from_torch("vectors", vectors)
    rows = TokenRows(
        rows=more.pop("rows", (len(ids),)),
        ids="ids",
        weights="weights" if weights is not None else None,
        vectors=("vectors",) if vectors is not None else (),
    )
    name, cache = more.pop("set", "sd15"), more.pop("cache", "bypass")
    return EncodeTokens(name, (TokenItem({more.pop("role", "l"): rows}, **more),), cache=cache), segments


def test_importing_the_engine_loads_no_tensor_library() -> None:
    code = "import sys, luna_daemon.runtime.engine; print(sorted({'torch','numpy','transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout.strip() == "[]"


def test_a_damaged_embedding_is_named_and_not_left_out(tmp_path: Path, roots: dict[str, Path]) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"no model at all")
    made = fresh({**roots, "embeddings": tmp_path})
    load(made, CLIP)
    with pytest.raises(DaemonError, match="embedding broken") as caught:
        encode_text(made, TextItem("a embedding:broken"))
    assert caught.value.code == "embedding-missing"


def test_every_error_of_the_engine_is_in_the_protocols_table() -> None:
    """The codes that the tests here provoke are those that a client is told to expect."""
    expected = {
        "encode_tokens": {"token-invalid", "tensor-invalid", "request-invalid", "lora-missing", "model-unsupported"},
        "encode_text": {"embedding-missing", "tokenizer-missing", "request-invalid", "model-unsupported"},
        "vae_encode": {"image-shape", "value-range", "component-missing"},
        "vae_decode": {"latent-mismatch", "value-range", "component-missing", "model-unsupported"},
        "load_model": {"wrong-type", "file-damaged", "path-outside", "component-missing", "precision-unsupported"},
        "put_model": {"payload-too-large", "file-damaged", "tensor-invalid", "request-invalid", "daemon-busy"},
        "unload_model": {"model-in-use", "model-missing"},
    }
    for command, codes in expected.items():
        assert codes <= COMMANDS[command].all_errors, command


def test_status_names_device_backend_and_what_is_loaded(engine: Engine) -> None:
    snapshot = engine.snapshot()
    (loaded,) = snapshot.sets
    assert (snapshot.backend, snapshot.device.kind, snapshot.device.reason) == ("native", "cpu", "asked for")
    assert 0 < (snapshot.device.free_bytes or 0) <= (snapshot.device.total_bytes or 0)
    assert (loaded.family, loaded.precision, loaded.place) == ("sd15", "fp32", "device")
    # CLIP-L has 123,060,480 weights and the VAE 83,653,863; a CPU holds both in fp32.
    assert {part.role: part.bytes for part in loaded.parts} == {"l": 123_060_480 * 4, "vae": 83_653_863 * 4}


def test_text_and_its_tokens_give_the_same(engine: Engine) -> None:
    reply, text = encode_text(engine, TextItem("a (cat:1.5)"))
    ids = [49406, 320, 2368, 49407] + [49407] * 73
    body, segments = token_request(ids, [1.0, 1.0, 1.5] + [1.0] * 74)
    again, tensors = engine.encode_tokens(body, segments, never)
    tokens = by_name(tensors)
    assert reply.items[0].tokens == {"l": 2}
    assert text[reply.items[0].cond].shape == (1, 77, 768)
    assert torch.equal(text[reply.items[0].cond], tokens[again.items[0].cond])
    assert torch.equal(text[reply.items[0].pooled], tokens[again.items[0].pooled])
    assert (again.did.backend, again.did.rows, again.did.requests) == ("native", 1, 1)
    assert again.did.set == engine.snapshot().sets[0].set


def test_items_come_back_in_order_under_their_own_names(engine: Engine) -> None:
    reply, tensors = encode_text(engine, TextItem("a cat"), TextItem("dog " * 80), TextItem("a cat", layer=-2))
    first, second, third = (tensors[item.cond] for item in reply.items)
    assert len(tensors) == 6
    assert second.shape == (1, 154, 768)
    assert not torch.equal(first, third)
    assert torch.equal(tensors[reply.items[0].pooled], tensors[reply.items[2].pooled])


def test_half_the_bytes_on_request(engine: Engine) -> None:
    full, halved = encode_text(engine, TextItem("a cat")), encode_text(engine, TextItem("a cat"), dtype="f16")
    name = full[0].items[0].cond
    assert halved[1][name].dtype is torch.float16
    assert torch.equal(halved[1][name], full[1][name].half())


def test_embeddings_are_used_and_missing_ones_reported(engine: Engine, model_root: Path) -> None:
    reply, with_file = encode_text(engine, TextItem("a embedding:luna_two, embedding:nowhere x"))
    assert reply.items[0].missing_embeddings == ("nowhere",)
    with safe_open(model_root / "embeddings/luna_two.safetensors", framework="pt") as file:
        vectors = file.get_tensor("emb_params")
    ids = [49406, 320, -1, -2, 267, 343, 49407] + [49407] * 70
    body, segments = token_request(ids, vectors=vectors)
    again, tensors = engine.encode_tokens(body, segments, never)
    assert torch.equal(by_name(tensors)[again.items[0].cond], with_file[reply.items[0].cond])


# DAEMON S10
@pytest.mark.parametrize(
    ("ids", "more", "code"),
    [
        ([49406, 49408], {}, "token-invalid"),
        ([49406, -1], {}, "token-invalid"),
        ([49406] * 78, {}, "token-invalid"),
        ([49406] * 77, {"rows": (76,)}, "tensor-invalid"),
        ([49406, 49407], {"weights": [1.0, float("nan")]}, "token-invalid"),
        ([49406, -1], {"vectors": torch.full((1, 768), float("inf"))}, "token-invalid"),
        ([49406, 49407], {"role": "g"}, "token-invalid"),
        ([49406, 49407], {"set": "sdxl"}, "model-missing"),
        ([49406, 49407], {"layer": 12}, "request-invalid"),
        ([49406, 49407], {"loras": (LoraUse("0" * 64, 1.0),)}, "lora-missing"),
        ([49406, 49407], {"aux": {"x": 1}}, "model-unsupported"),
    ],
)
def test_tokens_that_cannot_be_encoded_are_refused(engine: Engine, ids: list[int], more: dict, code: str) -> None:
    body, segments = token_request(ids, **more)
    assert code_of(engine.encode_tokens, body, segments, never) == code


def test_texts_for_unknown_encoders_and_templates_are_refused(engine: Engine) -> None:
    for item, code in (
        (TextItem({"g": "x"}), "request-invalid"),
        (TextItem("x", template="y"), "model-unsupported"),
        (TextItem("x", loras=(LoraUse("0" * 64, 1.0),)), "lora-missing"),
    ):
        assert code_of(engine.encode_text, EncodeText("sd15", (item,)), {}, never) == code


def test_images_are_cropped_and_said_to_be(engine: Engine) -> None:
    pixels = torch.rand(2, 70, 66, 4)
    reply, (latent,) = engine.vae_encode(VaeEncode("sd15"), {"pixels": from_torch("pixels", pixels)}, never)
    assert (latent.name, latent.dtype, latent.shape) == ("latent", "f32", (2, 4, 8, 8))
    assert reply.did.crop == (64, 64)
    same, (cropped,) = engine.vae_encode(
        VaeEncode("sd15"), {"pixels": from_torch("pixels", pixels[:, 3:67, 1:65, :3])}, never
    )
    assert same.did.crop is None
    assert torch.equal(to_torch(latent), to_torch(cropped))


def test_latents_become_images_between_0_and_1(engine: Engine) -> None:
    latent = from_torch("latent", torch.randn(2, 4, 4, 6) * 9)
    _, (image,) = engine.vae_decode(VaeDecode("sd15"), {"latent": latent}, never)
    values = to_torch(image)
    assert image.shape == (2, 32, 48, 3)
    assert float(values.min()) >= 0.0
    assert float(values.max()) <= 1.0


def test_vae_requests_that_cannot_be_are_refused(engine: Engine) -> None:
    wrong = {"latent": from_torch("latent", torch.zeros(1, 16, 4, 4))}
    assert code_of(engine.vae_decode, VaeDecode("sd15"), wrong, never) == "latent-mismatch"
    bad = {"latent": from_torch("latent", torch.full((1, 4, 4, 4), float("nan")))}
    assert code_of(engine.vae_decode, VaeDecode("sd15"), bad, never) == "value-range"
    small = {"pixels": from_torch("pixels", torch.zeros(1, 4, 4, 3))}
    assert code_of(engine.vae_encode, VaeEncode("sd15"), small, never) == "image-shape"
    good = {"latent": from_torch("latent", torch.zeros(1, 4, 4, 4))}
    assert code_of(engine.vae_decode, VaeDecode("sd15", options={"x": 1}), good, never) == "model-unsupported"
    assert code_of(engine.vae_decode, VaeDecode("flux"), good, never) == "model-missing"


def test_cancel_stops_a_batch_of_images(engine: Engine) -> None:
    calls = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise DaemonError("cancelled", "given up")

    latent = {"latent": from_torch("latent", torch.zeros(5, 4, 2, 2))}
    assert code_of(engine.vae_decode, VaeDecode("sd15"), latent, check) == "cancelled"
    assert len(calls) == 3


def test_the_description_has_comfyuis_names_and_shapes(engine: Engine) -> None:
    reply, (names,) = engine.describe_model(DescribeModel("sd15"), {}, never)
    table = json.loads(bytes(names.data))
    assert reply.facts.encoders["l"].width == 768
    assert reply.facts.vae is not None
    assert reply.facts.vae.latent_channels == 4
    assert table["clip_l.transformer.text_model.embeddings.token_embedding.weight"] == {
        "shape": [49408, 768],
        "dtype": "f16",
    }
    assert table["clip_l.transformer.text_projection.weight"]["shape"] == [768, 768]
    assert table["first_stage_model.decoder.conv_in.weight"] == {"shape": [512, 4, 3, 3], "dtype": "f32"}


def test_files_are_listed_with_what_they_are(engine: Engine) -> None:
    reply, _ = engine.list_models(ListModels(), {}, never)
    kinds = {row.id: row.kind for row in reply.files}
    assert kinds["clip/l.safetensors"] == "text encoder"
    assert kinds["vae/vae.safetensors"] == "vae"
    assert kinds["loras/lora.safetensors"] == "lora"
    assert kinds["embeddings/luna_two.safetensors"] == "embedding"
    only, _ = engine.list_models(ListModels(kind="vae"), {}, never)
    assert {row.kind for row in only.files} == {"vae"}
    assert len(only.files) < len(reply.files)
    loaded, _ = engine.list_models(ListModels(loaded=True), {}, never)
    assert not loaded.files
    assert loaded.sets


@pytest.fixture
def empty(roots: dict[str, Path]) -> Engine:
    """An engine without a set."""
    return fresh(roots)


def load(engine: Engine, *parts: Part, **more: Any) -> Loaded:
    reply, _ = engine.load_model(LoadModel(parts, **more), {}, never)
    return reply


CLIP, VAE = Part("l", id="clip/l.safetensors"), Part("vae", id="vae/vae.safetensors")


def test_without_models_it_starts_and_loads_when_asked(empty: Engine) -> None:
    assert code_of(encode_text, empty, TextItem("x")) == "model-missing"
    loaded = load(empty, CLIP)
    assert (loaded.facts.family, loaded.facts.vae, loaded.facts.precision) == ("sd15", None, "fp16")
    reply, tensors = encode_text(empty, TextItem("a cat"))
    assert tensors[reply.items[0].cond].shape == (1, 77, 768)


def test_a_set_is_named_by_its_content_not_by_its_file(empty: Engine, engine: Engine) -> None:
    checkpoint = "checkpoints/parts.safetensors"
    both = load(empty, Part("l", id=checkpoint), Part("vae", id=checkpoint))
    same = load(empty, CLIP, VAE)
    assert both.set == same.set == engine.snapshot().sets[0].set
    assert len(empty.snapshot().sets) == 1
    other = load(empty, VAE, precision="bf16")
    assert other.set != both.set
    assert other.facts.precision == "bf16"


def test_a_family_name_means_the_set_that_fits(empty: Engine) -> None:
    load(empty, CLIP)
    load(empty, VAE)
    encode_text(empty, TextItem("x"))
    latent = {"latent": from_torch("latent", torch.zeros(1, 4, 2, 2))}
    empty.vae_decode(VaeDecode("sd15"), latent, never)
    chosen = load(empty, VAE, precision="bf16", default=True)
    reply, _ = empty.vae_decode(VaeDecode("sd15"), latent, never)
    assert reply.did.set == chosen.set


def test_several_sets_without_a_default_are_not_guessed_between(empty: Engine) -> None:
    load(empty, VAE)
    load(empty, VAE, precision="bf16")
    latent = {"latent": from_torch("latent", torch.zeros(1, 4, 2, 2))}
    assert code_of(empty.vae_decode, VaeDecode("sd15"), latent, never) == "model-missing"


def test_unloading_gives_back_what_is_not_pinned(empty: Engine) -> None:
    pinned, plain = load(empty, CLIP, pin=True), load(empty, VAE)
    assert code_of(empty.unload_model, UnloadModel(set=pinned.set), {}, never) == "model-in-use"
    reply, _ = empty.unload_model(UnloadModel(all=True), {}, never)
    assert (reply.freed_bytes, reply.kept) == (plain.bytes, (pinned.set,))
    reply, _ = empty.unload_model(UnloadModel(set=pinned.set, force=True), {}, never)
    assert reply.freed_bytes == pinned.bytes
    assert not empty.snapshot().sets


def test_a_budget_evicts_what_was_idle_longest_and_says_so(roots: dict[str, Path]) -> None:
    tight = fresh(roots, ram_budget_bytes=600_000_000)
    vae = load(tight, VAE)
    clip = load(tight, CLIP)
    assert clip.evicted == (vae.set,)
    load(tight, CLIP, pin=True)
    assert code_of(load, tight, VAE) == "out-of-memory"
    places = {entry.set: (entry.place, entry.bytes) for entry in tight.snapshot().sets}
    assert places == {clip.set: ("device", clip.bytes), vae.set: ("disk", 0)}


@pytest.mark.parametrize(
    ("parts", "more", "code"),
    [
        ((Part("l", id="loras/lora.safetensors"),), {}, "wrong-type"),
        ((Part("l", id="vae/vae.safetensors"),), {}, "component-missing"),
        ((Part("l", id="clip/nowhere.safetensors"),), {}, "model-missing"),
        ((Part("l", id="clip/../../x"),), {}, "path-outside"),
        ((Part("t5xxl", id="clip/l.safetensors"),), {}, "component-missing"),
        ((Part("gemma2_2b", id="clip/l.safetensors"),), {}, "model-unsupported"),
        ((CLIP,), {"family": "chroma"}, "model-unsupported"),
        ((CLIP,), {"family": "flux"}, "component-missing"),
        ((VAE,), {"family": "flux"}, "wrong-type"),
        ((VAE,), {"precision": "fp16"}, "precision-unsupported"),
        ((CLIP, CLIP), {}, "request-invalid"),
        ((Part("l", content="0" * 64),), {}, "model-missing"),
    ],
)
def test_sets_that_cannot_be_loaded_name_the_reason(
    engine: Engine, parts: tuple[Part, ...], more: dict, code: str
) -> None:
    before = engine.snapshot().sets
    assert code_of(lambda: load(engine, *parts, **more)) == code
    assert [entry.set for entry in engine.snapshot().sets] == [entry.set for entry in before]


def test_a_checkpoint_that_lacks_tensors_is_damaged(tmp_path: Path, model_root: Path) -> None:
    with safe_open(model_root / "vae/vae.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys()) if name != "decoder.conv_out.bias"}
    save_file(tensors, tmp_path / "cut.safetensors")
    made = fresh({"vae": tmp_path})
    with pytest.raises(DaemonError, match=r"decoder\.conv_out\.bias") as caught:
        load(made, Part("vae", id="vae/cut.safetensors"))
    assert caught.value.code == "file-damaged"


def test_the_clients_file_must_be_the_daemons_file(empty: Engine, model_root: Path) -> None:
    found = (model_root / "vae/vae.safetensors").stat()
    same = Expect(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    loaded = load(empty, dataclasses.replace(VAE, expect=same))
    other = dataclasses.replace(same, inode=same.inode + 1)
    load(empty, dataclasses.replace(VAE, expect=dataclasses.replace(other, content=loaded.content["vae"])))
    assert code_of(lambda: load(empty, dataclasses.replace(VAE, expect=other))) == "daemon-model-changed"


def test_a_model_can_be_sent_and_is_the_one_that_the_file_holds(
    empty: Engine, engine: Engine, model_root: Path
) -> None:
    data = (model_root / "vae/vae.safetensors").read_bytes()
    content = {part.role: part.content for part in engine.snapshot().sets[0].parts}["vae"]
    begun, _ = empty.put_model(PutModel("begin", content=content, nbytes=len(data)), {}, never)
    assert not begun.have
    assert begun.upload is not None
    assert begun.chunk_bytes is not None
    for start in range(0, len(data), begun.chunk_bytes):
        piece = WireTensor.of_bytes("bytes", data[start : start + begun.chunk_bytes])
        empty.put_model(PutModel("chunk", upload=begun.upload, offset=start), {"bytes": piece}, never)
    done, _ = empty.put_model(PutModel("commit", upload=begun.upload), {}, never)
    assert done.id == f"content:{content}"
    sent = load(empty, Part("vae", content=content))
    assert load(empty, Part("vae", content=content), precision="bf16").set != sent.set
    again, _ = empty.put_model(PutModel("begin", content=content, nbytes=len(data)), {}, never)
    assert again.have
    assert sent.set == load(empty, VAE).set
    assert empty.snapshot().caches["uploads"].bytes == len(data)
    freed, _ = empty.unload_model(UnloadModel(all=True), {}, never)
    assert freed.freed_bytes == sent.bytes + sent.bytes // 2 + len(data)


def test_what_a_file_holds_need_not_be_sent(tmp_path: Path, model_root: Path) -> None:
    shutil.copy(model_root / "vae/vae.safetensors", tmp_path / "vae.safetensors")
    made = fresh({"vae": tmp_path})
    content = load(made, VAE).content["vae"]
    begun, _ = made.put_model(PutModel("begin", content=content, nbytes=10), {}, never)
    assert begun.have
    assert load(made, Part("vae", content=content), precision="bf16").content == {"vae": content}
    os.truncate(tmp_path / "vae.safetensors", 1000)
    begun, _ = made.put_model(PutModel("begin", content=content, nbytes=10), {}, never)
    assert not begun.have


@pytest.mark.parametrize(("service", "serves"), [("clip", {"l"}), ("vae", {"vae"})])
def test_a_service_takes_its_own_parts_only(roots: dict[str, Path], service: str, serves: set[str]) -> None:
    made = fresh(roots, service_type=service, preload=("checkpoints/parts.safetensors",))
    (loaded,) = made.snapshot().sets
    assert {part.role for part in loaded.parts} == serves
    other = VAE if service == "clip" else CLIP
    assert code_of(lambda: load(made, other)) == "service-not-here"
    call = (
        (made.vae_decode, VaeDecode("sd15"), {"latent": from_torch("latent", torch.zeros(1, 4, 2, 2))})
        if service == "clip"
        else (made.encode_text, EncodeText("sd15", (TextItem("x"),)), {})
    )
    assert code_of(*call, never) == "service-not-here"


def test_sets_of_the_settings_are_preloaded_by_name(roots: dict[str, Path], model_root: Path) -> None:
    sets = {
        "mine": ModelSet(
            family="sd15", l="clip/l.safetensors", vae=str(model_root / "vae/vae.safetensors"), default=True
        )
    }
    (loaded,) = fresh(roots, preload=("mine",), sets=sets).snapshot().sets
    assert loaded.default
    assert {part.role: part.id for part in loaded.parts} == {"l": "clip/l.safetensors", "vae": "vae/vae.safetensors"}


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"preload": ("nowhere/x.safetensors",)}, "model-missing"),
        ({"preload": ("loras/lora.safetensors",)}, "wrong-type"),
        (
            {"preload": ("mine",), "sets": {"mine": ModelSet(vae="vae/vae.safetensors")}, "service_type": "clip"},
            "component-missing",
        ),
        ({"backend": "comfy"}, "settings-invalid"),
        ({"clip_precision": "bf16"}, "precision-unsupported"),
    ],
)
def test_a_start_that_cannot_be_says_why(roots: dict[str, Path], more: dict, code: str) -> None:
    assert code_of(lambda: fresh(roots, **more)) == code


def test_a_file_replaced_while_it_is_loaded_does_not_change_the_set(tmp_path: Path, model_root: Path) -> None:
    shutil.copy(model_root / "vae/vae.safetensors", tmp_path / "vae.safetensors")
    made = fresh({"vae": tmp_path})
    load(made, VAE)
    latent = {"latent": from_torch("latent", torch.randn(1, 4, 2, 2))}
    _, (before,) = made.vae_decode(VaeDecode("sd15"), latent, never)
    os.truncate(tmp_path / "vae.safetensors", 1000)
    _, (after,) = made.vae_decode(VaeDecode("sd15"), latent, never)
    assert bytes(before.data) == bytes(after.data)
    assert code_of(lambda: load(made, VAE)) == "file-damaged"
