"""What any backend does (`ModelBackend`), whatever computes underneath; for comfy `test_comfy_backend.py` runs it.

Numbers are compared with ComfyUI's in `test_comfy_parity.py`; here it is shapes, order, state, and refusals.
"""

from __future__ import annotations

import contextlib
import weakref
from typing import TYPE_CHECKING

import pytest
import torch

from luna_daemon.encode_messages import LoraUse, Tile
from luna_daemon.runtime.backend import EncodeItem, EncoderInput, Place, Row
from luna_daemon.runtime.files import ModelFiles
from luna_daemon.runtime.models import ModelStore, WantedPart
from luna_daemon.runtime.parts import OpenFile
from luna_daemon.runtime.residency import Residency
from luna_daemon.runtime.uploads import UploadStore
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from luna_daemon.runtime.backend import Encoded, ModelBackend, ModelSet
    from luna_daemon.runtime.parts import Part

CPU = torch.device("cpu")
START, END = 49406, 49407


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    """Run as the executor does."""
    with torch.inference_mode():
        yield


@contextlib.contextmanager
def parts_of(root: Path, *roles: str) -> Iterator[dict[str, Part]]:
    with OpenFile(root / "checkpoints/parts.safetensors", "parts") as file:
        found = {role: file.find(role) for role in roles}
        yield {role: part for role, part in found.items() if part is not None}


@pytest.fixture(scope="module")
def model(backend: ModelBackend, model_root: Path) -> ModelSet:
    with torch.inference_mode(), parts_of(model_root, "l", "vae") as parts:
        return backend.load("sd15", parts, "fp32", lambda: None)


def row(*tokens: int, weight: float = 1.0) -> Row:
    ids = (START, *tokens, END)
    padded = ids + (END,) * (77 - len(ids))
    return Row(padded, tuple(weight if token in tokens else 1.0 for token in padded))


def item(*rows: Row, layer: int | None = None, vectors: tuple[torch.Tensor, ...] = (), **more: bool) -> EncodeItem:
    return EncodeItem({"l": EncoderInput(rows, vectors)}, {} if layer is None else {"l": layer}, **more)


def one(model: ModelSet, given: EncodeItem) -> Encoded:
    (found,) = model.encode([given], lambda: None)
    return found


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(DaemonError) as caught:
        call()
    return caught.value.code


def test_facts_tell_what_tokenizers_and_nodes_ask(model: ModelSet) -> None:
    facts = model.encoders["l"]
    assert (facts.layers, facts.width, facts.row_max, facts.vocab) == (12, 768, 77, 49408)
    assert model.vae is not None
    assert (model.vae.latent_channels, model.vae.spatial, model.vae.latent_dim) == (4, 8, 2)
    assert (model.vae.dtype, model.vae.temporal, model.vae.output_channels) == ("fp32", None, 3)


def test_names_are_those_of_comfyuis_state_dicts(model: ModelSet) -> None:
    listed = {named.name: named for named in model.names()}
    query = listed["clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"]
    assert (query.dtype, query.shape) == ("f16", (768, 768))
    assert {"clip_l.logit_scale", "clip_l.transformer.text_projection.weight"} <= listed.keys()
    assert listed["first_stage_model.decoder.conv_in.weight"].shape == (512, 4, 3, 3)


def test_prompts_come_back_in_order_and_do_not_touch_each_other(model: ModelSet) -> None:
    prompts = [item(row(320)), item(row(2368, weight=1.5)), item(row(1929), row(320))]
    together = model.encode(prompts, lambda: None)
    assert [tuple(found.cond.shape) for found in together] == [(1, 77, 768), (1, 77, 768), (1, 154, 768)]
    for prompt, found in zip(prompts, together, strict=True):
        alone = one(model, prompt)
        assert torch.allclose(found.cond, alone.cond, atol=1e-5)
        assert found.pooled is not None
        assert alone.pooled is not None
        assert torch.allclose(found.pooled, alone.pooled, atol=1e-5)
        assert found.cond.dtype == torch.float32
        assert found.cond.device.type == "cpu"


