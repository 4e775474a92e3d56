"""What tests of screen 4 share: a small library, and waiting for what workers bring."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from luna_engine.settings import Settings, WildcardSettings
from luna_tui.backend.fake import FakeBackend
from luna_tui.backend.wildcards import LocalWildcards
from luna_tui.widgets.chrome import Pane
from luna_tui.widgets.samples import Samples
from luna_tui.widgets.table import ListTable
from luna_tui.widgets.tree_table import TreeTable
from luna_tui.widgets.yaml_editor import YamlEditor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from textual.pilot import Pilot

DEADLINE_S = 60.0  # polls end at once when it holds; generous for a loaded machine
HATS = "# hats\nhats:\n  tall: [top hat, stovepipe]\n  flat:\n    - beret\n    - boater\n"


def make_library(folder: Path) -> Path:
    """Write two files."""
    (folder / "sub").mkdir(parents=True)
    (folder / "hats.yaml").write_text(HATS, "utf-8")
    (folder / "sub" / "mood.txt").write_text("calm\ngrim\n", "utf-8")
    return folder


def backend_for(folder: Path, *, readonly: bool = False) -> FakeBackend:
    settings = Settings(wildcards=WildcardSettings(roots=(str(folder),), bundled=False))
    return FakeBackend("normal", wildcards=LocalWildcards(settings, readonly=readonly))


async def until(pilot: Pilot[None], condition: Callable[[], bool]) -> None:
    """Let the application run until something holds."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "did not happen"
        await pilot.pause(0.01)


def samples(pilot: Pilot[None]) -> list[str] | None:
    found = pilot.app.screen.query(Samples)
    preview = found.first().preview if found else None
    return [sample.text for sample in preview.samples] if preview else None


def title(pilot: Pilot[None], pane: str) -> str:
    return str(pilot.app.screen.query_one(f"#{pane}", Pane).border_title)


def problems(pilot: Pilot[None]) -> list[str]:
    table = pilot.app.screen.query_one("#problem-list", ListTable)
    return [" ".join(cell.text for cell in row.cells) for row in table.shown]


async def open_hats(pilot: Pilot[None]) -> YamlEditor:
    tree = pilot.app.screen.query_one(TreeTable)
    tree.focus()
    assert tree.go_to("0:hats.yaml:hats")
    await pilot.press("enter")
    await until(pilot, lambda: bool(pilot.app.screen.query(YamlEditor)))
    editor = pilot.app.screen.query_one(YamlEditor)
    await until(pilot, lambda: pilot.app.focused is editor)
    return editor
