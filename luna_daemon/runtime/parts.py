"""Parts of model files: where a text encoder or VAE lies in a file, its standalone names, its content hash.

A part found inside a checkpoint and the same part alone in a file have the same names and the same hash here. Only
the wanted component's bytes are read.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from luna_daemon.progress import advance
from luna_daemon.runtime import open_clip
from luna_engine.errors import DaemonError, InputFileError
from luna_engine.weights.containers.safetensors_header import read_safetensors_header
from luna_engine.weights.inspection import inspect_header

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import torch
    from typing_extensions import Self

    from luna_engine.weights.containers.records import Header

CONVERT_HINT = "convert it first: luna weights convert FILE --to fp16"
SUPPORT_HINT = (
    "daemons serve fp16, bf16 and fp32 models of sd15, sdxl, sd3, flux and z-image, and T5 and Qwen3 in plain fp8; "
    "keep other models in ComfyUI itself"
)
COPY_HINT = "copy or download the file again"
TORCH_DTYPES: Mapping[str, str] = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
FLOATS: Mapping[str, int] = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Types that every part may have → bytes."""
SMALL_FLOATS: Mapping[str, int] = {"F8_E4M3": 1, "F8_E5M2": 1}
"""Types that large text encoders may have besides, without scales → bytes."""
_QUANTISED = (".comfy_quant", "scaled_fp8", ".scale_weight", ".weight_scale")
QUANTISATION = "_quantization_metadata"
"""Where a file's metadata says how its layers are quantised."""
_OF_THE_FILE = ("scaled_fp8", "spiece_model")
"""Tensors that say something of a whole text encoder: how it is quantised, its vocabulary."""
LARGE_ROLES = frozenset({"t5xxl", "qwen3_4b"})


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
CLIP_G = PartKind(
    "g",
    "a CLIP-G text encoder",
    CLIP_L.marker,
    ((1280, 1280),),
    (
        "conditioner.embedders.1.model.",
        "conditioner.embedders.0.model.",  # the refiner's only encoder
        "text_encoders.clip_g.transformer.",
        "clip_g.transformer.",
        "",
    ),
)
VAE = PartKind(
    "vae",
    "an image VAE of 4 or 16 channels",
    "decoder.conv_in.weight",
    ((512, 4, 3, 3), (512, 16, 3, 3)),
    ("first_stage_model.", "vae.", ""),
)
T5_XXL = PartKind(
    "t5xxl",
    "a T5-XXL text encoder",
    "encoder.block.0.layer.0.SelfAttention.q.weight",
    ((4096, 4096),),
    ("text_encoders.t5xxl.transformer.", "t5xxl.transformer.", ""),
)
QWEN3_4B = PartKind(
    "qwen3_4b",
    "a Qwen3-4B text encoder",
    "model.layers.0.self_attn.q_proj.weight",
    ((4096, 2560),),
    ("text_encoders.qwen3_4b.transformer.", "qwen3_4b.transformer.", ""),
)
KINDS: Mapping[str, PartKind] = {kind.role: kind for kind in (CLIP_L, CLIP_G, T5_XXL, QWEN3_4B, VAE)}

