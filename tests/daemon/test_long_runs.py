"""The long runs of `tests/bench` in their shortest form: hostile frames, mixed clients, sudden deaths."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.bench import fuzz, kills, soak, stops

if TYPE_CHECKING:
    from tests.bench.tiny_daemon import TinyDaemon

pytest.importorskip("instant_clip_tokenizer", reason="no wheel for this Python")


@pytest.fixture(autouse=True)
def home_of_the_daemon(tiny: TinyDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUNA_HOME", str(tiny.home))


def test_eight_mixed_clients_leave_nothing_and_get_the_same_answers(tiny: TinyDaemon) -> None:
    """`python -m tests.bench.soak`, 400 requests of 100,000; memory is judged there, after the caches are full."""
    finding = soak.run(tiny, 400)
    assert soak.verdict(finding, growth=0.5) == []
    assert sum(finding.soak.kinds.values()) == 400
    assert finding.soak.compared > 250


def test_hostile_frames_are_answered_or_closed_and_a_canary_is_served(tiny: TinyDaemon) -> None:
    """`python -m tests.bench.fuzz`, 1,500 cases of 1,000,000."""
    outcome = fuzz.run(tiny, 1500, seed=2)
    assert outcome.failures == []
    assert outcome.cases == 1500
    assert outcome.answers["ok"] > 30, "some of them must have been good"


def test_who_dies_in_the_middle_leaves_nothing_behind(tiny: TinyDaemon) -> None:
    """`python -m tests.bench.kills`, 5 of 500."""
    tally = kills.run(tiny, 5, seed=3)
    assert tally.wrong == []
    assert sum(tally.kills.values()) == 5


def test_who_is_stopped_holds_nobody_up_and_goes_on(tiny: TinyDaemon) -> None:
    """`python -m tests.bench.stops`, one of its eleven moments and no second longer than it takes to be noticed."""
    found = stops.run(tiny, 0.2, ["running"])
    assert found.wrong == []
    assert found.stops == {"client": 1, "daemon": 1}
