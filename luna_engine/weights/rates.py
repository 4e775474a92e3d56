"""How fast this machine converts, as its own conversions showed: a small file beside the jobs. Torch-free.

The file holds the latest measurement of each step, machine by machine, since state folders may lie on a share:
seconds per byte read for each pair of types (all threads at work), per byte written for the end and for the check
afterwards, and the most memory a worker took. Nothing is assumed for what was never measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luna_engine import paths

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

if os.name == "posix":
    import fcntl

COMMIT, VERIFY, START = "commit", "verify", "start"
_VERSION = 1
_WORTH_MEASURING = 4 * 1024**2  # below, opening files and starting threads is most of the time


def step(source_dtype: str, dtype: str) -> str:
    """Return the name of the step that turns values of one type into another."""
    return f"{source_dtype}>{dtype}"


@dataclass(frozen=True, slots=True)
class Rates:
    """What was measured here: seconds per byte by step (``start``: seconds), and bytes of memory by kernel."""

    seconds: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversion's measurements: bytes and wall seconds by step."""

    steps: Mapping[str, tuple[int, float]]
    kernel: str
    peak_rss_bytes: int


def machine() -> str:
    """Return what tells this machine from others that share its state folder."""
    return f"{socket.gethostname()}/{os.cpu_count() or 1}"


def rates_file(state_dir: Path | None = None) -> Path:
    """Return the path of the measurements (it need not exist)."""
    return (state_dir if state_dir is not None else paths.state_dir()) / "rates.json"


def load_rates(state_dir: Path | None = None) -> Rates:
    """Read this machine's measurements; none if there are none that can be read."""
    own = _machines(rates_file(state_dir)).get(machine())
    if not isinstance(own, dict):
        return Rates()
    return Rates(_numbers(own.get("seconds")), {key: int(value) for key, value in _numbers(own.get("memory")).items()})


def learn(sample: Sample, state_dir: Path | None = None) -> Rates:
    """Take a conversion's measurements in and return what is known now.

    Steps of few bytes are left out: their time is not that of the work.
    """
    path = rates_file(state_dir)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(path):
        known = load_rates(state_dir)
        seconds = dict(known.seconds)
        for name, (size, spent) in sample.steps.items():
            if name == START:
                seconds[name] = spent
            elif size >= _WORTH_MEASURING and spent > 0:
                seconds[name] = spent / size
        fresh = Rates(seconds, {**known.memory, sample.kernel: sample.peak_rss_bytes})
        record = {"seconds": fresh.seconds, "memory": fresh.memory}
        machines = {**_machines(path), machine(): record}
        with paths.atomic_write(path, mode=0o600, is_synced=False) as temporary:
            temporary.write_text(json.dumps({"version": _VERSION, "machines": machines}, indent=1), "utf-8")
    return fresh


def _machines(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):  # none yet, or damaged: it is measured again
        return {}
    if not isinstance(record, dict) or record.get("version") != _VERSION:
        return {}
    machines = record.get("machines")
    return machines if isinstance(machines, dict) else {}


def _numbers(record: object) -> dict[str, float]:
    if not isinstance(record, dict):
        return {}
    return {
        key: float(value)
        for key, value in record.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
    }


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes of this machine from writing at the same time."""
    with path.with_name("rates.lock").open("ab") as file:
        if os.name == "posix":
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
