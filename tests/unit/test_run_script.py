"""run.py: what it decides before it installs or starts anything."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """run.py as a module over a copy of the files it reads; its pip calls are recorded, none is made."""
    for name in ("run.py", "pyproject.toml", "constraints.txt", "requirements.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    spec = importlib.util.spec_from_file_location("luna_run", tmp_path / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.calls = []
    monkeypatch.setattr(module, "run", lambda command: module.calls.append(command) or 0)
    return module


def pretend_environment(script: ModuleType) -> None:
    python = script.VENV / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)


def test_an_own_environment_gets_the_exact_pins_and_a_second_start_installs_nothing(script: ModuleType) -> None:
    pretend_environment(script)
    python = script.prepare(here=False, extras=("torch",))
    assert python == script.VENV / "bin" / "python"
    assert len(script.calls) == 1
    assert script.calls[0][-4:-1] == ["-c", str(script.ROOT / "constraints.txt"), "-e"]
    assert script.prepare(here=False, extras=("torch",)) == python
    assert len(script.calls) == 1


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_changed_requirements_install_again(script: ModuleType, name: str) -> None:
    pretend_environment(script)
    script.prepare(here=False, extras=("torch",))
    (script.ROOT / name).write_text((script.ROOT / name).read_text() + "\n# changed\n")
    script.prepare(here=False, extras=("torch",))
    assert len(script.calls) == 2


def test_a_failed_install_is_tried_again_next_time(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_environment(script)
    monkeypatch.setattr(script, "run", lambda _: 1)
    assert script.prepare(here=False, extras=("torch",)) is None
    monkeypatch.setattr(script, "run", lambda _: 0)
    assert script.prepare(here=False, extras=("torch",)) is not None


def test_here_pins_an_installed_torch_to_itself_and_installs_no_package_of_ours(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(script.sys, "prefix", str(tmp_path))
    monkeypatch.setattr(script, "installed", lambda _: "2.9.9+rocm6")
    script.prepare(here=True, extras=("torch",))
    (command,) = script.calls
    assert "torch==2.9.9+rocm6" in command
    assert "-e" not in command
    assert "constraints.txt" not in " ".join(command)


def test_torch_is_in_no_requirement_that_comfyui_manager_installs() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert not [line for line in lines if line.startswith("torch")]


def test_requirements_and_pyproject_name_the_same_packages() -> None:
    script = (ROOT / "pyproject.toml").read_text()
    block = script.split("\ndependencies = [", 1)[1].split("\n]", 1)[0]
    declared = {line.strip().split('"')[1].replace("'", '"') for line in block.splitlines() if '"' in line}
    listed = {line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"}
    assert {text.replace("'", '"') for text in declared} == listed


def test_what_the_tests_need_is_read_without_the_comments(script: ModuleType) -> None:
    names = {Requirement(text).name for text in script.test_requirements()}
    assert {"pytest", "pytest-xdist", "diffusers"} <= names


def test_every_requirement_has_an_exact_pin() -> None:
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if line and line[0] != "#":
            name = line.split(";")[0].split(">")[0].split("=")[0].strip().lower()
            assert name in pinned, name


def test_help_needs_no_environment() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "run.py"), "--help"], capture_output=True, text=True, check=True)
    assert "python run.py" in done.stdout
