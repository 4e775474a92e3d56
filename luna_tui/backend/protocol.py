"""The ports between screens and the house.

``snapshot()`` may block and is called from worker threads only. Verbs return an Outcome, raise LunaError, and run in
worker threads too. Nothing here imports Textual, so that `luna` can use the same ports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from luna_tui.views import (
        DaemonDraft,
        DaemonsView,
        EventRow,
        EventsView,
        FieldProblem,
        FormChoices,
        GpusView,
        LinksView,
        Outcome,
    )


class Daemons(Protocol):
    """The model servers and whoever watches them."""

    def open(self) -> None:
        """Take the supervisor's lock if it is free and adopt what runs; else become a viewer."""

    def close(self) -> None:
        """Stop watching. Daemons keep running."""

    def snapshot(self) -> DaemonsView:
        """Return every configured and running daemon."""

    def start(self, name: str) -> Outcome:
        """Start a daemon that is down."""

    def stop(self, name: str) -> Outcome:
        """End a daemon by the stop ladder."""

    def restart(self, name: str) -> Outcome:
        """Stop and start; from back-off, start at once."""

    def kill(self, name: str) -> Outcome:
        """End a daemon's process without asking it."""

    def adopt(self) -> Outcome:
        """Look for running daemons again."""

    def forget(self, name: str) -> Outcome:
        """Remove a daemon that is down from the settings."""

    def choices(self) -> FormChoices:
        """Return what the start form offers: devices, sets, model files with their parts."""

    def draft(self, name: str) -> DaemonDraft:
        """Return the form of a configured daemon."""

    def check(self, draft: DaemonDraft) -> tuple[FieldProblem, ...]:
        """Return what is wrong with a form; a port is tried."""

    def save(self, draft: DaemonDraft) -> Outcome:
        """Write a form to the settings."""


class Gpus(Protocol):
    """Graphics cards, and the main memory where there are none."""

    def snapshot(self) -> GpusView:
        """Return all cards with their processes."""

    def reset_peaks(self) -> Outcome:
        """Forget the highest use seen."""


class Events(Protocol):
    """What happened, also while nobody looked."""

    def snapshot(self) -> EventsView:
        """Return the newest events and the logs that exist."""

    def record(self, event: EventRow) -> None:
        """Keep an event."""

    def unread(self) -> int:
        """Return how many errors nobody has looked at. Must not block."""

    def mark_read(self) -> None:
        """Take all events as seen."""


class Links(Protocol):
    """LoRA and embedding files."""

    def snapshot(self) -> LinksView:
        """Return the files of the configured roots and what their headers say."""


class Backend(Protocol):
    """All ports of one application.

    ``weights`` and ``wildcards`` are made when first read; their Protocols stand beside their implementations in
    `luna_tui.backend.weights` and `luna_tui.backend.wildcards`.
    """

    @property
    def daemons(self) -> Daemons:
        """The daemons port."""

    @property
    def gpus(self) -> Gpus:
        """The cards port."""

    @property
    def events(self) -> Events:
        """The events port."""

    @property
    def links(self) -> Links:
        """The LoRA port."""

    @property
    def weights(self) -> Any:
        """The weights port."""

    @property
    def wildcards(self) -> Any:
        """The wildcards port."""

    def role(self) -> str:
        """Return ``supervising``, ``viewer (pid 4711)`` or nothing while it is not known. Must not block."""

    def farewell(self) -> str:
        """Return what to tell when the application has ended: which daemons go on without a watcher."""

    def open(self) -> None:
        """Start what runs in the background."""

    def close(self) -> None:
        """Stop what runs in the background; nothing outside the application ends."""
