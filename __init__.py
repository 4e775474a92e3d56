"""ComfyUI's door to Luna: the node mappings and the web folder, nothing else.

ComfyUI loads this folder under a module name made from its path, and most users never ``pip install`` Luna. So
the nodes are imported relatively, and exactly two packages get their own names: ``luna_engine`` and
``luna_daemon``, from an installed copy of the same version, else from beside this file. ``sys.path`` is never
touched: ``tests`` or ``wildcards`` of this clone must not become importable inside ComfyUI.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_PACKAGES = ("luna_engine", "luna_daemon")


def _version(package: Path) -> str | None:
    """Read ``__version__`` from a package's source without running it."""
    try:
        text = (package / "__init__.py").read_text("utf-8")
    except OSError:
        return None
    found = re.search(r"""^__version__\s*=\s*["']([^"']+)["']""", text, re.MULTILINE)
    return found.group(1) if found else None


def _found(name: str) -> Path | None:
    """Return the folder of a package that is loaded or that Python finds by itself, or None."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).resolve().parent if spec is not None and spec.origin else None


def _register(name: str) -> None:
    """Import the package beside this file under its own name."""
    folder = _HERE / name
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"Luna is incomplete: {folder} is missing; clone the repository again")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _provide_packages() -> None:
    """Make luna_engine and luna_daemon of this version importable."""
    ours = _version(_HERE / "luna_engine")
    loaded = sys.modules.get("luna_engine")
    if loaded is not None and getattr(loaded, "__version__", None) != ours:
        raise ImportError(f"two versions of Luna: {_HERE} and {loaded.__file__}; remove one of them")
    engine, daemon = (_found(name) for name in _PACKAGES)
    if engine is not None and daemon is not None and _version(engine) == ours:
        return
    for name in _PACKAGES:
        if name not in sys.modules:
            _register(name)


_provide_packages()

try:
    from .comfy_nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, WEB_DIRECTORY
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] in {*_PACKAGES, __name__}:
        raise
    raise ImportError(
        f"Luna needs the Python package {error.name}; run in ComfyUI's environment: "
        f'python -m pip install -r "{_HERE / "requirements.txt"}"'
    ) from error

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
