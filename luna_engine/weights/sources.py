"""Source tensors as readable runs: prefix, joins, exchanged halves and scales are resolved here, nothing is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luna_engine.errors import InputFileError
from luna_engine.weights.components import Form, is_scale
from luna_engine.weights.diffusers_layouts import LAYOUT
from luna_engine.weights.diffusers_names import Place, place_of
from luna_engine.weights.inspection import is_diffusion_tensor
from luna_engine.weights.keys import Keys

if TYPE_CHECKING:
    from luna_engine.weights.containers.records import TensorInfo
    from luna_engine.weights.inspection import Inspection

_FP8 = frozenset({"F8_E4M3", "F8_E5M2"})


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of a tensor's values: ``count`` from ``first`` on. ``scale`` is what they are multiplied with."""

    info: TensorInfo
    scale: TensorInfo | None
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """A tensor under the name it will have: its values are those of the pieces, one behind the other."""

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def dtype(self) -> str:
        """Return the element type; F32 where pieces of several types are joined."""
        kinds = {piece.info.dtype for piece in self.pieces}
        return kinds.pop() if len(kinds) == 1 else "F32"

    @property
    def is_uniform(self) -> bool:
        """Tell whether the bytes of the pieces have one type, so that they can be read into one run."""
        return len({piece.info.dtype for piece in self.pieces}) == 1

    @property
    def is_scaled(self) -> bool:
        """Tell whether any value is stored as a multiple of a scale."""
        return any(piece.scale is not None for piece in self.pieces)

    @property
    def place(self) -> tuple[int, int]:
        """Return in which file and where in it reading begins."""
        return (self.pieces[0].info.part, self.pieces[0].info.offset)

    @property
    def infos(self) -> tuple[TensorInfo, ...]:
        """Return the file's tensors that this one is made of, each once."""
        return tuple({piece.info.name: piece.info for piece in self.pieces}.values())

    @property
    def size_bytes(self) -> int:
        """Return the bytes that are read."""
        return sum(info.size_bytes for info in self.infos)


def source_tensors(found: Inspection) -> tuple[SourceTensor, ...]:
    """Return the diffusion part of a file under reference names, in the order of the file.

    Raises:
        InputFileError: ``file-damaged`` (a scale or a part of a join is missing, two tensors of one name),
            ``family-unsupported`` (a name that the layout does not have).
    """
    wanted = [tensor for tensor in found.tensors if is_diffusion_tensor(tensor.name, found.prefix)]
    scales = {tensor.name: tensor for tensor in wanted if is_scale(tensor.name)}
    weights = sorted(
        (tensor for tensor in wanted if tensor.name not in scales), key=lambda tensor: (tensor.part, tensor.offset)
    )
    whole = [(info.name.removeprefix(found.prefix), _whole(info, _scale_of(found, info, scales))) for info in weights]
    if found.variant == LAYOUT:
        return _renamed(found, whole)
    names = [name for name, _ in whole]
    if len(set(names)) < len(names):
        twin = next(name for name in names if names.count(name) > 1)
        raise _damaged(found, f"{twin} occurs with and without the prefix {found.prefix}")
    return tuple(SourceTensor(name, piece.info.shape, (piece,)) for name, piece in whole)


def _whole(info: TensorInfo, scale: TensorInfo | None) -> Piece:
    return Piece(info, scale, 0, math.prod(info.shape))


def _renamed(found: Inspection, whole: list[tuple[str, Piece]]) -> tuple[SourceTensor, ...]:
    """Give tensors in diffusers' names the reference's, joining what that has in one."""
    keys = Keys({name: piece.info.shape for name, piece in whole})
    joined: dict[str, dict[int, tuple[Place, Piece]]] = {}
    for name, piece in whole:
        place = place_of(found.family or "", name, keys)
        if place is None:
            raise InputFileError(
                "family-unsupported",
                f"{found.path.name}: {name} is no name of {found.family} in diffusers layout",
                "use the single-file version of the model",
                file=str(found.path),
            )
        parts = joined.setdefault(place.name, {})
        if place.part in parts:
            raise _damaged(found, f"{name} and {parts[place.part][1].info.name} both become {place.name}")
        parts[place.part] = (place, piece)
    return tuple(_join(found, name, parts) for name, parts in joined.items())


def _join(found: Inspection, name: str, parts: dict[int, tuple[Place, Piece]]) -> SourceTensor:
    places = [parts[number][0] for number in sorted(parts)]
    pieces = [parts[number][1] for number in sorted(parts)]
    first = pieces[0].info.shape
    if len(parts) != places[0].parts:
        raise _damaged(found, f"of {places[0].parts} tensors that make {name} only {len(parts)} are there")
    if places[0].parts == 1:
        return SourceTensor(name, first, _exchanged(pieces[0]) if places[0].exchanges_halves else tuple(pieces))
    if any(piece.info.shape[1:] != first[1:] for piece in pieces):
        raise _damaged(found, f"the tensors that make {name} have rows of different length")
    return SourceTensor(name, (sum(piece.info.shape[0] for piece in pieces), *first[1:]), tuple(pieces))


def _exchanged(piece: Piece) -> tuple[Piece, ...]:
    """Return the lower half of the rows before the upper."""
    half = piece.count // 2
    return (Piece(piece.info, piece.scale, half, piece.count - half), Piece(piece.info, piece.scale, 0, half))


def _scale_of(found: Inspection, tensor: TensorInfo, scales: dict[str, TensorInfo]) -> TensorInfo | None:
    """Return the scale that a scaled fp8 weight is multiplied with."""
    if tensor.dtype not in _FP8 or not tensor.name.endswith(".weight"):
        return None
    layer = tensor.name.removesuffix(".weight")
    scale = scales.get(f"{layer}.weight_scale") or scales.get(f"{layer}.scale_weight")
    if scale is None and found.form in {Form.FP8_SCALED, Form.FP8_SCALED_LEGACY}:
        raise _damaged(
            found,
            f"{layer} is scaled fp8 but its scale is missing",
            "without it the weights are wrong by a factor: take the original file",
        )
    if scale is not None and math.prod(scale.shape) != 1:
        raise _damaged(found, f"the scale of {layer} has shape {list(scale.shape)}, one number is needed")
    return scale


def _damaged(found: Inspection, what: str, hint: str = "take the whole, original file") -> InputFileError:
    return InputFileError("file-damaged", f"{found.path.name}: {what}", hint, file=str(found.path))
