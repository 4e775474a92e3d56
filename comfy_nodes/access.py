"""Which files a node may touch: anything for a ComfyUI on loopback, else ComfyUI's own folders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_engine.errors import InputFileError

if TYPE_CHECKING:
    from pathlib import Path

    from .comfy import ComfyHost


def require_writable(path: Path, host: ComfyHost) -> Path:
    """Return the real path of a folder that a node may write to: the same folders it may read from.

    Raises:
        InputFileError: ``path-outside``.
    """
    return require_readable(path, host)


def require_readable(path: Path, host: ComfyHost) -> Path:
    """Return the real path, if nodes may read from there.

    Raises:
        InputFileError: ``path-outside``. Whether something exists at the path is not said.
    """
    real = path.expanduser().resolve()
    roots = host.readable_roots()
    if roots is not None and not any(real.is_relative_to(root) for root in roots):
        raise InputFileError(
            "path-outside",
            f"{path} is outside ComfyUI's input, output, temp, models and wildcards folders",
            "this ComfyUI can be reached from other machines, so nodes read only from its own folders",
        )
    return real
