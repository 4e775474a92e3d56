"""The action table and what its keys do: same call by key and by palette, none when read-only."""

from __future__ import annotations

import shlex
from typing import Any

import click
import pytest

from luna_tui import actions
from luna_tui.actions import Grade
from luna_tui.backend.fake import FakeBackend
from luna_tui.cli import luna
from luna_tui.screens.overview import OverviewScreen
from luna_tui.widgets.table import ListTable

TABLE = list(actions.TABLE.values())
# action -> row it is applied to, keys after its own, and the call that must come of it
CALLS = {
    "daemon.start": ("spare", [], ("daemons.start", "spare")),
    "daemon.stop": ("clip", ["y"], ("daemons.stop", "clip")),
    "daemon.restart": ("vae", ["y"], ("daemons.restart", "vae")),
    "daemon.kill": ("clip", [*"clip", "enter"], ("daemons.kill", "clip")),
    "daemon.adopt": ("clip", [], ("daemons.adopt",)),
    "daemon.forget": ("spare", ["y"], ("daemons.forget", "spare")),
}


@pytest.mark.parametrize("action", TABLE, ids=lambda action: action.id)
def test_each_action_says_what_it_does_and_how_a_shell_does_it(action: actions.Action) -> None:
    assert action.help.endswith("."), "one sentence"
    assert (action.cli is None) is not (action.no_cli is None), "a command line, or why there is none"
    assert action.keys
    if action.grade is not Grade.NONE:
        assert action.mutates


@pytest.mark.parametrize("action", [action for action in TABLE if action.cli], ids=lambda action: action.id)
def test_the_command_line_of_an_action_is_one_that_luna_takes(action: actions.Action) -> None:
    """Parsed by the real command tree down to the options, without running it."""
    name, *words = shlex.split(str(action.cli).format(target="clip"))
    assert name == "luna"
    command: click.Command = luna
    context = click.Context(luna)
    while isinstance(command, click.Group):
        found = command.get_command(context, words.pop(0))
        assert found is not None
        command = found
    command.make_context(command.name, words)


def test_no_two_actions_of_a_screen_share_a_key() -> None:
    for screen in ("overview", "gpu", "weights", "wildcards", "links", "events"):
        own = [action for action in actions.on_screen(screen) if action.screens]
        keys = [key for action in own for key in action.keys.split(",")]
        assert sorted(keys) == sorted(set(keys)), screen


def test_never_only_a_key_that_terminals_swallow() -> None:
    """ctrl+i, ctrl+m and ctrl+h are the bytes of tab, enter and backspace; function keys are often taken."""
    swallowed = {"ctrl+i", "ctrl+m", "ctrl+h"}
    for action in TABLE:
        usable = {
            key for key in action.keys.split(",") if key not in swallowed and not (key[0] == "f" and key[1:].isdigit())
        }
        assert usable, action.id


@pytest.mark.parametrize("name", CALLS)
async def test_key_and_palette_reach_the_same_call(tui: Any, name: str) -> None:
    row, answer, call = CALLS[name]
    seen = []
    for way in ("key", "palette"):
        backend = FakeBackend("normal")
        async with tui.running(backend=backend) as pilot:
            assert pilot.app.screen.query_one(ListTable).go_to(row)
            await pilot.pause()
            if way == "key":
                await pilot.press(actions.TABLE[name].keys.split(",")[0])
            else:
                entries = {entry.title: entry for entry in pilot.app.get_system_commands(pilot.app.screen)}
                entries[f"{actions.TABLE[name].label}: {name}"].callback()
            await pilot.pause()
            await pilot.press(*answer)
            await tui.settled(pilot)
            seen.append(backend.calls)
    assert seen == [[call], [call]]


@pytest.mark.parametrize("name", CALLS)
async def test_read_only_reaches_no_port_and_shows_no_key(tui: Any, name: str) -> None:
    row, answer, _ = CALLS[name]
    backend = FakeBackend("normal")
    async with tui.running(backend=backend, readonly=True) as pilot:
        pilot.app.screen.query_one(ListTable).go_to(row)
        await pilot.press(actions.TABLE[name].keys.split(",")[0], *answer)
        await tui.settled(pilot)
        assert backend.calls == []
        assert actions.TABLE[name].label not in tui.text(pilot.app).splitlines()[-1]


@pytest.mark.parametrize(
    ("row", "absent"),
    [("clip", "start"), ("spare", "stop"), ("spare", "kill")],
)
async def test_a_key_that_cannot_work_now_is_not_shown(tui: Any, row: str, absent: str) -> None:
    async with tui.running() as pilot:
        pilot.app.screen.query_one(ListTable).go_to(row)
        await tui.settled(pilot)
        assert absent not in tui.text(pilot.app).splitlines()[-1].split()


async def test_an_action_is_told_recorded_and_kept_as_a_command_line(tui: Any) -> None:
    backend = FakeBackend("normal")
    async with tui.running(backend=backend) as pilot:
        pilot.app.screen.query_one(ListTable).go_to("spare")
        await pilot.press("s")
        await tui.settled(pilot)
        event = backend.events.recorded[0]
        assert (event.level, event.source, event.command) == ("info", "you", "luna daemon start spare")
        assert "spare is starting" in tui.text(pilot.app)
        await pilot.press("at")
        await pilot.pause()
        assert "luna daemon start spare" in tui.text(pilot.app)


async def test_every_shown_action_has_a_handler(tui: Any) -> None:
    for screen in ("overview", "gpu", "links", "events"):
        async with tui.running(start=screen) as pilot:
            for action in actions.on_screen(screen):
                owner = pilot.app.screen if hasattr(pilot.app.screen, action.handler) else pilot.app
                assert callable(getattr(owner, action.handler)), action.id


def test_the_overview_binds_its_keys_from_the_table() -> None:
    bound = {binding.id: binding.key for binding in OverviewScreen.BINDINGS}
    assert bound["daemon.start"] == "s"
    assert bound["daemon.kill"] == "K"
