"""Files to encoders to a family, from headers alone: the files here have no bytes behind their headers."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest

from luna_daemon.encoder_choice import choose_encoders
from luna_daemon.runtime.parts import KINDS
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from pathlib import Path


def write_header(path: Path, entries: dict[str, tuple[int, ...]]) -> Path:
    """Write a safetensors file of half precision whose body is a hole."""
    header, offset = {}, 0
    for name, shape in entries.items():
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("encoders")
    made = {
        role: write_header(folder / f"{role}.safetensors", {kind.marker: kind.shapes[0]})
        for role, kind in KINDS.items()
    }
    both = {f"text_encoders.clip_{role}.transformer.{KINDS[role].marker}": KINDS[role].shapes[0] for role in "lg"}
    return {**made, "l+g": write_header(folder / "checkpoint.safetensors", both)}


@pytest.mark.parametrize(
    ("names", "family", "expected"),
    [
        (["l"], "auto", "sd15"),
        (["g"], "auto", "sdxl"),
        (["g", "l"], "auto", "sdxl"),
        (["l+g"], "auto", "sdxl"),
        (["t5xxl", "l"], "auto", "flux"),
        (["t5xxl", "l", "g"], "auto", "sd3"),
        (["l+g", "t5xxl"], "auto", "sd3"),
        (["t5xxl"], "auto", "sd3"),
        (["qwen3_4b"], "auto", "z-image"),
        (["l", "g"], "sd3", "sd3"),
        (["l"], "sd3", "sd3"),
    ],
)
def test_what_files_make_together(files: dict[str, Path], names: list[str], family: str, expected: str) -> None:
    found, roles = choose_encoders([files[name] for name in names], family)
    assert found == expected
    assert set(roles) == {role for name in names for role in name.split("+")}


@pytest.mark.parametrize(
    ("names", "family"),
    [
        (["l", "qwen3_4b"], "auto"),
        (["l", "l+g"], "auto"),
        (["l", "vae"], "auto"),
        (["vae"], "auto"),
        (["t5xxl"], "flux"),
        (["g"], "sd15"),
        ([], "auto"),
    ],
)
def test_what_is_no_family_is_told_file_by_file(files: dict[str, Path], names: list[str], family: str) -> None:
    with pytest.raises(DaemonError) as caught:
        choose_encoders([files[name] for name in names], family)
    assert caught.value.code == "wrong-type"
    for name in names:
        assert files[name].name in caught.value.message
    if "qwen3_4b" in names:
        assert "l.safetensors is a CLIP-L text encoder; qwen3_4b.safetensors is a Qwen3-4B text" in caught.value.message


def test_a_file_that_is_gone_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DaemonError) as caught:
        choose_encoders([tmp_path / "gone.safetensors"])
    assert caught.value.code == "model-missing"
