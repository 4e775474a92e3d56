"""`convert`: plans, locks, streams, checks and commits one file.

The final name appears only when the file is complete, synced and read back; whatever ends the work earlier leaves
neither a part file nor a lock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from luna_engine.errors import ConversionError, InputFileError
from luna_engine.paths import sync_dir
from luna_engine.weights import provenance
from luna_engine.weights.content import tree_hash
from luna_engine.weights.estimate import require_space
from luna_engine.weights.headers import read_header
from luna_engine.weights.judging import judge
from luna_engine.weights.kernels.casts import GREATEST_HALF
from luna_engine.weights.kernels.seam import prepare
from luna_engine.weights.locking import locked
from luna_engine.weights.pipe import Cancelled, Tally
from luna_engine.weights.plans import ConversionOptions, ConversionPlan, plan
from luna_engine.weights.progress import Progress
from luna_engine.weights.rates import COMMIT
from luna_engine.weights.reuse import is_current
from luna_engine.weights.streaming import greatest_magnitude, stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from luna_engine.weights.pipe import TensorResult
    from luna_engine.weights.precisions import Precision

_MOST_THREADS = 8


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """What a conversion did. ``state`` is done or reused; ``steps`` are bytes and wall seconds, see `rates`."""

    state: str
    source: Path
    destination: Path
    precision: str
    size_bytes: int
    source_bytes: int
    duration_s: float
    quantised: int
    kept: int
    reshaped: int
    errors: Mapping[str, Mapping[str, float]]
    warnings: tuple[str, ...]
    source_sha256: str
    data_sha256: str
    kernel: str
    peak_rss_bytes: int
    steps: Mapping[str, tuple[int, float]] = dataclasses.field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-safe record."""
        fields = dataclasses.asdict(self)
        return {**fields, "source": str(self.source), "destination": str(self.destination)}


def convert(
    source: str | Path,
    destination: str | Path,
    precision: str | Precision,
    progress: Callable[[Progress], None] | None = None,
    *,
    cancel: threading.Event | None = None,
    options: ConversionOptions | None = None,
    job: str = "direct",
    keep_free_bytes: int = 0,
) -> ConversionReport:
    """Write the diffusion part of ``source`` in another precision.

    Args:
        source: a checkpoint or diffusion model: a file, an index or shard, or a diffusers folder.
        destination: the file to write; its folder is made.
        precision: a label such as ``bf16`` or ``gguf_Q8_0``.
        progress: called about four times a second, from this thread.
        cancel: set it to stop between two chunks.
        options: see ConversionOptions.
        job: names the part file and the lock.
        keep_free_bytes: room that must stay on the disk.

    Raises:
        InputFileError: the source is at fault.
        ConversionError: ``disk-full``, ``target-exists``, ``target-readonly``, ``path-outside``, ``convert-failed``,
            ``cancelled``.
        LunaError: ``value-range``, ``precision-unsupported``, ``name-too-long``.
    """
    run = _Run(progress or (lambda _: None), cancel or threading.Event(), job, Path(destination).absolute())
    run.report("plan")
    found = _plan(Path(source), precision, options)
    if found.is_at_target:
        return run.reused(found, found.source)
    if run.destination.exists() and any(run.destination.samefile(file) for file in found.files):
        raise ConversionError("path-outside", f"{run.destination} is the source itself", "choose another folder")
    with _explained(run.destination):
        run.destination.parent.mkdir(parents=True, exist_ok=True)
        with locked(run.destination, job, lambda owner: run.report("wait", message=owner), run.cancel):
            if is_current(run.destination, found, run.checking(found)):
                return run.reused(found, run.destination)
            require_space(run.destination, found.size_bytes, keep_free_bytes)
            try:
                return _make(run, found)
            except Cancelled:
                raise ConversionError("cancelled", f"{run.destination.name} was cancelled") from None


