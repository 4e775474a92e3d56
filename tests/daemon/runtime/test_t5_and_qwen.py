"""T5 and Qwen3 against transformers' own classes in fp32, and what the daemon adds: storage, vectors, joining."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3Model, T5Config, T5EncoderModel

from luna_daemon.runtime import conditioning, encoder_files, qwen3, t5
from luna_daemon.runtime.backend import Encoded, EncodeItem, EncoderInput, Row
from luna_daemon.runtime.backend_native import NativeBackend
from luna_daemon.runtime.clip_text import END, START, ClipShape, ClipTextEncoder
from luna_daemon.runtime.clip_text import expected_shapes as clip_shapes
from luna_daemon.runtime.families import FAMILIES
from luna_daemon.runtime.models import guess_family
from luna_daemon.runtime.parts import KINDS, Entry, Part, find_part, require_complete
from luna_daemon.runtime.qwen3 import Qwen3Encoder
from luna_daemon.runtime.t5 import T5Encoder
from luna_engine.errors import DaemonError
from tests.daemon.runtime import small_encoders
from tests.daemon.runtime.small_encoders import QWEN, T5

if TYPE_CHECKING:
    from collections.abc import Mapping

CPU = torch.device("cpu")
L_SHAPE = ClipShape(layers=2, width=768, activation="quick_gelu", pad=END)
G_SHAPE = ClipShape(layers=2, width=1280, activation="gelu", pad=0)


@pytest.fixture(scope="module")
def t5_encoder() -> T5Encoder:
    return T5Encoder(T5, small_encoders.t5_weights(), CPU)


@pytest.fixture(scope="module")
def qwen_encoder() -> Qwen3Encoder:
    return Qwen3Encoder(QWEN, small_encoders.qwen_weights(), CPU)


def clip(shape: ClipShape, seed: int) -> ClipTextEncoder:
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn(size, generator=generator) * 0.05 + ("norm" in name and name.endswith("weight"))
        for name, size in clip_shapes(shape).items()
    }
    weights["text_projection.weight"] = torch.randn(shape.width, shape.width, generator=generator) * 0.1
    return ClipTextEncoder(shape, weights, CPU)


@pytest.fixture(scope="module")
def clips() -> dict[str, ClipTextEncoder]:
    return {"l": clip(L_SHAPE, 1), "g": clip(G_SHAPE, 2)}


def row(*ids: int, weight: float = 1.0) -> Row:
    return Row(ids, (weight,) * len(ids))


def chunk(*tokens: int, pad: int) -> Row:
    ids = (START, *tokens, END)
    return row(*ids, *(pad,) * (77 - len(ids)))


def encode(family: str, encoders: Mapping[str, Any], *items: EncodeItem) -> list[Encoded]:
    with torch.inference_mode():
        return conditioning.encode(FAMILIES[family], encoders, items, 16, lambda: None)


def ids(rows: int, length: int, vocabulary: int) -> torch.Tensor:
    return torch.randint(2, vocabulary, (rows, length), generator=torch.Generator().manual_seed(7))


def test_t5_equals_transformers_in_fp32_beyond_the_farthest_bucket(t5_encoder: T5Encoder) -> None:
    config = T5Config(
        vocab_size=T5.vocabulary,
        d_model=T5.width,
        d_kv=T5.head_width,
        d_ff=T5.hidden,
        num_layers=T5.layers,
        num_heads=T5.heads,
        feed_forward_proj="gated-gelu",
    )
    reference = T5EncoderModel(config).eval()
    weights = {name: tensor.float() for name, tensor in small_encoders.t5_weights().items()}
    reference.load_state_dict({**weights, "encoder.embed_tokens.weight": weights["shared.weight"]})
    tokens = ids(2, 300, T5.vocabulary)
    with torch.inference_mode():
        found = t5_encoder.run(tokens, None, [0]).last
        expected = reference(tokens, output_hidden_states=True)
        picked = t5_encoder.run(tokens, None, [0]).blocks[0]
        # ComfyUI scales the keys up and the scores down again, transformers neither; both round, differently.
        torch.testing.assert_close(found, expected.last_hidden_state, rtol=0, atol=5e-5)
    torch.testing.assert_close(picked, expected.hidden_states[1], rtol=0, atol=2e-5)


def test_qwen_equals_transformers_in_fp32_with_padding_masked(qwen_encoder: Qwen3Encoder) -> None:
    config = Qwen3Config(
        vocab_size=QWEN.vocabulary,
        hidden_size=QWEN.width,
        intermediate_size=QWEN.hidden,
        num_hidden_layers=QWEN.layers,
        num_attention_heads=QWEN.heads,
        num_key_value_heads=QWEN.key_heads,
        head_dim=QWEN.head_width,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    reference = Qwen3Model(config).eval()
    weights = small_encoders.qwen_weights()
    reference.load_state_dict({name.removeprefix("model."): tensor.float() for name, tensor in weights.items()})
    tokens = ids(2, 40, QWEN.vocabulary)
    mask = torch.ones_like(tokens)
    mask[1, 30:] = 0
    with torch.inference_mode():
        found = qwen_encoder.run(tokens, None, [2], mask)
        expected = reference(tokens, attention_mask=mask, output_hidden_states=True)
    seen = mask.bool()
    torch.testing.assert_close(found.last[seen], expected.last_hidden_state[seen], rtol=0, atol=1e-5)
    torch.testing.assert_close(found.blocks[2][seen], expected.hidden_states[3][seen], rtol=0, atol=1e-5)


def test_fp8_files_stay_fp8_and_compute_like_their_upcast_copy() -> None:
    small = small_encoders.t5_weights(torch.float8_e4m3fn)
    narrow = T5Encoder(T5, small, CPU)
    wide = T5Encoder(T5, {name: tensor.half() for name, tensor in small.items()}, CPU)
    tokens = ids(1, 20, T5.vocabulary)
    with torch.inference_mode():
        assert torch.equal(narrow.run(tokens, None, []).last, wide.run(tokens, None, []).last)
    assert {tensor.dtype for tensor in narrow.state().values()} == {torch.float8_e4m3fn}


@pytest.mark.parametrize(
    ("norm", "other", "kept", "counted"),
    [
        (torch.float16, torch.float8_e4m3fn, torch.float8_e4m3fn, torch.float16),
        (torch.float8_e4m3fn, torch.float16, torch.float8_e4m3fn, torch.float8_e4m3fn),
        (torch.float32, torch.float32, torch.float16, torch.float16),
        (torch.bfloat16, torch.float32, torch.bfloat16, torch.bfloat16),
    ],
)
def test_the_final_norm_decides_the_type_and_nothing_is_widened(
    norm: torch.dtype, other: torch.dtype, kept: torch.dtype, counted: torch.dtype
) -> None:
    weights = small_encoders.t5_weights(torch.float32)
    given = {name: tensor.to(norm if name == t5.DECIDING else other) for name, tensor in weights.items()}
    encoder = T5Encoder(T5, given, CPU)
    assert encoder.dtype == counted
    assert encoder.state()["encoder.block.0.layer.0.SelfAttention.q.weight"].dtype == kept


def test_vectors_take_the_place_of_tokens(t5_encoder: T5Encoder) -> None:
    weights = small_encoders.t5_weights()
    vector = weights["shared.weight"][500].float()[None]
    plain = encode("sd3", {"t5xxl": t5_encoder}, EncodeItem({"t5xxl": EncoderInput((row(7, 500, 9, 1),))}))[0]
    same = encode("sd3", {"t5xxl": t5_encoder}, EncodeItem({"t5xxl": EncoderInput((row(7, -1, 9, 1),), (vector,))}))[0]
    assert torch.equal(plain.cond, same.cond)


def test_a_vector_of_the_wrong_width_is_dropped_and_padding_follows(t5_encoder: T5Encoder) -> None:
    wrong = EncoderInput((row(7, -1, 9, 1),), (torch.ones(1, 5),))
    found = encode("sd3", {"t5xxl": t5_encoder}, EncodeItem({"t5xxl": wrong}))[0]
    padded = encode("sd3", {"t5xxl": t5_encoder}, EncodeItem({"t5xxl": EncoderInput((row(7, 9, 1, 0),))}))[0]
    assert torch.equal(found.cond, padded.cond)
    assert found.dropped_vectors == 1


def test_t5_weights_pull_away_from_an_empty_row_of_the_same_length(t5_encoder: T5Encoder) -> None:
    encoders = {"t5xxl": t5_encoder}
    tokens = (7, 9, 1, 0, 0)
    plain, empty = encode(
        "sd3",
        encoders,
        EncodeItem({"t5xxl": EncoderInput((row(*tokens),))}),
        EncodeItem({"t5xxl": EncoderInput((row(1, 0, 0, 0, 0),))}),
    )
    weighted = encode("sd3", encoders, EncodeItem({"t5xxl": EncoderInput((row(*tokens, weight=1.5),))}))[0]
    torch.testing.assert_close(weighted.cond, (plain.cond - empty.cond) * 1.5 + empty.cond)


def test_flux_is_t5s_states_and_clip_ls_unprojected_pooled(
    t5_encoder: T5Encoder, clips: dict[str, ClipTextEncoder]
) -> None:
    l_input, t5_input = EncoderInput((chunk(320, pad=END),)), EncoderInput((row(7, 9, 1, *(0,) * 253),))
    found = encode("flux", {"l": clips["l"], "t5xxl": t5_encoder}, EncodeItem({"l": l_input, "t5xxl": t5_input}))[0]
    alone = encode("sd15", {"l": clips["l"]}, EncodeItem({"l": l_input}))[0]
    with torch.inference_mode():
        states = t5_encoder.run(torch.tensor([t5_input.rows[0].ids]), None, []).last
    assert torch.equal(found.cond, states)
    assert found.pooled is not None
    assert torch.equal(found.pooled, alone.pooled)


def test_sd3_lays_clip_above_t5_and_zeros_stand_for_what_is_missing(clips: dict[str, ClipTextEncoder]) -> None:
    """T5 of the real width: sd3 widens CLIP's states to it."""
    l_input, g_input = EncoderInput((chunk(320, pad=END),)), EncoderInput((chunk(320, pad=0),))
    xl = encode("sdxl", clips, EncodeItem({"l": l_input, "g": g_input}))[0]
    both = encode("sd3", clips, EncodeItem({"l": l_input, "g": g_input}))[0]
    assert both.cond.shape == (1, 77, 4096)
    assert torch.equal(both.cond[..., :2048], xl.cond)
    assert not both.cond[..., 2048:].any()
    assert both.pooled is not None
    assert torch.equal(both.pooled[:, 768:], xl.pooled)
    only_g = encode("sd3", {"g": clips["g"]}, EncodeItem({"g": g_input}))[0]
    assert torch.equal(only_g.cond[..., 768:2048], xl.cond[..., 768:])
    assert only_g.pooled is not None
    assert not only_g.cond[..., :768].any()
    assert not only_g.pooled[:, :768].any()
    only_l = encode("sd3", {"l": clips["l"]}, EncodeItem({"l": l_input}))[0]
    assert torch.equal(only_l.cond[..., :768], xl.cond[..., :768])
    assert only_l.pooled is not None
    assert not only_l.pooled[:, 768:].any()


