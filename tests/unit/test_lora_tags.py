"""LoRA tags in text and names of files: every form of the contract, and nothing guessed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luna_engine.errors import InputFileError, LunaError
from luna_engine.loras.names import resolve
from luna_engine.loras.tags import decimal_text, format_tag, parse_tags

FILES = ("style/ink.safetensors", "style/wash v1.5.safetensors", "char/Elara.safetensors", "old/ink.safetensors")


@pytest.mark.parametrize(
    ("tag", "name", "model", "clip"),
    [
        ("<lora:a>", "a", 1.0, 1.0),
        ("<lora:sub/a b:-.5>", "sub/a b", -0.5, -0.5),
        ("<LORA:a:0.8:0.25>", "a", 0.8, 0.25),
        ("<lora:a:te=0.3:unet=0.7>", "a", 0.7, 0.3),
        ("<lora:a:0.9:te=0.3>", "a", 0.9, 0.3),
    ],
)
def test_every_form_of_a_tag_is_read(tag: str, name: str, model: float, clip: float) -> None:
    (found,) = parse_tags(f"x, {tag} y")
    assert (found.name, found.model_strength, found.clip_strength) == (name, model, clip)
    assert found.span == (3, 3 + len(tag))


@pytest.mark.parametrize("tag", ["<lora:>", "<lora:a:b>", "<lora:a:1:2:3>", "<lora:a:1e3>", "<lora:a:lbw=x>"])
def test_anything_else_is_refused_with_its_place(tag: str) -> None:
    with pytest.raises(LunaError, match="line 2, column 3") as caught:
        parse_tags(f"first\na {tag}")
    assert caught.value.code == "lora-tag"


def test_other_text_holds_no_tags() -> None:
    assert parse_tags("<lora:a\n:1> <lyco:b> lora:c (a:1.2)") == []


@pytest.mark.parametrize(
    ("typed", "file"),
    [
        ("style/ink.safetensors", FILES[0]),
        ("style\\ink", FILES[0]),
        ("wash v1.5", FILES[1]),
        ("elara", FILES[2]),
    ],
)
def test_a_typed_name_means_one_file(typed: str, file: str) -> None:
    assert resolve(typed, FILES) == file


def test_a_name_is_never_guessed() -> None:
    with pytest.raises(InputFileError, match=r"old/ink.*style/ink") as caught:
        resolve("ink", FILES)
    assert caught.value.code == "name-ambiguous"
    with pytest.raises(InputFileError, match="did you mean char/Elara") as caught:
        resolve("elra", FILES)
    assert caught.value.code == "lora-missing"
    with pytest.raises(InputFileError):
        resolve("wash", FILES)  # no substrings


@given(st.decimals(-2, 2, places=3, allow_nan=False))
def test_a_strength_survives_being_written(value: object) -> None:
    number = float(str(value))
    tag = format_tag("sub/x.safetensors", number)
    (found,) = parse_tags(tag)
    assert (found.name, found.model_strength) == ("sub/x", number)
    assert "e" not in decimal_text(number)


def test_the_fewest_decimals_are_written() -> None:
    assert [decimal_text(value) for value in (1, 0.85, 0.1 + 0.2, -0.0, -2)] == ["1.0", "0.85", "0.3", "0.0", "-2.0"]
