"""The user's ComfyUI checkout as a library: whether this interpreter can import it, and importing it with our flags.

Nothing of ComfyUI is part of Luna; what is there is found at run time. Whether its imports work is tried in another
process, because half an import cannot be taken back.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna_daemon.engine_seam import here
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    import torch

    from luna_daemon.engine_seam import OnDevice

PROBE_TIMEOUT_S = 180.0
_OWN = "_luna_own_functions"
"""Where ComfyUI's own functions are kept, so that a second `Comfy` of the process wraps those and not the first's."""
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
        sd, sd1_clip, utils, management: its modules ``comfy.sd``, ``comfy.sd1_clip``, ``comfy.utils`` and
            ``comfy.model_management``.
        version: of the checkout.

    Args:
        checkout: its folder.
        device: where models run.
        on_device: runs work on the device's thread, which alone changes ComfyUI's record of loaded models.

    Raises:
        DaemonError: ``settings-invalid`` if another ``comfy`` than that of the checkout was imported.
    """

    def __init__(self, checkout: Path, device: torch.device, on_device: OnDevice = here) -> None:
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
        self.sd1_clip: Any = importlib.import_module("comfy.sd1_clip")
        self.version: str = getattr(importlib.import_module("comfyui_version"), "__version__", "unknown")
        _keep_record_on_this_thread(self.management, on_device)


def _keep_record_on_this_thread(management: Any, on_device: OnDevice) -> None:
    """Let one thread alone touch ComfyUI's list of loaded models, while others build models beside it.

    Building one ends with its registration, which then waits for its turn on the device's thread. A model's end is
    noted on the thread that happens to drop it last: only the device's does so at once, and before it loads anything.
    """
    own = getattr(management, _OWN, None) or (management.load_models_gpu, management.cleanup_models)
    setattr(management, _OWN, own)
    load, clean_up = own
    owner = threading.get_ident()

    def load_models_gpu(*models: Any, **how: Any) -> Any:
        def work() -> Any:
            clean_up()
            return load(*models, **how)

        return work() if threading.get_ident() == owner else on_device(work)

    def cleanup_models() -> None:
        if threading.get_ident() == owner:
            clean_up()

    management.load_models_gpu, management.cleanup_models = load_models_gpu, cleanup_models
