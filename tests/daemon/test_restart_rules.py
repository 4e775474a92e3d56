"""When a daemon is started again, with time and chance in hand."""

from __future__ import annotations

import random

import pytest

from luna_daemon.launch import Ended
from luna_daemon.restarts import RestartRules

CRASH = Ended(code=1)


def rules() -> RestartRules:
    return RestartRules(random.Random(1))


def after(which: RestartRules, ended: Ended, now: float, *, grown: bool = False, may: bool = True) -> float | None:
    return which.after(ended, now, None, has_grown=grown, may_restart=may).wait_s


def test_waits_double_up_to_a_minute_give_or_take_a_fifth() -> None:
    one = rules()
    for exponent in range(9):
        wait_s = after(one, CRASH, exponent * 1000.0)
        assert wait_s is not None
        middle = min(60.0, 2.0**exponent)
        assert 0.8 * middle <= wait_s <= 1.2 * middle


def test_a_minute_of_ready_forgives() -> None:
    one = rules()
    for index in range(4):
        after(one, CRASH, index * 1000.0)
    one.note_ready(59.0)
    assert (after(one, CRASH, 5000.0) or 0) > 10
    one.note_ready(60.0)
    assert (after(one, CRASH, 6000.0) or 99) < 1.3


def test_five_crashes_in_five_minutes_are_the_end_until_the_user_acts() -> None:
    one = rules()
    assert [after(one, CRASH, now) is None for now in (0, 60, 120, 180, 240)] == [False] * 4 + [True]
    one.forgive()
    assert after(one, CRASH, 241.0) is not None


def test_five_crashes_over_a_longer_time_are_not() -> None:
    one = rules()
    assert all(after(one, CRASH, index * 80.0) is not None for index in range(12))


@pytest.mark.parametrize("code", [66, 69, 71, 73, 78])
def test_what_would_only_fail_again_is_not_tried(code: int) -> None:
    decision = rules().after(Ended(code=code), 0.0, "the particulars", has_grown=False, may_restart=True)
    assert decision.wait_s is None
    assert decision.is_failure
    assert "the particulars" in decision.reason


def test_a_lost_device_is_tried_again() -> None:
    assert after(rules(), Ended(code=75), 0.0) is not None


def test_two_kills_for_memory_in_a_row_are_enough() -> None:
    one = rules()
    first = one.after(Ended(signal=9), 0.0, None, has_grown=True, may_restart=True)
    assert "OOM" in first.reason
    assert first.wait_s is not None
    assert after(one, Ended(signal=9), 10.0, grown=True) is None
    two = rules()
    after(two, Ended(signal=9), 0.0, grown=True)
    after(two, CRASH, 5.0)
    assert after(two, Ended(signal=9), 10.0, grown=True) is not None


def test_restart_off_is_said_and_is_no_failure() -> None:
    decision = rules().after(Ended(signal=11), 0.0, None, has_grown=False, may_restart=False)
    assert (decision.wait_s, decision.is_failure) == (None, False)
    assert "SIGSEGV" in decision.reason
    assert "restart is off" in decision.reason
