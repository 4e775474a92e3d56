"""Pieces of a range: handed out without overlap, taken back whole, counted."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luna_daemon.blocks import ALIGN_BYTES, Blocks
from luna_daemon.shared_memory import SharedMemoryBudget
from luna_engine.errors import DaemonError


@given(st.lists(st.one_of(st.integers(0, 20_000), st.just(-1)), max_size=60), st.randoms())
def test_blocks_never_overlap_and_come_back_whole(sizes: list[int], random: Any) -> None:
    blocks = Blocks(16 * ALIGN_BYTES)
    held: dict[int, int] = {}
    for size in sizes:
        if size < 0 and held:
            offset = random.choice(sorted(held))
            del held[offset]
            assert blocks.give(offset)
            assert not blocks.give(offset)
        elif size >= 0 and (offset := blocks.take(size)) is not None:
            assert offset + size <= 16 * ALIGN_BYTES
            held[offset] = size
        spans = sorted((offset, offset + max(1, size)) for offset, size in held.items())
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
    for offset in held:
        assert blocks.give(offset)
    assert blocks.taken_bytes == 0
    assert blocks.take(16 * ALIGN_BYTES) == 0


def test_the_lowest_block_is_used_again() -> None:
    blocks = Blocks(4 * ALIGN_BYTES)
    first = blocks.take(10)
    assert first is not None
    blocks.take(10)
    blocks.give(first)
    assert blocks.take(1) == first


def test_the_budget_counts_each_connection_and_all_of_them() -> None:
    budget = SharedMemoryBudget(10, 15)
    budget.take(10)
    for nbytes in (11, 6):
        with pytest.raises(DaemonError, match="share") as caught:
            budget.take(nbytes)
        assert caught.value.code == "transport-failed"
    budget.give(10)
    budget.take(10)
