"""Which files a node may touch: ComfyUI's own folders and the setting ``allowed_roots``; on loopback it reads any."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from luna_engine import settings
from luna_engine.errors import InputFileError

if TYPE_CHECKING:
    from .comfy import ComfyHost


def require_readable(path: Path, host: ComfyHost) -> Path:
    """Return the real path, if nodes may read from there.

    Raises:
        InputFileError: ``path-outside``. Whether something exists at the path is not said.
    """
    if host.is_on_loopback():  # whoever reaches it is on this machine
        return path.expanduser().resolve()
    return _inside(path, host, "this ComfyUI can be reached from other machines, so nodes read only from there")


def require_writable(path: Path, host: ComfyHost) -> Path:
    """Return the real path, if nodes may write there, whoever can reach this ComfyUI.

    Raises:
        InputFileError: ``path-outside``.
    """
    return _inside(path, host, "add the folder to `allowed_roots` in Luna's settings")


def _inside(path: Path, host: ComfyHost, hint: str) -> Path:
    real = path.expanduser().resolve()
    allowed = (Path(root).expanduser().resolve() for root in settings.load().allowed_roots)
    if not any(real.is_relative_to(root) for root in (*host.own_roots(), *allowed)):
        raise InputFileError(
            "path-outside",
            f"{path} is outside ComfyUI's input, output, temp, models and wildcards folders and `allowed_roots`",
            hint,
        )
    return real
