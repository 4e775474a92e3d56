"""ComfyUI's `extra_model_paths.yaml`: more folders of checkpoints and diffusion models.

Each entry is a mapping of kinds to folders, one a line, below its ``base_path`` if it has one; an entry with
``is_default`` comes first. Relative folders count from the file. Seen in ComfyUI 0.12.1.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna_engine.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE = "extra_model_paths.yaml"
_KINDS = ("checkpoints", "diffusion_models", "unet")


@dataclass(frozen=True, slots=True)
class ExtraFolders:
    """The folders that the file names, those that exist and others, in order; ``problem`` where it cannot be used."""

    folders: tuple[Path, ...] = ()
    problem: SettingsError | None = None


def extra_folders(comfyui: Path) -> ExtraFolders:
    """Read the file of a ComfyUI checkout; one that is not there names nothing, a bad one is a problem, not the end."""
    file = comfyui / FILE
    if not file.is_file():
        return ExtraFolders()
    import yaml  # only where there is such a file

    try:
        content = yaml.safe_load(file.read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        words = f"{FILE} cannot be read: {' '.join(str(error).split())}"
        return ExtraFolders((), SettingsError("settings-invalid", words, "mend the file", file=str(file)))
    if content is None:
        return ExtraFolders()
    entries = content.values() if isinstance(content, dict) else [content]
    if not all(isinstance(entry, dict) or entry is None for entry in entries):
        words = f"{FILE} holds an entry that is no mapping of kinds to folders"
        return ExtraFolders((), SettingsError("settings-invalid", words, "mend the file", file=str(file)))
    known = [entry for entry in entries if entry]
    known.sort(key=lambda entry: not entry.get("is_default"))
    return ExtraFolders(tuple(dict.fromkeys(folder for entry in known for folder in _folders(entry, file.parent))))


def _folders(entry: dict[str, Any], beside: Path) -> Iterator[Path]:
    base = beside / _expanded(str(entry.get("base_path") or ""))
    for kind in _KINDS:
        for line in str(entry.get(kind) or "").splitlines():
            if line.strip():
                yield Path(os.path.normpath(base / _expanded(line.strip())))


def _expanded(text: str) -> Path:
    return Path(os.path.expandvars(text)).expanduser()
