"""Models in several files convert as one; a set with a fault is refused with the names at fault."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
from safetensors import safe_open

from luna_engine.errors import InputFileError
from luna_engine.settings import Settings
from luna_engine.weights import convert, inspect, plan, provenance, verify
from luna_engine.weights.catalog import scan
from luna_engine.weights.headers import read_header
from luna_engine.weights.naming import destination_of, root_id
from luna_engine.weights.precisions import find_precision
from luna_engine.weights.shards import stem_of
from tests.synthetic_models import TINY_SDXL, random_values, write_values

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

COUNT = 3


def shard_name(number: int, count: int = COUNT) -> str:
    return f"big-{number:05}-of-{count:05}.safetensors"


def cut(values: dict[str, Any]) -> list[dict[str, Any]]:
    names = list(values)
    return [{name: values[name] for name in names[number::COUNT]} for number in range(COUNT)]


def write_index(folder: Path, parts: list[dict[str, Any]], **changes: Any) -> Path:
    total = sum(2 * value.size for part in parts for _, value in part.values())
    places = {name: shard_name(number) for number, part in enumerate(parts, 1) for name in part}
    record = {"metadata": {"total_size": total}, "weight_map": places, **changes}
    path = folder / "big.safetensors.index.json"
    path.write_text(json.dumps(record), "utf-8")
    return path


@pytest.fixture
def values() -> dict[str, Any]:
    return random_values(TINY_SDXL)


@pytest.fixture
def folder(tmp_path: Path, values: dict[str, Any]) -> Path:
    """Write a model in three files with their index, and beside it the same in one file."""
    made = tmp_path / "diffusion_models" / "big"
    for number, part in enumerate(cut(values), 1):
        write_values(made / shard_name(number), part)
    write_index(made, cut(values))
    write_values(tmp_path / "whole" / "big.safetensors", values)
    return made


def tensors(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".gguf":
        return {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}
    with safe_open(path, "pt") as file:  # NumPy has no bf16
        return {name: file.get_tensor(name).float().numpy() for name in file.keys()}  # noqa: SIM118 - no mapping


@pytest.mark.parametrize("given", [shard_name(1), shard_name(2), "big.safetensors.index.json"])
@pytest.mark.parametrize(("label", "suffix"), [("gguf_Q8_0", "gguf"), ("bf16", "safetensors")])
def test_a_set_gives_what_the_whole_file_gives(
    folder: Path, tmp_path: Path, given: str, label: str, suffix: str
) -> None:
    ours, whole = tmp_path / f"ours.{suffix}", tmp_path / f"whole.{suffix}"
    report = convert(folder / given, ours, label)
    expected = convert(tmp_path / "whole" / "big.safetensors", whole, label)
    assert (report.state, report.data_sha256, report.source_sha256) == (
        "done", expected.data_sha256, expected.source_sha256,
    )  # fmt: skip
    left, right = tensors(ours), tensors(whole)
    assert left.keys() == right.keys()
    assert all(np.array_equal(left[name], right[name]) for name in left)
    assert verify(ours, folder / given).checked[-1] == "values"


def test_the_set_is_one_source_with_one_name_size_and_state(folder: Path, tmp_path: Path) -> None:
    found = inspect(folder / shard_name(2))
    assert (found.family, found.path.name) == ("sdxl", shard_name(1))
    assert found.size_bytes == sum((folder / shard_name(number)).stat().st_size for number in range(1, COUNT + 1))
    assert stem_of(folder / shard_name(2)) == stem_of(folder / "big.safetensors.index.json") == "big"
    for given in (shard_name(3), "big.safetensors.index.json"):
        target = destination_of(folder / given, find_precision("gguf_Q8_0"), None, Settings())
        assert target == tmp_path / "unet" / "optimized" / "big" / "big_Q8_0.gguf"
    root = tmp_path / "diffusion_models"
    made = convert(folder / shard_name(1), tmp_path / "unet" / "optimized" / "big" / "big_Q8_0.gguf", "gguf_Q8_0")
    stamp = provenance.read(read_header(made.destination).metadata)
    assert stamp is not None
    assert (stamp.stamp.path, stamp.stamp.root_id) == (f"big/{shard_name(1)}", root_id(root))
    assert stamp.stamp.size_bytes == found.size_bytes
    (row,) = scan([root], [tmp_path / "unet" / "optimized"])
    assert (row.size_bytes, [variant.state for variant in row.variants]) == (found.size_bytes, ["current"])
    last = folder / shard_name(COUNT)
    os.utime(last, ns=(1, last.stat().st_mtime_ns + 10**9))
    (row,) = scan([root], [tmp_path / "unet" / "optimized"])
    assert [variant.state for variant in row.variants] == ["unsure"]


def test_a_set_at_the_target_is_joined_not_used_as_it_is(folder: Path, tmp_path: Path) -> None:
    assert not plan(folder / shard_name(1), "fp16").is_at_target
    assert convert(folder / shard_name(1), tmp_path / "one.safetensors", "fp16").state == "done"


def test_a_set_without_index_is_enough(folder: Path, tmp_path: Path) -> None:
    (folder / "big.safetensors.index.json").unlink()
    assert convert(folder / shard_name(2), tmp_path / "one.safetensors", "bf16").state == "done"


def test_a_change_of_any_shard_while_converting_is_noticed(folder: Path, tmp_path: Path) -> None:
    last = folder / shard_name(COUNT)

    def touch(progress: Any) -> None:
        if progress.phase == "check":
            os.utime(last, ns=(1, 1))

    with pytest.raises(InputFileError) as caught:
        convert(folder / shard_name(1), tmp_path / "out.safetensors", "bf16", touch)
    assert caught.value.code == "source-changed"
    assert not list(tmp_path.glob("out*"))


def _drop_shard(folder: Path, _values: dict[str, Any]) -> None:
    (folder / shard_name(2)).unlink()


def _drop_first(folder: Path, _values: dict[str, Any]) -> None:
    (folder / shard_name(1)).unlink()


def _truncate(folder: Path, _values: dict[str, Any]) -> None:
    shard = folder / shard_name(2)
    os.truncate(shard, shard.stat().st_size - 1)


def _twice(folder: Path, values: dict[str, Any]) -> None:
    write_values(folder / shard_name(2), {**cut(values)[1], "out.0.weight": values["out.0.weight"]})


def _not_in_a_file(folder: Path, values: dict[str, Any]) -> None:
    parts = cut(values)
    parts[0]["ghost.weight"] = values["out.0.weight"]
    write_index(folder, parts)


def _not_in_the_index(folder: Path, values: dict[str, Any]) -> None:
    parts = cut(values)
    del parts[2][next(iter(parts[2]))]
    write_index(folder, parts)


def _elsewhere(folder: Path, values: dict[str, Any]) -> None:
    parts = cut(values)
    name = next(iter(parts[2]))
    parts[0][name] = parts[2].pop(name)
    write_index(folder, parts)


def _another_size(folder: Path, values: dict[str, Any]) -> None:
    write_index(folder, cut(values), metadata={"total_size": 12})


def _of_another_release(folder: Path, values: dict[str, Any]) -> None:
    name = next(iter(cut(values)[1]))
    write_values(folder / shard_name(2), {**cut(values)[1], name: ("F32", cut(values)[1][name][1])})


def _climbing(folder: Path, values: dict[str, Any]) -> None:
    write_index(folder, cut(values), weight_map={"out.0.weight": "../whole/big.safetensors"})


def _one_more(folder: Path, values: dict[str, Any]) -> None:
    places = {name: shard_name(1, 4) for name in values}
    write_index(folder, cut(values), weight_map=places)


def _no_json(folder: Path, _values: dict[str, Any]) -> None:
    (folder / "big.safetensors.index.json").write_text('{"weight_map": {"a": "x", "a": "y"}}')


@pytest.mark.parametrize(
    ("spoil", "code", "words"),
    [
        (_drop_shard, "file-missing", f"1 of 3 files are missing: {shard_name(2)}"),
        (_drop_first, "file-missing", f"1 of 3 files are missing: {shard_name(1)}"),
        (_truncate, "file-damaged", "are promised"),
        (_twice, "file-damaged", "out.0.weight is in two files"),
        (_not_in_a_file, "file-damaged", "1 tensors that it names are in no file: ghost.weight"),
        (_not_in_the_index, "file-damaged", "does not name 1 tensors"),
        (_elsewhere, "file-damaged", "not in big-00001"),
        (_another_size, "file-damaged", "promises 12 bytes"),
        (_of_another_release, "file-damaged", "bytes of tensors, the files hold"),
        (_climbing, "file-damaged", "no safetensors file beside it"),
        (_one_more, "file-damaged", "name different files"),
        (_no_json, "file-damaged", "occurs twice"),
    ],
)
def test_a_set_with_a_fault_is_refused_with_the_names(
    folder: Path,
    values: dict[str, Any],
    tmp_path: Path,
    spoil: Callable[[Path, dict[str, Any]], None],
    code: str,
    words: str,
) -> None:
    spoil(folder, values)
    for given in (shard_name(3), "big.safetensors.index.json"):
        with pytest.raises(InputFileError) as caught:
            convert(folder / given, tmp_path / "out.safetensors", "bf16")
        # Under an index that names other files the index's own word counts.
        assert caught.value.code == (code if given == shard_name(3) or spoil is not _one_more else "file-missing")
        assert words in caught.value.message or spoil is _one_more
    assert not list(tmp_path.glob("out*"))


def test_gguf_shards_are_one_source_too(tmp_path: Path, values: dict[str, Any]) -> None:
    whole = tmp_path / "whole.safetensors"
    write_values(whole, values)
    for number, part in enumerate(cut(values), 1):
        writer = gguf.GGUFWriter(tmp_path / f"m-{number:05}-of-00003.gguf", "sdxl")
        writer.add_uint16("split.no", number - 1)
        for name, (_, array) in part.items():
            writer.add_tensor(name, array.astype(np.float16))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    convert(tmp_path / "m-00002-of-00003.gguf", tmp_path / "ours.gguf", "gguf_Q8_0")
    convert(whole, tmp_path / "theirs.gguf", "gguf_Q8_0")
    left, right = tensors(tmp_path / "ours.gguf"), tensors(tmp_path / "theirs.gguf")
    assert left.keys() == right.keys()
    assert all(np.array_equal(left[name], right[name]) for name in left)
    assert "split.no" not in inspect(tmp_path / "m-00001-of-00003.gguf").metadata
