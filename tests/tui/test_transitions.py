"""The events of a daemon whose state changed between two looks; the real ones are seen in test_terminal.py."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from luna_daemon.views import DaemonState, DaemonView
from luna_tui.backend.transitions import transitions

DOWN = DaemonView("clip", "clip", DaemonState.STOPPED, "cpu", 19283)
STARTING = dataclasses.replace(DOWN, state=DaemonState.STARTING, pid=7)
READY = dataclasses.replace(STARTING, state=DaemonState.READY)
BUSY = dataclasses.replace(READY, state=DaemonState.BUSY)
STOPPING = dataclasses.replace(READY, state=DaemonState.STOPPING)
STOPPED = dataclasses.replace(DOWN, reason="stopped by you")
BACKOFF = dataclasses.replace(DOWN, state=DaemonState.BACKOFF, reason="ended by signal 9")
ADOPTED = dataclasses.replace(READY, adopted=True)
AGAIN = dataclasses.replace(STARTING, pid=8)
MUTE = dataclasses.replace(READY, state=DaemonState.UNRESPONSIVE, reason="3 pings without an answer")


def told(*views: DaemonView) -> list[tuple[str, str]]:
    """Return code and sentence of everything told while a daemon goes through these views."""
    found = []
    for before, after in itertools.pairwise(views):
        found += [(event.code, event.message) for event in transitions((before,), (after,), 1.0)]
    return found


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        ((DOWN, STARTING, READY), [("daemon-ready", "clip is ready, pid 7")]),
        ((DOWN, READY), [("daemon-ready", "clip is ready, pid 7")]),
        ((READY, BUSY, READY), []),
        ((READY, STOPPING, STOPPED), [("daemon-stopped", "clip has stopped: stopped by you")]),
        ((BACKOFF, STOPPED), [("daemon-stopped", "clip has stopped: stopped by you")]),
        (
            (READY, STOPPING, AGAIN, dataclasses.replace(AGAIN, state=DaemonState.READY)),
            [("daemon-stopped", "clip has stopped: to be started again"), ("daemon-ready", "clip is ready, pid 8")],
        ),
        ((READY, BACKOFF, AGAIN), []),
        (
            (READY, MUTE, READY),
            [
                ("daemon-unresponsive", "clip does not answer: 3 pings without an answer"),
                ("daemon-ready", "clip answers again"),
            ],
        ),
        ((DOWN, ADOPTED, ADOPTED), [("daemon-adopted", "clip runs already as pid 7: ready")]),
    ],
)
def test_what_is_told(views: tuple[DaemonView, ...], expected: list[tuple[str, str]]) -> None:
    assert told(*views) == expected


def test_the_first_look_tells_only_of_what_runs() -> None:
    first = transitions((), (DOWN, dataclasses.replace(ADOPTED, name="vae")), 1.0)
    assert [(event.daemon, event.code) for event in first] == [("vae", "daemon-adopted")]


def test_a_daemon_that_is_in_no_settings_is_told_of_once() -> None:
    """The supervisor itself says that it found one."""
    assert list(transitions((), (dataclasses.replace(ADOPTED, configured=False),), 1.0)) == []