def test_sd3_without_tokens_for_clip_is_t5_alone(t5_encoder: T5Encoder, clips: dict[str, ClipTextEncoder]) -> None:
    item = EncodeItem({"t5xxl": EncoderInput((row(7, 9, 1),))})
    found = encode("sd3", {**clips, "t5xxl": t5_encoder}, item)[0]
    assert found.cond.shape == (1, 3, T5.width)
    assert found.pooled is not None
    assert found.pooled.shape == (1, 2048)
    assert not found.pooled.any()


def test_z_image_is_the_block_before_the_last_with_its_mask(qwen_encoder: Qwen3Encoder) -> None:
    pad = QWEN.pad
    found = encode("z-image", {"qwen3_4b": qwen_encoder}, EncodeItem({"qwen3_4b": EncoderInput((row(5, 6, pad, 8),))}))[
        0
    ]
    assert found.pooled is None
    assert found.extras["attention_mask"].tolist() == [[1, 1, 0, 0]]
    with torch.inference_mode():
        states = qwen_encoder.run(
            torch.tensor([[5, 6, pad, 8]]), None, [QWEN.layers - 2], found.extras["attention_mask"]
        )
    assert torch.equal(found.cond, states.blocks[QWEN.layers - 2])


def test_prompts_in_one_batch_do_not_touch_each_other(qwen_encoder: Qwen3Encoder) -> None:
    items = [EncodeItem({"qwen3_4b": EncoderInput((row(*tokens),))}) for tokens in ((5, 6), (7, 8), (9, 10, 11))]
    together = encode("z-image", {"qwen3_4b": qwen_encoder}, *items)
    for item, found in zip(items, together, strict=True):
        alone = encode("z-image", {"qwen3_4b": qwen_encoder}, item)[0]
        torch.testing.assert_close(found.cond, alone.cond, rtol=0, atol=1e-4)  # 1.6e-5 was seen, at values of 1


