"""Screen 4 over real files: tree, editing and saving, samples that follow, and text that is never lost."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from textual.widgets import Input, Static

from luna_tui.screens.choose import ChoiceDialog
from luna_tui.widgets.samples import Samples
from luna_tui.widgets.tree_table import TreeTable
from luna_tui.widgets.yaml_editor import YamlEditor
from tests.tui.wildcard_pilot import HATS, backend_for, make_library, open_hats, problems, samples, title, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from textual.pilot import Pilot


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_library(tmp_path / "wild")


@pytest.fixture
async def pilot(tui: Any, folder: Path) -> AsyncIterator[Pilot[None]]:
    backend = backend_for(folder)
    async with tui.running(backend=backend, start="wildcards") as running:
        await until(running, lambda: samples(running) is not None)
        yield running
    backend.wildcards.close()


async def test_the_tree_folds_and_samples_follow_its_cursor(pilot: Pilot[None]) -> None:
    tree = pilot.app.screen.query_one(TreeTable)
    tree.focus()
    assert [row.key for row in tree.shown] == ["0::sub", "0:hats.yaml:hats"]
    await pilot.press("l")
    assert "0:sub/mood.txt:sub/mood" in [row.key for row in tree.shown]
    await until(pilot, lambda: set(samples(pilot) or []) == {"calm", "grim"})
    tree.go_to("0:hats.yaml:hats")
    await pilot.press("l", "down", "l", "down")
    await until(pilot, lambda: set(samples(pilot) or []) == {"top hat", "stovepipe"})
    assert len(samples(pilot) or []) == 10
    assert "combinations 2, exact" in str(pilot.app.screen.query_one("#combinations", Static).render())
    await pilot.press("h")
    assert tree.node is not None
    assert tree.node.address == "hats:hats"


async def test_typing_changes_the_samples_and_saving_writes_the_file(pilot: Pilot[None], folder: Path) -> None:
    editor = await open_hats(pilot)
    editor.load_text(HATS.replace("top hat, stovepipe", "pork pie").replace("beret", "cloche").replace("boater", "fez"))
    await until(pilot, lambda: set(samples(pilot) or []) <= {"pork pie", "cloche", "fez"})
    assert "modified" in title(pilot, "editor")
    assert (folder / "hats.yaml").read_text("utf-8") == HATS, "previews never touch the disk"
    (folder / "hats.yaml").chmod(0o640)
    await pilot.press("ctrl+s")
    await until(pilot, lambda: "modified" not in title(pilot, "editor"))
    assert "pork pie" in (folder / "hats.yaml").read_text("utf-8")
    assert (folder / "hats.yaml").stat().st_mode & 0o777 == 0o640


async def test_another_editors_save_reaches_samples_and_a_clean_editor(pilot: Pilot[None], folder: Path) -> None:
    editor = await open_hats(pilot)
    editor.move_cursor((4, 3))
    temporary = folder / ".hats.new"
    temporary.write_text(HATS.replace("beret", "trilby"), "utf-8")
    temporary.replace(folder / "hats.yaml")
    await until(pilot, lambda: "trilby" in editor.text)
    assert editor.cursor_location == (4, 3)
    await until(pilot, lambda: "trilby" in (samples(pilot) or []) or "beret" not in (samples(pilot) or []))


async def test_a_syntax_error_says_where_and_keeps_the_last_good_samples(pilot: Pilot[None]) -> None:
    editor = await open_hats(pilot)
    before = set(samples(pilot) or [])
    editor.load_text(HATS.replace("    - beret", "\t- beret"))
    await until(pilot, lambda: any("hats.yaml:5:1 yaml-syntax" in line for line in problems(pilot)))
    assert "a tab" in problems(pilot)[0]
    assert set(samples(pilot) or []) <= before | {"boater", "beret", "top hat", "stovepipe"}
    assert "last good text" in title(pilot, "samples")
    assert editor.worst(4) == "error"
    editor.load_text(HATS)
    await until(pilot, lambda: problems(pilot) == [])
    assert "last good text" not in title(pilot, "samples")


async def test_enter_on_a_problem_goes_to_its_place(pilot: Pilot[None], folder: Path) -> None:
    (folder / "bad.yaml").write_text("a: [x]\nb:\n  - {one|two} three\n", "utf-8")
    await until(pilot, lambda: any("bad.yaml:3" in line for line in problems(pilot)))
    await pilot.press("ctrl+n")
    await until(pilot, lambda: bool(pilot.app.screen.query(YamlEditor)))
    editor = pilot.app.screen.query_one(YamlEditor)
    await until(pilot, lambda: pilot.app.focused is editor)
    assert editor.cursor_location[0] == 2


async def test_a_file_changed_under_unsaved_text_is_a_conflict(pilot: Pilot[None], folder: Path) -> None:
    editor = await open_hats(pilot)
    mine = HATS.replace("beret", "mine")
    editor.load_text(mine)
    await until(pilot, lambda: "modified" in title(pilot, "editor"))
    (folder / "hats.yaml").write_text(HATS.replace("beret", "theirs"), "utf-8")
    await until(pilot, lambda: isinstance(pilot.app.screen, ChoiceDialog))
    await pilot.press("s")
    assert editor.text == mine
    await pilot.press("ctrl+s")
    await until(pilot, lambda: isinstance(pilot.app.screen, ChoiceDialog))
    assert "theirs" in (folder / "hats.yaml").read_text("utf-8"), "a conflict writes nothing"
    await pilot.press("m")
    await until(pilot, lambda: "mine" in (folder / "hats.yaml").read_text("utf-8"))


async def test_theirs_can_be_taken(pilot: Pilot[None], folder: Path) -> None:
    editor = await open_hats(pilot)
    editor.load_text(HATS.replace("beret", "mine"))
    await until(pilot, lambda: "modified" in title(pilot, "editor"))
    (folder / "hats.yaml").write_text(HATS.replace("beret", "theirs"), "utf-8")
    await until(pilot, lambda: isinstance(pilot.app.screen, ChoiceDialog))
    await pilot.press("t")
    await until(pilot, lambda: "theirs" in editor.text)
    assert "modified" not in title(pilot, "editor")


async def test_quitting_asks_before_unsaved_text_is_lost(pilot: Pilot[None], folder: Path) -> None:
    editor = await open_hats(pilot)
    editor.load_text(HATS + "more: [one]\n")
    await until(pilot, lambda: "modified" in title(pilot, "editor"))
    await pilot.press("ctrl+q")
    await until(pilot, lambda: isinstance(pilot.app.screen, ChoiceDialog))
    await pilot.press("escape")
    assert pilot.app.is_running
    await pilot.press("ctrl+q")
    await until(pilot, lambda: isinstance(pilot.app.screen, ChoiceDialog))
    await pilot.press("v")
    await until(pilot, lambda: "more: [one]" in (folder / "hats.yaml").read_text("utf-8"))
    await until(pilot, lambda: not pilot.app.is_running)


async def test_a_prompt_of_ones_own_with_choices(pilot: Pilot[None]) -> None:
    await pilot.press("ctrl+t")
    await until(pilot, lambda: isinstance(pilot.app.focused, Input))
    await pilot.press(*"[/x] {hats:hats.flat}")
    await until(pilot, lambda: set(samples(pilot) or []) == {"[/x] beret", "[/x] boater"})
    await pilot.press("enter", "c", "minus")
    await until(pilot, lambda: len(samples(pilot) or []) == 5)
    shown = pilot.app.screen.query_one(Samples).plain_text
    assert "hats.flat" in shown
    assert "50 %" in shown


async def test_foreign_control_characters_become_signs(tui: Any, folder: Path) -> None:
    (folder / "evil[.txt").write_bytes(b"\x1b]0;owned\x07[/bold] \xe2\x80\xae x\n")
    backend = backend_for(folder)
    async with tui.running(backend=backend, start="wildcards") as pilot:
        await until(pilot, lambda: samples(pilot) is not None)
        tree = pilot.app.screen.query_one(TreeTable)
        tree.focus()
        tree.go_to("0:evil[.txt:evil[")
        await pilot.press("enter")
        await until(pilot, lambda: bool(pilot.app.screen.query(YamlEditor)))
        await until(pilot, lambda: any("owned" in text for text in samples(pilot) or []))
        await tui.settled(pilot)
        assert "\x1b" not in tui.text(pilot.app)
        assert "\x1b" not in pilot.app.screen.query_one(YamlEditor).get_line(0).plain
    backend.wildcards.close()


async def test_read_only_neither_types_nor_saves(tui: Any, folder: Path) -> None:
    backend = backend_for(folder, readonly=True)
    async with tui.running(backend=backend, start="wildcards", readonly=True) as pilot:
        await until(pilot, lambda: samples(pilot) is not None)
        await open_hats(pilot)
        await pilot.press("x", "ctrl+s")
        await tui.settled(pilot)
        assert (folder / "hats.yaml").read_text("utf-8") == HATS
    backend.wildcards.close()


@pytest.mark.parametrize("size", [(120, 36), (80, 24), (40, 12)])
async def test_every_size_shows_tree_editor_and_samples(tui: Any, folder: Path, size: tuple[int, int]) -> None:
    backend = backend_for(folder)
    async with tui.running(backend=backend, start="wildcards", size=size) as pilot:
        await until(pilot, lambda: samples(pilot) is not None)
        await open_hats(pilot)
        await tui.settled(pilot)
        assert "stovepipe" in tui.text(pilot.app)
        pilot.app.screen.open_pane("samples")  # type: ignore[attr-defined]  # WildcardsScreen
        await tui.settled(pilot)
        assert any(text in tui.text(pilot.app) for text in samples(pilot) or [])
    backend.wildcards.close()


async def test_save_to_new_samples_is_quick(pilot: Pilot[None], folder: Path) -> None:
    """Not a timing test: every save of a burst arrives, the last one last."""
    for number in range(5):
        (folder / "sub" / "mood.txt").write_text(f"mood {number}\n", "utf-8")
        await asyncio.sleep(0.02)
    tree = pilot.app.screen.query_one(TreeTable)
    tree.focus()
    tree.go_to("0::sub")
    await until(pilot, lambda: set(samples(pilot) or []) == {"mood 4"})
