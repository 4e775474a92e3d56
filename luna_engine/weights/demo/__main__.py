"""The worker of `luna demo-models`: writes files and reports as JSON lines on stdout.

Lines: ``{"name", "path", "done_bytes", "size_bytes"}`` while working, the same with ``"disk_bytes"`` when a file is
complete. A failure is one ``{"error": ...}`` line and exit code 1.
"""

from __future__ import annotations

import argparse
import errno
import json
import signal
import sys
import time
from pathlib import Path

from luna_engine.errors import LunaError
from luna_engine.weights.demo.models import MODELS, DemoModel
from luna_engine.weights.demo.writing import write

_REPORT_EVERY_S = 0.1


def main(arguments: list[str] | None = None) -> int:
    """Write the files asked for and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m luna_engine.weights.demo")
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", choices=[*MODELS, []], metavar="NAME")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _stop)
    try:
        for name in options.names or MODELS:
            _write(options.folder, MODELS[name])
    except OSError as error:
        _say(error=_explain(error, options.folder).as_dict())
        return 1
    return 0


def _write(folder: Path, model: DemoModel) -> None:
    path = folder / model.path
    last = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _REPORT_EVERY_S:
            last = time.monotonic()
            _say(name=model.name, path=model.path, done_bytes=done, size_bytes=total)

    metadata = {"luna.demo": model.name, **model.metadata}
    size = write(path, model.name, list(model.build()), metadata, progress)
    blocks = getattr(path.stat(), "st_blocks", None)
    disk = size if blocks is None else blocks * 512
    _say(name=model.name, path=model.path, done_bytes=size, size_bytes=size, disk_bytes=disk)


def _stop(number: int, _frame: object) -> None:
    """End by an exception, so that the half-written file goes."""
    raise SystemExit(128 + number)


def _explain(error: OSError, folder: Path) -> LunaError:
    place = error.filename or folder
    code = {errno.EACCES: "target-readonly", errno.EROFS: "target-readonly", errno.ENOSPC: "disk-full"}
    return LunaError(
        code.get(error.errno or 0, "write-failed"),
        f"{place}: {error.strerror or error}",
        "choose a folder you may write to, on a disk with 4 GB free",
        file=str(place),
    )


def _say(**fields: object) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
