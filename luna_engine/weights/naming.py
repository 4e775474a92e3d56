"""Where converted files go and what they are called.

`<folder>/<source's folder below its root>/<stem>_<label>_unet.safetensors` or `<stem>_<TYPE>.gguf`. Which file belongs
to which source is read from its provenance, never from the name.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from luna_engine.weights.pipelines import source_stem, weight_file

if TYPE_CHECKING:
    from luna_engine.settings import Settings
    from luna_engine.weights.precisions import Precision

# The folders of a ComfyUI models folder that hold sources; a checkpoint's own root is one of these.
SOURCE_FOLDERS = ("checkpoints", "diffusion_models", "unet")
_OPTIMIZED = Path("unet") / "optimized"
_LONGEST_NAME_BYTES = 180


def source_roots(settings: Settings) -> tuple[Path, ...]:
    """Return the folders that sources are looked for in, without those that do not exist.

    They are, in order: ``weights.paths``, ``models`` and ``LUNA_MODELS`` with the source folders below them (or the
    folder itself where it has none), and those of ``COMFYUI_PATH``.
    """
    roots: list[Path] = []
    for base in _wanted(settings):
        inner = [base / name for name in SOURCE_FOLDERS if (base / name).is_dir()]
        roots += inner or ([base] if base.is_dir() else [])
    return tuple(dict.fromkeys(roots))


def missing_roots(settings: Settings) -> tuple[Path, ...]:
    """Return the folders that the settings or the environment name and that do not exist."""
    return tuple(base for base in _wanted(settings) if not base.is_dir())


def _wanted(settings: Settings) -> list[Path]:
    tops = [*settings.weights.paths, *settings.models]
    tops += [part for part in os.environ.get("LUNA_MODELS", "").split(os.pathsep) if part.strip()]
    if comfyui := os.environ.get("COMFYUI_PATH", "").strip():
        tops.append(str(Path(comfyui) / "models"))
    return [Path(top).expanduser() for top in tops]


def root_of(source: Path, roots: tuple[Path, ...]) -> Path:
    """Return the root a source stands below: a configured one, a folder named like a source folder, or its own."""
    source = source.absolute()
    for root in roots:
        if source.is_relative_to(root.absolute()):
            return root.absolute()
    for parent in source.parents:
        if parent.name in SOURCE_FOLDERS:
            return parent
    return source.parent


def root_id(root: Path) -> str:
    """Return 8 hex digits that name a root without telling its path."""
    return hashlib.sha256(str(root.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:8]


def default_folder(source: Path, settings: Settings) -> Path:
    """Return the folder for converted files where the user names none.

    It is ``weights.optimized_dir``, else ``unet/optimized`` of the models folder the source stands in (which stock
    ComfyUI lists), else the source's own folder.
    """
    if settings.weights.optimized_dir:
        return Path(settings.weights.optimized_dir).expanduser()
    root = root_of(source, source_roots(settings))
    return root.parent / _OPTIMIZED if root.name in SOURCE_FOLDERS else source.absolute().parent


def variant_folders(roots: tuple[Path, ...], settings: Settings) -> tuple[Path, ...]:
    """Return the folders beside ``roots`` where converted files of their sources may lie."""
    folders = [root.parent / _OPTIMIZED for root in roots if root.name in SOURCE_FOLDERS]
    if settings.weights.optimized_dir:
        folders.append(Path(settings.weights.optimized_dir).expanduser())
    return tuple(folder for folder in dict.fromkeys(folders) if folder.is_dir())


def destination_of(source: Path, precision: Precision, folder: Path | None, settings: Settings) -> Path:
    """Return the full path of a variant.

    Args:
        source: the file or diffusers folder to convert.
        precision: the target.
        folder: where the user wants it; None takes the default folder and keeps the source's own folder below it.
        settings: for the default folder and roots.
    """
    source = weight_file(source)
    name = _cut(source_stem(source), precision.suffix)
    if folder is not None:
        return folder.absolute() / name
    base = default_folder(source, settings)
    root = root_of(source, source_roots(settings))
    below = source.absolute().parent.relative_to(root)
    return (base / below if base != source.absolute().parent else base) / name


def _cut(stem: str, suffix: str) -> str:
    """Shorten a name that file systems would refuse, keeping it unique."""
    if len(os.fsencode(stem + suffix)) <= _LONGEST_NAME_BYTES:
        return stem + suffix
    mark = f"~{hashlib.sha256(os.fsencode(stem)).hexdigest()[:8]}"
    room = _LONGEST_NAME_BYTES - len(os.fsencode(mark + suffix))
    return os.fsencode(stem)[:room].decode("utf-8", "ignore") + mark + suffix
