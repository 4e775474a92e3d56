"""The disks that sources and converted files lie on, with what Luna's files take there."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luna_engine.weights.trash import batches

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from luna_engine.weights.catalog import Listing
    from luna_engine.weights.memory import Memory


@dataclass(frozen=True, slots=True)
class Disk:
    """A file system: ``path`` is where it is mounted, ``variants`` how many files of Luna's it holds."""

    path: Path
    total_bytes: int
    free_bytes: int
    variants: int
    variants_bytes: int
    trash_bytes: int


def disks(found: Listing, homes: Iterable[Path], memory: Memory) -> tuple[Disk, ...]:
    """Return the disks of a listing's folders, those with converted files first."""
    homes = tuple(homes)
    mounts: dict[int, Path] = {}
    sizes: Counter[int] = Counter()
    counts: Counter[int] = Counter()
    trash: Counter[int] = Counter()
    for folder in (*homes, *found.roots):
        if (device := _device(folder)) is not None:
            mounts.setdefault(device, _mount(folder, device))
    for variant in found.variants:
        if variant.provenance is not None and (device := _device(variant.path)) is not None:
            sizes[device] += variant.size_bytes
            counts[device] += 1
            mounts.setdefault(device, _mount(variant.path.parent, device))
    for batch in batches(homes, memory):
        if (device := _device(batch.folder)) is not None:
            trash[device] += batch.size_bytes
    rows = []
    for device, path in mounts.items():
        usage = shutil.disk_usage(path)
        rows.append(Disk(path, usage.total, usage.free, counts[device], sizes[device], trash[device]))
    return tuple(sorted(rows, key=lambda disk: -disk.variants_bytes))


def _device(path: Path) -> int | None:
    try:
        return path.stat().st_dev
    except OSError:
        return None


def _mount(folder: Path, device: int) -> Path:
    """Return the highest folder of the same file system."""
    folder = folder.resolve()
    while folder != folder.parent and _device(folder.parent) == device:
        folder = folder.parent
    return folder
