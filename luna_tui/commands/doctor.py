"""`luna doctor`: where everything is, which versions run, and what is wrong. Prints no secret."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

import luna_engine
from luna_engine import paths, settings
from luna_engine.errors import LunaError
from luna_tui.frame import global_options, output

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PACKAGES = ("torch", "transformers", "safetensors", "gguf", "textual", "watchdog", "nvidia-ml-py")
VARIABLES = ("LUNA_HOME", "LUNA_MODELS", "LUNA_DAEMON_HOST", "LUNA_DAEMON_PORT", "LUNA_DAEMON_VAE_PORT", "COMFYUI_PATH")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. ``code`` is None when it is well."""

    name: str
    ok: bool
    message: str
    code: str | None = None
    hint: str | None = None


@click.command("doctor")
@global_options
def command() -> int:
    """Print where everything is and what is wrong; exit 1 if something is."""
    places = {
        "settings": str(paths.settings_file()),
        "state": str(paths.state_dir()),
        "cache": str(paths.cache_dir()),
        "wildcards": str(paths.bundled("wildcards")),
        "luna": str(paths.checkout_root()),
    }
    versions = {"luna": luna_engine.__version__, "python": platform.python_version(), **package_versions()}
    variables = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    checks = [*check_settings(), *check_folders(), *check_variables(), *check_packages(versions), *check_tools()]
    fields = {
        "paths": places,
        "versions": versions,
        "environment": variables,
        "checks": [asdict(check) for check in checks],
    }
    output().data("luna.doctor/1", fields, as_text(places, versions, checks))
    return 0 if all(check.ok for check in checks) else 1


def as_text(places: dict[str, str], versions: dict[str, str | None], checks: list[Check]) -> str:
    """Return the report for people."""
    lines = [f"{name:<10} {place}" for name, place in places.items()]
    lines += ["", "  ".join(f"{name} {version or 'not installed'}" for name, version in versions.items()), ""]
    for check in checks:
        lines.append(f"{'ok  ' if check.ok else 'FAIL'} {check.name}: {check.message}")
        if check.hint:
            lines.append(f"     -> {check.hint}")
    return "\n".join(lines)


def package_versions() -> dict[str, str | None]:
    """Return installed versions without importing anything."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def check_settings() -> Iterator[Check]:
    """Read the settings file and report each ignored value."""
    try:
        loaded = settings.load()
    except LunaError as error:
        yield Check("settings", ok=False, message=str(error), code=error.code, hint=error.hint)
        return
    for problem in loaded.problems:
        yield Check("settings", ok=False, message=f"{problem.key}: {problem.message}", code="settings-invalid")
    if not loaded.problems:
        there = "read" if paths.settings_file().exists() else "no file, defaults hold"
        yield Check("settings", ok=True, message=there)


def check_folders() -> Iterator[Check]:
    """Tell whether state and cache can be written."""
    for name, folder in (("state", paths.state_dir()), ("cache", paths.cache_dir())):
        yield writable(name, folder)
    library = paths.bundled("wildcards")
    count = (
        sum(1 for path in library.rglob("*") if path.suffix in {".yaml", ".txt", ".json"}) if library.is_dir() else 0
    )
    if count:
        yield Check("wildcards", ok=True, message=f"bundled library of {count} files")
    else:
        yield Check(
            "wildcards", ok=False, message=f"no bundled library at {library}", code="file-missing", hint="install again"
        )


def writable(name: str, folder: Path) -> Check:
    """Look at the nearest existing folder; create nothing."""
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if os.access(existing, os.W_OK | os.X_OK):
        free = shutil.disk_usage(existing).free
        return Check(name, ok=True, message=f"{folder}, {free / 2**30:.1f} GiB free")
    return Check(
        name,
        ok=False,
        message=f"{existing} cannot be written",
        code="target-readonly",
        hint="mend its mode, or set LUNA_HOME",
    )


def check_variables() -> Iterator[Check]:
    """Tell whether folders named by the environment exist."""
    comfyui = os.environ.get("COMFYUI_PATH")
    if comfyui:
        ok = os.path.isfile(os.path.join(comfyui, "folder_paths.py"))  # noqa: PTH113, PTH118 - a user's string, kept as given
        yield Check(
            "COMFYUI_PATH",
            ok=ok,
            message=comfyui if ok else f"{comfyui} is no ComfyUI checkout (folder_paths.py is not in it)",
            code=None if ok else "file-missing",
            hint=None if ok else "name the folder that holds ComfyUI's main.py",
        )
    for root in filter(None, os.environ.get("LUNA_MODELS", "").split(os.pathsep)):
        ok = os.path.isdir(root)  # noqa: PTH112 - likewise
        yield Check(
            "LUNA_MODELS",
            ok=ok,
            message=root if ok else f"{root} is no folder",
            code=None if ok else "file-missing",
            hint=None if ok else "create it, or correct LUNA_MODELS",
        )


def check_packages(versions: dict[str, str | None]) -> Iterator[Check]:
    """Tell whether a daemon could run in this environment."""
    missing = [name for name in ("torch", "transformers") if versions[name] is None]
    if missing:
        yield Check(
            "daemon",
            ok=False,
            message=f"{', '.join(missing)} not installed in {sys.prefix}: daemons cannot run here",
            code="model-unsupported",
            hint="python run.py installs them, or set daemon.python to an interpreter that has them",
        )
    else:
        yield Check("daemon", ok=True, message=f"can run on torch {versions['torch']}")


def check_tools() -> Iterator[Check]:
    """Tell about the platform."""
    supported = sys.platform.startswith("linux")
    note = "" if supported else "; Luna was only run on Linux so far"
    yield Check("platform", ok=True, message=f"{platform.system()} {platform.machine()}{note}")
