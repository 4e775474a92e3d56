"""Model files: ids stay inside their roots, parts are found in every layout, bad files name what is wrong."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from luna_daemon.runtime import contents
from luna_daemon.runtime.files import ModelFiles, Stamp, find_roots
from luna_daemon.runtime.parts import OpenFile, require_complete, require_floats
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable


def never() -> None:
    """Check nothing."""


def code_of(call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(DaemonError) as caught:
        call(*arguments)
    assert caught.value.message
    return caught.value.code


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    (tmp_path / "vae/sub").mkdir(parents=True)
    (tmp_path / "vae/sub/a.safetensors").write_bytes(b"x")
    (tmp_path / "secret.safetensors").write_bytes(b"x")
    return ModelFiles({"vae": tmp_path / "vae"})


def test_an_id_is_a_root_and_a_name(files: ModelFiles, tmp_path: Path) -> None:
    path = tmp_path / "vae/sub/a.safetensors"
    assert files.resolve("vae/sub/a.safetensors") == path
    assert files.id_of(path) == "vae/sub/a.safetensors"
    assert files.id_of(tmp_path / "secret.safetensors") is None
    assert list(files.scan()) == [("vae/sub/a.safetensors", path)]


# DAEMON S11
@pytest.mark.parametrize(
    "name", ["vae/../secret.safetensors", "/etc/passwd", "..", "", "vae//x", "vae/a\0b", "vae\\x", "vae/./x"]
)
def test_an_id_never_leaves_the_roots(files: ModelFiles, name: str) -> None:
    assert code_of(files.resolve, name) == "path-outside"


# DAEMON S11
def test_a_link_out_of_the_roots_is_refused_and_one_inside_is_not(files: ModelFiles, tmp_path: Path) -> None:
    (tmp_path / "vae/out.safetensors").symlink_to(tmp_path / "secret.safetensors")
    (tmp_path / "vae/in.safetensors").symlink_to(tmp_path / "vae/sub/a.safetensors")
    assert code_of(files.resolve, "vae/out.safetensors") == "path-outside"
    assert files.resolve("vae/in.safetensors").name == "in.safetensors"


# DAEMON S11
def test_what_is_not_there_or_no_file_is_named(files: ModelFiles, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "vae/pipe.safetensors")
    assert code_of(files.resolve, "vae/none.safetensors") == "model-missing"
    assert code_of(files.resolve, "nowhere/x.safetensors") == "model-missing"
    assert code_of(files.resolve, "vae/sub") == "wrong-type"
    assert code_of(files.resolve, "vae/pipe.safetensors") == "wrong-type"


def test_roots_come_from_environment_settings_and_comfyui(tmp_path: Path) -> None:
    for folder in ("mine/vae", "other/vae", "comfy/models/checkpoints", "comfy/models/embeddings"):
        (tmp_path / folder).mkdir(parents=True)
    roots = find_roots(
        SimpleNamespace(models=(str(tmp_path / "other/vae"),)),  # type: ignore[arg-type]  # all that is read of it
        {"LUNA_MODELS": str(tmp_path / "mine"), "COMFYUI_PATH": str(tmp_path / "comfy")},
    )
    assert roots == {
        "mine": tmp_path / "mine",
        "vae": tmp_path / "other/vae",
        "vae-2": tmp_path / "mine/vae",
        "checkpoints": tmp_path / "comfy/models/checkpoints",
        "embeddings": tmp_path / "comfy/models/embeddings",
    }


def test_embeddings_are_found_by_name_in_subfolders_and_stay_inside(
    model_root: Path, roots: dict[str, Path], tmp_path: Path
) -> None:
    files = ModelFiles(roots)
    assert files.embedding("luna_two") == model_root / "embeddings/luna_two.safetensors"
    assert files.embedding("luna_two.safetensors") == model_root / "embeddings/luna_two.safetensors"
    assert files.embedding("luna_wide") == model_root / "embeddings/sub/luna_wide.safetensors"
    for name in ("../clip/l", "/etc/passwd", "", "nowhere", "a\0b"):
        assert files.embedding(name) is None


def open_part(path: Path, role: str) -> Any:
    with OpenFile(path, path.name) as file:
        part = file.find(role)
        return None if part is None else (part, part.content(never))


@pytest.mark.parametrize(("role", "alone"), [("l", "clip/l.safetensors"), ("vae", "vae/vae.safetensors")])
def test_a_part_has_one_hash_in_a_checkpoint_and_alone(model_root: Path, role: str, alone: str) -> None:
    inside, content = open_part(model_root / "checkpoints/parts.safetensors", role)
    single, other = open_part(model_root / alone, role)
    assert content == other
    assert inside.entries == single.entries


def test_a_hash_depends_on_every_byte(model_root: Path, tmp_path: Path) -> None:
    _, before = open_part(model_root / "vae/vae.safetensors", "vae")
    data = bytearray((model_root / "vae/vae.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "changed.safetensors").write_bytes(data)
    _, after = open_part(tmp_path / "changed.safetensors", "vae")
    assert before != after


def test_a_hash_is_kept_by_the_files_stamp(model_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = model_root / "vae/vae.safetensors"
    with OpenFile(path, "vae") as file:
        part = file.find("vae")
        assert part is not None
        first = contents.content_of(part, Stamp.of(path), never)
    assert contents.recall(Stamp.of(path), "vae") == first
    os.utime(path)
    assert contents.recall(Stamp.of(path), "vae") is None


def test_a_database_that_cannot_be_opened_costs_only_time(model_root: Path, luna_home: Path) -> None:
    (luna_home / "state").mkdir(exist_ok=True)
    (luna_home / "state/luna.db").write_text("this is no database, but long enough to look at" * 20)
    path = model_root / "vae/vae.safetensors"
    with OpenFile(path, "vae") as file:
        part = file.find("vae")
        assert part is not None
        assert len(contents.content_of(part, Stamp.of(path), never)) == 64


def header(entries: dict, data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


# DAEMON S12
@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "file-damaged"),
        (b"short", "file-damaged"),
        (struct.pack("<Q", 2**40) + b"{}", "file-damaged"),
        (header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"x" * 8), "file-damaged"),
        (header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 16]}}, b"x" * 16), "file-damaged"),
        (b"GGUF\x03\x00\x00\x00" + b"\0" * 40, "model-unsupported"),
        (b"PK\x03\x04" + b"\0" * 40, "wrong-type"),
        (b"\x80\x02}q\x00." + b"\0" * 40, "wrong-type"),
    ],
)
def test_files_that_are_no_safetensors_are_named_for_what_they_are(tmp_path: Path, data: bytes, code: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    assert code_of(OpenFile, path, "x") == code


def test_a_file_cut_short_while_it_is_open_does_not_kill_the_process(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(4096), "b": torch.zeros(4096)}, path)
    with OpenFile(path, "x") as file:
        os.truncate(path, path.stat().st_size - 4096)
        assert file.read("a").numel() == 4096
        assert code_of(file.read, "b") == "file-damaged"


def test_a_lora_or_another_encoder_has_no_such_part(model_root: Path, tmp_path: Path) -> None:
    wide = {"text_model.encoder.layers.0.self_attn.q_proj.weight": torch.zeros(1280, 1280)}
    save_file(wide, tmp_path / "g.safetensors")
    deep = {"decoder.conv_in.weight": torch.zeros(512, 32, 3, 3)}
    save_file(deep, tmp_path / "ae.safetensors")
    assert open_part(model_root / "loras/lora.safetensors", "l") is None
    assert open_part(tmp_path / "g.safetensors", "l") is None
    assert open_part(tmp_path / "ae.safetensors", "vae") is None


def test_quantised_weights_are_left_to_the_other_backend(tmp_path: Path) -> None:
    name = "text_model.encoder.layers.0.self_attn.q_proj.weight"
    save_file({name: torch.zeros(768, 768, dtype=torch.float8_e4m3fn)}, tmp_path / "fp8.safetensors")
    scaled = {name: torch.zeros(768, 768), "scaled_fp8": torch.zeros(2)}
    save_file(scaled, tmp_path / "scaled.safetensors")
    for file in ("fp8", "scaled"):
        part, _ = open_part(tmp_path / f"{file}.safetensors", "l")
        assert code_of(require_floats, part) == "model-unsupported"


def test_missing_and_misshapen_tensors_are_named(model_root: Path) -> None:
    with OpenFile(model_root / "vae/vae.safetensors", "vae") as file:
        part = file.find("vae")
    assert part is not None
    shapes = {name: entry.shape for name, entry in part.entries.items()}
    require_complete(part, shapes)
    with pytest.raises(DaemonError, match=r"lacks 1 of \d+ tensors, first decoder.extra"):
        require_complete(part, {**shapes, "decoder.extra": (1,)})
    with pytest.raises(DaemonError, match=r"quant_conv\.bias has shape") as caught:
        require_complete(part, {**shapes, "quant_conv.bias": (16,)})
    assert caught.value.code == "wrong-type"


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the kernel counts reads on Linux only")
def test_only_the_wanted_parts_bytes_are_read(model_root: Path) -> None:
    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text("ascii").split("rchar: ")[1].split()[0])

    before = bytes_read()
    with OpenFile(model_root / "checkpoints/parts.safetensors", "parts") as file:
        part = file.find("vae")
        assert part is not None
        for name in part.names:
            part.tensor(name)
    size = part.elements * 2
    assert size <= bytes_read() - before < size * 1.05
    assert size < (model_root / "checkpoints/parts.safetensors").stat().st_size / 2
