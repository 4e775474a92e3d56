"""The CLIP encoder against transformers' own forward on the same weights, and the rules that ComfyUI adds to it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from luna_daemon.runtime import conditioning
from luna_daemon.runtime.backend import Encoded, EncodeItem, EncoderInput, Row
from luna_daemon.runtime.casting import CastingLinear, store_fp16
from luna_daemon.runtime.clip_text import END, START, ClipShape, ClipTextEncoder, expected_shapes
from luna_daemon.runtime.families import BEFORE_LAST, LAST, TextFamily
from luna_engine.errors import DaemonError

SHAPE = ClipShape(layers=3, width=128, activation="quick_gelu", pad=END)
FAMILY = TextFamily({"l": SHAPE}, {"l": LAST}, pooled="l", is_projected=False)
RAW_FAMILY = dataclasses.replace(FAMILY, picks={"l": BEFORE_LAST})
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        name: (torch.randn(shape, generator=generator) * 0.05 + ("norm" in name and name.endswith("weight"))).half()
        for name, shape in expected_shapes(SHAPE).items()
    }


@pytest.fixture(scope="module")
def encoder(weights: dict[str, torch.Tensor]) -> ClipTextEncoder:
    return ClipTextEncoder(SHAPE, weights, CPU)


@pytest.fixture(scope="module")
def reference(weights: dict[str, torch.Tensor]) -> CLIPTextModel:
    """Build and fill transformers' own class the ordinary way."""
    config = CLIPTextConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=2,
        vocab_size=49408,
        eos_token_id=END,
        bos_token_id=START,
    )
    model = CLIPTextModel(config).eval()
    names = dict(model.state_dict())
    nested = any(name.startswith("text_model.") for name in names)
    filled = {name if nested else name.removeprefix("text_model."): t.float() for name, t in weights.items()}
    model.load_state_dict(filled)
    return model


def row(*tokens: int, weights: tuple[float, ...] = ()) -> Row:
    """A chunk of 77 with start, end and padding; weights for the tokens between."""
    ids = (START, *tokens, END)
    ids += (END,) * (77 - len(ids))
    given = (1.0, *(weights or (1.0,) * len(tokens)))
    return Row(ids, given + (1.0,) * (77 - len(given)))


def encode(encoder: ClipTextEncoder, *items: EncodeItem, family: TextFamily = FAMILY, cap: int = 16) -> list[Encoded]:
    with torch.inference_mode():
        return conditioning.encode(family, {"l": encoder}, items, cap, lambda: None)


def item(*rows: Row, layer: int | None = None, vectors: tuple[torch.Tensor, ...] = ()) -> EncodeItem:
    return EncodeItem({"l": EncoderInput(rows, vectors)}, {} if layer is None else {"l": layer})


def run_reference(model: CLIPTextModel, ids: tuple[int, ...]) -> Any:
    with torch.inference_mode():
        return model(torch.tensor([ids]), output_hidden_states=True)


