"""Prompts that share forwards of ComfyUI's encoders: the bits are those of one prompt at a time.

Run by `test_comfy_backend.py` in ComfyUI's interpreter; pytest does not find it by its name. Encoders are shallow or
narrow; their classes, tokenizers and rules are ComfyUI's.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from luna_daemon.encode_messages import LoraUse
from luna_daemon.runtime.backend import EncodeItem, EncoderInput
from luna_daemon.runtime.checkout import Comfy
from luna_daemon.runtime.comfy_rows import SHORT
from luna_daemon.runtime.comfy_text import TextEncoders
from luna_daemon.runtime.lora import LoraRegistry
from luna_daemon.runtime.merged import HotRecipes, MergedWeights
from luna_daemon.runtime.set_loras import LoraShelf
from tests.daemon.runtime import small_encoders, small_loras

if TYPE_CHECKING:
    from collections.abc import Iterator

    from luna_daemon.runtime.backend import Encoded, ModelBackend

CPU = torch.device("cpu")
LONG = (
    "a cat that sits on a red chair in a room with a green door and a blue window, seen by camera {} in the evening sun"
)
PROMPTS = (
    LONG.format(1),
    LONG.format(2),
    "a (red:1.3) cat, (blue) dog and [a] (tiny:0.4) bird",
    "a (weighted:0.7) one",
    ", ".join(f"masterpiece number {index}" for index in range(60)),
    "",
    LONG.format(1),
)
FAMILIES = ("sd15", "sdxl", "sd3", "flux", "z-image")


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def comfy(backend: ModelBackend) -> Comfy:
    assert backend.name == "comfy"
    return Comfy(Path(os.environ["COMFYUI_PATH"]), CPU)


def class_of(family: str) -> tuple[Any, Any]:
    from comfy import sd1_clip, sdxl_clip
    from comfy.text_encoders import flux, sd3_clip

    if family == "z-image":
        z_image = pytest.importorskip("comfy.text_encoders.z_image", reason="this ComfyUI knows no Z-Image")
        return z_image.te(dtype_llama=torch.bfloat16), z_image.ZImageTokenizer
    half = {"dtype_t5": torch.float16}
    return {
        "sd15": (sd1_clip.SD1ClipModel, sd1_clip.SD1Tokenizer),
        "sdxl": (sdxl_clip.SDXLClipModel, sdxl_clip.SDXLTokenizer),
        "sd3": (sd3_clip.sd3_clip(clip_l=True, clip_g=True, t5=False, **half), sd3_clip.SD3Tokenizer),
        "flux": (flux.flux_clip(**half), flux.FluxTokenizer),
    }[family]


@pytest.fixture(scope="module", params=FAMILIES)
def encoders(comfy: Comfy, request: pytest.FixtureRequest) -> TextEncoders:
    """A family's encoders as ComfyUI builds them, with random weights."""
    made, tokenizer = class_of(request.param)
    narrow = {f"{name}_model_config": sizes for name, sizes in small_encoders.SIZES.items()}
    target = type("Target", (), {"params": {}, "clip": made, "tokenizer": tokenizer})
    clip = comfy.sd.CLIP(target, model_options={**narrow, "load_device": CPU, "initial_device": CPU})
    generator = torch.Generator().manual_seed(3)
    for name, weight in clip.cond_stage_model.state_dict().items():
        scale = 1.6 / weight.shape[-1] ** 0.5 if weight.ndim > 1 else 0.02
        weight.copy_(torch.randn(weight.shape, generator=generator) * scale + float("norm" in name))
    shelf = LoraShelf(LoraRegistry(), MergedWeights(CPU), lambda: HotRecipes(uses=None))
    return TextEncoders(clip, comfy, shelf)


def items_of(encoders: TextEncoders) -> list[EncodeItem]:
    """Return prompts that differ in everything that may differ within a batch."""
    roles = list(encoders.facts)
    made = [EncodeItem(encoders.tokenize(text)) for text in PROMPTS]
    made += [EncodeItem(encoders.tokenize(PROMPTS[0]), dict.fromkeys(roles, layer)) for layer in (-1, -2, 1, -40)]
    made += [EncodeItem(encoders.tokenize(PROMPTS[1]), projected=False)]
    vector = torch.randn(1, encoders.facts[roles[0]].width, generator=torch.Generator().manual_seed(8))
    tokens = dict(encoders.tokenize(PROMPTS[0]))
    first = tokens[roles[0]].rows[0]
    row = type(first)((*first.ids[:3], -1, *first.ids[4:]), first.weights)
    return [*made, EncodeItem({**tokens, roles[0]: EncoderInput((row, *tokens[roles[0]].rows[1:]), (vector,))})]


