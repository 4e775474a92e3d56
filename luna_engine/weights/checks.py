"""Notes for the catalogue what a verification or a conversion found out, so that nobody has to read the file again."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

import luna_engine
from luna_engine.weights.memory import DATA, SOURCE, Check, Memory
from luna_engine.weights.provenance import now
from luna_engine.weights.walking import stamp_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from luna_engine.errors import LunaError

# Only these say something about the file itself; others are about its source, the disk or the call.
_DAMAGE = frozenset({"file-damaged", "verify-differs"})
_log = logging.getLogger(__name__)


def remember_check(
    path: Path,
    data_sha256: str,
    errors: Mapping[str, Mapping[str, float]] | None = None,
    against: str | Path | None = None,
) -> None:
    """Note that a converted file is whole.

    Args:
        path: the file.
        data_sha256: the hash that was computed of its tensors.
        errors: its error per class of tensors (``rmse``, ``max``), where it was compared with its source.
        against: that source.
    """
    figures = (errors or {}).values()
    found = Check(
        now(),
        luna_engine.__version__,
        rms_error=max((entry["rmse"] for entry in figures), default=None),
        max_error=max((entry["max"] for entry in figures), default=None),
        against=str(against or ""),
    )
    with _memory() as memory:
        stamp = stamp_of(path)
        memory.keep_check(path.absolute(), stamp, found)
        memory.keep_hash(path.absolute(), DATA, stamp, data_sha256)


def remember_failure(path: Path, error: LunaError) -> None:
    """Note that a file is not what it should be, if the error says so."""
    if error.code in _DAMAGE:
        with _memory() as memory:
            memory.keep_check(path.absolute(), stamp_of(path), Check(now(), luna_engine.__version__, error.as_dict()))


def remember_source(path: Path, sha256: str) -> None:
    """Note the hash of a source's diffusion tensors, which a conversion has just computed and found unchanged."""
    with _memory() as memory:
        memory.keep_hash(path.absolute(), SOURCE, stamp_of(path), sha256)


@contextlib.contextmanager
def _memory() -> Iterator[Memory]:
    """Open the tables; a file that went away meanwhile has nothing to be remembered."""
    with contextlib.closing(Memory.open()) as memory:
        for notice in memory.store.notices:
            _log.warning("%s", notice)
        try:
            yield memory
        except FileNotFoundError as error:
            _log.warning("%s is gone: nothing is noted", error.filename)
