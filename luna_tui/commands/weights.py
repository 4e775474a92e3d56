"""`luna weights`: inspect, convert, verify and jobs; the others are in `weights_shelf`.

Tensor work runs in worker processes.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from luna_engine import settings
from luna_engine.errors import LunaError, error_from
from luna_engine.paths import checkout_root
from luna_engine.weights.precisions import PRECISIONS
from luna_tui import frame
from luna_tui.commands import weights_output as words
from luna_tui.commands import weights_shelf
from luna_tui.commands.weights_group import FILE, group, printable
from luna_tui.progress import Bar
from luna_tui.wording import size

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from luna_engine.weights.estimate import Estimate
    from luna_engine.weights.jobs import Job
    from luna_engine.weights.plans import ConversionOptions, ConversionPlan
    from luna_engine.weights.progress import Progress
    from luna_engine.weights.queue import JobQueue

_POLL_S = 0.1


@frame.verb(group, "inspect")
@click.argument("file", type=FILE)
@click.option("--keys", metavar="GLOB", help="Also list the tensors whose names match.")
def inspect(file: Path, keys: str | None) -> None:
    """Say what FILE is, from its header alone: family, parts, precision, and what must stay open."""
    from luna_engine.weights import inspect as look

    found = look(file)
    listed = [tensor for tensor in found.tensors if keys and fnmatch.fnmatchcase(tensor.name, keys)]
    frame.output().data(
        "luna.weights.inspect/1", words.inspection_fields(found, listed), words.inspection_text(found, listed)
    )


@frame.verb(group, "convert", mutates=True)
@click.argument("sources", type=FILE, nargs=-1, required=True)
@click.option("--to", "precisions", metavar="P,...", default="", help=f"{', '.join(PRECISIONS)}; several by comma.")
@click.option("--out", type=FILE, metavar="DIR", help="Folder of the result (default: see docs/weights.md).")
@click.option("--plan", "only_plan", is_flag=True, help="Say what would be written, and stop.")
@click.option("--detach", is_flag=True, help="Queue the jobs and return; they run on by themselves.")
@click.option("--allow-finer", is_flag=True, help="Also write a finer class than the source's.")
@click.option("--no-reshape", is_flag=True, help="Keep tensors whose rows fill no block as F16 in GGUF.")
@click.option(
    "--fp8-layout",
    type=click.Choice(["current", "legacy"]),
    default="current",
    show_default=True,
    help="Names of scales in fp8_e4m3fn_scaled; legacy is for older ComfyUI, such as 0.3.64.",
)
@click.option(
    "--fp8-matmul",
    type=click.Choice(["fast", "full"]),
    default="fast",
    show_default=True,
    help="Whether ComfyUI may multiply in fp8, or shall decode first.",
)
@click.option(
    "--conv",
    "convolutions",
    type=click.Choice(["mix", "same", "f16"]),
    default="mix",
    show_default=True,
    help="Convolutions of UNets in GGUF mixes: finer, as other weights, or half precision.",
)
def convert(
    sources: tuple[Path, ...],
    precisions: str,
    out: Path | None,
    *,
    only_plan: bool,
    detach: bool,
    allow_finer: bool,
    no_reshape: bool,
    fp8_layout: str,
    fp8_matmul: str,
    convolutions: str,
) -> int:
    """Write the diffusion part of SOURCES in other precisions; all are tried, each has its outcome."""
    from luna_engine.weights import ConversionOptions
    from luna_engine.weights.mixes import Convolutions
    from luna_engine.weights.naming import source_roots
    from luna_engine.weights.precisions import find_precision
    from luna_engine.weights.targets import Fp8Layout

    labels = [find_precision(label).label for label in precisions.split(",") if label.strip()]
    if not labels:
        raise click.UsageError(f"say --to PRECISION,... ({', '.join(PRECISIONS)})")
    fp8 = Fp8Layout(fp8_layout == "legacy", fp8_matmul == "full")
    roots = source_roots(settings.load())
    options = ConversionOptions(allow_finer, not no_reshape, roots, fp8, Convolutions(convolutions))
    work = [(source, label) for source in sources for label in labels]
    if only_plan:
        return _plans(work, out, options)
    return _convert_all(work, out, options, detach=detach)


def _plans(work: list[tuple[Path, str]], out: Path | None, options: ConversionOptions) -> int:
    from luna_engine.weights import plan
    from luna_engine.weights.estimate import Estimator
    from luna_engine.weights.naming import destination_of
    from luna_engine.weights.plans import plan_fields

    entries: list[dict[str, Any]] = []
    code = 0
    known = settings.load()
    estimator = Estimator(known.weights.keep_free_bytes)
    for source, label in work:
        try:
            found = plan(source, label, options=options)
        except LunaError as error:
            code = max(code, frame.fail(error, as_json=frame.output().json))
            continue
        destination = destination_of(source, found.precision, out, known)
        estimate = estimator.estimate(found, destination)
        code = max(code, 1 if estimate.problem is not None else 0)
        entries.append({**plan_fields(found, destination), **estimate.as_dict()})
        if not frame.output().json:
            click.echo(_plan_text(found, destination, estimate))
    frame.output().data("luna.weights.plan/1", {"jobs": entries}, "")
    return code


def _plan_text(found: ConversionPlan, destination: Path, estimate: Estimate) -> str:
    counts = f"{found.count('cast')} tensors cast, {found.count('copied')} copied"
    if found.count("quantised"):
        packed = f"{found.count('quantised')} packed as {found.precision.dtype} ({found.reshaped} reshaped)"
        counts = f"{counts}, {packed}"
    lines = [
        f"{printable(found.source.name)} -> {printable(str(destination))}",
        f"  {size(found.size_bytes)}: {counts}",
        f"  {words.estimate_text(estimate)}",
    ]
    if found.is_at_target:
        lines = [f"{printable(found.source.name)} is {found.precision.label} already: it is used as it is"]
    return "\n".join([*lines, *(f"  warning: {warning}" for warning in found.warnings)])


def _convert_all(work: list[tuple[Path, str]], out: Path | None, options: ConversionOptions, *, detach: bool) -> int:
    from luna_engine.weights.queue import JobQueue

    queue = JobQueue.open()
    ended: list[tuple[Path, str, Job | LunaError]] = []
    with Bar(frame.output()) as bar:
        for source, label in work:
            try:
                job = queue.submit(source, label, out, options)
                ended.append((source, label, job if detach else _follow(queue, job, bar)))
            except LunaError as error:
                ended.append((source, label, error))
    if detach:
        queue.run_next()
    return _tell(ended)


def _tell(ended: list[tuple[Path, str, Job | LunaError]]) -> int:
    """Print every outcome, now that no bar is in the way, and return the worst exit code."""
    outcomes: list[dict[str, Any]] = []
    code = 0
    for source, label, outcome in ended:
        if isinstance(outcome, LunaError):
            error: LunaError | None = outcome
            fields = {"source": str(source), "precision": label, "state": "failed", "error": outcome.as_dict()}
        else:
            error = error_from(outcome.error) if outcome.error is not None else None
            fields = words.job_fields(outcome, None)
            if not frame.output().json:
                click.echo(_outcome_text(outcome))
        outcomes.append(fields)
        if error is not None:
            code = max(code, frame.fail(error, as_json=frame.output().json))
    frame.output().data("luna.weights.convert/1", {"outcomes": outcomes}, "")
    return code


def _outcome_text(job: Job) -> str:
    if job.result is None:
        return f"{job.state.value}: {printable(job.name)} (job {job.id})"
    written = size(job.result["size_bytes"])
    rest = "was there already" if job.state.value == "reused" else f"in {job.result['duration_s']:.1f} s"
    return f"{printable(job.destination)}  {written}  {rest}"


def _follow(queue: JobQueue, job: Job, bar: Bar) -> Job:
    """Run one job in a worker of ours, or watch who was faster; Ctrl-C cancels it before it goes on."""
    worker = queue.start(job.id)

    def is_over() -> bool:
        return queue.store.load(job.id).state.is_over if worker is None else worker.poll() is not None

    try:
        _show(queue, job, is_over, bar)
    except KeyboardInterrupt:
        with contextlib.suppress(LunaError):  # it has ended by itself
            queue.cancel(job.id)
        while not is_over():
            time.sleep(_POLL_S)
        raise
    ended = queue.store.load(job.id)
    if not ended.state.is_over:  # killed from outside: the job's file could not be told
        raise LunaError(
            "convert-failed",
            f"the worker of {job.name} ended with code {worker.returncode if worker else None}",
            f"its last words are in {queue.store.log_path(job.id)}; `luna weights jobs` can retry it",
        )
    return ended


def _show(queue: JobQueue, job: Job, is_over: Callable[[], bool], bar: Bar) -> None:
    from luna_engine.weights.jobs import parse_progress

    with queue.store.lines_path(job.id).open("rb") as lines:
        rest = b""
        while True:
            is_last = is_over()  # asked before reading, so that the last lines are not missed
            *whole, rest = (rest + lines.read()).split(b"\n")
            for line in whole:
                if (progress := parse_progress(line)) is not None:
                    _advance(bar, job, progress)
            if is_last:
                return
            time.sleep(_POLL_S)


def _advance(bar: Bar, job: Job, progress: Progress) -> None:
    if progress.done_bytes is not None and progress.total_bytes:
        bar.update(job.name, progress.done_bytes, progress.total_bytes, progress.as_dict())
    elif frame.output().progress == "json":
        bar.update(job.name, 0, 0, progress.as_dict())


@frame.verb(group, "verify")
@click.argument("files", type=FILE, nargs=-1, required=True)
@click.option("--source", "--against", type=FILE, metavar="FILE", help="Compare every value with this source.")
def verify(files: tuple[Path, ...], source: Path | None) -> int:
    """Read FILES that Luna made again: structure, hash, finite values, and with --source every value."""
    command = [sys.executable, "-m", "luna_engine.weights.verification"]
    command += [str(file.absolute()) for file in files]
    command += ["--source", str(source.absolute())] if source is not None else []
    worker = subprocess.run(command, capture_output=True, check=False, cwd=checkout_root())
    entries = [json.loads(line) for line in worker.stdout.splitlines()]
    if len(entries) < len(files):
        problem = worker.stderr.decode("utf-8", "replace").strip().splitlines()
        raise LunaError("worker-failed", problem[-1] if problem else "the worker ended without a word")
    code = worker.returncode
    for entry in entries:
        if "error" in entry:
            frame.fail(error_from(entry["error"]), as_json=frame.output().json)
    text = "\n".join(_verified_text(entry["report"]) for entry in entries if "report" in entry)
    frame.output().data("luna.weights.verify/1", {"files": entries}, text)
    return code


def _verified_text(report: dict[str, Any]) -> str:
    lines = [
        f"{printable(report['path'])}: {report['precision']}, {report['tensors']} tensors by {report['made_by']}",
        f"  checked: {', '.join(report['checked'])}",
    ]
    for kind, figures in (report["errors"] or {}).items():
        lines.append(f"  {kind:<18} relative error {figures['rmse']:.3g}, greatest {figures['max']:.3g}")
    return "\n".join(lines)


@frame.verb(group, "jobs")
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--cancel", "wish", flag_value="cancel", help="Stop these jobs; their part files go.")
@click.option("--retry", "wish", flag_value="retry", help="Queue these failed or cancelled jobs again.")
@click.option("--pause", "wish", flag_value="pause", help="Hold these jobs; a running one stops between two chunks.")
@click.option("--resume", "wish", flag_value="resume", help="Let these jobs go on.")
@click.option("--move", "place", type=int, metavar="N", help="Start this waiting job as the Nth.")
def jobs(ids: tuple[str, ...], wish: str | None, place: int | None) -> None:
    """List conversion jobs, or do something about those named."""
    from luna_engine.weights.queue import JobQueue

    if wish is not None and place is not None:
        raise click.UsageError("--move stands alone")
    if place is not None and len(ids) != 1:
        raise click.UsageError("--move takes one job")
    is_change = wish is not None or place is not None
    if is_change and not ids:
        raise click.UsageError("name the jobs")
    if is_change and frame.output().readonly:
        raise LunaError("read-only", "jobs would change and --readonly is set")
    queue = JobQueue.open()
    verbs: dict[str, Callable[[str], object]] = {
        "cancel": queue.cancel,
        "retry": queue.retry,
        "pause": queue.pause,
        "resume": lambda job_id: queue.pause(job_id, is_paused=False),
    }
    for job_id in ids if is_change else ():
        queue.move(job_id, place) if place is not None else verbs[wish or ""](job_id)
    if wish in {"retry", "resume"}:
        queue.run_next()
    known = queue.jobs() if frame.output().readonly else queue.settle()
    found = [job for job in known if not ids or job.id in ids]
    for job_id in ids:
        queue.store.load(job_id)  # says so if there is none
    rows = [(job, queue.progress(job.id), queue.is_paused(job.id)) for job in found]
    text = "\n".join(words.job_text(job, at, is_paused=held) for job, at, held in rows) or "No jobs."
    records = [words.job_fields(job, at, is_paused=held) for job, at, held in rows]
    frame.output().data("luna.weights.jobs/1", {"jobs": records}, text)


SHELF = weights_shelf.VERBS  # they registered themselves; naming them here is what loads them
