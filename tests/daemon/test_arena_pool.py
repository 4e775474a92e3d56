"""Who may have an arena of the card, and how arenas change hands; no daemon."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from luna_daemon.arenas import NO_OFFER, ArenaPool
from luna_daemon.frames import MIB, Limits
from luna_daemon.messages import TensorOffer
from luna_daemon.platform import sharing
from luna_daemon.transport import OVER_TCP
from luna_engine.errors import DaemonError
from tests.contract.pages_memory import DeadArenaError, PagesMemory

if TYPE_CHECKING:
    from pathlib import Path

CARD = "GPU-11111111-2222-3333-4444-555555555555"
OTHER_CARD = "GPU-99999999-2222-3333-4444-555555555555"


def test_the_pool_waits_for_the_card_before_an_arena_changes_hands() -> None:
    memory = PagesMemory(CARD)
    pool = ArenaPool(Limits(arena_bytes=MIB, arenas=1), lambda: memory)
    first = pool.lease(MIB)
    assert memory.synchronized == 0
    pool.give_back(first)
    second = pool.lease(4096)
    assert memory.synchronized == 1
    assert second.arena is first.arena
    assert second.generation != first.generation
    with pytest.raises(DaemonError, match="all 1 arenas"):
        pool.lease(4096)
    second.arena.close()


def test_a_failed_allocation_counts_for_nothing() -> None:
    memory = PagesMemory(CARD, "allocate")
    pool = ArenaPool(Limits(arena_bytes=MIB, arenas=1), lambda: memory)
    for _ in range(3):
        with pytest.raises(DaemonError, match="no memory left"):
            pool.lease(4096)
    memory.fault = None
    assert pool.lease(4096).arena.size_bytes == MIB


def test_an_arena_whose_last_work_failed_is_freed_and_another_one_made() -> None:
    memory = PagesMemory(CARD)
    pool = ArenaPool(Limits(arena_bytes=MIB, arenas=1), lambda: memory)
    first = pool.lease(4096)
    pool.give_back(first)
    memory.fault = "synchronize"
    with pytest.raises(DaemonError, match="has failed"):
        pool.lease(4096)
    with pytest.raises(DeadArenaError, match="after it was closed"):
        first.arena.region(0, 1)
    second = pool.lease(4096)  # a new one: nothing is under way in it
    assert second.arena is not first.arena
    second.arena.close()


@pytest.mark.parametrize(
    ("offer", "reason"),
    [
        (None, OVER_TCP),
        (TensorOffer(), NO_OFFER),
        (TensorOffer("another", cuda=PagesMemory(CARD).offer()), "another boot"),
        (TensorOffer(None, cuda=PagesMemory(OTHER_CARD).offer()), OTHER_CARD),
    ],
)
def test_who_can_have_an_arena(offer: TensorOffer | None, reason: str) -> None:
    pool = ArenaPool(Limits(), lambda: PagesMemory(CARD))
    assert reason in str(pool.fault(offer, os.getpid()))


# who shares a system with whom


def test_a_process_in_other_namespaces_is_told_apart(tmp_path: Path) -> None:
    for name, pid_space, ipc_space in (("self", 1, 2), ("7", 1, 2), ("8", 3, 2), ("9", 1, 4)):
        folder = tmp_path / name / "ns"
        folder.mkdir(parents=True)
        (folder / "pid").symlink_to(f"pid:[{pid_space}]")
        (folder / "ipc").symlink_to(f"ipc:[{ipc_space}]")
    assert sharing.apart(7, tmp_path) is None
    assert "pid namespace" in str(sharing.apart(8, tmp_path))
    assert "ipc namespace" in str(sharing.apart(9, tmp_path))
    assert "cannot be seen" in str(sharing.apart(10, tmp_path))
    assert "container" in str(sharing.apart(0, tmp_path))
    assert sharing.apart(os.getpid()) is None


def test_wsl_shares_no_card(tmp_path: Path) -> None:
    release = tmp_path / "osrelease"
    release.write_text("5.15.167.4-microsoft-standard-WSL2\n", "ascii")
    assert "WSL2" in str(sharing.system_fault(release))
    release.write_text("6.8.0-generic\n", "ascii")
    assert sharing.system_fault(release) is None
