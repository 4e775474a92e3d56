"""`verify`: reads a converted file again and says whether it is whole and, beside its source, how far it is off.

Run as `python -m luna_engine.weights.verification FILE...`: the faces must not load NumPy. One JSON line per file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luna_engine.errors import ConversionError, InputFileError, LunaError
from luna_engine.weights import provenance
from luna_engine.weights.checks import remember_check, remember_failure
from luna_engine.weights.chunks import CHUNK, ChunkReader, file_bytes
from luna_engine.weights.containers.dtypes import DTYPES, FLOATS
from luna_engine.weights.containers.ggml_types import BY_NAME, SCALE_PLACES
from luna_engine.weights.containers.reading import read_at
from luna_engine.weights.content import hash_line, stored_shape, tree_hash
from luna_engine.weights.headers import read_header
from luna_engine.weights.kernels import casts
from luna_engine.weights.kernels.seam import make_kernels
from luna_engine.weights.mixes import Convolutions
from luna_engine.weights.plans import ConversionOptions, plan
from luna_engine.weights.targets import NUMBERS, Fp8Layout
from luna_engine.weights.tensor_classes import ErrorSum, tensor_class

if TYPE_CHECKING:
    from typing import BinaryIO

    import numpy.typing as npt

    from luna_engine.weights.containers.records import TensorInfo
    from luna_engine.weights.precisions import Precision
    from luna_engine.weights.targets import PlannedTensor


@dataclass(frozen=True, slots=True)
class VerificationReport:
    """What was checked. ``errors`` are per class against the source; None without one."""

    path: Path
    made_by: str
    precision: str
    tensors: int
    size_bytes: int
    data_sha256: str
    errors: dict[str, dict[str, float]] | None
    checked: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-safe record."""
        return {**dataclasses.asdict(self), "path": str(self.path), "checked": list(self.checked)}


def verify(path: str | Path, source: str | Path | None = None) -> VerificationReport:
    """Check a file that Luna made.

    Structure, types and the hash of all tensors are always checked, and that every value is finite; with ``source``
    every value is compared with it.

    Raises:
        InputFileError: ``file-missing``, ``file-damaged`` (structure or hash), ``source-changed`` (it is not the
            source this file was made from), ``wrong-type`` (not made by Luna).
        ConversionError: ``verify-differs`` when the decoded values are not the source's.
    """
    path = Path(path)
    header = read_header(path)
    known = provenance.read(header.metadata)
    if known is None:
        raise InputFileError(
            "wrong-type",
            f"{path.name} carries no word of Luna: nothing says what it should hold",
            "`luna weights inspect` shows what it holds",
            file=str(path),
        )
    stored = {tensor.name: stored_shape(tensor) for tensor in header.tensors}
    with path.open("rb", buffering=0) as file:
        lines = [_check_tensor(file, path, tensor, stored[tensor.name]) for tensor in header.tensors]
    digest = tree_hash(lines)
    if digest != known.data_sha256:
        raise InputFileError(
            "file-damaged",
            f"{path.name}: its tensors are not those that were written ({digest[:12]}, {known.data_sha256[:12]} noted)",
            "delete it and convert again",
            file=str(path),
        )
    checked = ["structure", "hash", "finite"]
    errors = None
    if source is not None:
        errors = _compare(path, Path(source), known)
        checked.append("values")
    return VerificationReport(
        path,
        f"luna {known.version}",
        known.precision,
        len(header.tensors),
        header.size_bytes,
        digest,
        errors,
        tuple(checked),
    )


def _check_tensor(file: BinaryIO, path: Path, tensor: TensorInfo, stored: tuple[int, ...]) -> str:
    digest = hashlib.sha256()
    step = CHUNK * _bytes_per_block(tensor.dtype)
    left = tensor.size_bytes
    while left:
        data = read_at(file, tensor.offset + tensor.size_bytes - left, min(left, step))
        if len(data) < min(left, step):
            raise InputFileError("file-damaged", f"{path.name}: {tensor.name} ends early", file=str(path))
        digest.update(data)
        left -= len(data)
        if not _is_finite(tensor.dtype, np.frombuffer(data, np.uint8)):
            raise InputFileError(
                "file-damaged", f"{path.name}: {tensor.name} holds values that are not finite", file=str(path)
            )
    return hash_line(tensor.name, tensor.dtype, stored, digest.hexdigest())