_TEXT = re.compile(r"text_model\.(?!embeddings\.position_ids$)|text_projection\.weight$")
# Names that belong to a part; all else under its prefix (position ids, EMA, loss weights) is not weights.
_BELONGS: Mapping[str, re.Pattern[str]] = {
    "l": _TEXT,
    "g": _TEXT,
    "t5xxl": re.compile(r"shared\.weight$|encoder\.(block|final_layer_norm)\."),
    "qwen3_4b": re.compile(r"model\.(embed_tokens|layers|norm)\."),
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
        is_of_sdxl: whether an SDXL checkpoint's names stand beside it.
        is_whole: whether it is all of a file whose architecture is not known here.
        metadata: of the file; some quantised ones say there how to read them.
    """

    kind: PartKind
    names: Mapping[str, str]
    entries: Mapping[str, Entry]
    read: Callable[[str], torch.Tensor]
    source: str
    is_of_sdxl: bool = False
    is_whole: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def elements(self) -> int:
        """Number of weights."""
        return sum(math.prod(entry.shape) for entry in self.entries.values())

    @property
    def size_bytes(self) -> int:
        """Bytes of all weights as they are stored."""
        sizes = {**FLOATS, **SMALL_FLOATS}
        return sum(math.prod(entry.shape) * sizes.get(entry.dtype, 1) for entry in self.entries.values())

    @property
    def latent_channels(self) -> int | None:
        """Channels of a VAE's latent; None for other parts."""
        marker = self.entries.get(VAE.marker)
        return None if marker is None else marker.shape[1]

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor by its standalone name."""
        return self.read(self.names[name])

    def read_all(self, check: Callable[[], None]) -> dict[str, torch.Tensor]:
        """Read every tensor; ``check`` is called before each."""
        tensors = {}
        for name in self.names:
            check()
            tensors[name] = self.tensor(name)
            advance(tensors[name].nbytes)
        return tensors

    def content(self, check: Callable[[], None]) -> str:
        """Return the SHA-256 over name, dtype, shape and bytes of every tensor, in name order, and the quantisation."""
        digest = hashlib.sha256()
        for name, entry in self.entries.items():
            check()
            data = byte_view(self.tensor(name))
            feed(digest, name, entry, data)
            advance(data.nbytes)
        digest.update(str(self.metadata.get(QUANTISATION, "")).encode())
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
    if not flat.numel():
        return memoryview(b"")
    # numpy's stubs know no buffer protocol before Python 3.12.
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]


class OpenFile:
    """A safetensors file, its header checked; tensors are read when asked for.

    It is read, never mapped: a mapped file that another program truncates kills the process.

    Raises:
        DaemonError: ``file-damaged`` for a file that is not what its header says, ``wrong-type`` for a pickle,
            ``model-unsupported`` for GGUF.
    """

    def __init__(self, path: Path, source: str) -> None:
        self.source = source
        self._file = path.open("rb", buffering=0)
        try:
            self._header = self._read_header(path)
        except BaseException:
            self._file.close()
            raise
        self._infos = {info.name: info for info in self._header.tensors}
        self.entries = {name: Entry(info.dtype, info.shape) for name, info in self._infos.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _read_header(self, path: Path) -> Header:
        head = self._file.read(8)
        if head.startswith(b"GGUF"):
            raise DaemonError(
                "model-unsupported", f"{self.source} is GGUF; the native backend reads safetensors", SUPPORT_HINT
            )
        if head.startswith(_PICKLES):
            raise DaemonError(
                "wrong-type", f"{self.source} is a pickle, which may run code; it is not opened", CONVERT_HINT
            )
        try:
            return read_safetensors_header(path)
        except InputFileError as error:
            raise DaemonError(error.code, f"{self.source}: {error.message}", error.hint) from error

    def size_bytes(self, stored: str) -> int:
        """Return the bytes of one tensor."""
        return self._infos[stored].size_bytes

    def read(self, stored: str) -> torch.Tensor:
        """Read one tensor by its stored name."""
        import torch

        info = self._infos[stored]
        raw = torch.empty(info.size_bytes, dtype=torch.uint8)
        view = byte_view(raw)
        self._file.seek(info.offset)
        done = 0
        while done < info.size_bytes:
            count = self._file.readinto(view[done:])
            if not count:
                raise DaemonError(
                    "file-damaged", f"{self.source} ends inside {stored}; it was cut short while it was read", COPY_HINT
                )
            done += count
        return raw.view(getattr(torch, TORCH_DTYPES[info.dtype])).reshape(info.shape)

    @property
    def family(self) -> str | None:
        """The family of the file's diffusion part, None without one."""
        return inspect_header(self._header).family

    def description(self) -> str:
        """Say what the file is, for messages."""
        return f"{inspect_header(self._header).name} data"

    def find(self, role: str) -> Part | None:
        """Return the part for a role, or None if the file has none of that kind."""
        part = find_part(role, self.entries, self.read, self.source)
        return None if part is None else replace(part, metadata=self._header.metadata)

    def whole(self, role: str) -> Part:
        """Return everything in the file as one part, for a backend that finds its own way in it."""
        kind = KINDS.get(role) or PartKind(role, f"a part {role!r}", "", (), ())
        names = {name: name for name in sorted(self.entries)}
        entries = {name: self.entries[name] for name in names}
        return Part(kind, names, entries, self.read, self.source, is_whole=True, metadata=self._header.metadata)


def find_part(role: str, entries: Mapping[str, Entry], read: Callable[[str], torch.Tensor], source: str) -> Part | None:
    """Look for the part of a role among a file's tensors, quantised or not (`require_floats`)."""
    kind = KINDS[role]
    for prefix in kind.prefixes:
        stored = {_standalone(name, prefix): name for name in entries if name.startswith(prefix)}
        if role == "g" and open_clip.MARKER in stored:
            return _open_clip_part(kind, stored, entries, read, source)
        marker = stored.get(kind.marker)
        if marker is None or entries[marker].shape not in kind.shapes:
            continue
        names = {name: stored[name] for name in sorted(stored) if _BELONGS[role].match(name) or name in _OF_THE_FILE}
        is_of_sdxl = any(name.startswith("conditioner.") for name in entries)
        return Part(kind, names, {name: entries[old] for name, old in names.items()}, read, source, is_of_sdxl)
    return None


def _open_clip_part(
    kind: PartKind,
    stored: Mapping[str, str],
    entries: Mapping[str, Entry],
    read: Callable[[str], torch.Tensor],
    source: str,
) -> Part:
    views = open_clip.standalone_views(stored)
    names = sorted(views)
    seen = {
        name: Entry(entries[views[name].stored].dtype, views[name].shape(entries[views[name].stored].shape))
        for name in names
    }
    is_of_sdxl = any(name.startswith("conditioner.") for name in entries)
    return Part(kind, dict(zip(names, names, strict=True)), seen, open_clip.reader(views, read), source, is_of_sdxl)


def _standalone(name: str, prefix: str) -> str:
    """Cut the prefix; early SD 1.x conversions left out ``text_model.``."""
    bare = name.removeprefix(prefix)
    if prefix == "cond_stage_model.transformer." and bare.startswith(("embeddings.", "encoder.", "final_layer_norm.")):
        return f"text_model.{bare}"
    return bare


def is_quantised(part: Part) -> bool:
    """Tell whether a part's numbers are not simply the values of its tensors."""
    return _odd_one(part) is not None


def require_floats(part: Part) -> None:
    """Check that the native backend computes with a part's types.

    Raises:
        DaemonError: ``model-unsupported``.
    """
    odd = _odd_one(part)
    if odd is not None:
        raise DaemonError(
            "model-unsupported", f"{part.source} is quantised ({odd}); the native backend reads floats", SUPPORT_HINT
        )


def _odd_one(part: Part) -> str | None:
    known = {**FLOATS, **SMALL_FLOATS} if part.kind.role in LARGE_ROLES else FLOATS
    if QUANTISATION in part.metadata:
        return f"its metadata has {QUANTISATION}"
    scaled = next((name for name in part.names if name.endswith(_QUANTISED)), None)
    if scaled is not None:
        return f"it holds {scaled}"
    weights = (name for name in part.entries if name not in _OF_THE_FILE)
    odd = next((name for name in weights if part.entries[name].dtype not in known), None)
    return None if odd is None else f"{odd} is {part.entries[odd].dtype}"


def require_complete(part: Part, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Check that a part has every tensor of its architecture in the right shape.

    Args:
        part: the part.
        expected: standalone name → shape; trailing axes of size 1 in the file are fine (convolutions of size 1).

    Raises:
        DaemonError: ``file-damaged`` with the first missing or misshapen tensor.
    """
    missing = [name for name in expected if name not in part.entries]
    if missing:
        raise DaemonError(
            "file-damaged",
            f"{part.source}: {part.kind.label} lacks {len(missing)} of {len(expected)} tensors, first {missing[0]}",
            COPY_HINT,
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
