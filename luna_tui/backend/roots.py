"""Where model files are looked for: settings, LUNA_MODELS and the models folder of COMFYUI_PATH."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from luna_engine.settings import Settings

_LORA_FOLDERS = ("loras", "lora", "embeddings", "textual_inversion")


def model_roots(settings: Settings) -> tuple[Path, ...]:
    """Return the roots in the order of precedence, each once; they need not exist."""
    named = [Path(text).expanduser() for text in settings.models]
    named += [Path(text).expanduser() for text in os.environ.get("LUNA_MODELS", "").split(os.pathsep) if text]
    if comfyui := os.environ.get("COMFYUI_PATH"):
        named.append(Path(comfyui).expanduser() / "models")
    return tuple(dict.fromkeys(path.absolute() for path in named))


def files(roots: Iterable[Path], suffixes: tuple[str, ...]) -> list[tuple[Path, Path]]:
    """Return (root, file) of all files with a suffix below the roots, each once; unreadable folders are skipped."""
    found: dict[Path, Path] = {}
    for root in roots:
        for folder, names, entries in os.walk(root, followlinks=True):
            names[:] = sorted(name for name in names if not name.startswith("."))
            for entry in sorted(entries):
                if entry.lower().endswith(suffixes):
                    found.setdefault(Path(folder) / entry, root)
    return [(root, file) for file, root in found.items()]
