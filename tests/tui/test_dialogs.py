"""Questions and forms, by keyboard alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from textual import events
from textual.widgets import Input, Select

from luna_tui.backend.fake import FakeBackend
from luna_tui.screens.confirm import ConfirmDialog
from luna_tui.screens.daemon_form import DaemonForm
from luna_tui.screens.help import Reader
from luna_tui.views import FieldProblem
from luna_tui.widgets.table import ListTable

if TYPE_CHECKING:
    import pytest


async def test_a_question_names_the_loss_and_focuses_cancel(tui: Any) -> None:
    backend = FakeBackend("normal")
    async with tui.running(backend=backend) as pilot:
        await pilot.press("x")
        await pilot.pause()
        assert isinstance(pilot.app.screen, ConfirmDialog)
        assert "comfyui" in tui.text(pilot.app)
        assert pilot.app.focused is not None
        assert pilot.app.focused.id == "no"
        await pilot.press("enter")
        await tui.settled(pilot)
        assert backend.calls == []


async def test_escape_and_n_say_no(tui: Any) -> None:
    backend = FakeBackend("normal")
    async with tui.running(backend=backend) as pilot:
        for key in ("escape", "n"):
            await pilot.press("x")
            await pilot.pause()
            await pilot.press(key)
            await tui.settled(pilot)
            assert not isinstance(pilot.app.screen, ConfirmDialog)
        assert backend.calls == []


async def test_a_grave_question_wants_the_name_typed(tui: Any) -> None:
    backend = FakeBackend("normal")
    async with tui.running(backend=backend) as pilot:
        await pilot.press("K")
        await pilot.pause()
        await pilot.press("y", "enter")
        await pilot.pause()
        assert isinstance(pilot.app.screen, ConfirmDialog), "y is a letter here, not an answer"
        await pilot.press("backspace", *"clip", "enter")
        await tui.settled(pilot)
        assert backend.calls == [("daemons.kill", "clip")]


async def test_the_form_goes_to_the_first_mistake_and_saves_when_there_is_none(tui: Any) -> None:
    backend = FakeBackend("normal")
    async with tui.running(backend=backend) as pilot:
        await pilot.press("c")
        await tui.settled(pilot)
        assert isinstance(pilot.app.screen, DaemonForm)
        assert pilot.app.screen.query_one("#port", Input).value == "19287"
        backend.daemons.problems = (FieldProblem("port", "taken by pid 812 python"),)
        await pilot.press("ctrl+s")
        await tui.settled(pilot)
        assert "taken by pid 812 python" in tui.text(pilot.app)
        assert pilot.app.focused is pilot.app.screen.query_one("#port")
        backend.daemons.problems = ()
        await pilot.press("ctrl+s")
        await tui.settled(pilot)
        assert not isinstance(pilot.app.screen, DaemonForm)
        assert backend.calls == [("daemons.save", "luna")]


async def test_a_check_that_breaks_is_told_and_the_next_one_is_made(tui: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = FakeBackend("normal")

    def explode(_: object) -> tuple[FieldProblem, ...]:
        raise OSError("no sockets left")

    async with tui.running(backend=backend) as pilot:
        await pilot.press("c")
        await tui.settled(pilot)
        with monkeypatch.context() as broken:
            broken.setattr(backend.daemons, "check", explode)
            await pilot.press("ctrl+s")
            await tui.settled(pilot)
            assert "no sockets left" in tui.text(pilot.app)
        await pilot.press("ctrl+s")
        await tui.settled(pilot)
        assert not isinstance(pilot.app.screen, DaemonForm)


async def test_keys_typed_right_behind_a_tab_go_to_the_next_field(tui: Any) -> None:
    """All keys are in the application's queue before it looks at the first, as after a paste or under load."""
    async with tui.running() as pilot:
        await pilot.press("c")
        await tui.settled(pilot)
        for sign in "mine\t\t\t29999":
            key = "tab" if sign == "\t" else sign
            pilot.app.post_message(events.Key(key, sign))
        await tui.settled(pilot)
        form = pilot.app.screen
        assert (form.query_one("#name", Input).value, form.query_one("#port", Input).value) == ("mine", "29999")


async def test_the_form_saves_what_was_chosen(tui: Any) -> None:
    backend = FakeBackend("normal")
    async with tui.running(backend=backend) as pilot:
        await pilot.press("c")
        await tui.settled(pilot)
        form = pilot.app.screen
        form.query_one("#name", Input).value = "mine"
        form.query_one("#service_type", Select).value = "vae"
        form.query_one("#device", Select).value = "GPU-90c1d2aa"
        form.query_one("#model", Select).value = "file:/models/checkpoints/sd15.safetensors"
        form.query_one("#autostart").focus()
        await pilot.press("space", "ctrl+s")
        await tui.settled(pilot)
        draft = backend.daemons.drafts["mine"]
        assert (draft.service_type, draft.device, draft.file) == (
            "vae",
            "GPU-90c1d2aa",
            "/models/checkpoints/sd15.safetensors",
        )
        assert draft.autostart
        assert draft.preload


async def test_editing_shows_what_is_configured(tui: Any) -> None:
    async with tui.running() as pilot:
        pilot.app.screen.query_one(ListTable).go_to("spare")
        await pilot.press("e")
        await tui.settled(pilot)
        form = pilot.app.screen
        assert form.query_one("#name", Input).value == "spare"
        assert form.query_one("#port", Input).value == "19285"
        await pilot.press("escape")
        await pilot.pause()
        assert not isinstance(pilot.app.screen, DaemonForm)


async def test_help_lists_the_keys_of_the_screen(tui: Any) -> None:
    async with tui.running() as pilot:
        await pilot.press("question_mark")
        await pilot.pause()
        assert isinstance(pilot.app.screen, Reader)
        text = tui.text(pilot.app)
        assert "luna daemon start NAME" in text
        await pilot.press("escape")
        await pilot.pause()
        assert not isinstance(pilot.app.screen, Reader)


async def test_global_keys_do_not_reach_behind_a_dialog(tui: Any) -> None:
    async with tui.running() as pilot:
        await pilot.press("x")
        await pilot.pause()
        await pilot.press("2")
        await pilot.pause()
        assert isinstance(pilot.app.screen, ConfirmDialog)
