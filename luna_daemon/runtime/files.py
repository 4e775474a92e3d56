"""Model files by id ``root/name``: where the roots are, and the one way from an id to a path. No torch.

An id never leaves the roots: no absolute paths, no ``..``, and where links lead must lie below some root as well.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from luna_daemon.model_messages import Expect
    from luna_engine.settings import Settings

EMBEDDINGS = "embeddings"
_SUFFIXES = (".safetensors", ".sft")
# Folders of a ComfyUI models folder that can hold text encoders, VAEs, LoRAs and textual inversions.
_COMFYUI_FOLDERS = ("checkpoints", "text_encoders", "clip", "vae", "loras", "LLM", EMBEDDINGS)


def find_roots(settings: Settings, environ: Mapping[str, str] = os.environ) -> dict[str, Path]:
    """Return the model roots by name: ``LUNA_MODELS``, the settings' ``models``, then ComfyUI's folders.

    A root is named like its folder; a second folder of one name gets ``-2`` and so on. A folder that looks like
    ComfyUI's ``models`` (or the demo models) adds the folders inside it under their own names too, so that
    ``checkpoints/x.safetensors`` means the same to ComfyUI and to Luna.
    """
    given = [Path(entry) for entry in environ.get("LUNA_MODELS", "").split(os.pathsep) if entry.strip()]
    given += [Path(entry).expanduser() for entry in settings.models]
    comfyui = environ.get("COMFYUI_PATH", "").strip()
    inside = [Path(comfyui) / "models"] if comfyui else []
    folders = [folder / name for folder in [*given, *inside] for name in _COMFYUI_FOLDERS]
    roots: dict[str, Path] = {}
    for folder in [*given, *(entry for entry in folders if entry.is_dir())]:
        _add(roots, folder.absolute())
    return roots


def _add(roots: dict[str, Path], folder: Path) -> None:
    if folder in roots.values():
        return
    name, count = folder.name or "root", 1
    while name in roots:
        count += 1
        name = f"{folder.name}-{count}"
    roots[name] = folder


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells whether a file is still the same one."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Read it."""
        found = path.stat()
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)

    def agrees(self, expect: Expect) -> bool:
        """Tell whether the client sees the very same file."""
        return (self.device, self.inode, self.size_bytes, self.mtime_ns) == (
            expect.device,
            expect.inode,
            expect.size_bytes,
            expect.mtime_ns,
        )


class ModelFiles:
    """The files below the roots."""

    def __init__(self, roots: Mapping[str, Path]) -> None:
        self.roots = dict(roots)

    def resolve(self, file_id: str, *, may_be_folder: bool = False) -> Path:
        """Return the path of an id, of a folder too where that may be: all it holds is then inside the roots.

        Raises:
            DaemonError: ``path-outside`` for an id that leaves the roots, ``model-missing`` for one that is not there,
                ``wrong-type`` for what is no regular file.
        """
        parts = file_id.split("/")
        if not file_id or "\0" in file_id or "\\" in file_id or any(part in {"", ".", ".."} for part in parts):
            raise DaemonError(
                "path-outside",
                f"{file_id!r} is no file id",
                f"name a file as root/name; the roots are {self._names()}",
            )
        root = self.roots.get(parts[0])
        if root is None:
            raise DaemonError(
                "model-missing",
                f"{file_id!r}: there is no model root {parts[0]!r}",
                f"the roots are {self._names()}; add one with LUNA_MODELS or the settings",
            )
        path = root.joinpath(*parts[1:])
        self._require_inside(path, file_id)
        if may_be_folder and path.is_dir():
            for inside in path.iterdir():
                self._require_inside(inside, f"{file_id}/{inside.name}")
        else:
            require_file(path.resolve(), file_id)
        return path

    def _require_inside(self, path: Path, label: str) -> None:
        real = path.resolve()
        if not any(real.is_relative_to(folder.resolve()) for folder in self.roots.values()):
            raise DaemonError(
                "path-outside", f"{label!r} leads out of the model roots", "make the folder it leads to a root"
            )

    def _names(self) -> str:
        return ", ".join(sorted(self.roots)) or "none yet"

    def id_of(self, path: Path) -> str | None:
        """Return the id of a path, or None if it lies below no root; the innermost root names it."""
        absolute = path.absolute()
        within = [(name, root) for name, root in self.roots.items() if absolute.is_relative_to(root)]
        if not within:
            return None
        name, root = max(within, key=lambda pair: len(pair[1].parts))
        return f"{name}/{absolute.relative_to(root).as_posix()}"

    def scan(self) -> Iterator[tuple[str, Path]]:
        """Yield (id, path) of every safetensors file below the roots, each file once."""
        seen: set[Path] = set()
        for root in self.roots.values():
            for path in sorted(root.rglob("*")):
                file_id = self.id_of(path)
                if path.suffix.lower() in _SUFFIXES and path not in seen and path.is_file() and file_id is not None:
                    seen.add(path)
                    yield file_id, path

    def embedding(self, name: str) -> Path | None:
        """Return the file of a textual inversion by its name in a prompt, or None; it stays inside its folder."""
        if not name or "\0" in name:
            return None
        for root in (path for key, path in self.roots.items() if key == EMBEDDINGS or key.startswith(f"{EMBEDDINGS}-")):
            for folder in (root, *sorted(entry for entry in root.rglob("*") if entry.is_dir())):
                for candidate in (folder / name, folder / f"{name}.safetensors"):
                    inside = candidate.resolve().is_relative_to(root.resolve())
                    if inside and candidate.suffix == ".safetensors" and candidate.is_file():
                        return candidate
        return None


def require_file(path: Path, label: str) -> None:
    """Check that a path is a regular file.

    Raises:
        DaemonError: ``model-missing`` or ``wrong-type``.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise DaemonError(
            "model-missing", f"{label} cannot be opened: {error.strerror}", "check the name and its folder"
        ) from error
    if not stat.S_ISREG(mode):
        raise DaemonError("wrong-type", f"{label} is no regular file", "name a safetensors file")
