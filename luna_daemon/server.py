"""Process entry of the daemon: `python luna_daemon/server.py` by path, or `luna-daemon`.

Run by path, Python puts this very folder first on `sys.path`, where `platform` and others would hide the standard
library's and a ComfyUI's own. So before anything else is imported the folder is replaced by the one above it.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    _folder = os.path.dirname(os.path.realpath(__file__))  # noqa: PTH120 - pathlib would import too much here
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or ".") != _folder]
    sys.path.insert(0, os.path.dirname(_folder))  # noqa: PTH120 - likewise
    from luna_daemon.server import main as _main

    _main()


def main() -> None:
    """Run the daemon and leave with its exit code."""
    from luna_daemon.process import main as run

    run()
