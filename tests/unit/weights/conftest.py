"""Shared by the weights tests: no worker outlives its test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from luna_engine.weights import queue

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def no_worker_is_left() -> Iterator[None]:
    """Wait for detached workers that this process started."""
    yield
    for worker in queue._STARTED:
        worker.terminate()
        worker.wait(30)
    queue._STARTED.clear()
