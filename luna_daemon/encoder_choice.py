"""Which text encoders files hold, by their headers, and which family they make together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_daemon.file_sources import open_model
from luna_daemon.runtime.families import wrong_roles
from luna_daemon.runtime.parts import KINDS
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_ORDER = ("sd15", "sdxl", "flux", "z-image", "sd3")
"""The first family that takes the encoders is theirs: SD3 takes any of its three, so it comes last."""


def choose_encoders(paths: Sequence[Path], family: str = "auto") -> tuple[str, dict[str, Path]]:
    """Say what files are together.

    Args:
        paths: safetensors files in any order; a checkpoint counts with the encoders it holds.
        family: or ``auto``.

    Returns:
        The family, and role -> file.

    Raises:
        DaemonError: ``wrong-type`` listing what each file is, if they are no family's encoders together;
            ``model-missing``, ``file-damaged``, ``model-unsupported``.
    """
    files: dict[str, Path] = {}
    told: list[str] = []
    is_wrong = not paths
    for path in paths:
        roles, what = _look(path)
        told.append(f"{path.name} is {what}")
        is_wrong |= not roles or any(role in files for role in roles)
        files |= dict.fromkeys(roles, path)
    fitting = [name for name in (_ORDER if family == "auto" else (family,)) if not wrong_roles(name, list(files))]
    if is_wrong or not fitting:
        raise DaemonError(
            "wrong-type",
            f"these are not the text encoders of {'a family' if family == 'auto' else family}: "
            f"{'; '.join(told) or 'no file is chosen'}",
            "sd15 is CLIP-L; sdxl CLIP-L and CLIP-G; flux CLIP-L and T5-XXL; sd3 any of those three; z-image Qwen3-4B",
        )
    return fitting[0], files


def _look(path: Path) -> tuple[list[str], str]:
    with open_model(path) as file:
        roles = [role for role in KINDS if role != "vae" and file.find(role) is not None]
        labels = [KINDS[role].label for role in roles]
        return roles, " and ".join(labels) or file.description()