@dataclass(slots=True)
class _Run:
    """One call of `convert`: who listens and where the file goes."""

    listener: Callable[[Progress], None]
    cancel: threading.Event
    job: str
    destination: Path
    started: float = dataclasses.field(default_factory=time.monotonic)

    def report(self, phase: str, **fields: Any) -> None:
        self.listener(
            Progress(
                phase=phase,
                job=self.job,
                at=provenance.now(),
                destination=str(self.destination),
                rss_bytes=psutil.Process().memory_info().rss,
                **fields,
            )
        )

    def checking(self, found: ConversionPlan) -> Callable[[int], None]:
        """Return what is called with each part of the source that is read to see whether it is still the same."""
        done = 0

        def tell(count: int) -> None:
            nonlocal done
            if self.cancel.is_set():
                raise ConversionError("cancelled", f"{self.destination.name} was cancelled")
            done += count
            self.report("plan", done_bytes=done, total_bytes=found.source_bytes)

        return tell

    def reused(self, found: ConversionPlan, path: Path) -> ConversionReport:
        known = provenance.read(read_header(path).metadata)
        return ConversionReport(
            "reused", found.source, path, found.precision.label, path.stat().st_size, 0, 0.0, 0, 0, 0,
            known.errors if known else {}, (), known.source_sha256 if known else "",
            known.data_sha256 if known else "", known.kernel if known else "", _peak_rss(),
        )  # fmt: skip


def _plan(source: Path, precision: str | Precision, options: ConversionOptions | None) -> ConversionPlan:
    """Plan, and plan again if a look at the side tensors shows values that half cannot hold."""
    found = plan(source, precision, options=options)
    if found.precision.container != "gguf":
        return found
    doubtful = [
        tensor.source
        for tensor in found.tensors
        if tensor.dtype == "F16" and not tensor.in_block and tensor.source.dtype in {"F64", "F32", "BF16"}
    ]
    large = frozenset(
        tensor.name
        for tensor in doubtful
        if any(greatest_magnitude(found.files, info) > GREATEST_HALF for info in tensor.infos)
    )
    return plan(source, precision, options=options, overflowing=large) if large else found


def _make(run: _Run, found: ConversionPlan) -> ConversionReport:
    part = run.destination.with_name(f"{run.destination.name}.{run.job}.part")
    # We hold the lock: parts of this name belong to makers that died.
    for old in run.destination.parent.glob(f"{_escaped(run.destination.name)}.*.part"):
        old.unlink(missing_ok=True)
    try:
        return _fill_and_commit(run, found, part)
    finally:
        part.unlink(missing_ok=True)


def _escaped(name: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)


def _fill_and_commit(run: _Run, found: ConversionPlan, part: Path) -> ConversionReport:
    layout = found.layout()
    with part.open("xb") as file:
        _reserve(file.fileno(), layout.size_bytes)
        file.write(layout.header)
    before = _stamps(found.files)
    if provenance.state_of(found.files) != (found.stamp.size_bytes, found.stamp.mtime_ns):
        raise _changed(found.source)
    if found.block_types:
        run.report("kernels", index=0, count=len(found.tensors))
        prepare(found.block_types)
    begun = time.monotonic()
    run.report("convert", index=0, count=len(found.tensors), done_bytes=0, total_bytes=found.source_bytes)
    results = stream(
        found.files,
        part,
        found.places(layout),
        min(os.cpu_count() or 1, _MOST_THREADS),
        run.cancel,
        lambda tally: _report_tally(run, found, tally, begun),
    )
    streamed = time.monotonic()
    run.report("check", index=len(results), count=len(results), done_bytes=found.source_bytes,
               total_bytes=found.source_bytes)  # fmt: skip
    errors, warnings = judge(found, results)
    findings = provenance.Findings(
        tree_hash([line for result in results for line in result.source_lines]),
        tree_hash([line for result in results for line in result.output_lines]),
        errors,
    )
    if _stamps(found.files) != before:
        raise _changed(found.source)
    _finish_header(part, found, findings, len(layout.header))
    run.report("commit", index=len(results), count=len(results))
    _check_written(part, found)
    _commit(part, run.destination)
    steps = {**_steps(results, streamed - begun), COMMIT: (found.size_bytes, time.monotonic() - streamed)}
    return _done(run, found, findings, warnings, steps)


