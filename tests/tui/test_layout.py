"""Moving about: screens, panes, sizes, filter and sort."""

from __future__ import annotations

from typing import Any

import pytest

from luna_tui.app import CrashReport
from luna_tui.backend.fake import FakeBackend
from luna_tui.widgets.chrome import HeaderRow
from luna_tui.widgets.table import ListTable


async def test_number_keys_go_to_the_screens_also_while_typing_with_alt(tui: Any) -> None:
    async with tui.running() as pilot:
        for key, screen in (("2", "gpu"), ("5", "links"), ("6", "events"), ("1", "overview")):
            await pilot.press(key)
            await tui.settled(pilot)
            assert screen == pilot.app.screen.SCREEN_ID
        await pilot.press("slash", "2")
        assert pilot.app.screen.SCREEN_ID == "overview", "a digit is text in the filter"
        await pilot.press("alt+2")
        await tui.settled(pilot)
        assert pilot.app.screen.SCREEN_ID == "gpu"


async def test_the_filter_narrows_the_list_and_escape_clears_it(tui: Any) -> None:
    async with tui.running() as pilot:
        table = pilot.app.screen.query_one(ListTable)
        await pilot.press("slash", *"state:ready|loading", "enter")
        assert [row.key for row in table.shown] == ["clip", "vision"]
        assert pilot.app.focused is table
        await pilot.press("escape")
        assert len(table.shown) == 4


async def test_sorting_asks_for_a_letter_and_again_reverses(tui: Any) -> None:
    async with tui.running() as pilot:
        table = pilot.app.screen.query_one(ListTable)
        letter = table.sort_letters()["restarts"]
        await pilot.press("o", letter)
        assert [row.key for row in table.shown][-1] == "vae"
        await pilot.press("o", letter)
        assert table.shown[0].key == "vae"


async def test_resizing_keeps_the_cursor(tui: Any) -> None:
    async with tui.running() as pilot:
        table = pilot.app.screen.query_one(ListTable)
        await pilot.press("j", "j")
        assert table.current is not None
        for size in ((40, 12), (80, 24), (120, 36)):
            await pilot.resize_terminal(*size)
            await pilot.pause()
            assert table.current.key == "spare"


async def test_narrow_opens_a_row_full_screen_and_escape_returns(tui: Any) -> None:
    async with tui.running(size=(40, 12)) as pilot:
        await pilot.press("enter")
        await tui.settled(pilot)
        assert "127.0.0.1:19283" in tui.text(pilot.app)
        assert not pilot.app.screen.query_one("#daemons").display
        await pilot.press("escape")
        await tui.settled(pilot)
        assert pilot.app.screen.query_one("#daemons").display


async def test_tab_turns_the_side_panes_where_they_share_a_place(tui: Any) -> None:
    async with tui.running(size=(80, 24)) as pilot:
        shown = []
        for _ in range(3):
            await pilot.press("tab")
            await pilot.pause()
            shown.append(tuple(pane for pane in ("detail", "log") if pilot.app.screen.query_one(f"#{pane}").display))
        assert shown == [("detail",), ("log",), ("log",)]


async def test_zoom_gives_the_screen_to_one_pane(tui: Any) -> None:
    async with tui.running() as pilot:
        await pilot.press("l", "z")
        await pilot.pause()
        assert pilot.app.screen.query_one("#log").size.height > 28
        await pilot.press("z")
        await pilot.pause()
        assert pilot.app.screen.query_one("#daemons").display


@pytest.mark.parametrize("scene", ["normal", "error"])
async def test_ascii_draws_no_sign_beyond_ascii(tui: Any, scene: str) -> None:
    """On each screen that the recorded backend has, in the form, in the help and in a toast."""
    async with tui.running(scene, plain=True) as pilot:
        for keys in (["1"], ["l"], ["2"], ["5"], ["6"], ["question_mark"], ["escape", "1", "c"], ["escape", "@"]):
            await pilot.press(*keys)
            await tui.settled(pilot)
            text = tui.text(pilot.app)
            assert text.isascii(), (keys, sorted({sign for sign in text if not sign.isascii()}))
        pilot.app.toast("3 \u00d7 \u2026 \u2192 done \u00b7 \u2013")
        await tui.settled(pilot)
        assert "3 x ~ > done | -" in tui.text(pilot.app)
        assert tui.text(pilot.app).isascii()


