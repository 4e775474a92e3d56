"""What each screen looks like as text, at three sizes and in four states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

WEIGHTS_SIZES = {"140x45": (140, 45), "80x24": (80, 24), "40x12": (40, 12)}
SIZES = {"120x36": (120, 36), "80x24": (80, 24), "40x12": (40, 12)}


@pytest.mark.parametrize("scene", ["normal", "empty", "error", "no-gpu"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("screen", ["overview", "gpu", "links", "events"])
async def test_screen(tui: Any, screen: str, size: str, scene: str, golden: Callable[[str, str], None]) -> None:
    async with tui.running(scene, size=SIZES[size], start=screen) as pilot:
        golden(f"{screen}-{size}-{scene}", tui.text(pilot.app))


@pytest.mark.parametrize("scene", ["normal", "empty", "error"])
@pytest.mark.parametrize("size", WEIGHTS_SIZES)
async def test_weights(tui: Any, size: str, scene: str, golden: Callable[[str, str], None]) -> None:
    """The source with two files is unfolded; on terminals that show one pane this is the sources'."""
    async with tui.running(scene, size=WEIGHTS_SIZES[size], start="weights") as pilot:
        if scene == "normal":
            pilot.app.screen.query_one("#source-list").go_to("/models/checkpoints/ponyDiffusionV6XL.safetensors")
            await pilot.press("l")
            await tui.settled(pilot)
        golden(f"weights-{size}-{scene}", tui.text(pilot.app))


@pytest.mark.parametrize("size", WEIGHTS_SIZES)
async def test_the_queue_and_the_pruning_of_weights(tui: Any, size: str, golden: Callable[[str, str], None]) -> None:
    async with tui.running("normal", size=WEIGHTS_SIZES[size], start="weights") as pilot:
        await pilot.press("tab")
        await tui.settled(pilot)
        golden(f"weights-{size}-queue", tui.text(pilot.app))
        await pilot.press("d")
        await tui.settled(pilot)
        golden(f"weights-{size}-prune", tui.text(pilot.app))