def test_a_role_that_a_partial_set_lacks_is_refused(clips: dict[str, ClipTextEncoder]) -> None:
    with pytest.raises(DaemonError, match="no text encoder 't5xxl'") as caught:
        encode("sd3", clips, EncodeItem({"t5xxl": EncoderInput((row(1),))}))
    assert caught.value.code == "token-invalid"


def test_a_prompt_without_tokens_is_refused_where_nothing_stands_for_it(qwen_encoder: Qwen3Encoder) -> None:
    with pytest.raises(DaemonError) as caught:
        encode("z-image", {"qwen3_4b": qwen_encoder}, EncodeItem({}))
    assert caught.value.code == "token-invalid"


def entries(role: str, prefix: str, dtype: str, **more: tuple[int, ...]) -> dict[str, Entry]:
    full = t5.expected_shapes(t5.T5_XXL) if role == "t5xxl" else qwen3.expected_shapes(qwen3.QWEN3_4B)
    return {prefix + name: Entry(dtype, shape) for name, shape in {**full, **more}.items()}


@pytest.mark.parametrize("role", ["t5xxl", "qwen3_4b"])
@pytest.mark.parametrize("prefix", ["", "text_encoders.{}.transformer."])
@pytest.mark.parametrize("dtype", ["F8_E4M3", "F16", "BF16", "F32"])
def test_encoders_are_found_alone_and_in_checkpoints(role: str, prefix: str, dtype: str) -> None:
    stored = entries(role, prefix.format(role), dtype)
    stored["lm_head.weight"] = Entry("F16", (1, 1))
    part = find_part(role, stored, torch.empty, "x")
    assert part is not None
    assert prefix.format(role) + "lm_head.weight" not in part.names.values()
    require_complete(part, t5.expected_shapes(t5.T5_XXL) if role == "t5xxl" else qwen3.expected_shapes(qwen3.QWEN3_4B))
    held = encoder_files.held_bytes(role, part, CPU)
    assert held == part.elements * (1 if dtype == "F8_E4M3" else 2)
    others = [other for other in KINDS if other != role]
    assert [find_part(other, stored, torch.empty, "x") for other in others] == [None] * len(others)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"encoder.block.23.layer.1.DenseReluDense.wo.weight": None}, "file-damaged"),
        ({"shared.weight": (256384, 4096)}, "wrong-type"),
    ],
)
def test_other_encoders_of_the_width_are_refused(change: dict[str, tuple[int, ...] | None], code: str) -> None:
    stored = entries("t5xxl", "", "F16")
    for name, shape in change.items():
        if shape is None:
            del stored[name]
        else:
            stored[name] = Entry("F16", shape)
    part = find_part("t5xxl", stored, torch.empty, "x")
    assert part is not None
    with pytest.raises(DaemonError) as caught:
        encoder_files.load("t5xxl", part, CPU, lambda: None)
    assert caught.value.code == code


