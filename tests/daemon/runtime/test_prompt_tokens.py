"""Prompt text to token rows: weights, embeddings, chunks, and the vocabulary without ComfyUI."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luna_daemon.runtime.clip_text import CLIP_L, END, START
from luna_daemon.runtime.prompt_text import NESTING_MAX, EmbeddingName, WeightedText, read_prompt
from luna_daemon.runtime.qwen3 import QWEN3_4B
from luna_daemon.runtime.t5 import T5_XXL
from luna_daemon.runtime.tokens import Tokenized, tokenize, tokenize_whole
from luna_daemon.runtime.vocabulary import PackagedVocabulary, open_role_vocabulary, open_vocabulary
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from pathlib import Path

    from luna_daemon.runtime.backend import Row

CAT, A = 2368, 320


def weighed(text: str) -> list[tuple[str, float]]:
    return [(piece.text, round(piece.weight, 6)) for piece in read_prompt(text) if isinstance(piece, WeightedText)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", [("a cat", 1.0)]),
        ("a (red) cat", [("a ", 1.0), ("red", 1.1), (" cat", 1.0)]),
        ("((red))", [("red", 1.21)]),
        ("(red:1.3)", [("red", 1.3)]),
        ("(a (b:1.5) c:2)", [("a ", 2.0), ("b", 1.5), (" c", 2.0)]),
        ("((a:1.5))", [("a", 1.5)]),
        ("(a:b:1.2)", [("a:b", 1.2)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(:1.2)", [(":1.2", 1.1)]),
        ("(a:nan)", [("a:nan", 1.1)]),
        ("[a]", [("[a]", 1.0)]),
        (r"\(a\) (b \(c\):1.2)", [("(a) ", 1.0), ("b (c)", 1.2)]),
        ("a) (b)", [("a) (b)", 1.0)]),
        ("a) ( (b)", [("a) ( ", 1.0), ("b", 1.1)]),
        ("(a", [("(a", 1.0)]),
        ("(a (b)", [("a ", 1.1), ("(b", 1.1)]),
        ("()", []),
        ("", []),
    ],
)
def test_parentheses_weigh_text(text: str, expected: list[tuple[str, float]]) -> None:
    assert weighed(text) == expected


def test_embeddings_begin_behind_a_blank_or_newline_and_end_at_white_space() -> None:
    pieces = list(read_prompt("embedding:one, x (embedding:two y:1.2)\nembedding:three\nz noembedding:four"))
    assert pieces == [
        EmbeddingName("one,", "x", 1.0),
        EmbeddingName("two", "y", 1.2),
        EmbeddingName("three", "z noembedding:four", 1.0),
    ]


def test_parentheses_without_end_are_refused_not_recursed_into() -> None:
    depth = NESTING_MAX + 1
    with pytest.raises(DaemonError) as caught:
        list(read_prompt("(" * depth + "a" + ")" * depth))
    assert caught.value.code == "request-invalid"
    assert len(weighed("(" * NESTING_MAX + "a" + ")" * NESTING_MAX)) == 1


@given(st.text(alphabet="ab (:1.2)\\", max_size=60))
def test_every_prompt_is_read_and_plain_characters_survive(text: str) -> None:
    letters = "".join(character for character in text if character in "ab")
    kept = "".join(part for part, _ in weighed(text))
    assert "".join(character for character in kept if character in "ab") == letters


class Numbers:
    """A vocabulary in which a text of n words is n tokens, for tests of the layout."""

    def encode(self, text: str) -> list[int]:
        return [1000 + index for index, _ in enumerate(text.split())]


def rows(text: str, embeddings: dict[str, torch.Tensor] | None = None) -> Tokenized:
    return tokenize(text, CLIP_L, Numbers(), (embeddings or {}).get)


def inside(row: Row) -> list[int]:
    return [token for token in row.ids if token not in {START, END}]


def test_a_row_is_start_tokens_end_and_padding() -> None:
    made = rows("a b c")
    (row,) = made.input.rows
    assert row.ids == (START, 1000, 1001, 1002, END) + (END,) * 72
    assert row.weights == (1.0,) * 77
    assert made.tokens == 3


def test_a_short_group_moves_whole_to_the_next_chunk() -> None:
    first, second = rows("w " * 72 + "(" + "v " * 7 + ":1.5)").input.rows
    assert len(inside(first)) == 72
    assert len(inside(second)) == 7
    assert first.ids[73:] == (END,) * 4


def test_a_group_of_eight_is_cut_at_75() -> None:
    first, second = rows("w " * 72 + "(" + "v " * 8 + ":1.5)").input.rows
    assert len(inside(first)) == 75
    assert first.weights[73:76] == (1.5,) * 3
    assert first.ids[76] == END
    assert len(inside(second)) == 5


def test_exactly_75_tokens_are_one_chunk() -> None:
    assert len(rows("w " * 75).input.rows) == 1
    assert len(rows("w " * 76).input.rows) == 2


@given(st.lists(st.integers(1, 90), max_size=12))
def test_chunks_hold_every_token_once_in_order(lengths: list[int]) -> None:
    made = rows(" ".join("(" + "w " * length + ":1.5)" for length in lengths))
    found = list(itertools.chain.from_iterable(inside(row) for row in made.input.rows))
    assert found == [1000 + index for length in lengths for index in range(length)]
    assert made.tokens == len(found)
    for row in made.input.rows:
        assert len(row.ids) == len(row.weights) == 77
        assert row.ids[0] == START
        assert END in row.ids


def test_an_embedding_is_one_token_a_row_and_the_text_goes_on_behind_it() -> None:
    made = rows("a embedding:two b (embedding:two:1.5)", embeddings={"two": torch.zeros(2, 768)})
    (row,) = made.input.rows
    assert row.ids[1:8] == (1000, -1, -2, 1000, -3, -4, END)
    assert row.weights[1:8] == (1.0, 1.0, 1.0, 1.0, 1.5, 1.5, 1.0)
    assert [len(block) for block in made.input.vectors] == [2, 2]


def test_a_missing_embedding_is_tried_without_its_comma_then_reported() -> None:
    made = rows("a embedding:here, b embedding:gone, c", embeddings={"here": torch.zeros(1, 768)})
    assert made.missing == ("gone",)
    assert len(made.input.vectors) == 1
    assert made.input.rows[0].ids[1:6] == (1000, -1, 1000, 1001, 1000)


def test_a_vector_without_rows_is_one_token() -> None:
    made = rows("embedding:one", embeddings={"one": torch.zeros(768)})
    assert made.input.vectors[0].shape == (1, 768)
    assert made.tokens == 1


@pytest.fixture(scope="module")
def packaged() -> PackagedVocabulary:
    pytest.importorskip("instant_clip_tokenizer", reason="no wheel for this Python")
    return PackagedVocabulary()


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a cat", [A, CAT]),
        ("A  CAT\n", [A, CAT]),
        ("it's 1234", [585, 568, 272, 273, 274, 275]),
        ("cafe\u0301", [15304]),
        ("<|endoftext|> a<|startoftext|>", [END, A, START]),
        ("", []),
        ("\t \n", []),
    ],
)
def test_the_packaged_vocabulary_is_clips(packaged: PackagedVocabulary, text: str, ids: list[int]) -> None:
    assert packaged.encode(text) == ids


def test_without_checkout_or_package_the_tokenizer_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "instant_clip_tokenizer", None)
    with pytest.raises(DaemonError) as caught:
        open_vocabulary(tmp_path)
    assert caught.value.code == "tokenizer-missing"
    assert "COMFYUI_PATH" in (caught.value.hint or "")


class Letters:
    """A vocabulary of one token per character."""

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]


def test_t5_gets_one_weighted_row_with_its_end_and_padding() -> None:
    made = tokenize_whole("a(b:1.5)", T5_XXL, Letters(), lambda _name: None, min_tokens=5)
    (row,) = made.input.rows
    assert row.ids == (97, 98, 1, 0, 0)
    assert row.weights == (1.0, 1.5, 1.0, 1.0, 1.0)
    assert made.tokens == 2


def test_a_long_t5_prompt_is_not_cut() -> None:
    (row,) = tokenize_whole("a" * 400, T5_XXL, Letters(), lambda _name: None, min_tokens=256).input.rows
    assert len(row.ids) == 401


def test_a_templated_prompt_has_no_weights_and_loses_its_backslashes() -> None:
    made = tokenize_whole(r"(a:2) \(b\)", QWEN3_4B, Letters(), lambda _name: None, min_tokens=1, template="<{}>")
    (row,) = made.input.rows
    assert "".join(map(chr, row.ids)) == "<(a:2) (b)>"
    assert set(row.weights) == {1.0}


def test_an_empty_prompt_without_end_token_is_one_pad() -> None:
    (row,) = tokenize_whole("", QWEN3_4B, Letters(), lambda _name: None, min_tokens=1).input.rows
    assert row.ids == (151643,)


@pytest.mark.parametrize("role", ["t5xxl", "qwen3_4b"])
@pytest.mark.parametrize("has_folder", [True, False])
def test_large_vocabularies_come_from_a_checkout_only(role: str, *, has_folder: bool, tmp_path: Path) -> None:
    with pytest.raises(DaemonError) as caught:
        open_role_vocabulary(role, tmp_path if has_folder else None)
    assert caught.value.code == "tokenizer-missing"
