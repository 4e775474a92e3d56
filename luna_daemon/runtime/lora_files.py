"""LoRAs from files and blobs: read, judged, named by their content, put on the device."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from luna_daemon.lora_naming import Meaning, is_for_text, meaning, weight_of
from luna_daemon.patches import FIELDS, Patch, content_hash, invalid, unpack
from luna_daemon.runtime.lora import LoraEntry, is_low_rank
from luna_daemon.runtime.parts import OpenFile
from luna_daemon.runtime.patch_shapes import check
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

_ALPHA = "alpha"


@dataclass(frozen=True, slots=True)
class ReadLora:
    """A LoRA as read.

    Attributes:
        entry: the text encoders' share.
        unknown: names meant for a text encoder that were not understood.
    """

    entry: LoraEntry
    unknown: tuple[str, ...] = ()


def from_blob(blob: memoryview, announced: str, device: torch.device) -> ReadLora:
    """Read what a client sent.

    Raises:
        DaemonError: ``lora-invalid``, also where the content is not what was announced.
    """
    return ReadLora(_entry(unpack(blob), announced, None, device))


def from_file(
    path: Path,
    file_id: str,
    announced: str | None,
    cap_bytes: int,
    device: torch.device,
    check_stop: Callable[[], None],
) -> ReadLora:
    """Read the text encoders' share of a LoRA file.

    Args:
        path: the file.
        file_id: for messages and lists.
        announced: the content hash that it must have, None for any.
        cap_bytes: what may be read at most.
        device: where the entry goes.
        check_stop: raises on cancel or deadline; called between tensors.

    Raises:
        DaemonError: ``lora-invalid`` for a damaged file or unsound tensors, ``lora-too-large``.
    """
    try:
        with OpenFile(path, file_id) as file:
            wanted, unknown = _sort(file.entries)
            size = sum(file.size_bytes(name) for names in wanted.values() for name in names)
            if size > cap_bytes:
                raise DaemonError("lora-too-large", f"{file_id} has {size:,} bytes for text encoders", None)
            patches = []
            for stem, names in wanted.items():
                check_stop()
                patches += _patches(stem, {name: (what, file.read(name)) for name, what in names.items()}, file_id)
    except DaemonError as error:
        if error.code in {"file-damaged", "wrong-type", "model-unsupported"}:
            raise DaemonError("lora-invalid", error.message, error.hint) from error
        raise
    return ReadLora(_entry(patches, announced, file_id, device), unknown)


def _sort(names: Iterable[str]) -> tuple[dict[str, dict[str, Meaning]], tuple[str, ...]]:
    """Group the names of a file by the weight they are for; return those and the ones not understood."""
    wanted: dict[str, dict[str, Meaning]] = {}
    unknown: list[str] = []
    for name in names:
        if not is_for_text(name):
            continue
        found = meaning(name)
        weight = None if found is None else weight_of(found[0])
        if found is None or weight is None:
            unknown.append(name)
        else:
            wanted.setdefault(weight, {})[name] = found[1]
    return wanted, tuple(unknown)


def _patches(weight: str, given: Mapping[str, tuple[Meaning, torch.Tensor]], source: str) -> list[Patch]:
    """Make the patches of one weight and its bias out of the tensors of a file."""
    alpha: float | None = None
    shared: dict[str, torch.Tensor] = {}
    kinds: dict[tuple[str, bool], dict[str, torch.Tensor]] = {}
    for what, tensor in given.values():
        if what.field == _ALPHA:
            if tensor.numel() != 1:
                raise invalid(f"{source}: alpha of {weight} has {list(tensor.shape)}")
            alpha = float(tensor)
        elif what.kind is None:
            shared[what.field] = tensor.unsqueeze(1) if tensor.ndim == 1 else tensor
        else:
            kinds.setdefault((what.kind, what.is_bias), {})[what.field] = tensor
    if not kinds:
        raise invalid(f"{source}: {weight} has alpha or dora_scale and nothing that they are for")
    made = []
    for (kind, is_bias), tensors in kinds.items():
        if kind == "oft" and tensors.get("blocks") is not None and tensors["blocks"].ndim == 4:
            kind = "boft"  # noqa: PLW2901 - both are written under one name and told apart by their dimensions
        extra = {name: tensor for name, tensor in shared.items() if name in FIELDS[kind][1]}
        target = f"{weight}.bias" if is_bias else f"{weight}.weight"
        scaled = kind not in {"diff", "set"}
        made.append(Patch(target, kind, {**tensors, **extra}, alpha if scaled else None))
    return made


def _entry(patches: Iterable[Patch], announced: str | None, source: str | None, device: torch.device) -> LoraEntry:
    kept = tuple(patches)
    for patch in kept:
        check(patch)
    found = content_hash(kept)
    if announced is not None and announced != found:
        raise invalid(f"the content hash is {found}, announced was {announced}")
    return LoraEntry(found, tuple(_placed(patch, device) for patch in kept), source)


def _placed(patch: Patch, device: torch.device) -> Patch:
    """Put a patch on the device; what runs beside the layers is upcast once, not in every batch."""
    dtype = torch.float32 if is_low_rank(patch) else None
    tensors = {name: tensor.to(device, dtype or tensor.dtype) for name, tensor in patch.tensors.items()}
    return dataclasses.replace(patch, tensors=tensors)