@pytest.mark.parametrize("marker", ["scaled_fp8", "encoder.block.0.layer.0.SelfAttention.q.scale_weight"])
def test_scaled_fp8_is_refused(marker: str) -> None:
    part = find_part("t5xxl", {**entries("t5xxl", "", "F8_E4M3"), marker: Entry("F32", (1,))}, torch.empty, "x")
    assert part is not None
    with pytest.raises(DaemonError) as caught:
        NativeBackend(CPU).needed_bytes({"t5xxl": part}, "fp16")
    assert caught.value.code == "model-unsupported"


@pytest.mark.parametrize(
    ("roles", "family"),
    [
        (("l", "t5xxl"), "flux"),
        (("l", "t5xxl", "vae"), "flux"),
        (("l", "g", "t5xxl"), "sd3"),
        (("g", "t5xxl"), "sd3"),
        (("t5xxl",), "sd3"),
        (("qwen3_4b",), "z-image"),
    ],
)
def test_the_encoders_tell_the_family(roles: tuple[str, ...], family: str) -> None:
    assert guess_family({role: Part(KINDS[role], {}, {}, torch.empty, "x") for role in roles}) == family


def test_names_are_comfyuis(t5_encoder: T5Encoder) -> None:
    listed = {entry.name: entry for entry in encoder_files.names("t5xxl", t5_encoder)}
    assert listed["t5xxl.transformer.shared.weight"].shape == (T5.vocabulary, T5.width)
    assert listed["t5xxl.transformer.shared.weight"].dtype == "f16"
    assert len(listed) == len(t5.expected_shapes(T5)) + 1
