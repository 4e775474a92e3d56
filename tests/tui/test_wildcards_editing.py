"""The editor and the samples of screen 4 in depth: references, completions, fixes, drafts, odds, pins, steps."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
from textual.widgets import Input

from luna_engine import paths
from luna_tui.screens.ask_number import NumberDialog
from luna_tui.screens.choose import ChoiceDialog
from luna_tui.screens.compare import CompareDialog
from luna_tui.screens.pick import PickDialog
from luna_tui.screens.steps import StepsDialog
from luna_tui.screens.wildcard_drafts import DraftKeeper
from luna_tui.screens.wildcard_samples import SamplesPane
from luna_tui.widgets.completions import Completions
from luna_tui.widgets.odds import Odds
from luna_tui.widgets.samples import Samples
from luna_tui.widgets.table import ListTable
from luna_tui.widgets.tree_table import TreeTable
from luna_tui.widgets.yaml_editor import YamlEditor
from tests.tui.wildcard_pilot import HATS, backend_for, make_library, open_hats, problems, samples, title, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from textual.pilot import Pilot

SCENES = (
    'templates:\n  - "a man in a {hats:hats.tall}, __mood__"\n  - "[who] in a {hats:hats.flat}"\nwho: [mime, clerk]\n'
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = make_library(tmp_path / "wild")
    (made / "scenes.yaml").write_text(SCENES, "utf-8")
    return made


@pytest.fixture
async def pilot(tui: Any, folder: Path) -> AsyncIterator[Pilot[None]]:
    backend = backend_for(folder)
    async with tui.running(backend=backend, start="wildcards") as running:
        await until(running, lambda: samples(running) is not None)
        yield running
    backend.wildcards.close()


def shown(pilot: Pilot[None]) -> Samples:
    return pilot.app.screen.query_one(Samples)


def pane(pilot: Pilot[None]) -> SamplesPane:
    return pilot.app.screen.query_one(SamplesPane)


def editor_of(pilot: Pilot[None]) -> YamlEditor:
    return next(editor for editor in pilot.app.screen.query(YamlEditor) if editor.has_focus)


async def open_scenes(pilot: Pilot[None]) -> YamlEditor:
    tree = pilot.app.screen.query_one(TreeTable)
    tree.focus()
    assert tree.go_to("0:scenes.yaml:scenes")
    await pilot.press("enter")
    await until(pilot, lambda: isinstance(pilot.app.focused, YamlEditor))
    return editor_of(pilot)


async def type_prompt(pilot: Pilot[None], text: str) -> None:
    pane(pilot).prompt.value = text
    await until(pilot, lambda: pane(pilot).samples.preview is not None and pane(pilot).samples.preview.template == text)


# -- references


async def test_a_definition_opens_and_the_way_back_is_known(pilot: Pilot[None]) -> None:
    editor = await open_scenes(pilot)
    editor.go_to(2, SCENES.split("\n")[1].index("hats.tall") + 1)
    await pilot.press("ctrl+g")
    await until(pilot, lambda: "hats.yaml" in title(pilot, "editor"))
    await until(pilot, lambda: editor_of(pilot).place[0] == 3)
    await pilot.press("alt+g")
    await until(pilot, lambda: "scenes.yaml" in title(pilot, "editor"))
    assert editor.place[0] == 2
    editor.go_to(3, SCENES.split("\n")[2].index("who") + 1)
    await pilot.press("ctrl+g")
    await until(pilot, lambda: editor.place[0] == 4)


async def test_where_an_address_is_used(pilot: Pilot[None]) -> None:
    tree = pilot.app.screen.query_one(TreeTable)
    tree.focus()
    tree.unfolded |= {"0:hats.yaml:hats", "0:hats.yaml:hats:hats"}
    tree.go_to("0:hats.yaml:hats")
    await pilot.press("U")
    await until(pilot, lambda: isinstance(pilot.app.screen, PickDialog))
    rows = pilot.app.screen.query_one(ListTable).shown
    assert [row.cells[0].text for row in rows] == ["{hats:hats.tall}", "{hats:hats.flat}"]
    await pilot.press("down", "enter")
    await until(pilot, lambda: isinstance(pilot.app.focused, YamlEditor))
    assert editor_of(pilot).place[0] == 3


async def test_a_reference_is_inserted_in_the_form_that_fits(pilot: Pilot[None]) -> None:
    editor = await open_scenes(pilot)
    editor.go_to(4, 100)
    for typed, written in (("who", "[who]"), ("hats flat", "{hats:hats.flat}")):
        await pilot.press("ctrl+o")
        await until(pilot, lambda: isinstance(pilot.app.screen, PickDialog))
        await pilot.press(*typed.replace(" ", ""))
        table = pilot.app.screen.query_one(ListTable)
        await until(pilot, lambda: len(table.shown) == 1)  # noqa: B023 - awaited in this round
        await pilot.press("enter")
        await until(pilot, lambda: written in editor.text)  # noqa: B023 - likewise
    await pilot.press("ctrl+t")
    await until(pilot, lambda: pilot.app.focused is pane(pilot).prompt)
    await pilot.press("ctrl+o")
    await until(pilot, lambda: isinstance(pilot.app.screen, PickDialog))
    await pilot.press(*"mood", "enter")
    await until(pilot, lambda: pane(pilot).prompt.value == "{sub/mood}")


async def test_completions_pop_up_and_only_what_was_chosen_is_taken(pilot: Pilot[None]) -> None:
    editor = await open_scenes(pilot)
    completions = pilot.app.screen.query_one(Completions)
    editor.go_to(5, 1)
    await pilot.press(*"more: [")
    await pilot.press(*"so")
    await pilot.pause(0.2)
    assert not completions.display, "a YAML list is no reference"
    await pilot.press(*", x {hats:hats.f")
    await until(pilot, lambda: completions.display)
    assert completions.current is not None
    assert completions.current.text == "hats.flat}"
    await pilot.press("tab")
    assert editor.text.endswith("more: [so, x {hats:hats.flat}")
    assert not completions.display
    await pilot.press("comma", *" __mo")
    await until(pilot, lambda: completions.display)
    await pilot.press("enter")
    assert editor.text.endswith("__mo\n"), "enter ends the line unless one was chosen"
    await until(pilot, lambda: not completions.display)
    await pilot.press(*"{ha")
    await until(pilot, lambda: completions.display)
    await pilot.press("escape")
    assert not completions.display
    assert pilot.app.focused is editor


# -- editing


async def test_a_problem_is_mended_by_a_second_enter_and_undone_in_one_step(pilot: Pilot[None]) -> None:
    editor = await open_hats(pilot)
    broken = HATS.replace("    - beret", "\t- beret")
    editor.load_text(broken)
    await until(pilot, lambda: any("yaml-syntax" in line for line in problems(pilot)))
    assert "again mends it" in problems(pilot)[0]
    table = pilot.app.screen.query_one("#problem-list", ListTable)
    table.focus()
    await pilot.press("enter")
    await until(pilot, lambda: pilot.app.focused is editor)
    assert editor.text == broken
    table.focus()
    await pilot.press("enter")
    await until(pilot, lambda: "\t" not in editor.text)
    await until(pilot, lambda: problems(pilot) == [])
    editor.focus()
    await pilot.press("ctrl+z")
    assert editor.text == broken


async def test_finding_goes_round(pilot: Pilot[None]) -> None:
    editor = await open_hats(pilot)
    editor.go_to(1)
    await pilot.press("ctrl+f", *"hat")
    assert isinstance(pilot.app.focused, Input)
    await until(pilot, lambda: editor.selected_text == "hat")
    seen = []
    for _ in range(3):
        seen.append(editor.selection.start)
        await pilot.press("enter")
    assert seen == [(0, 2), (1, 0), (2, 13)]
    assert editor.selection.start == (0, 2)
    await pilot.press("shift+tab")
    assert editor.selection.start == (2, 13)
    await pilot.press("escape")
    assert pilot.app.focused is editor


async def test_a_large_file_opens_as_a_section_and_saves_as_a_whole(tui: Any, folder: Path) -> None:
    lines = [f"mood number {number}" for number in range(1, 6001)]
    (folder / "many.txt").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "dead.txt").write_text("x\n" * 3 + "{many:nothing} y\n", "utf-8")
    backend = backend_for(folder)
    async with tui.running(backend=backend, start="wildcards") as pilot:
        await until(pilot, lambda: samples(pilot) is not None)
        pilot.app.screen.editor.go(0, "many.txt", 5000)  # type: ignore[attr-defined]  # WildcardsScreen
        await until(pilot, lambda: isinstance(pilot.app.focused, YamlEditor))
        editor = editor_of(pilot)
        assert editor.place[0] == 5000
        assert editor.current_line == "mood number 5000"
        assert "lines 4,000-5,999 of 6,001" in title(pilot, "editor")
        await pilot.press("home", *"very ", "ctrl+s")
        await until(pilot, lambda: "modified" not in title(pilot, "editor"))
        lines[4999] = f"very {lines[4999]}"
        assert (folder / "many.txt").read_text("utf-8") == "\n".join(lines) + "\n"
        pilot.app.screen.editor.go(0, "many.txt", 12)  # type: ignore[attr-defined]  # likewise
        await until(pilot, lambda: editor.place[0] == 12)
        assert editor.current_line == "mood number 12"
    backend.wildcards.close()


async def test_both_versions_of_a_conflict_are_shown_side_by_side(pilot: Pilot[None], folder: Path) -> None:
    editor = await open_hats(pilot)
    editor.load_text(HATS.replace("beret", "mine"))
    await until(pilot, lambda: "modified" in title(pilot, "editor"))
    (folder / "hats.yaml").write_text(HATS.replace("beret", "theirs"), "utf-8")
    await until(pilot, lambda: isinstance(pilot.app.screen, ChoiceDialog))
    await pilot.press("b")
    await until(pilot, lambda: isinstance(pilot.app.screen, CompareDialog))
    rows = [[cell.text.strip() for cell in row.cells] for row in pilot.app.screen.query_one(ListTable).shown]
    assert ["5", "- mine", "- theirs"] in rows
    await pilot.press("escape")
    await until(pilot, lambda: isinstance(pilot.app.screen, ChoiceDialog))
    await pilot.press("s")
    assert "mine" in editor.text


async def test_another_editor_gets_file_and_line_and_its_save_is_taken_over(
    pilot: Pilot[None], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "my editor.py"
    script.write_text(
        f"#!{sys.executable}\nimport pathlib, sys\nfile = pathlib.Path(sys.argv[-1])\n"
        "file.write_text(file.read_text().replace('beret', 'trilby'))\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("VISUAL", f"'{script}'")
    from contextlib import nullcontext

    monkeypatch.setattr(pilot.app, "suspend", nullcontext)  # a headless application has no terminal to give away
    editor = await open_hats(pilot)
    editor.load_text(HATS + "more: [one]\n")
    await until(pilot, lambda: "modified" in title(pilot, "editor"))
    await pilot.press("alt+e")
    await until(pilot, lambda: isinstance(pilot.app.screen, ChoiceDialog))
    await pilot.press("v")
    await until(pilot, lambda: "trilby" in editor.text)
    assert (folder / "hats.yaml").read_text("utf-8") == HATS.replace("beret", "trilby") + "more: [one]\n"


# -- drafts


async def test_a_draft_survives_a_crash_and_is_gone_after_a_save(tui: Any, pilot: Pilot[None], folder: Path) -> None:
    editor = await open_hats(pilot)
    mine = HATS.replace("beret", "mine")
    editor.load_text(mine)
    await until(pilot, lambda: "modified" in title(pilot, "editor"))
    keeper = pilot.app.screen.query_one(DraftKeeper)
    buffer = pilot.app.screen.files.current_buffer  # type: ignore[attr-defined]  # WildcardsScreen
    keeper.keep(buffer)  # what the timer does after two seconds
    folder_of_drafts = paths.private_dir("drafts")
    await until(pilot, lambda: len(list(folder_of_drafts.glob("*.json"))) == 1)
    (file,) = folder_of_drafts.glob("*.json")
    record = json.loads(file.read_text())
    record["process"] = [2**22 + 1, 1.0]  # no process has that number: its owner is gone
    left = folder_of_drafts / "left.json"
    left.write_text(json.dumps(record))
    await pilot.press("ctrl+s")
    await until(pilot, lambda: not file.exists())
    (folder / "hats.yaml").write_text(HATS, "utf-8")

    backend = backend_for(folder)
    async with tui.running(backend=backend, start="wildcards") as again:
        await until(again, lambda: isinstance(again.app.screen, ChoiceDialog))
        await again.press("r")
        await until(again, lambda: isinstance(again.app.focused, YamlEditor))
        await until(again, lambda: editor_of(again).text == mine)
        assert (folder / "hats.yaml").read_text("utf-8") == HATS
        await until(again, lambda: not left.exists())
        assert len(list(folder_of_drafts.glob("*.json"))) == 1, "the draft is this process's own now"
        await again.press("ctrl+z")
        await until(again, lambda: editor_of(again).text == HATS)
    backend.wildcards.close()


# -- samples


async def test_a_choice_is_underlined_opened_pinned_and_rerolled(pilot: Pilot[None]) -> None:
    await type_prompt(pilot, "{hats:hats.flat} and {red|green|blue}")
    shown(pilot).focus()
    await pilot.press("c", "j")
    view = shown(pilot)
    assert view.choice is not None
    assert view.choice.address == "hats:hats.flat"
    strip = view.render_line(0)
    marked = "".join(part.text for part in strip if part.style is not None and part.style.underline)
    assert marked == view.choice.value
    await pilot.press("exclamation_mark")
    value = view.choice.value
    await until(pilot, lambda: {text.split()[0] for text in samples(pilot) or []} == {value})
    assert "1 pinned" in title(pilot, "samples")
    colours = [text.split()[-1] for text in samples(pilot) or []]
    await pilot.press("r")
    await until(pilot, lambda: "1 rerolled" in title(pilot, "samples"))
    await until(pilot, lambda: len({text.split()[0] for text in samples(pilot) or []}) == 2)
    assert [text.split()[-1] for text in samples(pilot) or []] == colours, "nothing else was drawn anew"
    await pilot.press("enter")
    await until(pilot, lambda: isinstance(pilot.app.focused, YamlEditor))
    assert view.choice is not None
    assert editor_of(pilot).place[0] == view.choice.line


async def test_odds_of_the_template_and_of_a_choice(pilot: Pilot[None]) -> None:
    await type_prompt(pilot, "{3::red|{green|blue}} {hats:hats.flat}")
    shown(pilot).focus()
    await pilot.press("b")
    odds = pilot.app.screen.query_one(Odds)
    await until(pilot, lambda: "75.0 %" in str(odds.render()))
    assert "12.5 %" in str(odds.render())
    assert odds.display
    await pilot.press("c", "j")
    choices = shown(pilot).sample.choices  # type: ignore[union-attr]  # there is one
    at = next(number for number, choice in enumerate(choices) if choice.address)
    await pilot.press(*["j"] * at)
    await until(pilot, lambda: "odds of hats:hats.flat" in str(odds.render()))
    assert "50.0 %" in str(odds.render())
    await pilot.press("b")
    assert not odds.display


async def test_steps_walk_a_sample(pilot: Pilot[None], tui: Any) -> None:
    await type_prompt(pilot, "{hats:hats.flat} x {sub/mood}")
    shown(pilot).focus()
    await pilot.press("S")
    await until(pilot, lambda: isinstance(pilot.app.screen, StepsDialog))
    await until(pilot, lambda: "{hats:hats.flat} x {sub/mood}" in tui.text(pilot.app))
    await pilot.press("right")
    await until(pilot, lambda: "50 %, 1 of 2" in tui.text(pilot.app))
    assert "x {sub/mood}" in tui.text(pilot.app)
    await pilot.press("end")
    await until(pilot, lambda: "step 2 of 2" in tui.text(pilot.app))
    await pilot.press("escape")


async def test_a_seed_of_ones_own_and_the_dialects(pilot: Pilot[None]) -> None:
    await type_prompt(pilot, "{hats:hats.flat}")
    shown(pilot).focus()
    await pilot.press("equals_sign")
    await until(pilot, lambda: isinstance(pilot.app.screen, NumberDialog))
    await pilot.press("end", "ctrl+u", *"-7x", "enter")
    assert isinstance(pilot.app.screen, NumberDialog), "no integer"
    await pilot.press("backspace", "enter")
    await until(pilot, lambda: "seed -7" in title(pilot, "samples"))
    await pilot.press("P")
    await until(pilot, lambda: set(samples(pilot) or []) == {"hats:hats.flat"})
    assert "dynamicprompts" in title(pilot, "samples")


async def test_the_tree_shows_the_worst_problem_at_its_key_and_above(pilot: Pilot[None], folder: Path) -> None:
    (folder / "sub" / "loop.yaml").write_text('fine: [x]\nround: ["{loop:round}"]\nbad: ["{nofile}"]\n', "utf-8")
    tree = pilot.app.screen.query_one(TreeTable)
    tree.unfolded |= {"0::sub", "0:sub/loop.yaml:sub/loop"}

    def signs() -> dict[str, str]:
        return {row.key: row.cells[2].text for row in tree.shown}

    await until(pilot, lambda: signs().get("0:sub/loop.yaml:sub/loop:bad") == "E")
    assert signs()["0:sub/loop.yaml:sub/loop:round"] == "E↻"
    assert signs()["0:sub/loop.yaml:sub/loop:fine"] in {"", "·"}
    assert signs()["0::sub"] == "E↻"
    assert signs()["0:hats.yaml:hats"] in {"", "·"}


@pytest.mark.parametrize("size", ["120x36", "80x24", "40x12"])
@pytest.mark.parametrize("state", ["normal", "empty", "error"])
async def test_screen(
    tui: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, golden: Any, size: str, state: str
) -> None:
    monkeypatch.setattr("luna_tui.backend.wildcards.time.perf_counter", lambda: 0.0)
    folder = tmp_path / "wild"
    folder.mkdir()
    if state != "empty":
        make_library(folder / "my")
        (folder / "scenes.yaml").write_text(SCENES, "utf-8")
    if state == "error":
        (folder / "broken.yaml").write_text('species:\n  humanoid:\n    - "elf\n    - human\n', "utf-8")
    backend = backend_for(folder)
    width, height = (int(part) for part in size.split("x"))
    async with tui.running(backend=backend, start="wildcards", size=(width, height)) as pilot:
        await until(pilot, lambda: samples(pilot) is not None)
        if state == "normal":
            await open_scenes(pilot)
            await pilot.press("escape", *(["tab", "tab"]), "c", "b")
            await tui.settled(pilot)
            await until(pilot, lambda: "odds of" in str(pilot.app.screen.query_one(Odds).render()))
        await tui.settled(pilot)
        golden(f"wildcards-{size}-{state}", tui.text(pilot.app))
    backend.wildcards.close()
