"""What each screen looks like as text, at three sizes and in four states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = {"120x36": (120, 36), "80x24": (80, 24), "40x12": (40, 12)}


@pytest.mark.parametrize("scene", ["normal", "empty", "error", "no-gpu"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("screen", ["overview", "gpu", "links", "events"])
async def test_screen(tui: Any, screen: str, size: str, scene: str, golden: Callable[[str, str], None]) -> None:
    async with tui.running(scene, size=SIZES[size], start=screen) as pilot:
        golden(f"{screen}-{size}-{scene}", tui.text(pilot.app))
