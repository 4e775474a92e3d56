"""luna-tui loads no tensor library, whatever screens were visited."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROBE = """
import asyncio, json, sys
from luna_engine import settings
from luna_tui.app import SCREENS, LunaApp
from luna_tui.backend.local import LocalBackend

async def main():
    app = LunaApp(LocalBackend(settings.load()))
    async with app.run_test() as pilot:
        visited = []
        for number in range(1, 7):
            await pilot.press(str(number))
            await app.workers.wait_for_complete()
            await pilot.pause()
            visited.append(app.screen.SCREEN_ID)
        await pilot.press("1", "c")
        await app.workers.wait_for_complete()
        await pilot.pause()
    loaded = sorted({name.partition(".")[0] for name in sys.modules})
    print(json.dumps({"visited": visited, "screens": [entry[0] for entry in SCREENS], "loaded": loaded}))

asyncio.run(main())
"""


def test_all_six_screens_without_a_tensor_library() -> None:
    """With the real backend: real folders, the real supervisor, the real driver if there is one."""
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True, cwd=ROOT)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["visited"] == found["screens"]
    forbidden = {"torch", "numpy", "numba", "gguf", "transformers", "diffusers", "safetensors", "scipy", "PIL"}
    assert not forbidden & set(found["loaded"])
