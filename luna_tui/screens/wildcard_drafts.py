"""Drafts of unsaved text: kept two seconds after a change, offered after a crash."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from textual.message import Message
from textual.widget import Widget

from luna_engine.errors import LunaError
from luna_tui.screens.choose import ChoiceDialog

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from textual.timer import Timer

    from luna_tui.app import LunaApp
    from luna_tui.backend.drafts import Draft
    from luna_tui.backend.wildcards import Wildcards
    from luna_tui.screens.wildcard_files import Buffer, FileEditors

DRAFT_PAUSE_S = 2.0


class DraftKeeper(Widget):
    """Takes no room: it owns the timers and workers of drafts.

    Args:
        port: returns the wildcards port.
        files: the editors.
    """

    DEFAULT_CSS = "DraftKeeper { display: none; }"

    class Found(Message):
        """Drafts were left behind by a process that is gone, each with the root and name of its file."""

        def __init__(self, drafts: list[tuple[Draft, tuple[int, str] | None]]) -> None:
            super().__init__()
            self.drafts = drafts

    class Failed(Message):
        """A draft could not be written, read or removed."""

        def __init__(self, reason: str) -> None:
            super().__init__()
            self.reason = reason

    def __init__(self, port: Callable[[], Wildcards], files: Callable[[], FileEditors]) -> None:
        super().__init__()
        self._port = port
        self._files = files
        self._pauses: dict[Path, Timer] = {}
        self._waiting: dict[Path, Draft] = {}
        self._offered: list[tuple[Draft, tuple[int, str] | None]] = []

    @property
    def luna(self) -> LunaApp:
        """The application, typed."""
        return cast("LunaApp", self.app)

    # -- keeping

    def note(self, buffer: Buffer) -> None:
        """Keep a draft after a pause."""
        path = buffer.file.path
        if self.luna.readonly:
            return
        if path in self._pauses:
            self._pauses[path].stop()
        self._pauses[path] = self.set_timer(DRAFT_PAUSE_S, lambda: self.keep(buffer))

    def keep(self, buffer: Buffer) -> None:
        """Write the draft of what is unsaved now, or drop the one there is."""
        file, text, is_modified, port = buffer.file, buffer.editor.text, buffer.is_modified, self._port()
        replaced = self._waiting.pop(file.path, None)

        def work() -> None:
            if is_modified:
                port.keep_draft(file, text)
            else:
                port.drop_draft(file.path)
            if replaced is not None:
                port.forget_draft(replaced)

        self._work(work, f"draft {file.name}")

    def _work(self, work: Callable[[], None], name: str) -> None:
        def run() -> None:
            try:
                work()
            except (LunaError, OSError) as error:
                self.post_message(self.Failed(str(error)))

        self.run_worker(run, thread=True, group=name, exclusive=True, exit_on_error=False, name=name)

    def on_draft_keeper_failed(self, message: DraftKeeper.Failed) -> None:
        """Say that nothing is kept."""
        message.stop()
        self.luna.toast(f"no draft is kept: {message.reason}", "warning")

    # -- offering

    def look(self) -> None:
        """Look for drafts of processes that are gone."""
        port = self._port()

        def work() -> None:
            found = [(draft, port.whereabouts(draft.path)) for draft in port.drafts()]
            if found:
                self.post_message(self.Found(found))

        self._work(work, "look for drafts")

    def on_draft_keeper_found(self, message: DraftKeeper.Found) -> None:
        """Offer one after the other."""
        message.stop()
        self._offered += message.drafts
        self._offer()

    def _offer(self) -> None:
        if not self._offered:
            return
        draft, place = self._offered.pop(0)

        def answered(answer: str | None) -> None:
            if answer == "r" and place is not None:
                self._waiting[draft.path] = draft
                self._files().open_file(*place, draft.first_line)
            elif answer == "d":
                self._work(lambda: self._port().forget_draft(draft), "forget a draft")
            self._offer()

        where = "" if place is not None else "\nThe file is no longer in the library; the draft stays where it is."
        choices = (("l", "Later"), ("r", "Recover"), ("d", "Discard")) if place else (("l", "Later"), ("d", "Discard"))
        text = f"{draft.path.name} was being edited when Luna ended, and not saved.{where}\n{draft.file}"
        self.app.push_screen(ChoiceDialog("unsaved text was kept", text, choices), answered)

    def shown(self, buffer: Buffer) -> None:
        """Put a draft that was asked for into the editor, as one step that can be undone."""
        draft = self._waiting.get(buffer.file.path)
        if draft is None:
            return
        if buffer.file.section is not None and buffer.file.text != draft.base:
            del self._waiting[buffer.file.path]
            self.luna.toast(f"the file has changed; the draft stays in {draft.file}", "warning")
            return
        if buffer.file.text != draft.base:
            self.luna.toast("the file has changed since; ctrl+s writes the draft over it", "warning")
        buffer.editor.replace_all(draft.text)
        self.keep(buffer)