async def test_ascii_leaves_the_users_own_letters(tui: Any) -> None:
    async with tui.running(plain=True) as pilot:
        pilot.app.toast("\u00e9l\u00e8ve \u65e5\u672c")
        await tui.settled(pilot)
        assert "\u00e9l\u00e8ve \u65e5\u672c" in tui.text(pilot.app)


async def test_the_clock_may_tick_while_the_app_pops_its_last_screen(tui: Any) -> None:
    async with tui.running() as pilot:
        header, stack = pilot.app.screen.query_one(HeaderRow), pilot.app._screen_stack
        shown, stack[:] = list(stack), []
        try:
            header._tick()
        finally:
            stack[:] = shown


async def test_no_color_marks_the_cursor_without_colour(tui: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    async with tui.running() as pilot:
        table = pilot.app.screen.query_one(ListTable)
        assert table.get_component_rich_style("list--cursor").reverse


async def test_reading_that_fails_keeps_the_last_data_below_the_error(tui: Any) -> None:
    backend = FakeBackend("normal")
    async with tui.running(backend=backend) as pilot:
        backend.daemons = FakeBackend("error").daemons
        await pilot.press("ctrl+r")
        await tui.settled(pilot)
        text = tui.text(pilot.app)
        assert "settings-invalid" in text
        assert "clip" in text
        assert "ago" in text


async def test_a_crash_leaves_a_traceback_file_and_names_it(tui: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def explode() -> None:
        raise ValueError("a bug")

    app = None
    with pytest.raises(CrashReport, match="a bug"):  # noqa: PT012 - the error comes while the app runs
        async with tui.running() as pilot:
            app = pilot.app
            app.call_later(explode)
            await pilot.pause()
            await pilot.pause()
    assert app is not None
    assert "ValueError: a bug" in app.crash_file.read_text("utf-8")


async def test_an_unread_error_is_counted_until_the_events_are_seen(tui: Any) -> None:
    async with tui.running() as pilot:
        assert "Events ●2" in tui.text(pilot.app)
        await pilot.press("6")
        await tui.settled(pilot)
        await pilot.press("1", "ctrl+r")
        await tui.settled(pilot)
        assert "●2" not in tui.text(pilot.app)


async def test_the_mouse_goes_to_screens_rows_and_keys(tui: Any) -> None:
    backend = FakeBackend("normal")
    async with tui.running(backend=backend) as pilot:
        await pilot.click("#daemon-list", offset=(4, 3))
        assert pilot.app.screen.query_one(ListTable).current.key == "spare"
        await pilot.pause()
        await pilot.click("KeyBar", offset=(2, 0))
        await tui.settled(pilot)
        assert backend.calls == [("daemons.start", "spare")]
        await pilot.click("HeaderRow", offset=(22, 0))
        await tui.settled(pilot)
        assert pilot.app.screen.SCREEN_ID == "gpu"


async def test_below_the_least_size_one_line_names_it(tui: Any) -> None:
    async with tui.running(size=(39, 12)) as pilot:
        assert tui.text(pilot.app).split() == ["40x12", "is", "the", "least"]
        await pilot.resize_terminal(40, 12)
        await tui.settled(pilot)
        assert "1/6 Overview" in tui.text(pilot.app)


async def test_an_unknown_theme_or_action_is_told_not_swallowed(tui: Any) -> None:
    backend = FakeBackend("normal")
    keys = {"daemon.start": "f5", "daemon.strat": "f6"}
    async with tui.running(backend=backend, theme="neon", keys=keys) as pilot:
        assert [event.message for event in backend.events.recorded] == [
            "no theme neon: luna-night is used",
            "keys.daemon.strat: no such action",
        ]
        pilot.app.screen.query_one(ListTable).go_to("spare")
        await pilot.press("f5")
        await tui.settled(pilot)
        assert backend.calls == [("daemons.start", "spare")]