def _steps(results: Sequence[TensorResult], wall_s: float) -> dict[str, tuple[int, float]]:
    """Share the wall time out among the pairs of types, as their tensors took the threads' time."""
    total = sum(result.seconds for result in results) or 1.0
    found: dict[str, tuple[int, float]] = {}
    for result in results:
        size, spent = found.get(result.step, (0, 0.0))
        found[result.step] = (size + result.source_bytes, spent + wall_s * result.seconds / total)
    return found


def _done(
    run: _Run,
    found: ConversionPlan,
    findings: provenance.Findings,
    warnings: tuple[str, ...],
    steps: Mapping[str, tuple[int, float]],
) -> ConversionReport:
    return ConversionReport(
        "done",
        found.source,
        run.destination,
        found.precision.label,
        found.size_bytes,
        found.source_bytes,
        time.monotonic() - run.started,
        found.count("quantised"),
        found.count("cast") + found.count("copied"),
        found.reshaped,
        findings.errors,
        (*found.warnings, *warnings),
        findings.source_sha256,
        findings.data_sha256,
        found.kernel,
        _peak_rss(),
        steps,
    )


def _reserve(descriptor: int, size: int) -> None:
    """Take the whole room on the disk at once; a file system that cannot gets a file with holes."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}:
            raise
        os.truncate(descriptor, size)


def _report_tally(run: _Run, found: ConversionPlan, tally: Tally, begun: float) -> None:
    elapsed = time.monotonic() - begun
    rate = tally.done_bytes / elapsed if elapsed > 0 and tally.done_bytes else None
    run.report(
        "convert",
        tensor=tally.tensor,
        index=tally.done_tensors,
        count=len(found.tensors),
        done_bytes=tally.done_bytes,
        total_bytes=found.source_bytes,
        bytes_per_s=rate,
        eta_s=(found.source_bytes - tally.done_bytes) / rate if rate else None,
    )


def _finish_header(part: Path, found: ConversionPlan, findings: provenance.Findings, length: int) -> None:
    header = found.layout(findings, header_bytes=length).header
    if len(header) != length:
        raise ConversionError("convert-failed", f"the header grew from {length} to {len(header)} bytes")
    with part.open("r+b") as file:
        file.write(header)
        file.flush()
        os.fsync(file.fileno())


def _check_written(part: Path, found: ConversionPlan) -> None:
    """Read the file's header back and compare it with the plan."""
    header = read_header(part)
    written = {tensor.name: tensor.dtype for tensor in header.tensors}
    planned = {slot.name: slot.dtype for slot in found.layout().slots}
    if written != planned:
        raise ConversionError("convert-failed", f"{part.name} does not hold the tensors that were planned")


def _commit(part: Path, destination: Path) -> None:
    if destination.exists():  # a stale variant of the same source: `is_current` made sure
        part.replace(destination)
    else:
        try:
            os.link(part, destination)  # unlike a rename, never over a file that came meanwhile
        except FileExistsError as error:
            raise ConversionError("target-exists", f"{destination} appeared meanwhile") from error
        except OSError:  # a file system without links; the lock keeps other makers away
            part.rename(destination)
    sync_dir(destination.parent)


def _stamps(files: Sequence[Path]) -> list[tuple[int, int, int, int]]:
    found = [file.stat() for file in files]
    return [(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns) for status in found]


def _changed(source: Path) -> InputFileError:
    return InputFileError(
        "source-changed",
        f"{source.name} was replaced or changed while it was read; nothing was kept",
        "convert it again when it is complete",
        file=str(source),
    )


@contextlib.contextmanager
def _explained(destination: Path) -> Iterator[None]:
    """Turn the operating system's refusals into errors that say what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}:
            code, hint = "disk-full", "free some space, or name another folder with --out"
        elif error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            code, hint = "target-readonly", "name a folder you may write to with --out"
        elif error.errno in {errno.EIO, getattr(errno, "ESTALE", errno.EIO)}:
            code, hint = "source-changed", "check the disk, then convert again"
        else:
            code, hint = "convert-failed", "check the folder, or name another with --out"
        raise ConversionError(code, f"{destination}: {error.strerror or error}", hint) from error


def _peak_rss() -> int:
    """Return the most memory this process ever had, in bytes.

    Linux's getrusage counts what the parent had when it forked; the kernel's own table does not.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text("ascii").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
