"""A shelf of small models for tests of the catalogue: a checkpoint with converted files, made in milliseconds."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from luna_engine.weights import convert
from luna_engine.weights.catalog import Catalog
from luna_engine.weights.memory import Memory
from luna_engine.weights.plans import ConversionOptions
from tests.synthetic_models import TINY_SDXL, random_values, write_values

if TYPE_CHECKING:
    from pathlib import Path

DAY_S = 86400.0


class Shelf:
    """``checkpoints`` with sources, ``unet/optimized`` with what was made of them, and a catalogue over both."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "checkpoints"
        self.home = folder / "unet" / "optimized"
        self.database = folder / "luna.db"
        self.root.mkdir(parents=True)
        self.home.mkdir(parents=True)

    def source(self, name: str = "tiny.safetensors", seed: int = 1) -> Path:
        return write_values(self.root / name, random_values(TINY_SDXL, "F16", seed))

    def variant(self, source: Path, name: str, precision: str = "bf16") -> Path:
        target = self.home / name
        convert(source, target, precision, options=ConversionOptions(roots=(self.root,)))
        return target

    def catalog(self) -> Catalog:
        return Catalog.open([self.root], [self.home], memory=Memory.open(self.database))

    @staticmethod
    def age(path: Path, days: float) -> None:
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - int(days * DAY_S * 1e9)))
