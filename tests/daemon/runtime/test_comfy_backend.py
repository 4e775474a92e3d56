"""The comfy backend, in ComfyUI's own interpreter: the contract, and bit for bit the numbers of ComfyUI's classes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(1800)]

HERE = Path(__file__).parent
REPO = HERE.parents[2]
_INSIDE = """
import sys
sys.path.append(sys.argv.pop(1))  # pytest itself, where ComfyUI's interpreter has none; its own packages come first
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("name", "at_least"),
    [
        ("test_backend_contract.py", 20),
        ("test_comfy_parity.py", 9),
        ("inside_comfyui.py", 4),
        ("inside_comfyui_rows.py", 24),
    ],
)
def test_inside_comfyuis_interpreter(name: str, at_least: int) -> None:
    if not os.environ.get("COMFYUI_PATH"):
        pytest.skip("COMFYUI_PATH names no ComfyUI checkout")
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    arguments = [
        "-q",
        "-p",
        "no:cacheprovider",
        "--timeout",
        "900",
        "-k",
        "not package",
        "-m",
        "comfyui or not comfyui",
    ]
    done = subprocess.run(
        [python, "-c", _INSIDE, sysconfig.get_paths()["purelib"], *arguments, str(HERE / name)],
        cwd=REPO,
        env={**os.environ, "LUNA_TEST_BACKEND": "comfy", "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= at_least
