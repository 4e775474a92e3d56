"""SDXL's two encoders: OpenCLIP's layout under the standalone names, and how their states are joined."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from luna_daemon.runtime import conditioning, open_clip
from luna_daemon.runtime.backend import EncodeItem, EncoderInput, Row
from luna_daemon.runtime.clip_text import CLIP_G, END, START, ClipShape, ClipTextEncoder, expected_shapes
from luna_daemon.runtime.families import BEFORE_LAST, TextFamily
from luna_daemon.runtime.models import guess_family
from luna_daemon.runtime.parts import KINDS, Entry, Part, find_part

L_SHAPE = ClipShape(layers=2, width=64, activation="quick_gelu", pad=END)
G_SHAPE = ClipShape(layers=3, width=128, activation="gelu", pad=0)
FAMILY = TextFamily({"l": L_SHAPE, "g": G_SHAPE}, {"l": BEFORE_LAST, "g": BEFORE_LAST}, pooled="g", is_projected=True)
CPU = torch.device("cpu")


def weights(shape: ClipShape, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = {
        name: (torch.randn(size, generator=generator) * 0.05 + ("norm" in name and name.endswith("weight"))).half()
        for name, size in expected_shapes(shape).items()
    }
    found["text_projection.weight"] = torch.randn(shape.width, shape.width, generator=generator).half() * 0.1
    return found


@pytest.fixture(scope="module")
def encoders() -> dict[str, ClipTextEncoder]:
    return {
        "l": ClipTextEncoder(L_SHAPE, weights(L_SHAPE, 1), CPU),
        "g": ClipTextEncoder(G_SHAPE, weights(G_SHAPE, 2), CPU),
    }


def chunk(*tokens: int, pad: int, weight: float = 1.0) -> Row:
    ids = (START, *tokens, END)
    return Row(ids + (pad,) * (77 - len(ids)), (1.0, *[weight] * len(tokens)) + (1.0,) * (76 - len(tokens)))


def encode(encoders: dict[str, ClipTextEncoder], item: EncodeItem, family: TextFamily = FAMILY) -> Any:
    with torch.inference_mode():
        return conditioning.encode(family, encoders, [item], 16, lambda: None)[0]


def both(rows_l: tuple[Row, ...], rows_g: tuple[Row, ...], **more: Any) -> EncodeItem:
    return EncodeItem({"l": EncoderInput(rows_l), "g": EncoderInput(rows_g)}, **more)


def test_states_are_joined_on_the_width_and_the_pooled_one_is_gs(encoders: dict[str, ClipTextEncoder]) -> None:
    item = both((chunk(320, pad=END),), (chunk(320, pad=0),))
    found = encode(encoders, item)
    assert found.cond.shape == (1, 77, 192)
    single = {
        role: encode({role: encoders[role]}, EncodeItem({role: item.encoders[role]}), one)
        for role, one in (
            ("l", TextFamily({"l": L_SHAPE}, {"l": BEFORE_LAST}, pooled="l", is_projected=False)),
            ("g", TextFamily({"g": G_SHAPE}, {"g": BEFORE_LAST}, pooled="g", is_projected=True)),
        )
    }
    assert torch.equal(found.cond, torch.cat([single["l"].cond, single["g"].cond], dim=-1))
    assert torch.equal(found.pooled, single["g"].pooled)


def test_pooled_passes_the_projection_unless_asked_not_to(encoders: dict[str, ClipTextEncoder]) -> None:
    item = both((chunk(320, pad=END),), (chunk(320, pad=0),))
    projected = encode(encoders, item)
    raw = encode(encoders, both((chunk(320, pad=END),), (chunk(320, pad=0),), projected=False))
    matrix = weights(G_SHAPE, 2)["text_projection.weight"].float()
    torch.testing.assert_close(projected.pooled, raw.pooled @ matrix.T)
    assert torch.equal(projected.cond, raw.cond)


def test_the_longer_side_is_cut_to_the_shorter(encoders: dict[str, ClipTextEncoder]) -> None:
    found = encode(encoders, both((chunk(320, pad=END), chunk(7, pad=END)), (chunk(320, pad=0),)))
    assert found.cond.shape == (1, 77, 192)


def test_the_empty_row_of_g_is_padded_with_zeros(encoders: dict[str, ClipTextEncoder]) -> None:
    plain = encode(encoders, both((chunk(320, pad=END),), (chunk(320, pad=0),)))
    empty = encode(encoders, both((chunk(pad=END),), (chunk(pad=0),)))
    weighted = encode(encoders, both((chunk(320, pad=END),), (chunk(320, pad=0, weight=1.5),)))
    expected = (plain.cond[0, 1, 64:] - empty.cond[0, 1, 64:]) * 1.5 + empty.cond[0, 1, 64:]
    torch.testing.assert_close(weighted.cond[0, 1, 64:], expected, rtol=0, atol=1e-6)
    assert torch.equal(weighted.cond[0, :, :64], plain.cond[0, :, :64])


def as_open_clip(tensors: dict[str, torch.Tensor], layers: int, prefix: str) -> dict[str, torch.Tensor]:
    """Write standalone tensors the way OpenCLIP saves them."""
    out = {
        "positional_embedding": tensors["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": tensors["text_model.embeddings.token_embedding.weight"],
        "text_projection": tensors["text_projection.weight"].T.contiguous(),
        "logit_scale": torch.tensor(4.6),
    }
    for kind in ("weight", "bias"):
        out[f"ln_final.{kind}"] = tensors[f"text_model.final_layer_norm.{kind}"]
        for index in range(layers):
            old, new = f"text_model.encoder.layers.{index}.", f"transformer.resblocks.{index}."
            three = [tensors[f"{old}self_attn.{which}_proj.{kind}"] for which in "qkv"]
            out[f"{new}attn.in_proj_{kind}"] = torch.cat(three)
            for ours, theirs in (
                ("self_attn.out_proj", "attn.out_proj"),
                ("layer_norm1", "ln_1"),
                ("layer_norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"),
            ):
                out[f"{new}{theirs}.{kind}"] = tensors[f"{old}{ours}.{kind}"]
    return {prefix + name: tensor for name, tensor in out.items()}


def test_openclips_layout_is_the_same_part_under_the_standalone_names() -> None:
    tensors = weights(G_SHAPE, 3)
    stored = as_open_clip(tensors, G_SHAPE.layers, "conditioner.embedders.1.model.")
    reads: list[str] = []

    def read(name: str) -> torch.Tensor:
        reads.append(name)
        return stored[name]

    part = find_part("g", {name: Entry("F16", tuple(tensor.shape)) for name, tensor in stored.items()}, read, "x")
    assert part is not None
    assert part.is_of_sdxl
    assert {name: entry.shape for name, entry in part.entries.items()} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }
    for name in part.names:
        assert torch.equal(part.tensor(name), tensors[name]), name
    assert len(reads) == len(set(reads)) == len(stored) - 1  # all but logit_scale, each once


def test_what_openclip_adds_is_left_out() -> None:
    assert open_clip.standalone_views({"attn_mask": "attn_mask", "visual.conv1.weight": "v"}) == {}
    assert CLIP_G.pad == 0


@pytest.mark.parametrize(
    ("roles", "is_of_sdxl", "family"),
    [
        (("l",), False, "sd15"),
        (("l", "vae"), False, "sd15"),
        (("vae",), False, "sd15"),
        (("vae",), True, "sdxl"),
        (("l",), True, "sdxl"),
        (("l", "g"), False, "sdxl"),
    ],
)
def test_the_family_of_parts_given_without_one(roles: tuple[str, ...], is_of_sdxl: bool, family: str) -> None:  # noqa: FBT001 - a fact of the table
    parts = {role: Part(KINDS[role], {}, {}, torch.empty, "x", is_of_sdxl) for role in roles}
    assert guess_family(parts) == family


def test_a_vae_of_16_channels_given_without_a_family_is_fluxs() -> None:
    kind = KINDS["vae"]
    assert (
        guess_family({"vae": Part(kind, {}, {kind.marker: Entry("F32", (512, 16, 3, 3))}, torch.empty, "x")}) == "flux"
    )
