"""Parts of model files: where a text encoder or VAE lies in a file, its standalone names, its content hash.

A part found inside a checkpoint and the same part alone in a file have the same names and the same hash here. Only
the wanted component's bytes are read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

CONVERT_HINT = "convert it first: luna weights convert FILE --to fp16"
COMFY_HINT = "a daemon with --backend comfy reads it"
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True, slots=True)
class PartKind:
    """One kind of part and how files carry it.

    Attributes:
        role: its name in a set.
        label: for messages.
        marker: the standalone name by which it is recognised.
        shapes: what the marker's shape may be; anything else is another model.
        prefixes: what stands before the standalone names, the most specific first.
    """

    role: str
    label: str
    marker: str
    shapes: tuple[tuple[int, ...], ...]
    prefixes: tuple[str, ...]


CLIP_L = PartKind(
    "l",
    "a CLIP-L text encoder",
    "text_model.encoder.layers.0.self_attn.q_proj.weight",
    ((768, 768),),
    (
        "cond_stage_model.transformer.",
        "conditioner.embedders.0.transformer.",
        "text_encoders.clip_l.transformer.",
        "clip_l.transformer.",
        "",
    ),
)
VAE = PartKind(
    "vae",
    "an SD or SDXL VAE",
    "decoder.conv_in.weight",
    ((512, 4, 3, 3),),
    ("first_stage_model.", "vae.", ""),
)
KINDS: Mapping[str, PartKind] = {kind.role: kind for kind in (CLIP_L, VAE)}

# Names that belong to a part; all else under its prefix (position ids, EMA, loss weights) is not weights.
_BELONGS: Mapping[str, re.Pattern[str]] = {
    "l": re.compile(r"text_model\.(?!embeddings\.position_ids$)|text_projection\.weight$"),
    "vae": re.compile(r"(encoder|decoder|quant_conv|post_quant_conv)\."),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor as a file stores it."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an opened file: standalone name → name in the file.

    Attributes:
        kind: what it is.
        names: standalone name → stored name, sorted.
        entries: standalone name → dtype and shape.
        read: gives the tensor of a stored name.
        source: for messages; never a path of the user's machine.
    """

    kind: PartKind
    names: Mapping[str, str]
    entries: Mapping[str, Entry]
    read: Callable[[str], torch.Tensor]
    source: str

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor by its standalone name."""
        return self.read(self.names[name])

    def content(self, check: Callable[[], None]) -> str:
        """Return the SHA-256 over name, dtype, shape and bytes of every tensor, in name order."""
        digest = hashlib.sha256()
        for name, entry in self.entries.items():
            check()
            feed(digest, name, entry, byte_view(self.tensor(name)))
        return digest.hexdigest()


def feed(digest: Any, name: str, entry: Entry, data: memoryview) -> None:
    """Add one tensor to a content hash."""
    shape = ",".join(map(str, entry.shape))
    digest.update(f"{name}\0{entry.dtype}\0{shape}\0".encode())
    digest.update(data)


def byte_view(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a CPU tensor in C order, without a copy where it is contiguous."""
    import torch

    flat = tensor.detach().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")


class OpenFile:
    """A safetensors file, opened and mapped; tensors are read when asked for.

    Raises:
        DaemonError: ``file-damaged`` for a file that is not what its header says, ``wrong-type`` for a pickle or
            anything else that is no safetensors, ``model-unsupported`` for GGUF.
    """

    def __init__(self, path: Path, source: str) -> None:
        from safetensors import SafetensorError, safe_open

        _refuse_other_formats(path, source)
        self.source = source
        try:
            self._file = safe_open(path, framework="pt", device="cpu")
            self.entries = {name: self._entry(name) for name in self._file.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, OSError, ValueError) as error:
            raise damaged(source, error) from error

    def _entry(self, name: str) -> Entry:
        part = self._file.get_slice(name)
        return Entry(part.get_dtype(), tuple(part.get_shape()))

    def read(self, stored: str) -> torch.Tensor:
        """Read one tensor by its stored name."""
        from safetensors import SafetensorError

        try:
            tensor: torch.Tensor = self._file.get_tensor(stored)
        except (SafetensorError, OSError, ValueError) as error:
            raise damaged(self.source, error) from error
        return tensor

    def find(self, role: str) -> Part | None:
        """Return the part for a role, or None if the file has none of that kind."""
        return find_part(role, self.entries, self.read, self.source)