def test_a_plain_prompt_is_what_transformers_computes(encoder: ClipTextEncoder, reference: CLIPTextModel) -> None:
    one = row(320, 2368, 533)
    expected = run_reference(reference, one.ids)
    (found,) = encode(encoder, item(one))
    assert found.cond.shape == (1, 77, 128)
    torch.testing.assert_close(found.cond, expected.last_hidden_state, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.pooled, expected.pooler_output, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layer", [-1, -2, -3, 0, 1, 2])
def test_a_picked_layer_passes_the_final_norm_where_the_family_says_so(
    encoder: ClipTextEncoder, reference: CLIPTextModel, layer: int
) -> None:
    one = row(320, 2368)
    states = run_reference(reference, one.ids).hidden_states[1:]
    norm = dict(reference.named_modules())
    final = next(module for name, module in norm.items() if name.endswith("final_layer_norm"))
    (normed,) = encode(encoder, item(one, layer=layer))
    with torch.inference_mode():
        torch.testing.assert_close(normed.cond, final(states[layer]), rtol=0, atol=1e-5)
    (raw,) = encode(encoder, item(one, layer=layer), family=RAW_FAMILY)
    torch.testing.assert_close(raw.cond, states[layer], rtol=0, atol=1e-5)


@pytest.mark.parametrize("layer", [-4, -100, 50])
def test_a_layer_beyond_the_encoder_is_the_familys_default(encoder: ClipTextEncoder, layer: int) -> None:
    (default,) = encode(encoder, item(row(320)), family=RAW_FAMILY)
    (beyond,) = encode(encoder, item(row(320), layer=layer), family=RAW_FAMILY)
    assert torch.equal(default.cond, beyond.cond)


def test_the_layer_after_the_last_is_refused(encoder: ClipTextEncoder) -> None:
    with pytest.raises(DaemonError) as caught:
        encode(encoder, item(row(320), layer=3))
    assert caught.value.code == "request-invalid"


def test_weights_pull_from_the_empty_prompts_state_and_leave_the_pooled_state(encoder: ClipTextEncoder) -> None:
    plain, empty = encode(encoder, item(row(320, 2368, 533)), item(row()))
    (weighted,) = encode(encoder, item(row(320, 2368, 533, weights=(1.0, 1.5, 0.2))))
    expected = plain.cond.clone()
    for index, weight in ((2, 1.5), (3, 0.2)):
        expected[0, index] = (plain.cond[0, index] - empty.cond[0, index]) * weight + empty.cond[0, index]
    torch.testing.assert_close(weighted.cond, expected, rtol=0, atol=1e-6)
    assert torch.equal(weighted.pooled, plain.pooled)


def test_chunks_lie_one_after_the_other_and_the_first_gives_the_pooled_state(encoder: ClipTextEncoder) -> None:
    first, second = encode(encoder, item(row(320)), item(row(2368)))
    (both,) = encode(encoder, item(row(320), row(2368)))
    assert both.cond.shape == (1, 154, 128)
    assert torch.equal(both.cond, torch.cat([first.cond, second.cond], dim=1))
    assert torch.equal(both.pooled, first.pooled)


def test_no_rows_at_all_is_the_empty_prompt_of_start_and_end(
    encoder: ClipTextEncoder, reference: CLIPTextModel
) -> None:
    (nothing,) = encode(encoder, EncodeItem({}))
    expected = run_reference(reference, (START, END))
    torch.testing.assert_close(nothing.cond, expected.last_hidden_state, rtol=0, atol=1e-5)


def test_a_vector_that_repeats_a_tokens_embedding_changes_nothing(
    encoder: ClipTextEncoder, weights: dict[str, torch.Tensor]
) -> None:
    table = weights["text_model.embeddings.token_embedding.weight"].float()
    vectors = (table[[2368]], table[[533, 7]])
    (by_id,) = encode(encoder, item(row(320, 2368, 533, 7)))
    (by_vector,) = encode(encoder, item(row(320, -1, -2, -3), vectors=vectors))
    torch.testing.assert_close(by_vector.cond, by_id.cond, rtol=0, atol=1e-6)
    torch.testing.assert_close(by_vector.pooled, by_id.pooled, rtol=0, atol=1e-6)


def test_the_pooled_state_is_at_the_first_end_token_behind_vectors(
    encoder: ClipTextEncoder, weights: dict[str, torch.Tensor]
) -> None:
    vector = torch.full((1, 128), 0.03)
    (found,) = encode(encoder, item(row(320, -1, 533), vectors=(vector,)))
    torch.testing.assert_close(found.pooled[0], found.cond[0, 4], rtol=0, atol=1e-6)


def test_a_vector_of_the_wrong_width_is_left_out_counted_and_padded_for(encoder: ClipTextEncoder) -> None:
    (found,) = encode(encoder, item(row(320, -1, -2, 533), vectors=(torch.zeros(2, 64),)))
    (without,) = encode(encoder, item(row(320, 533)))
    assert found.dropped_vectors == 2
    torch.testing.assert_close(found.cond, without.cond, rtol=0, atol=1e-6)


def test_prompts_do_not_see_each_other_in_a_batch(encoder: ClipTextEncoder) -> None:
    prompts = [item(row(320, number, weights=(1.0, 0.5 + number / 100))) for number in range(1, 6)]
    alone = [encode(encoder, one)[0] for one in prompts]
    for cap in (1, 3, 16):
        for single, together in zip(alone, encode(encoder, *prompts, cap=cap), strict=True):
            torch.testing.assert_close(together.cond, single.cond, rtol=0, atol=2e-6)


def test_rows_of_different_length_are_not_padded_to_meet(encoder: ClipTextEncoder) -> None:
    short = Row((START, 320, END), (1.0,) * 3)
    (alone,) = encode(encoder, item(short))
    together = encode(encoder, item(row(2368)), item(short))[1]
    assert alone.cond.shape == (1, 3, 128)
    torch.testing.assert_close(together.cond, alone.cond, rtol=0, atol=2e-6)


def test_a_role_that_the_family_lacks_is_refused(encoder: ClipTextEncoder) -> None:
    with pytest.raises(DaemonError, match="no text encoder 'g'") as caught:
        encode(encoder, EncodeItem({"l": EncoderInput((row(320),)), "g": EncoderInput((row(320),))}))
    assert caught.value.code == "token-invalid"


def test_cancel_is_looked_at_before_each_pass(encoder: ClipTextEncoder) -> None:
    passes = 0

    def check() -> None:
        nonlocal passes
        passes += 1
        if passes == 3:
            raise DaemonError("cancelled", "given up")

    with pytest.raises(DaemonError, match="given up"), torch.inference_mode():
        conditioning.encode(FAMILY, {"l": encoder}, [item(row(5), row(6), row(7), row(8))], 1, check)
    assert passes == 3


def test_weights_stored_in_16_bits_give_the_numbers_of_weights_held_upcast(weights: dict[str, torch.Tensor]) -> None:
    held, stored = ClipTextEncoder(SHAPE, weights, CPU), ClipTextEncoder(SHAPE, weights, CPU)
    store_fp16(stored._model)
    assert any(isinstance(module, CastingLinear) for module in stored._model.modules())
    for tensor in stored.state().values():
        assert tensor.dtype is torch.float16
    (one,), (other,) = encode(held, item(row(320, 2368))), encode(stored, item(row(320, 2368)))
    assert torch.equal(one.cond, other.cond)


def test_fp32_files_are_rounded_to_fp16_as_comfyui_stores_them(weights: dict[str, torch.Tensor]) -> None:
    generator = torch.Generator().manual_seed(9)
    noisy = {
        name: tensor.float() + torch.randn(tensor.shape, generator=generator) * 1e-6 for name, tensor in weights.items()
    }
    rounded = {name: tensor.half() for name, tensor in noisy.items()}
    (one,) = encode(ClipTextEncoder(SHAPE, noisy, CPU), item(row(320)))
    (other,) = encode(ClipTextEncoder(SHAPE, rounded, CPU), item(row(320)))
    assert torch.equal(one.cond, other.cond)
