"""Foreign text reaches the terminal as text only: no markup is read, no control character passes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from luna_tui.backend.fake import FakeBackend
from luna_tui.plain import clean, clean_log, content, fit
from luna_tui.screens.confirm import ConfirmDialog
from luna_tui.views import DaemonRow, DaemonsView, EventRow, EventsView, LinkRow, LinksView
from luna_tui.widgets.table import ListTable

HOSTILE = [
    "[/x]", "[red]", "]]", "a\x1b[31mred", "\x1b]0;title\x07", "\x9b31m", "line\nbreak", "tab\there", "\u202egpj.exe",
    "e\u0301", "猫のモデル", "👩‍🔬", "x" * 255,
    b"\xff\xfe".decode("utf-8", "surrogateescape"), "-rf", "'\"", "~", "{a|b}",
]  # fmt: skip


@given(st.text())
def test_clean_text_holds_nothing_that_acts(text: str) -> None:
    for sign in clean(text):
        code = ord(sign)
        assert code >= 0x20
        assert not 0x7F <= code <= 0x9F
        assert not 0x202A <= code <= 0x202E
        assert not 0x2066 <= code <= 0x2069
        assert not 0xD800 <= code <= 0xDFFF


@given(st.text(alphabet=st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"])))
def test_clean_leaves_ordinary_text_alone(text: str) -> None:
    assert clean(text) == text


@given(st.text(), st.integers(0, 40))
def test_fit_gives_exactly_the_width(text: str, width: int) -> None:
    assert cell_len(fit(clean(text), width)) == width


def test_content_reads_no_markup() -> None:
    assert content("[red]x[/red] [/x]").plain == "[red]x[/red] [/x]"
    assert content("[red]x[/red]").spans == []


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x1b[32mINFO\x1b[0m ready", "INFO ready"),
        ("10 %\r20 %\r30 %", "30 %"),
        ("done\r", "done"),
        ("a\tb", "a    b"),
        ("\x1b]0;evil\x07text", "text"),
        ("\x00", "␀"),
    ],
)
def test_log_lines_lose_colours_and_keep_the_last_state_of_a_bar(raw: str, shown: str) -> None:
    assert clean_log(raw) == shown


def hostile_backend() -> FakeBackend:
    """Return a house in which every text is hostile, one row for each kind."""
    backend = FakeBackend("normal")
    rows = tuple(
        DaemonRow(name, name, "ready", name, 19283, reason=name, pid=1, clients=(name,), backend=name)
        for name in HOSTILE
    )
    backend.daemons.view = DaemonsView(0.0, daemons=rows)
    events = tuple(EventRow(name, 0.0, "error", name, name, name, name, name) for name in HOSTILE)
    backend.events.snapshot = lambda: EventsView(0.0, events)
    links = tuple(LinkRow(name, name, "lora", name, 1, name, name, 1, (name,), (name,)) for name in HOSTILE)
    backend.links.snapshot = lambda: LinksView(0.0, tuple(HOSTILE), links)
    return backend


@pytest.mark.parametrize("screen", ["overview", "events", "links"])
async def test_hostile_names_are_shown_as_text_everywhere(tui: Any, screen: str) -> None:
    """In rows, details, titles and questions; any markup read from them would end the app."""
    async with tui.running(backend=hostile_backend(), start=screen) as pilot:
        for name in HOSTILE:
            assert pilot.app.screen.query_one(ListTable).go_to(name)
            if screen == "overview":
                await pilot.press("x")
                assert isinstance(pilot.app.screen, ConfirmDialog)
                assert_tame(tui.text(pilot.app))
                await pilot.press("escape")
            else:
                await pilot.pause()
            assert_tame(tui.text(pilot.app))


async def test_hostile_names_are_toasted_and_copied_as_text(tui: Any) -> None:
    async with tui.running() as pilot:
        for name in HOSTILE:
            pilot.app.copy(name)
        pilot.app.clear_notifications()
        for name in HOSTILE:
            pilot.app.toast(name)
        await tui.settled(pilot)
        drawn = tui.text(pilot.app)
        assert "{a|b}" in drawn, "the newest toast is in view"
        assert_tame(drawn)


def assert_tame(drawn: str) -> None:
    assert not {"\x1b", "\x9b", "\u202e", "\x07"} & set(drawn)
