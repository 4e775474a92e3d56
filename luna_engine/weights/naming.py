"""Where converted files go and what they are called.

`<folder>/<source's folder below its root>/<stem>_<label>_unet.safetensors` or `<stem>_<TYPE>.gguf`. Which file belongs
to which source is read from its provenance, never from the name.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from luna_engine.errors import InputFileError
from luna_engine.weights import provenance
from luna_engine.weights.extra_paths import ExtraFolders, extra_folders
from luna_engine.weights.headers import read_header
from luna_engine.weights.pipelines import source_stem, weight_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from luna_engine.settings import Settings
    from luna_engine.weights.precisions import Precision

# The folders of a ComfyUI models folder that hold sources; a checkpoint's own root is one of these.
SOURCE_FOLDERS = ("checkpoints", "diffusion_models", "unet")
_OPTIMIZED = Path("unet") / "optimized"
_LONGEST_NAME_BYTES = 180


def source_roots(settings: Settings) -> tuple[Path, ...]:
    """Return the folders that sources are looked for in, without those that do not exist.

    They are, in order: ``weights.paths``, ``models`` and ``LUNA_MODELS`` with the source folders below them (or the
    folder itself where it has none), those of ``COMFYUI_PATH``, and those of its ``extra_model_paths.yaml``.
    """
    roots: list[Path] = []
    for base in _wanted(settings):
        inner = [base / name for name in SOURCE_FOLDERS if (base / name).is_dir()]
        roots += inner or ([base] if base.is_dir() else [])
    roots += [folder for folder in extra_roots().folders if folder.is_dir()]
    return tuple(dict.fromkeys(roots))


def extra_roots() -> ExtraFolders:
    """Return what the ``extra_model_paths.yaml`` of ``COMFYUI_PATH`` adds."""
    comfyui = _comfyui()
    return extra_folders(comfyui) if comfyui is not None else ExtraFolders()


def _comfyui() -> Path | None:
    text = os.environ.get("COMFYUI_PATH", "").strip()
    return Path(text).expanduser() if text else None


def missing_roots(settings: Settings) -> tuple[Path, ...]:
    """Return the folders that the settings or the environment name and that do not exist."""
    return tuple(base for base in _wanted(settings) if not base.is_dir())


def _wanted(settings: Settings) -> list[Path]:
    tops = [*settings.weights.paths, *settings.models]
    tops += [part for part in os.environ.get("LUNA_MODELS", "").split(os.pathsep) if part.strip()]
    if (comfyui := _comfyui()) is not None:
        tops.append(str(comfyui / "models"))
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

    It is ``weights.optimized_dir``; for sources in extra folders ``unet/optimized`` of ``COMFYUI_PATH``'s own models;
    else that of the models folder the source stands in (which stock ComfyUI lists); else the source's own folder.
    """
    if settings.weights.optimized_dir:
        return Path(settings.weights.optimized_dir).expanduser()
    root = root_of(source, source_roots(settings))
    comfyui = _comfyui()
    if comfyui is not None and root in extra_roots().folders:
        return comfyui.absolute() / "models" / _OPTIMIZED
    return root.parent / _OPTIMIZED if root.name in SOURCE_FOLDERS else source.absolute().parent


def variant_folders(roots: tuple[Path, ...], settings: Settings) -> tuple[Path, ...]:
    """Return the folders beside ``roots`` where converted files of their sources may lie."""
    folders = [root.parent / _OPTIMIZED for root in roots if root.name in SOURCE_FOLDERS]
    if (comfyui := _comfyui()) is not None:
        folders.append(comfyui.absolute() / "models" / _OPTIMIZED)
    if settings.weights.optimized_dir:
        folders.append(Path(settings.weights.optimized_dir).expanduser())
    return tuple(folder for folder in dict.fromkeys(folders) if folder.is_dir())


def destination_of(
    source: Path,
    precision: Precision,
    folder: Path | None,
    settings: Settings,
    reserved: Mapping[str, str] | None = None,
) -> Path:
    """Return the full path of a variant.

    Args:
        source: the file or diffusers folder to convert.
        precision: the target.
        folder: where the user wants it; None takes the default folder and keeps the source's own folder below it.
        settings: for the default folder and roots.
        reserved: files that others are about to make, with the source of each.
    """
    source = weight_file(source).absolute()
    root = root_of(source, source_roots(settings))
    identity = (root_id(root), source.relative_to(root).as_posix())
    if folder is not None:
        folder = folder.absolute()
    else:
        base = default_folder(source, settings)
        folder = base / source.parent.relative_to(root) if base != source.parent else base
    plain = _name(source_stem(source), precision.suffix, identity)
    marked = _name(source_stem(source), precision.suffix, identity, is_marked=True)
    is_taken = _belongs_to_another(folder / plain, identity, str(source), reserved or {})
    return folder / (marked if is_taken else plain)


def _name(stem: str, suffix: str, identity: tuple[str, str], *, is_marked: bool = False) -> str:
    """Return a file name; one that file systems would refuse is cut, and marked so that it stays unique."""
    if not is_marked and len(os.fsencode(stem + suffix)) <= _LONGEST_NAME_BYTES:
        return stem + suffix
    mark = f"~{hashlib.sha256(os.fsencode('/'.join(identity))).hexdigest()[:8]}"
    room = _LONGEST_NAME_BYTES - len(os.fsencode(mark + suffix))
    return os.fsencode(stem)[:room].decode("utf-8", "ignore") + mark + suffix


def _belongs_to_another(target: Path, identity: tuple[str, str], source: str, reserved: Mapping[str, str]) -> bool:
    """Tell whether a name, whatever its case, is that of a file that Luna made or will make from another source."""
    key = str(target).casefold()
    if any(path.casefold() == key and other != source for path, other in reserved.items()):
        return True
    try:
        alike = [path for path in target.parent.iterdir() if path.name.casefold() == target.name.casefold()]
    except OSError:  # no such folder yet
        return False
    for path in alike:
        try:
            made = provenance.read(read_header(path).metadata)
        except InputFileError:
            continue  # what it is shows when it is to be written over
        if made is not None and (made.stamp.root_id, made.stamp.path) != identity:
            return True
    return False
