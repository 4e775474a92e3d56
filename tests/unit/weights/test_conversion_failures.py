"""What cannot be converted is refused by name, and whatever ends a conversion early leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luna_engine.errors import ConversionError, InputFileError, LunaError
from luna_engine.weights import ConversionOptions, Progress, convert, verify
from luna_engine.weights.demo.models import MODELS
from tests.synthetic_models import TINY_SDXL, random_values, write_holes, write_raw, write_values


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.suffix in {".part", ".lock", ".cancel"})


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def refused(source: Path, target: Path, label: str = "gguf_Q8_0") -> LunaError:
    """Convert, which must fail, and check that nothing is left."""
    before = sorted(path.name for path in target.parent.rglob("*")) if target.parent.exists() else []
    with pytest.raises(LunaError) as caught:
        convert(source, target, label)
    after = sorted(path.name for path in target.parent.rglob("*")) if target.parent.exists() else []
    assert after == before
    assert caught.value.hint or caught.value.code == "cancelled"
    return caught.value


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("lora_sd15", "wrong-type", "is a LoRA"),
        ("ti_sdxl", "wrong-type", "is an embedding"),
        ("sdxl_vae", "component-missing", "is a VAE: no diffusion part"),
        ("clip_l", "component-missing", "is a text encoder: no diffusion part"),
    ],
)
def test_a_file_of_another_kind_is_refused_by_name(tmp_path: Path, name: str, code: str, words: str) -> None:
    shapes = {tensor.name: tensor.shape for tensor in MODELS[name].build()}
    error = refused(write_holes(tmp_path / f"{name}.safetensors", shapes), tmp_path / "out" / "x.gguf")
    assert (error.code, error.exit_code) == (code, 4)
    assert words in error.message
    assert not (tmp_path / "out").exists()


def test_truncated_and_overlapping_sources_are_refused(tmp_path: Path, checkpoint: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(checkpoint.read_bytes()[:-1000])
    assert refused(cut, tmp_path / "out" / "x.gguf").code == "file-damaged"
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    overlap = write_raw(tmp_path / "o.safetensors", {"a": entry, "b": entry}, bytes(16))
    error = refused(overlap, tmp_path / "out" / "x.gguf")
    assert error.code == "file-damaged"
    assert "overlaps" in error.message


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    assert refused(path, tmp_path / "out" / "x.gguf").code == "pickle-refused"


def test_missing_source_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "no" / "x.safetensors", tmp_path / "out" / "x.gguf").code == "file-missing"


@pytest.mark.parametrize(
    ("shapes", "dtype", "code"),
    [
        ({"clf.1.weight": (8, 8, 1, 1), "a": (4,), "b": (4,), "c": (4,)}, "F16", "family-unsupported"),
        ({"nobody.knows": (8, 8), "a": (4,), "b": (4,), "c": (4,)}, "F16", "family-unsupported"),
        ({"all_x_embedder.2-1.weight": (8, 8), "a": (4,), "b": (4,), "c": (4,)}, "F16", "family-unsupported"),
        ({**TINY_SDXL, "middle_block.1.proj_in.wscales": (4,)}, "F16", "precision-unsupported"),
        ({**TINY_SDXL, "middle_block.1.proj_in.weight_scale_2": ()}, "U8", "precision-unsupported"),
        ({name: shape for name, shape in TINY_SDXL.items() if ".3.0." not in name}, "F16", "file-damaged"),
    ],
)
def test_sources_that_have_no_way_are_refused_with_their_code(
    tmp_path: Path, shapes: dict[str, Any], dtype: str, code: str
) -> None:
    source = write_holes(tmp_path / "x.safetensors", shapes, dtype)
    error = refused(source, tmp_path / "out" / "x.gguf")
    assert (error.code, error.exit_code) == (code, 4)


def test_a_finer_target_is_refused_unless_asked_for(tmp_path: Path) -> None:
    values: dict[str, Any] = {name: ("F8_E4M3", np.ones(shape)) for name, shape in TINY_SDXL.items()}
    source = write_values(tmp_path / "x.safetensors", values)
    target = tmp_path / "out" / "y.safetensors"
    assert refused(source, target, "bf16").code == "precision-unsupported"
    assert convert(source, target, "bf16", options=ConversionOptions(allow_finer=True)).state == "done"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["middle_block.1.proj_in.weight", "out.0.weight"])
@pytest.mark.parametrize("label", ["gguf_Q8_0", "gguf_F16", "bf16", "fp16", "fp8_e4m3fn", "fp8_e4m3fn_scaled"])
def test_values_that_are_not_finite_are_named(tmp_path: Path, bad: float, name: str, label: str) -> None:
    values: dict[str, Any] = random_values(TINY_SDXL, "F16")
    values[name][1].reshape(-1)[5] = bad
    values["extra.weight"] = ("F32", np.ones(3))  # so that fp16 is no mere use of the source
    source = write_values(tmp_path / "x.safetensors", values)
    error = refused(source, tmp_path / "out" / "x", label)
    assert error.code == "source-nonfinite"
    assert name in error.message
    assert "at 5" in error.message


def test_values_beyond_half_are_refused_for_fp16_with_a_way_out(tmp_path: Path) -> None:
    values: dict[str, Any] = random_values(TINY_SDXL, "F32")
    values["middle_block.1.proj_in.weight"][1][0, 0] = 1e5
    source = write_values(tmp_path / "x.safetensors", values)
    error = refused(source, tmp_path / "out" / "x.safetensors", "fp16")
    assert (error.code, error.hint) == ("value-range", "convert to bf16")
    assert "middle_block.1.proj_in.weight" in error.message
    assert convert(source, tmp_path / "out" / "x.safetensors", "bf16").state == "done"


def test_block_scale_beyond_half_is_refused(tmp_path: Path) -> None:
    values: dict[str, Any] = random_values(TINY_SDXL, "F32")
    values["middle_block.1.proj_in.weight"][1][0, 0] = 1e8
    error = refused(write_values(tmp_path / "x.safetensors", values), tmp_path / "out" / "x.gguf")
    assert error.code == "value-range"


def test_a_name_taken_by_a_foreign_file_is_left_alone(tmp_path: Path, checkpoint: Path) -> None:
    target = tmp_path / "a.gguf"
    target.write_bytes(b"precious")
    error = refused(checkpoint, target)
    assert (error.code, error.exit_code) == ("target-exists", 1)
    assert target.read_bytes() == b"precious"
    other = write_values(tmp_path / "other.safetensors", random_values(TINY_SDXL, "F32"))
    convert(other, tmp_path / "b.gguf", "Q8_0")
    assert refused(checkpoint, tmp_path / "b.gguf").code == "target-exists"


def test_the_source_is_never_its_own_destination(tmp_path: Path, checkpoint: Path) -> None:
    before = sha256(checkpoint)
    assert refused(checkpoint, checkpoint, "bf16").code == "path-outside"
    assert sha256(checkpoint) == before


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    if os.geteuid() == 0:  # root ignores modes, but not the kernel's own file system
        folder = Path("/sys/luna-test")
    else:
        folder = tmp_path / "locked"
        folder.mkdir(mode=0o500)
    error = refused(checkpoint, folder / "x.gguf")
    assert (error.code, error.exit_code) == ("target-readonly", 1)


def test_too_little_space_is_said_with_both_numbers(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 12_345))
    error = refused(checkpoint, tmp_path / "out.gguf")
    assert error.code == "disk-full"
    assert "12,345" in error.message


def test_a_full_disk_half_way_leaves_nothing(tmp_path: Path, checkpoint: Path) -> None:
    """/dev/full cannot be renamed over, so the limit on file size stands in for a full disk in a process of its own."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000));"
        "from luna_engine.weights import convert; convert(sys.argv[1], sys.argv[2], 'Q8_0')"
    )
    target = tmp_path / "out" / "x.gguf"
    done = subprocess.run([sys.executable, "-c", code, checkpoint, target], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ConversionError" in done.stderr
    assert list(target.parent.iterdir()) == []


def test_cancel_leaves_neither_part_nor_lock(tmp_path: Path, checkpoint: Path) -> None:
    cancel = threading.Event()

    def stop(progress: Progress) -> None:
        if progress.phase == "convert":
            cancel.set()

    with pytest.raises(ConversionError) as caught:
        convert(checkpoint, tmp_path / "out" / "x.gguf", "Q8_0", stop, cancel=cancel)
    assert caught.value.code == "cancelled"
    assert list((tmp_path / "out").iterdir()) == []


def test_a_source_replaced_half_way_is_noticed(tmp_path: Path, checkpoint: Path) -> None:
    def replace(progress: Progress) -> None:
        if progress.phase == "check":
            copy = checkpoint.with_suffix(".new")
            copy.write_bytes(checkpoint.read_bytes())
            copy.replace(checkpoint)

    with pytest.raises(InputFileError) as caught:
        convert(checkpoint, tmp_path / "out" / "x.gguf", "Q8_0", replace)
    assert caught.value.code == "source-changed"
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("lines", [1, 2, 4, 7])
def test_a_killed_process_leaves_no_file_under_the_final_name_and_the_next_one_clears_up(
    tmp_path: Path, lines: int
) -> None:
    name = "input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight"
    source = write_holes(tmp_path / "large.safetensors", {**TINY_SDXL, name: (200_000, 4096)})
    before = source.stat()
    target = tmp_path / "out" / "x.gguf"
    code = (
        "import sys; from luna_engine.weights import convert;"
        "convert(sys.argv[1], sys.argv[2], 'Q8_0', lambda p: print(p.phase, flush=True))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, source, target], stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        for _ in range(lines):
            process.stdout.readline()
        process.kill()
    assert not target.exists()
    assert (source.stat().st_size, source.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    write_holes(source, TINY_SDXL)  # small now, for a quick second run
    assert convert(source, target, "Q8_0").state == "done"
    assert [path.name for path in target.parent.iterdir()] == ["x.gguf"]


def test_parts_and_locks_of_dead_makers_are_cleared(tmp_path: Path, checkpoint: Path) -> None:
    target = tmp_path / "x.gguf"
    (tmp_path / "x.gguf.20200101-dead.part").write_bytes(b"old")

    lock = {"host": socket.gethostname(), "pid": 2**22 + 1, "create_time": 1.0, "job": "dead"}
    (tmp_path / "x.gguf.lock").write_text(json.dumps(lock))
    assert convert(checkpoint, target, "Q8_0").state == "done"
    assert leftovers(tmp_path) == []


def test_two_makers_of_one_file_make_it_once(tmp_path: Path, checkpoint: Path) -> None:
    target = tmp_path / "x.gguf"
    states: list[str] = []
    threads = [
        threading.Thread(target=lambda: states.append(convert(checkpoint, target, "Q8_0", job=f"t{i}").state))  # noqa: B023
        for i in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(states) == ["done", "reused", "reused"]
    assert leftovers(tmp_path) == []


def test_verify_notices_a_flipped_bit_and_a_foreign_source(tmp_path: Path, checkpoint: Path) -> None:
    target = tmp_path / "x.gguf"
    convert(checkpoint, target, "Q8_0")
    assert verify(target).checked == ("structure", "hash", "finite")
    data = bytearray(target.read_bytes())
    data[-500] ^= 1
    target.write_bytes(data)
    with pytest.raises(InputFileError) as caught:
        verify(target)
    assert caught.value.code == "file-damaged"
    with pytest.raises(InputFileError) as caught:
        verify(checkpoint)
    assert caught.value.code == "wrong-type"


@pytest.mark.parametrize("label", ["Q8_0", "fp8_e4m3fn_scaled"])
def test_memory_does_not_grow_with_the_model(tmp_path: Path, label: str) -> None:
    """Peak of the whole process for a model of 20 MB and one of 700 MB, both mostly holes."""
    code = (
        "import sys; from luna_engine.weights.conversion import convert;"
        "print(convert(sys.argv[1], sys.argv[2], sys.argv[3]).peak_rss_bytes)"
    )
    peaks = []
    for rows in (2_000, 85_000):
        name = "input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight"
        source = write_holes(tmp_path / f"{rows}.safetensors", {**TINY_SDXL, name: (rows, 4096)})
        target = tmp_path / "out" / f"{rows}.gguf"
        command = [sys.executable, "-c", code, source, target, label]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
        target.unlink()
    assert peaks[1] - peaks[0] <= 16 * 1024**2, peaks
    assert peaks[1] <= 220 * 1024**2, peaks