def damaged(source: str, error: Exception) -> DaemonError:
    """Return the error for a file that cannot be read to its end."""
    return DaemonError(
        "file-damaged", f"{source} is no intact safetensors file: {error}", "copy or download the file again"
    )


def _refuse_other_formats(path: Path, source: str) -> None:
    with path.open("rb") as file:
        head = file.read(9)
    if head.startswith(b"GGUF"):
        raise DaemonError(
            "model-unsupported", f"{source} is a GGUF file; the native backend reads safetensors", COMFY_HINT
        )
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04")):
        raise DaemonError("wrong-type", f"{source} is a pickle, which may run code; it is not opened", CONVERT_HINT)


def find_part(role: str, entries: Mapping[str, Entry], read: Callable[[str], torch.Tensor], source: str) -> Part | None:
    """Look for the part of a role among a file's tensors.

    Raises:
        DaemonError: ``model-unsupported`` for storage types that the native backend does not compute with.
    """
    kind = KINDS[role]
    for prefix in kind.prefixes:
        stored = {_standalone(name, prefix): name for name in entries if name.startswith(prefix)}
        marker = stored.get(kind.marker)
        if marker is None or entries[marker].shape not in kind.shapes:
            continue
        names = {name: stored[name] for name in sorted(stored) if _BELONGS[role].match(name)}
        part = Part(kind, names, {name: entries[old] for name, old in names.items()}, read, source)
        _require_floats(part, stored)
        return part
    return None


def _standalone(name: str, prefix: str) -> str:
    """Cut the prefix; early SD 1.x conversions left out ``text_model.``."""
    bare = name.removeprefix(prefix)
    if prefix == "cond_stage_model.transformer." and bare.startswith(("embeddings.", "encoder.", "final_layer_norm.")):
        return f"text_model.{bare}"
    return bare


def _require_floats(part: Part, stored: Mapping[str, str]) -> None:
    odd = next((name for name, entry in part.entries.items() if entry.dtype not in _FLOATS), None)
    scaled = next((name for name in stored if name.endswith((".comfy_quant", "scaled_fp8", ".scale_weight"))), None)
    if odd is None and scaled is None:
        return
    what = f"{odd} is {part.entries[odd].dtype}" if odd is not None else f"it holds {scaled}"
    raise DaemonError(
        "model-unsupported", f"{part.source} is quantised ({what}); the native backend reads floats", COMFY_HINT
    )


def require_complete(part: Part, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Check that a part has every tensor of its architecture in the right shape.

    Args:
        part: the part.
        expected: standalone name → shape; trailing axes of size 1 in the file are fine (1×1 convolutions).

    Raises:
        DaemonError: ``file-damaged`` with the first missing or misshapen tensor.
    """
    missing = [name for name in expected if name not in part.entries]
    if missing:
        raise DaemonError(
            "file-damaged",
            f"{part.source}: {part.kind.label} lacks {len(missing)} of {len(expected)} tensors, first {missing[0]}",
            "copy or download the file again",
            details={"missing": missing[:100], "missing_total": len(missing)},
        )
    for name, shape in expected.items():
        found = part.entries[name].shape
        if _squeezed(found) != _squeezed(shape):
            raise DaemonError(
                "wrong-type",
                f"{part.source}: {name} has shape {list(found)}, {part.kind.label} needs {list(shape)}",
                "give a file of the family that was asked for",
            )


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape
