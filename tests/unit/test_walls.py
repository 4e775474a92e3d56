"""The walls of docs/architecture.md, looked at from outside: what a process of each kind has loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TENSOR_LIBRARIES = ("torch", "numpy", "numba", "gguf", "transformers", "diffusers", "safetensors")

PROBE = """
import json, sys
{code}
print(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})), file=sys.__stdout__)
"""


def modules_after(code: str) -> set[str]:
    """Run code in a fresh interpreter and return the top-level modules it left loaded."""
    found = subprocess.run(
        [sys.executable, "-c", PROBE.format(code=code)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(json.loads(found.stdout.splitlines()[-1]))


def commands() -> list[str]:
    from luna_tui.cli import COMMANDS

    return sorted(COMMANDS)


@pytest.mark.parametrize("command", commands())
def test_help_of_each_command_loads_no_tensor_library_and_no_textual(command: str) -> None:
    loaded = modules_after(
        f"from luna_tui.frame import run; from luna_tui.cli import luna; run(luna, [{command!r}, '--help'])"
    )
    assert not loaded & {*TENSOR_LIBRARIES, "textual"}


def test_version_loads_hardly_anything() -> None:
    loaded = modules_after("from luna_tui.frame import run; from luna_tui.cli import luna; run(luna, ['--version'])")
    assert not loaded & {*TENSOR_LIBRARIES, "textual", "rich", "yaml", "psutil", "sqlite3"}


@pytest.mark.parametrize(
    "module",
    [
        "luna_engine.weights",
        "luna_engine.wildcards",
        "luna_daemon.client",
        "luna_daemon.frames",
        "luna_daemon.protocol",
        "luna_daemon.server",
        "luna_daemon.supervisor",
        "luna_tui.app",
    ],
)
def test_rooms_that_faces_import_load_no_tensor_library(module: str) -> None:
    assert not modules_after(f"import {module}") & set(TENSOR_LIBRARIES)


# DAEMON S1
@pytest.mark.parametrize("room", ["luna_engine", "luna_daemon", "luna_tui", "comfy_nodes"])
def test_no_unsafe_loader_is_named_in_the_code(room: str) -> None:
    """No pickle, marshal, shelve, eval, shell=True or remote code (DAEMON S1)."""
    forbidden = ("import pickle", "import marshal", "import shelve", "trust_remote_code=True", "shell=True", " eval(")
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in (ROOT / room).rglob("*.py")
        for word in forbidden
        if word in path.read_text("utf-8")
    ]
    assert not found
