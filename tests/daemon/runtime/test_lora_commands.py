"""The LoRA commands on an engine with a real CLIP-L: files and blobs in, conditioning out, errors by name."""

from __future__ import annotations

import dataclasses
from array import array
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from luna_daemon import protocol as p
from luna_daemon.patches import Patch, content_hash, pack
from luna_daemon.protocol import COMMANDS
from luna_daemon.tensors import to_torch
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from luna_daemon.runtime.engine import Engine

LAYERS = "clip_l.transformer.text_model.encoder.layers."
FILE = "loras/lora.safetensors"


def never() -> None:
    """A request that nobody cancels."""


@pytest.fixture(autouse=True)
def no_loras_left(engine: Engine) -> Iterator[None]:
    yield
    engine.lora_drop(p.LoraDrop(all=True), {}, never)


def blob_of(*patches: Patch) -> tuple[p.LoraPut, dict[str, p.WireTensor]]:
    return p.LoraPut(content_hash(patches)), {"blob": p.WireTensor.of_bytes("blob", pack(patches))}


def small(seed: int = 0, **changes: Any) -> Patch:
    generator = torch.Generator().manual_seed(seed)
    up, down = (torch.randn(shape, generator=generator) * 0.1 for shape in ((768, 8), (8, 768)))
    one = Patch(f"{LAYERS}0.self_attn.q_proj.weight", "lora", {"up": up, "down": down}, 8.0)
    return dataclasses.replace(one, **changes)


def put(engine: Engine, *patches: Patch) -> p.LoraStored:
    body, segments = blob_of(*patches)
    return engine.lora_put(body, segments, never)[0]


def encode(engine: Engine, *loras: p.LoraUse, **more: Any) -> tuple[p.Encoded, torch.Tensor]:
    ids = p.WireTensor("ids", "i32", (77,), memoryview(array("i", [49406, 320, 4558, *[49407] * 74])).cast("B"))
    item = p.TokenItem({"l": p.TokenRows((77,), "ids")}, loras=loras)
    reply, (cond, *_) = engine.encode_tokens(p.EncodeTokens("sd15", (item,), **more), {"ids": ids}, never)
    return reply, to_torch(cond)


def code_of(command: str, call: Any) -> str:
    with pytest.raises(DaemonError) as caught:
        call()
    assert caught.value.code in COMMANDS[command].all_errors
    return caught.value.code


def test_a_file_by_its_id_is_named_listed_and_applied(engine: Engine) -> None:
    stored, _ = engine.lora_put(p.LoraPut(id=FILE), {}, never)
    assert (stored.entry.form, stored.entry.source, stored.unknown) == ("low_rank", FILE, ())
    (match,) = stored.sets.values()
    assert match.matched == stored.entry.weights > 0
    assert engine.lora_has(p.LoraHas((stored.entry.hash, "0")), {}, never)[0] == p.LoraFound(
        (stored.entry.hash,), ("0",)
    )
    use = p.LoraUse(stored.entry.hash, 1.0)
    reply, cond = encode(engine, use)
    assert reply.did.loras == (p.LoraDid(stored.entry.hash, "side", 0),)
    assert not torch.allclose(cond, encode(engine)[1], atol=1e-4)
    (row,) = engine.lora_list(p.LoraList(), {}, never)[0].entries
    assert (row.hash, row.uses, row.in_use) == (stored.entry.hash, 1, False)
    caches = engine.snapshot().caches
    assert caches["loras"].bytes == row.bytes > 0


def test_encode_text_takes_a_recipe(engine: Engine) -> None:
    stored = put(engine, small())
    item = p.TextItem("a cat", loras=(p.LoraUse(stored.entry.hash, 0.8),))
    plain = p.TextItem("a cat")
    reply, tensors = engine.encode_text(p.EncodeText("sd15", (item, plain)), {}, never)
    conds = {one.name: to_torch(one) for one in tensors}
    assert not torch.allclose(conds[reply.items[0].cond], conds[reply.items[1].cond], atol=1e-3)
    assert reply.did.loras == (p.LoraDid(stored.entry.hash, "side", 0),)


def test_results_are_kept_per_recipe(engine: Engine) -> None:
    stored = put(engine, small())
    half, whole = p.LoraUse(stored.entry.hash, 0.5), p.LoraUse(stored.entry.hash, 1.0)
    (first, cond), (_, other) = encode(engine, half), encode(engine, whole)
    assert not torch.equal(cond, other)
    assert first.did.cached is False
    again, same = encode(engine, half)
    assert again.did.cached is True
    assert torch.equal(same, cond)
    assert torch.equal(encode(engine, half, exact=True)[1], cond) is False  # rounded as ComfyUI does


def test_what_was_dropped_is_missing_and_may_be_sent_again(engine: Engine) -> None:
    stored = put(engine, small(5))
    use = p.LoraUse(stored.entry.hash, 0.123)
    dropped, _ = engine.lora_drop(p.LoraDrop((stored.entry.hash,)), {}, never)
    assert dropped == p.LoraDropped(stored.entry.bytes)
    assert code_of("encode_tokens", lambda: encode(engine, use)) == "lora-missing"
    put(engine, small(5))
    encode(engine, use)


