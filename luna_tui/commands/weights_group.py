"""The group that the verbs of `luna weights` register on, and the catalogue they share."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from luna_engine import settings
from luna_engine.errors import InputFileError
from luna_tui import frame

if TYPE_CHECKING:
    from collections.abc import Iterator

    from luna_engine.weights.catalog import Catalog

FILE = click.Path(path_type=Path)


@click.group("weights")
def group() -> None:
    """Inspect, convert and keep checkpoints."""


@contextlib.contextmanager
def catalogue(folders: tuple[Path, ...] = ()) -> Iterator[Catalog]:
    """Open the catalogue of these folders, or of the configured ones, and say which of those do not exist.

    Raises:
        InputFileError: ``file-missing`` for a named folder.
    """
    from luna_engine.weights.catalog import Catalog
    from luna_engine.weights.naming import extra_roots, missing_roots, source_roots, variant_folders

    known = settings.load()
    for root in () if folders else missing_roots(known):
        frame.output().note(f"luna: file-missing: there is no folder {printable(str(root))} -> check the settings")
    if not folders and (problem := extra_roots().problem) is not None:
        frame.output().note(f"luna: {printable(str(problem))}")
    for folder in folders:
        if not folder.is_dir():
            raise InputFileError(
                "file-missing", f"there is no folder {folder}", "check weights.paths, LUNA_MODELS or the path",
                file=str(folder),
            )  # fmt: skip
    roots = tuple(folder.absolute() for folder in folders) or source_roots(known)
    with contextlib.closing(Catalog.open(roots, variant_folders(roots, known))) as catalog:
        yield catalog


def printable(text: str) -> str:
    """Return foreign text with what could act on the terminal written as escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
