"""Token dictionaries as nodes build them, and the items they become."""

from __future__ import annotations

import struct

import pytest
import torch

from luna_daemon.token_dict import flatten
from luna_daemon.token_item import TokenState, encode_item
from luna_engine.errors import DaemonError

PLAIN = [(49406, 1.0), (320, 1.0), (49407, 1.0)]


def test_chunks_are_laid_end_to_end_and_equal_weights_are_left_out() -> None:
    flat = flatten({"l": [PLAIN, PLAIN]})["l"]
    assert flat.rows == (3, 3)
    assert flat.ids == (49406, 320, 49407) * 2
    assert flat.weights is None


def test_one_weight_that_is_not_one_brings_all_of_them() -> None:
    flat = flatten({"l": [[(49406, 1.0), (320, 1.3), (49407, 1.0)]]})["l"]
    assert flat.weights == (1.0, 1.3, 1.0)


def test_word_ids_are_ignored() -> None:
    assert flatten({"l": [[(1, 1.0, 0), (2, 1.0, 5)]]})["l"].ids == (1, 2)


def test_vectors_become_negative_ids_counted_through_the_chunks() -> None:
    rows = [torch.full((4,), float(index)) for index in range(3)]
    tokens = {"l": [[(7, 1.0), (rows[0], 1.0), (rows[1], 1.2)], [(rows[2], 1.0)]]}
    item, tensors = encode_item(tokens, TokenState(roles=("l",)))
    named = {tensor.name: tensor for tensor in tensors}
    assert struct.unpack("<4i", named["0.l.ids"].data) == (7, -1, -2, -3)
    assert item.encoders["l"].vectors == ("0.l.vectors.0",)
    vectors = torch.frombuffer(bytearray(named["0.l.vectors.0"].data), dtype=torch.float32).reshape(3, 4)
    assert torch.equal(vectors, torch.stack(rows))


def test_vectors_of_different_width_travel_apart_in_order() -> None:
    tokens = {"l": [[(torch.zeros(4), 1.0), (torch.zeros(6), 1.0), (torch.zeros(4), 1.0)]]}
    item, tensors = encode_item(tokens, TokenState(roles=("l",)))
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    assert [shapes[name] for name in item.encoders["l"].vectors] == [(1, 4), (1, 6), (1, 4)]


def test_a_half_precision_vector_arrives_as_single() -> None:
    tokens = {"l": [[(torch.tensor([0.5, 1.5], dtype=torch.float16), 1.0)]]}
    _, tensors = encode_item(tokens, TokenState(roles=("l",)))
    assert tensors[-1].dtype == "f32"
    assert struct.unpack("<2f", tensors[-1].data) == (0.5, 1.5)


def test_encoders_that_the_set_lacks_are_left_out_as_comfyui_does() -> None:
    item, _ = encode_item({"l": [PLAIN], "g": [PLAIN]}, TokenState(roles=("l",)))
    assert set(item.encoders) == {"l"}


def test_an_encoder_whose_rows_a_node_emptied_is_not_sent() -> None:
    roles = ("l", "g", "t5xxl")
    item, tensors = encode_item({"l": [], "g": [], "t5xxl": [PLAIN]}, TokenState(roles))
    assert set(item.encoders) == {"t5xxl"}
    assert len(tensors) == 1
    with pytest.raises(DaemonError, match="needs l, g, t5xxl"):
        encode_item({"l": [], "g": [], "t5xxl": []}, TokenState(roles))


def test_ids_are_little_endian_32_bit() -> None:
    _, tensors = encode_item({"l": [PLAIN]}, TokenState(roles=("l",)))
    assert (tensors[0].dtype, tensors[0].shape) == ("i32", (3,))
    assert bytes(tensors[0].data) == struct.pack("<3i", 49406, 320, 49407)


@pytest.mark.parametrize(
    ("tokens", "named"),
    [
        ({}, "needs l"),
        ({"g": [PLAIN]}, "tokens are for g"),
        ({"l": "words"}, "expected a list of chunks"),
        ({"l": [5]}, "expected a list of chunks"),
        ({"l": [[320]]}, "not (token, weight)"),
    ],
)
def test_what_is_no_token_dictionary_is_refused_by_place(tokens: dict[str, object], named: str) -> None:
    with pytest.raises(DaemonError) as caught:
        encode_item(tokens, TokenState(roles=("l",)))
    assert caught.value.code == "token-invalid"
    assert named in caught.value.message


def test_an_image_in_the_prompt_is_refused_with_a_way_out() -> None:
    with pytest.raises(DaemonError) as caught:
        encode_item({"l": [[({"type": "image", "data": None}, 1.0)]]}, TokenState(roles=("l",)))
    assert caught.value.code == "model-unsupported"
    assert "local CLIP" in (caught.value.hint or "")
