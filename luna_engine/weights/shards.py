"""Models cut into several files, read as one: `<stem>-00001-of-0000N` with or without an index.

All N must be there, each tensor in exactly one, and an index beside them must say the same as they do.
Format: https://huggingface.co/docs/safetensors/metadata_parsing and https://github.com/ggml-org/llama.cpp (gguf-split).
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna_engine.errors import InputFileError
from luna_engine.weights.containers.gguf_header import read_gguf_header
from luna_engine.weights.containers.reading import damaged, opened, read_at
from luna_engine.weights.containers.records import Header, TensorInfo
from luna_engine.weights.containers.safetensors_header import no_duplicates, read_safetensors_header

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MEMBER = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.(?P<suffix>safetensors|gguf)", re.IGNORECASE)
_INDEX = re.compile(r"(?P<stem>.+)\.safetensors\.index(?P<variant>\.\w+)?\.json", re.IGNORECASE)
_MAX_INDEX_BYTES = 100_000_000
_MOST_SHARDS = 10_000
_MOST_NAMED = 8
_SPLIT_KEYS = "split."  # gguf-split's own: of no use in one file


@dataclass(frozen=True, slots=True)
class ShardSet:
    """The files of one model, in order, and its index if there is one. Files may be missing."""

    folder: Path
    stem: str
    names: tuple[str, ...]
    index: Path | None

    @property
    def files(self) -> tuple[Path, ...]:
        """Return the paths of all files that belong to the set."""
        return tuple(self.folder / name for name in self.names)

    @property
    def path(self) -> Path:
        """Return the file that stands for the set: the first that is there, else the index."""
        return next((file for file in self.files if file.exists()), self.index or self.files[0])


def stem_of(path: Path) -> str:
    """Return a source's name without its suffix, an index's, or a shard's number."""
    if (match := _MEMBER.fullmatch(path.name)) is not None:
        return match["stem"]
    if (match := _INDEX.fullmatch(path.name)) is not None:
        return match["stem"] + (match["variant"] or "")
    return path.stem


def shard_set(path: Path) -> ShardSet | None:
    """Return the set that an index or a member belongs to; None for a file of its own.

    Raises:
        InputFileError: ``file-missing`` or ``file-damaged`` if ``path`` is an index that cannot be used.
    """
    if _INDEX.fullmatch(path.name) is not None:
        names = sorted({*_places(path).values()})
        return ShardSet(path.parent, stem_of(path), tuple(names), path)
    match = _MEMBER.fullmatch(path.name)
    if match is None or not 0 < (count := int(match["count"])) <= _MOST_SHARDS:
        return None
    names = [f"{match['stem']}-{number:05}-of-{match['count']}.{match['suffix']}" for number in range(1, count + 1)]
    is_member = path.name in names
    return ShardSet(path.parent, match["stem"], tuple(names), _index_of(path)) if is_member else None


def is_follower(path: Path) -> bool:
    """Tell whether another file stands for the set this one belongs to."""
    if _MEMBER.fullmatch(path.name) is None:
        return False
    found = shard_set(path)
    return found is not None and found.path.name != path.name


def _index_of(member: Path) -> Path | None:
    """Return the index beside a member, if there is one."""
    for file in member.parent.glob("*.json"):
        if _INDEX.fullmatch(file.name) and stem_of(file).casefold() == stem_of(member).casefold():
            return file
    return None


def read_shards(found: ShardSet) -> Header:
    """Read all headers of a set as one.

    Returns:
        A header whose ``parts`` are the files and whose sizes are their sums; each tensor knows its file.

    Raises:
        InputFileError: ``file-missing`` with the list of files; ``file-damaged`` if a tensor is in two files, or the
            index disagrees; whatever the files' own headers raise.
    """
    missing = [file.name for file in found.files if not file.exists()]
    if missing:
        raise InputFileError(
            "file-missing",
            f"{found.stem}: {len(missing)} of {len(found.names)} files are missing: {_listed(missing)}",
            "download them into the same folder",
            file=str(found.folder / missing[0]),
        )
    is_gguf = found.names[0].lower().endswith(".gguf")
    headers = [read_gguf_header(file) if is_gguf else read_safetensors_header(file) for file in found.files]
    tensors = [
        TensorInfo(tensor.name, tensor.dtype, tensor.shape, tensor.offset, tensor.size_bytes, number)
        for number, header in enumerate(headers)
        for tensor in header.tensors
    ]
    _refuse_twice(found, tensors)
    if found.index is not None:
        _check_index(found, found.index, tensors)
    metadata: dict[str, Any] = {}
    for header in headers:
        metadata |= {key: value for key, value in header.metadata.items() if key not in metadata}
    return Header(
        found.path,
        headers[0].container,
        sum(header.size_bytes for header in headers),
        sum(header.header_bytes for header in headers),
        hashlib.sha256("\n".join(header.sha256 for header in headers).encode()).hexdigest(),
        {key: value for key, value in metadata.items() if not key.startswith(_SPLIT_KEYS)},
        tuple(tensors),
        found.files,
    )


def _refuse_twice(found: ShardSet, tensors: Sequence[TensorInfo]) -> None:
    home: dict[str, int] = {}
    for tensor in tensors:
        if (other := home.setdefault(tensor.name, tensor.part)) != tensor.part:
            raise damaged(
                found.path, f"{tensor.name} is in two files: {found.names[other]} and {found.names[tensor.part]}"
            )


def _check_index(found: ShardSet, index: Path, tensors: Sequence[TensorInfo]) -> None:
    record = _record(index)
    places = _places(index, record)
    if strange := sorted({*places.values()} ^ {*found.names}):
        raise damaged(index, f"it and the folder name different files: {_listed(strange)}")
    there = {tensor.name: found.names[tensor.part] for tensor in tensors}
    if lost := sorted(places.keys() - there.keys()):
        raise damaged(index, f"{len(lost)} tensors that it names are in no file: {_listed(lost)}")
    if unknown := sorted(there.keys() - places.keys()):
        raise damaged(index, f"it does not name {len(unknown)} tensors of the files: {_listed(unknown)}")
    if moved := sorted(name for name, place in places.items() if there[name] != place):
        raise damaged(index, f"{moved[0]} is in {there[moved[0]]}, not in {places[moved[0]]} as it says")
    details = record.get("metadata")
    total = details.get("total_size") if isinstance(details, dict) else None
    held = sum(tensor.size_bytes for tensor in tensors)
    if isinstance(total, (int, float)) and int(total) != held:
        raise damaged(index, f"it promises {int(total):,} bytes of tensors, the files hold {held:,}")


def _places(index: Path, record: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Return the file of each tensor as the index says; files are in its own folder and nowhere else."""
    places = (record if record is not None else _record(index)).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise damaged(index, "it has no weight_map")
    for name, file in places.items():
        if not isinstance(file, str) or Path(file).name != file or "\\" in file or not file.endswith(".safetensors"):
            raise damaged(index, f"{name} is said to be in {file!r}, which is no safetensors file beside it")
    return places


def _record(index: Path) -> dict[str, Any]:
    with opened(index) as (file, size):
        if size > _MAX_INDEX_BYTES:
            raise damaged(index, f"an index of {size:,} bytes")
        text = read_at(file, 0, size)
    try:
        record = json.loads(text.decode("utf-8"), object_pairs_hook=no_duplicates)
    except (ValueError, RecursionError) as error:
        raise damaged(index, f"it is not the JSON of an index: {error}") from error
    if not isinstance(record, dict):
        raise damaged(index, "it is no JSON object")
    return record


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
