"""ComfyUI's door: the root __init__, loaded the way ComfyUI does it, in a process of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
TRAVELS = ("__init__.py", "comfy_nodes", "luna_engine", "luna_daemon", "requirements.txt")

LOADER = """
    import importlib.util, json, sys, time
    folder = sys.argv[1]
    before, modules = list(sys.path), set(sys.modules)
    name = folder.replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, folder + "/__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    import luna_engine, luna_daemon
    print(json.dumps({
        "nodes": sorted(module.NODE_CLASS_MAPPINGS),
        "names": sorted(module.NODE_DISPLAY_NAME_MAPPINGS),
        "web": module.WEB_DIRECTORY,
        "path_is_unchanged": sys.path == before,
        "new_top_level": sorted({n.partition(".")[0] for n in set(sys.modules) - modules if not n.startswith(name)}),
        "engine": luna_engine.__file__,
        "daemon": luna_daemon.__file__,
    }))
"""


def load(folder: Path, prelude: str = "") -> subprocess.CompletedProcess[str]:
    """Load a pack folder in a fresh interpreter that stands elsewhere and does not know this repository."""
    forget = f"import os, sys; sys.path[:] = [p for p in sys.path if os.path.realpath(p) != {str(REPO)!r}]\n"
    code = forget + textwrap.dedent(prelude) + textwrap.dedent(LOADER)
    return subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, cwd=folder.parent, check=False
    )


def copy_of_the_pack(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in TRAVELS:
        source = REPO / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    return copy_of_the_pack(tmp_path / "custom nodes" / "My Luna-pack.v1")


def test_a_clone_in_an_odd_folder_loads_its_own_packages_and_leaves_sys_path_alone(pack: Path) -> None:
    done = load(pack)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["path_is_unchanged"]
    assert Path(found["engine"]) == pack / "luna_engine" / "__init__.py"
    assert Path(found["daemon"]) == pack / "luna_daemon" / "__init__.py"
    assert "LunaYAMLWildcard" in found["nodes"]
    assert found["nodes"] == found["names"]
    assert (pack / found["web"]).is_dir()


def test_loading_imports_neither_torch_nor_a_folder_of_the_clone(pack: Path) -> None:
    found = json.loads(load(pack).stdout)
    heavy = {"torch", "numpy", "transformers", "diffusers", "gguf", "safetensors", "textual"}
    leaked = {"tests", "wildcards", "comfy_nodes", "luna_tui", "docs"}
    assert not (heavy | leaked) & set(found["new_top_level"])


def test_an_installed_copy_of_the_same_version_is_used(pack: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    for name in ("luna_engine", "luna_daemon"):
        shutil.copytree(pack / name, site / name)
    found = json.loads(load(pack, f"import sys; sys.path.append({str(site)!r})").stdout)
    assert Path(found["engine"]).is_relative_to(site)
    assert Path(found["daemon"]).is_relative_to(site)


def test_an_installed_copy_of_another_version_is_not(pack: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    for name in ("luna_engine", "luna_daemon"):
        shutil.copytree(pack / name, site / name)
    (site / "luna_engine" / "__init__.py").write_text('__version__ = "0.0.1"\n')
    found = json.loads(load(pack, f"import sys; sys.path.append({str(site)!r})").stdout)
    assert Path(found["engine"]).is_relative_to(pack)
    assert Path(found["daemon"]).is_relative_to(pack)


def test_two_versions_in_one_comfyui_are_refused_with_both_places(pack: Path) -> None:
    prelude = """
        import sys, types
        other = types.ModuleType("luna_engine")
        other.__version__, other.__file__, other.__spec__ = "0.0.1", "/elsewhere/luna_engine/__init__.py", None
        sys.modules["luna_engine"] = other
    """
    done = load(pack, prelude)
    assert done.returncode != 0
    assert "two versions of Luna" in done.stderr
    assert "/elsewhere/" in done.stderr


def test_a_missing_dependency_is_named_with_the_command_that_installs_it(pack: Path) -> None:
    prelude = """
        import sys
        sys.modules["platformdirs"] = None
    """
    done = load(pack, prelude)
    assert done.returncode != 0
    assert "Luna needs the Python package platformdirs" in done.stderr
    assert "requirements.txt" in done.stderr
