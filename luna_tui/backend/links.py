"""The LoRA port: LoRA and embedding files below the model folders, each header read once per change of the file."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from luna_engine.errors import LunaError
from luna_tui.backend import lora_facts, roots
from luna_tui.views import Failure, LinkRow, LinksView

if TYPE_CHECKING:
    from pathlib import Path

    from luna_engine.settings import Settings

_FOLDERS = frozenset({"loras", "lora", "lycoris", "embeddings", "textual_inversion"})
_SUFFIXES = (".safetensors",)


class LocalLinks:
    """LoRAs and embeddings of this machine. Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._known: dict[Path, tuple[tuple[int, int], LinkRow | None]] = {}

    def snapshot(self) -> LinksView:
        """Read the folders anew; a file that has not changed is not opened again."""
        places = roots.model_roots(self._settings)
        with self._lock:
            found = roots.files((place for place in places if place.is_dir()), _SUFFIXES)
            rows = [row for root, file in found if (row := self._row(root, file)) is not None]
            self._known = {file: entry for _, file in found if (entry := self._known.get(file))}
        rows.sort(key=lambda row: row.name.casefold())
        return LinksView(time.time(), tuple(str(place) for place in places), tuple(rows))

    def _row(self, root: Path, file: Path) -> LinkRow | None:
        try:
            state = file.stat()
        except OSError:
            return None  # gone since the listing
        stamp = (state.st_mtime_ns, state.st_size)
        known = self._known.get(file)
        if known is None or known[0] != stamp:
            known = (stamp, _read(root, file, state.st_size))
            self._known[file] = known
        return known[1]


def _read(root: Path, file: Path, size_bytes: int) -> LinkRow | None:
    """Return the row of a file, None if it is another kind of model."""
    from luna_engine.weights.inspection import inspect

    relative = file.relative_to(root)
    name = str(relative.with_suffix(""))
    is_own_folder = bool(_FOLDERS & {part.lower() for part in relative.parts[:-1]})
    try:
        seen = inspect(file)
    except LunaError as error:
        if not is_own_folder:
            return None  # what a damaged file elsewhere is, the Weights screen says
        problem = Failure(error.code, error.message, error.hint)
        return LinkRow(str(file), name, "lora", str(root), size_bytes, problem=problem)
    kind = seen.kind.value
    if kind not in {"lora", "embedding"}:
        if not is_own_folder:
            return None
        problem = Failure("wrong-type", f"this is a {seen.name}, no LoRA or embedding", "move it to its own folder")
        return LinkRow(str(file), name, kind, str(root), size_bytes, problem=problem)
    facts = lora_facts.read({tensor.name: tuple(tensor.shape) for tensor in seen.tensors}, seen.metadata)
    return LinkRow(
        str(file),
        name,
        kind,
        str(root),
        size_bytes,
        facts.base,
        facts.evidence,
        facts.rank,
        facts.parts,
        facts.triggers,
    )
