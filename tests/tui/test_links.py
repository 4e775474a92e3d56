"""LoRA and embedding files, read from real headers on disk."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

from luna_engine.settings import Settings
from luna_tui.backend.links import LocalLinks

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def write(file: Path, shapes: dict[str, tuple[int, ...]], metadata: dict[str, str] | None = None) -> Path:
    """Write a real safetensors file of zeros."""
    header: dict[str, Any] = {"__metadata__": metadata or {}}
    offset = 0
    for name, shape in shapes.items():
        size = 2
        for extent in shape:
            size *= extent
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(header).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(offset))
    return file


def kohya(block: str, width: int, rank: int) -> dict[str, tuple[int, ...]]:
    name = f"lora_unet_{block}_attn2_to_k"
    return {f"{name}.lora_down.weight": (rank, width), f"{name}.lora_up.weight": (320, rank)}


def test_what_headers_say(tmp_path: Path) -> None:
    block = "down_blocks_0_attentions_0_transformer_blocks_0"
    write(tmp_path / "loras/by_keys.safetensors", kohya(block, 768, 16))
    write(tmp_path / "loras/sub/by_metadata.safetensors", kohya(block, 2048, 8),
          {"ss_base_model_version": "sdxl_base_v1-0", "modelspec.trigger_phrase": "elara, silver hair"})  # fmt: skip
    write(tmp_path / "embeddings/hands.safetensors", {"emb_params": (4, 768)})
    write(tmp_path / "vae/other.safetensors", {"decoder.conv_in.weight": (512, 4, 3, 3)})
    view = LocalLinks(Settings(models=(str(tmp_path),))).snapshot()
    found = {row.name: (row.kind, row.base, row.evidence, row.rank, row.triggers) for row in view.rows}
    assert found == {
        "embeddings/hands": ("embedding", "sd15", "keys", None, ()),
        "loras/by_keys": ("lora", "sd15", "keys", 16, ()),
        "loras/sub/by_metadata": ("lora", "sdxl", "metadata", 8, ("elara", "silver hair")),
    }


def test_a_damaged_file_stands_in_the_list_with_its_error(tmp_path: Path) -> None:
    file = write(tmp_path / "loras/cut.safetensors", kohya("x", 768, 4))
    file.write_bytes(file.read_bytes()[:-100])
    (row,) = LocalLinks(Settings(models=(str(tmp_path),))).snapshot().rows
    assert row.problem is not None
    assert row.problem.code == "file-damaged"


def test_another_kind_of_model_among_loras_is_named(tmp_path: Path) -> None:
    write(tmp_path / "loras/oops.safetensors", {
        "encoder.conv_in.weight": (128, 3, 3, 3), "decoder.conv_in.weight": (512, 4, 3, 3),
        "decoder.up.0.block.0.norm1.weight": (128,), "encoder.down.0.block.0.norm1.weight": (128,),
    })  # fmt: skip
    (row,) = LocalLinks(Settings(models=(str(tmp_path),))).snapshot().rows
    assert row.problem is not None
    assert row.problem.code == "wrong-type"


def test_changed_files_are_read_again_and_gone_ones_leave(tmp_path: Path) -> None:
    file = write(tmp_path / "loras/a.safetensors", kohya("x", 768, 4))
    links = LocalLinks(Settings(models=(str(tmp_path),)))
    assert links.snapshot().rows[0].rank == 4
    write(file, kohya("x", 768, 32))
    assert links.snapshot().rows[0].rank == 32
    file.unlink()
    assert links.snapshot().rows == ()


def test_roots_come_from_settings_environment_and_comfyui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUNA_MODELS", str(tmp_path / "env"))
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "comfy"))
    view = LocalLinks(Settings(models=(str(tmp_path / "own"),))).snapshot()
    assert view.roots == tuple(str(tmp_path / name) for name in ("own", "env", "comfy/models"))
    assert view.rows == ()