def test_state_of_one_prompt_does_not_reach_the_next(model: ModelSet) -> None:
    plain = one(model, item(row(320)))
    skipped = one(model, item(row(320), layer=-3))
    weighted = one(model, item(row(320, weight=0.5)))
    assert not torch.allclose(plain.cond, skipped.cond, atol=1e-2)
    assert not torch.allclose(plain.cond, weighted.cond, atol=1e-3)
    assert torch.equal(one(model, item(row(320))).cond, plain.cond)


def test_a_skip_beyond_the_layers_is_the_default(model: ModelSet) -> None:
    assert torch.equal(one(model, item(row(320), layer=-13)).cond, one(model, item(row(320))).cond)


def test_vectors_stand_for_tokens_and_those_of_another_width_are_counted(model: ModelSet) -> None:
    generator = torch.Generator().manual_seed(2)
    fitting, wide = torch.randn(1, 768, generator=generator), torch.randn(2, 1024, generator=generator)
    found = one(model, item(row(320, -1), vectors=(fitting,)))
    assert found.dropped_vectors == 0
    assert not torch.allclose(found.cond, one(model, item(row(320, 320))).cond, atol=1e-2)
    lost = one(model, item(row(320, -1, -2), vectors=(wide,)))
    assert lost.dropped_vectors == 2
    assert torch.allclose(lost.cond, one(model, item(row(320))).cond, atol=1e-5)


def test_a_vector_equals_the_token_that_it_is_taken_from(model: ModelSet, model_root: Path) -> None:
    with parts_of(model_root, "l") as parts:
        table = parts["l"].tensor("text_model.embeddings.token_embedding.weight")
    vector = table[320].half().float()[None]
    assert torch.allclose(one(model, item(row(-1), vectors=(vector,))).cond, one(model, item(row(320))).cond, atol=1e-5)


def test_a_role_that_the_set_lacks_is_refused(model: ModelSet) -> None:
    other = EncodeItem({"g": EncoderInput((row(320),))})
    assert code_of(lambda: model.encode([other], lambda: None)) == "token-invalid"
    assert code_of(lambda: model.encode([EncodeItem({}, {"g": -2})], lambda: None)) == "token-invalid"


def test_an_unknown_lora_is_missing(model: ModelSet) -> None:
    given = EncodeItem({"l": EncoderInput((row(320),))}, loras=(LoraUse("0" * 64, 1.0),))
    assert code_of(lambda: model.find_loras(given)) == "lora-missing"


class Stop(Exception):  # noqa: N818 - what a check raises is no error of the backend
    """What a cancelled request raises."""


def stop() -> None:
    raise Stop


@pytest.mark.parametrize("what", ["encode", "vae_encode", "vae_decode", "tiled"])
def test_a_check_that_raises_ends_the_run_and_leaves_the_set_usable(model: ModelSet, what: str) -> None:
    before = one(model, item(row(320))).cond
    calls = {
        "encode": lambda: model.encode([item(row(320))], stop),
        "vae_encode": lambda: model.vae_encode(torch.zeros(1, 16, 16, 3), stop),
        "vae_decode": lambda: model.vae_decode(torch.zeros(1, 4, 2, 2), stop),
        "tiled": lambda: model.vae_decode(torch.zeros(1, 4, 8, 8), stop, Tile(4, 4, 1)),
    }
    with pytest.raises(Stop):
        calls[what]()
    assert torch.equal(one(model, item(row(320))).cond, before)


def test_images_and_latents_keep_their_order_and_shapes(model: ModelSet) -> None:
    generator = torch.Generator().manual_seed(5)
    pixels = torch.rand(3, 16, 24, 3, generator=generator)
    latent = model.vae_encode(pixels, lambda: None)
    assert latent.shape == (3, 4, 2, 3)
    assert latent.dtype == torch.float32
    for index in range(3):
        alone = model.vae_encode(pixels[index : index + 1], lambda: None)
        assert torch.allclose(latent[index : index + 1], alone, atol=1e-4)
    images = model.vae_decode(latent, lambda: None)
    assert images.shape == (3, 16, 24, 3)
    assert 0.0 <= float(images.min()) <= float(images.max()) <= 1.0