@contextlib.contextmanager
def counted(encoders: TextEncoders) -> Iterator[list[int]]:
    """Count the rows of each forward of the encoders."""
    seen: list[int] = []
    handles = [
        module.transformer.register_forward_hook(lambda _m, _a, out: seen.append(len(out[0])))
        for module in encoders.modules.values()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def encode(encoders: TextEncoders, items: list[EncodeItem], row_cap: int | None = None) -> list[Encoded]:
    return encoders.encode(items, lambda: None, row_cap, is_partial=False)


def require_equal(found: Encoded, alone: Encoded) -> None:
    assert torch.equal(found.cond, alone.cond)
    assert (found.pooled is None) == (alone.pooled is None)
    if found.pooled is not None and alone.pooled is not None:
        assert torch.equal(found.pooled, alone.pooled)
    assert found.extras.keys() == alone.extras.keys()
    for name, extra in found.extras.items():
        assert torch.equal(extra, alone.extras[name])


def test_prompts_that_share_forwards_get_the_bits_of_one_by_one(encoders: TextEncoders) -> None:
    items = items_of(encoders)
    with counted(encoders) as one_by_one:
        alone = [encode(encoders, [item])[0] for item in items]
    with counted(encoders) as together:
        found = encode(encoders, items)
    for one, other in zip(found, alone, strict=True):
        require_equal(one, other)
    distinct = {(one.cond.shape, float(one.cond.sum())) for one in alone}
    assert len(distinct) >= 7  # the prompts do differ
    assert len(together) < len(one_by_one)
    assert max(together) > max(one_by_one)


def test_a_row_that_several_prompts_have_is_run_once(encoders: TextEncoders) -> None:
    """The same prompt, and the empty row that weights are measured from."""
    item = EncodeItem(encoders.tokenize(PROMPTS[0]))
    with counted(encoders) as seen:
        encode(encoders, [item])
    with counted(encoders) as shared:
        encode(encoders, [item, item, item])
    assert shared == seen


def test_rows_of_one_forward_are_capped(encoders: TextEncoders) -> None:
    items = [EncodeItem(encoders.tokenize(LONG.format(index))) for index in range(5)]
    with counted(encoders) as seen:
        found = encode(encoders, items, row_cap=2)
    assert max(seen) == 2
    for item, one in zip(items, found, strict=True):
        require_equal(one, encode(encoders, [item])[0])


def test_short_rows_run_by_themselves(encoders: TextEncoders) -> None:
    """Their products would be summed in another order beside others."""
    items = [EncodeItem(encoders.tokenize(text)) for text in ("a cat", "a dog", "a bat")]
    has_short = any(len(row.ids) < SHORT for given in items[0].encoders.values() for row in given.rows)
    with counted(encoders) as seen:
        found = encode(encoders, items)
    assert max(seen) == (1 if has_short else 3)
    for item, one in zip(items, found, strict=True):
        require_equal(one, encode(encoders, [item])[0])


def test_exact_prompts_are_run_as_comfyui_would(encoders: TextEncoders) -> None:
    items = [EncodeItem(encoders.tokenize(text), is_exact=True) for text in PROMPTS[:3]]
    with counted(encoders) as one_by_one:
        for item in items:
            encode(encoders, [item])
    with counted(encoders) as seen:
        encode(encoders, items)
    assert seen == one_by_one


def test_prompts_with_other_loras_share_forwards(encoders: TextEncoders) -> None:
    """Their products are added row by row; prompts without LoRAs keep their very bits."""
    names = {name: tuple(weight.shape) for name, weight in encoders.model.state_dict().items()}
    ends = ("q_proj.weight", "SelfAttention.q.weight", "text_projection.weight")
    targets = [name for name in names if name.endswith(ends)]
    entries = [
        small_loras.entry_of(*(small_loras.patch("lora", name, names[name], seed) for name in targets))
        for seed in (1, 2)
    ]
    for entry in entries:
        encoders.loras.registry.put(entry)
    uses = [(), (LoraUse(entries[0].hash, 0.8),), (LoraUse(entries[1].hash, -0.5),)]
    items = [EncodeItem(encoders.tokenize(LONG.format(1)), loras=one) for one in uses]
    alone = [encode(encoders, [item])[0] for item in items]
    with counted(encoders) as seen:
        found = encode(encoders, items)
    assert max(seen) == 3
    require_equal(found[0], alone[0])
    for one, other in itertools.combinations(alone, 2):
        assert not torch.allclose(one.cond, other.cond, atol=1e-3)
    for one, other in zip(found, alone, strict=True):
        assert torch.allclose(one.cond, other.cond, atol=1e-5)
        assert one.loras == other.loras