def _is_finite(dtype: str, data: np.ndarray) -> bool:
    """Tell whether no value of a chunk (whole blocks) is infinite or NaN; of blocks the scales decide."""
    if dtype in FLOATS:
        return math.isfinite(casts.greatest(dtype, data))
    if dtype not in SCALE_PLACES:
        return True
    rows = data.reshape(-1, BY_NAME[dtype].block_bytes)
    scales = np.concatenate([rows[:, place : place + 2] for place in SCALE_PLACES[dtype]])
    return math.isfinite(casts.greatest("F16", scales.reshape(-1)))


def _bytes_per_block(dtype: str) -> int:
    return BY_NAME[dtype].block_bytes if dtype in BY_NAME else DTYPES[dtype]


def _compare(path: Path, source: Path, known: provenance.Provenance) -> dict[str, dict[str, float]]:
    """Decode every value of both files and return the error per class."""
    fp8 = Fp8Layout(known.fp8_layout.startswith("legacy"), known.fp8_layout.endswith("full"))
    options = ConversionOptions(allow_finer=True, fp8=fp8, convolutions=Convolutions(known.convolutions))
    found = plan(source, known.precision, options=options)
    if found.stamp.header_sha256 != known.stamp.header_sha256:
        raise InputFileError(
            "source-changed",
            f"{path.name} was made from another state of {known.stamp.name}",
            "convert again",
            file=str(source),
        )
    written = {tensor.name: tensor for tensor in read_header(path).tensors}
    names = [name for planned in found.tensors for name in (planned.name, *(extra.name for extra in planned.extras))]
    missing = [name for name in names if name not in written]
    if missing:
        raise InputFileError("file-damaged", f"{path.name} lacks {missing[0]}", file=str(path))
    sums: dict[str, ErrorSum] = {}
    original = ChunkReader(found.files)
    try:
        with path.open("rb", buffering=0) as output:
            for planned in found.tensors:
                kind = tensor_class(planned.name, len(planned.source.shape))
                total = sums.setdefault(kind, ErrorSum())
                total.merge(_difference(output, written, original, planned))
    finally:
        original.close()
    for kind, total in sums.items():
        _judge(path, kind, total, found.precision)
    return {
        kind: {"tensors": total.tensors, "rmse": total.relative_rmse, "max": total.greatest}
        for kind, total in sorted(sums.items())
    }


def _judge(path: Path, kind: str, total: ErrorSum, precision: Precision) -> None:
    if total.relative_rmse > 2 * precision.usual_error and not precision.is_error_open:
        raise ConversionError(
            "verify-differs",
            f"{path.name}: {kind} tensors differ from the source by {total.relative_rmse:.3g}, "
            f"{2 * precision.usual_error:.3g} would be usual",
            "convert again; if it stays, report it",
        )


def _difference(
    output: BinaryIO,
    written: dict[str, TensorInfo],
    original: ChunkReader,
    planned: PlannedTensor,
) -> ErrorSum:
    total = ErrorSum(tensors=1)
    source = planned.source
    if source.dtype not in NUMBERS:
        return total
    scales = [extra.name for extra in planned.extras if extra.data is None]
    scale = _floats(output, written[scales[0]], 0, 1)[0] if scales else np.float32(1)
    elements = math.prod(source.shape)
    for start in range(0, elements, CHUNK):
        count = min(CHUNK, elements - start)
        before = original.values(source, start, count)
        after = _floats(output, written[planned.name], start, count) * scale
        difference = after - before
        total.add(float(difference @ difference), float(before @ before), float(np.max(np.abs(difference), initial=0)))
    return total


def _floats(file: BinaryIO, info: TensorInfo, start: int, count: int) -> npt.NDArray[np.float32]:
    values = np.empty(count, np.float32)
    raw = np.frombuffer(
        read_at(file, info.offset + file_bytes(info.dtype, start), file_bytes(info.dtype, count)), np.uint8
    )
    if info.dtype in FLOATS:
        casts.widen(info.dtype, raw, values)
    else:
        make_kernels().decode(info.dtype, raw, values)
    return values


def main(arguments: list[str] | None = None) -> int:
    """Verify files and print one JSON line each; ``--source FILE`` compares the first with it."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    source = None
    if "--source" in arguments:
        place = arguments.index("--source")
        source = arguments[place + 1]
        del arguments[place : place + 2]
    worst = 0
    for name in arguments:
        try:
            report = verify(name, source)
            record = {"report": report.as_dict()}
            remember_check(report.path, report.data_sha256, report.errors, source)
        except LunaError as error:
            record = {"error": error.as_dict()}
            remember_failure(Path(name), error)
            worst = max(worst, error.exit_code)
        sys.stdout.write(json.dumps({"path": name, **record}) + "\n")
        sys.stdout.flush()
    return worst


if __name__ == "__main__":
    sys.exit(main())
