"""Conversion jobs as files: `jobs/<id>.json` says what and in which state, `jobs/<id>.jsonl` how far it is.

Files, and not a daemon, so that a job outlives the program that asked for it and any face can show it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import secrets
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna_engine import paths
from luna_engine.errors import LunaError
from luna_engine.weights.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION = 1
_TAIL_BYTES = 16 * 1024


class JobState(str, Enum):
    """The life of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    VERIFYING = "verifying"
    DONE = "done"
    REUSED = "reused"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        """Tell whether nothing more will happen by itself."""
        return self in {JobState.DONE, JobState.REUSED, JobState.FAILED, JobState.CANCELLED}


@dataclass(frozen=True, slots=True)
class Job:
    """One conversion. Times are RFC 3339 UTC; ``pid`` and ``create_time`` name the worker while it runs.

    Waiting jobs are started by ``rank``, then by age.
    """

    id: str
    source: str
    precision: str
    destination: str
    state: JobState = JobState.QUEUED
    allow_finer: bool = False
    reshape: bool = True
    fp8_layout: str = "current"
    fp8_matmul: str = "fast"
    convolutions: str = "mix"
    queued_at: str = ""
    started_at: str | None = None
    ended_at: str | None = None
    pid: int | None = None
    create_time: float | None = None
    attempts: int = 0
    rank: int = 0
    output_bytes: int | None = None
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return a short name for people: source and precision."""
        return f"{Path(self.source).stem} -> {self.precision}"


def new_id() -> str:
    """Return an id that sorts by age: UTC time and four hex digits."""
    stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%S%f")[:-3]
    return f"{stamp}-{secrets.token_hex(2)}"


def now() -> str:
    """Return the time as RFC 3339 in UTC, to the millisecond."""
    text = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


class JobStore:
    """The folder of job files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def open(cls, state_dir: Path | None = None) -> JobStore:
        """Open ``jobs/`` of the state folder, making it if needed."""
        if state_dir is None:
            return cls(paths.private_dir("jobs"))
        folder = state_dir / "jobs"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return cls(folder)

    def save(self, job: Job) -> Job:
        """Write a job's file by rename and return the job."""
        fields = dataclasses.asdict(job)
        extra = fields.pop("extra")
        record = {"version": VERSION, **extra, **fields, "state": job.state.value}
        with paths.atomic_write(self._path(job.id), mode=0o600) as temporary:
            temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False), "utf-8")
        return job

    def load(self, job_id: str) -> Job:
        """Read one job.

        Raises:
            LunaError: ``job-missing`` if there is none of that id, ``job-unreadable`` if a newer Luna wrote it.
        """
        try:
            record = json.loads(self._path(job_id).read_text("utf-8"))
        except FileNotFoundError:
            raise LunaError("job-missing", f"there is no job {job_id}", "`luna weights jobs` lists them") from None
        except ValueError as error:
            raise LunaError("job-unreadable", f"the file of job {job_id} is damaged: {error}") from error
        if not isinstance(record, dict) or record.get("version") != VERSION:
            raise LunaError("job-unreadable", f"job {job_id} was written by another version of Luna")
        return _from_record(record)

    def all(self) -> tuple[Job, ...]:
        """Return all readable jobs, oldest first."""
        found: list[Job] = []
        for path in sorted(self.folder.glob("*.json")):
            with contextlib.suppress(LunaError):
                found.append(self.load(path.stem))
        return tuple(found)

    def append(self, job_id: str, progress: Progress) -> None:
        """Add a line to a job's progress."""
        with self.lines_path(job_id).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"schema": "luna.weights.job/1", **progress.as_dict()}) + "\n")

    def progress(self, job_id: str) -> Progress | None:
        """Return the last whole line of a job's progress, None before the first."""
        try:
            with self.lines_path(job_id).open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _TAIL_BYTES))
                lines = file.read().split(b"\n")
        except FileNotFoundError:
            return None
        for line in reversed(lines[:-1]):
            if (found := parse_progress(line)) is not None:
                return found
        return None

    def lines_path(self, job_id: str) -> Path:
        """Return the path of a job's progress lines."""
        return self.folder / f"{_checked(job_id)}.jsonl"

    def log_path(self, job_id: str) -> Path:
        """Return the path of what a job's worker said outside the protocol, such as a traceback."""
        return self.folder / f"{_checked(job_id)}.log"

    def cancel_path(self, job_id: str) -> Path:
        """Return the path of the mark that a job shall stop, which holds even where a signal came too early."""
        return self.folder / f"{_checked(job_id)}.cancel"

    def pause_path(self, job_id: str) -> Path:
        """Return the path of the mark that a job shall wait: not be started, or stop between two chunks."""
        return self.folder / f"{_checked(job_id)}.pause"

    def drop_marks(self, job_id: str) -> None:
        """Remove what was asked of a job that has ended."""
        self.cancel_path(job_id).unlink(missing_ok=True)
        self.pause_path(job_id).unlink(missing_ok=True)

    def _path(self, job_id: str) -> Path:
        return self.folder / f"{_checked(job_id)}.json"


def parse_progress(line: bytes) -> Progress | None:
    """Read one line; None if it is no progress (half written, foreign)."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or "phase" not in record:
        return None
    names = {entry.name for entry in dataclasses.fields(Progress)}
    return Progress(**{key: value for key, value in record.items() if key in names})


def _from_record(record: dict[str, Any]) -> Job:
    names = {entry.name for entry in dataclasses.fields(Job)} - {"extra", "state"}
    known = {key: value for key, value in record.items() if key in names}
    extra = {key: value for key, value in record.items() if key not in names | {"state", "version"}}
    try:
        return Job(**known, state=JobState(record["state"]), extra=extra)
    except (KeyError, TypeError, ValueError) as error:
        raise LunaError("job-unreadable", f"the file of job {record.get('id')} is damaged: {error}") from error


def _checked(job_id: str) -> str:
    """Refuse ids that would leave the folder."""
    if not job_id or not all(char.isalnum() or char == "-" for char in job_id):
        raise LunaError("job-missing", f"{job_id!r} is no job id", "`luna weights jobs` lists them")
    return job_id
