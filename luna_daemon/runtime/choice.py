"""Which backend a daemon uses, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_daemon.engine_seam import here
from luna_daemon.runtime.checkout import Comfy, find_problem
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from luna_daemon.engine_seam import OnDevice
    from luna_daemon.runtime.backend import ModelBackend


def choose_backend(
    asked: str, checkout: Path | None, device: torch.device, on_device: OnDevice = here
) -> tuple[ModelBackend, str]:
    """Return the backend and the reason for it, as the status tells it.

    Args:
        asked: ``auto``, ``native`` or ``comfy``; auto takes comfy where a checkout is named and works.
        checkout: ComfyUI's, if one is known.
        device: where models will run.
        on_device: runs work on the device's thread, the one that calls this.

    Raises:
        DaemonError: ``settings-invalid`` if comfy was asked for and cannot be had.
    """
    if asked == "native":
        return _native(device), "asked for"
    problem = find_problem(checkout)
    if problem is None and checkout is not None:
        from luna_daemon.runtime.backend_comfy import ComfyBackend

        comfy = Comfy(checkout, device, on_device)
        why = "asked for" if asked == "comfy" else "a checkout is there and works"
        return ComfyBackend(comfy, device), f"{why}; ComfyUI {comfy.version}"
    if asked == "comfy":
        raise DaemonError(
            "settings-invalid",
            f"--backend comfy: {problem}",
            "name a checkout with --comfyui or COMFYUI_PATH and start the daemon with ComfyUI's own interpreter",
        )
    return _native(device), f"auto: {problem}"


def _native(device: torch.device) -> ModelBackend:
    from luna_daemon.runtime.backend_native import NativeBackend

    return NativeBackend(device)