# DAEMON S13
@pytest.mark.parametrize(
    "bad",
    [
        small(tensors={"up": torch.ones(768, 0), "down": torch.ones(0, 768)}),
        small(tensors={"up": torch.full((768, 2), torch.nan), "down": torch.ones(2, 768)}),
        small(alpha=1e9),
        small(tensors={"up": torch.ones(768, 2), "down": torch.ones(2, 700)}),
        small(part=(0, 700, 100)),
        small(kind="sorcery"),
    ],
)
def test_an_unsound_lora_is_refused_and_harms_nobody(engine: Engine, bad: Patch) -> None:
    _, before = encode(engine, cache="bypass")
    assert code_of("lora_put", lambda: put(engine, bad)) == "lora-invalid"
    assert engine.lora_list(p.LoraList(), {}, never)[0].entries == ()
    assert torch.equal(encode(engine, cache="bypass")[1], before)


# DAEMON S14
def test_a_body_that_is_not_what_was_announced_is_refused(engine: Engine) -> None:
    body, segments = blob_of(small())
    wrong = dataclasses.replace(body, hash="0" * 64)
    assert code_of("lora_put", lambda: engine.lora_put(wrong, segments, never)) == "lora-invalid"
    assert code_of("lora_put", lambda: engine.lora_put(body, {}, never)) == "tensor-invalid"
    both = p.LoraPut(id=FILE)
    assert code_of("lora_put", lambda: engine.lora_put(both, segments, never)) == "tensor-invalid"
    cut = {"blob": p.WireTensor.of_bytes("blob", bytes(segments["blob"].data)[:-5])}
    assert code_of("lora_put", lambda: engine.lora_put(body, cut, never)) == "lora-invalid"


@pytest.mark.parametrize(
    ("file_id", "code"),
    [
        ("loras/../clip/l.safetensors", "path-outside"),
        ("loras/nowhere.safetensors", "model-missing"),
        ("loras", "wrong-type"),
    ],
)
def test_a_file_id_stays_inside_the_roots(engine: Engine, file_id: str, code: str) -> None:
    assert code_of("lora_put", lambda: engine.lora_put(p.LoraPut(id=file_id), {}, never)) == code


def test_a_lora_that_matches_no_weight_says_so(engine: Engine) -> None:
    stored = put(engine, small(target=f"{LAYERS}0.self_attn.q_proj.weight".replace("clip_l", "clip_g")))
    (match,) = stored.sets.values()
    assert (match.matched, match.unmatched_total) == (0, 1)
    assert code_of("encode_tokens", lambda: encode(engine, p.LoraUse(stored.entry.hash, 1.0))) == "lora-no-match"
    report, _ = engine.lora_validate(p.LoraValidate("sd15", stored.entry.hash), {}, never)
    assert (report.matched, report.unmatched_total) == (0, 1)
    assert "changes nothing" in report.problems[0]


def test_validate_judges_without_keeping(engine: Engine, model_root: Path) -> None:
    report, _ = engine.lora_validate(p.LoraValidate("sd15", id=FILE), {}, never)
    assert report.matched > 0
    assert (report.form, report.problems, report.unmatched) == ("low_rank", (), ())
    assert report.ranks == (4,)
    assert engine.lora_list(p.LoraList(), {}, never)[0].entries == ()
    stem = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    odd = {
        f"{stem}.lora_up.weight": torch.ones(7, 2),
        f"{stem}.lora_down.weight": torch.ones(2, 768),
        f"{stem}.x": torch.ones(1),
    }
    save_file(odd, model_root / "loras/odd.safetensors")
    report, _ = engine.lora_validate(p.LoraValidate("sd15", id="loras/odd.safetensors"), {}, never)
    (model_root / "loras/odd.safetensors").unlink()
    assert report.matched == 0
    assert "[7, 768]" in report.problems[0]
    assert "not understood" in report.problems[1]
    missing = p.LoraValidate("sd15", "0" * 64)
    assert code_of("lora_validate", lambda: engine.lora_validate(missing, {}, never)) == "lora-missing"


def test_an_exact_daemon_makes_every_request_exact(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = put(engine, small())
    use = p.LoraUse(stored.entry.hash, 0.6)
    _, asked = encode(engine, use, exact=True)
    monkeypatch.setattr(engine, "_options", dataclasses.replace(engine._options, is_exact=True))
    reply, cond = encode(engine, use, cache="bypass")
    assert reply.did.loras == (p.LoraDid(stored.entry.hash, "exact", 0),)
    assert torch.equal(cond, asked)
    assert engine.group(p.EncodeText("sd15", (p.TextItem("a"),))) is None  # it runs alone


def test_what_loras_may_hold_is_a_setting(roots: dict[str, Path]) -> None:
    from luna_daemon.engine_seam import EngineOptions
    from luna_daemon.options import engine_options, parse
    from luna_daemon.runtime.engine import Engine
    from luna_engine.settings import DaemonSettings, Settings

    settings = Settings(daemon=DaemonSettings(lora_cache_bytes=1000))
    assert engine_options(parse([], settings), settings).lora_cache_bytes == 1000
    assert engine_options(parse(["--exact"], settings), settings).is_exact
    small_cache = Engine(EngineOptions(device="cpu", roots=roots, threads=1, lora_cache_bytes=1000))
    small_cache.start(lambda phase, done: None)
    assert code_of("lora_put", lambda: put(small_cache, small())) == "lora-too-large"
    assert small_cache.snapshot().caches["loras"].cap_bytes == 1000
