"""The user's ComfyUI checkout as a library: whether this interpreter can import it, and importing it with our flags.

Nothing of ComfyUI is part of Luna; what is there is found at run time. Whether its imports work is tried in another
process, because half an import cannot be taken back.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    import torch

PROBE_TIMEOUT_S = 180.0
_PROBE = """
import sys
sys.path.insert(0, sys.argv.pop())
from comfy.cli_args import args
args.cpu = True
import comfy.sd
"""


def find_problem(checkout: Path | None) -> str | None:
    """Return why a checkout cannot be used by this interpreter, or None if it can."""
    if checkout is None:
        return "no ComfyUI checkout is named"
    if not (checkout / "comfy" / "sd.py").is_file():
        return f"{checkout.name} is no ComfyUI checkout"
    command = [sys.executable, "-c", _PROBE, str(checkout)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=PROBE_TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return f"importing ComfyUI took more than {PROBE_TIMEOUT_S:g} s"
    if done.returncode == 0:
        return None
    said = done.stderr.strip().splitlines()
    return f"this interpreter cannot import it: {said[-1] if said else f'exit {done.returncode}'}"


class Comfy:
    """ComfyUI's modules in this process. Made once, on the thread that will call them, before anything else imports it.

    Attributes:
        sd, utils, management: its modules ``comfy.sd``, ``comfy.utils`` and ``comfy.model_management``.
        version: of the checkout.

    Raises:
        DaemonError: ``settings-invalid`` if another ``comfy`` than that of the checkout was imported.
    """

    def __init__(self, checkout: Path, device: torch.device) -> None:
        root = str(checkout.absolute())
        if root not in sys.path:
            sys.path.insert(0, root)
        flags = importlib.import_module("comfy.cli_args").args
        flags.cpu = device.type == "cpu"
        self.sd: Any = importlib.import_module("comfy.sd")
        self.utils: Any = importlib.import_module("comfy.utils")
        self.management: Any = importlib.import_module("comfy.model_management")
        found = Path(self.sd.__file__ or "").resolve()
        if not found.is_relative_to(checkout.resolve()):
            raise DaemonError(
                "settings-invalid", "another package called comfy hides the checkout", "remove it from this interpreter"
            )
        self.version: str = getattr(importlib.import_module("comfyui_version"), "__version__", "unknown")
