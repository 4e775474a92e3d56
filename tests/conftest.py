"""What every test needs: a Luna home of its own, and reasons for what this machine cannot run."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def luna_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point Luna's settings, state and caches at a fresh folder; forget the caller's environment."""
    home = tmp_path_factory.mktemp("luna-home")
    for name in list(os.environ):
        if name.startswith("LUNA_") and name != "LUNA_DEMO_MODELS":
            monkeypatch.delenv(name)
    monkeypatch.setenv("LUNA_HOME", str(home))
    return home


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what cannot run here, each with its reason."""
    reasons = {
        "comfyui": None if os.environ.get("COMFYUI_PATH") else "COMFYUI_PATH names no ComfyUI checkout",
        "terminal": None if shutil.which("tmux") else "tmux is not installed",
        "gpu": None if os.path.exists("/dev/nvidiactl") else "no NVIDIA device here",  # noqa: PTH110 - a device node
    }
    for item in items:
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
