"""Progress: counted below, told above, at most every tenth of a second and always at the end."""

from __future__ import annotations

from luna_daemon.progress import Count, advance, counting, told_to

Told = list[tuple[int, int, str]]


def test_the_start_and_the_end_are_told_and_what_is_between_now_and_then() -> None:
    told: Told = []
    now = [0.0]
    count = Count(lambda *facts: told.append(facts), 10, "bytes", lambda: now[0])
    for at in (0.0, 0.05, 0.11, 0.12, 0.13):
        now[0] = at
        count.advance(2)
    assert told == [(2, 10, "bytes"), (6, 10, "bytes"), (10, 10, "bytes")]
    count.advance(5)
    assert told[-1] == (10, 10, "bytes")
    assert len(told) == 3


def test_only_what_runs_for_a_listener_is_told() -> None:
    told: Told = []
    with counting(4, "bytes"):
        advance(4)
    with told_to(lambda *facts: told.append(facts)):
        advance(1)
        with counting(2, "rows"):
            advance(1)
            advance(1)
        advance(1)
        with counting(0, "rows"):
            advance(1)
    with counting(4, "bytes"):
        advance(4)
    assert told == [(1, 2, "rows"), (2, 2, "rows")]