def test_tiles_larger_than_the_image_change_nothing(model: ModelSet) -> None:
    latent = torch.randn(1, 4, 4, 6, generator=torch.Generator().manual_seed(6))
    plain = model.vae_decode(latent, lambda: None)
    assert torch.allclose(model.vae_decode(latent, lambda: None, Tile(64, 64, 16)), plain, atol=1e-5)


def test_a_set_moves_whole_and_says_where_it_is(model: ModelSet) -> None:
    before = one(model, item(row(320))).cond
    assert model.place is Place.DEVICE
    model.move(Place.HOST)
    assert model.place is Place.HOST
    model.move(Place.DEVICE)
    assert model.place is Place.DEVICE
    assert torch.equal(one(model, item(row(320))).cond, before)


def test_an_unloaded_set_is_gone_from_memory(backend: ModelBackend, model_root: Path) -> None:
    store = ModelStore(backend, ModelFiles({"root": model_root}), UploadStore(), Residency(CPU, CPU))
    wanted = WantedPart("l", model_root / "clip/l.safetensors", "root/clip/l.safetensors")
    gone = weakref.ref(store.load("sd15", [wanted], "auto", lambda: None).held.model)
    assert gone() is not None
    freed, kept = store.unload(None, force=False)
    assert (freed > 10**8, kept) == (True, {})
    assert gone() is None


def test_bytes_are_measured_per_role_and_foreseen(model: ModelSet, backend: ModelBackend, model_root: Path) -> None:
    held = model.part_bytes()
    assert held.keys() == {"l", "vae"}
    with parts_of(model_root, "l", "vae") as parts:
        needed = backend.needed_bytes(parts, "fp32")
    assert sum(held.values()) == pytest.approx(needed, rel=0.01)


def test_what_a_set_lacks_is_told(backend: ModelBackend, model_root: Path) -> None:
    with parts_of(model_root, "vae") as parts:
        only_vae = backend.load("sd15", parts, "fp32", lambda: None)
    with parts_of(model_root, "l") as parts:
        only_text = backend.load("sd15", parts, "fp16", lambda: None)
    assert (dict(only_vae.encoders), only_text.vae) == ({}, None)
    assert code_of(lambda: only_vae.encode([item(row(320))], lambda: None)) == "component-missing"
    assert code_of(lambda: only_text.vae_decode(torch.zeros(1, 4, 2, 2), lambda: None)) == "component-missing"


@pytest.mark.parametrize(("family", "code"), [("flux", "component-missing"), ("no-such-family", "model-unsupported")])
def test_encoders_that_do_not_make_the_family_are_refused(
    backend: ModelBackend, model_root: Path, family: str, code: str
) -> None:
    with parts_of(model_root, "l") as parts:
        assert code_of(lambda: backend.load(family, parts, "fp16", lambda: None)) == code


def test_a_part_that_lacks_weights_is_damaged(backend: ModelBackend, model_root: Path) -> None:
    for role, name in (("l", "text_model.final_layer_norm.weight"), ("vae", "decoder.mid.block_1.conv1.weight")):
        with parts_of(model_root, role) as parts:
            part = parts[role]
            part.names.pop(name)  # type: ignore[attr-defined]  # a dict of this test alone
            part.entries.pop(name)  # type: ignore[attr-defined]
            assert code_of(lambda given=parts: backend.load("sd15", given, "fp32", lambda: None)) == "file-damaged"


def test_roles_that_make_a_set(backend: ModelBackend) -> None:
    assert backend.usable_roles("sd15", ["l", "vae"]) == ["l", "vae"]
    assert backend.usable_roles("sdxl", ["g"]) == ["g"]
    assert backend.usable_roles("sdxl", ["l", "vae"]) == ["vae"]
    assert backend.usable_roles("sd3", ["l", "t5xxl"]) == ["l", "t5xxl"]


def test_precisions(backend: ModelBackend) -> None:
    assert backend.resolve_precision("auto", has_vae=True) == "fp32"
    assert backend.resolve_precision("bf16", has_vae=True) == "bf16"
    assert backend.resolve_precision("auto", has_vae=False) == "fp16"
    assert code_of(lambda: backend.resolve_precision("fp16", has_vae=True)) == "precision-unsupported"
    assert code_of(lambda: backend.resolve_precision("int4", has_vae=True)) == "precision-unsupported"
