"""Where things are: settings, state, caches and bundled data. Creates folders only when asked for one to write in.

``LUNA_HOME`` puts everything below one folder (tests, portable installs); otherwise the platform decides.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

if TYPE_CHECKING:
    from collections.abc import Iterator

_APP = "luna"


def _home() -> Path | None:
    value = os.environ.get("LUNA_HOME", "").strip()
    return Path(value).expanduser().absolute() if value else None


def config_dir() -> Path:
    """Return the folder of ``settings.toml``, which the user edits."""
    home = _home()
    return home / "config" if home else Path(platformdirs.user_config_dir(_APP, appauthor=False))


def state_dir() -> Path:
    """Return the folder of ``run/``, ``logs/``, ``jobs/``, ``token`` and ``luna.db``."""
    home = _home()
    return home / "state" if home else Path(platformdirs.user_state_dir(_APP, appauthor=False))


def cache_dir() -> Path:
    """Return the folder of what can be rebuilt at any time."""
    home = _home()
    return home / "cache" if home else Path(platformdirs.user_cache_dir(_APP, appauthor=False))


def settings_file() -> Path:
    """Return the path of ``settings.toml`` (it need not exist)."""
    return config_dir() / "settings.toml"


def private_dir(*parts: str) -> Path:
    """Return ``state_dir()/parts``, created with mode 0700."""
    path = state_dir().joinpath(*parts)
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def checkout_root() -> Path:
    """Return the folder that holds ``luna_engine``: the clone, or site-packages of an installed copy."""
    return Path(__file__).resolve().parent.parent


def bundled(name: str) -> Path:
    """Return the folder of data shipped with Luna, such as ``wildcards``.

    A wheel carries it inside the package, a clone has it beside the packages.
    """
    packaged = Path(__file__).resolve().parent / "bundled" / name
    return packaged if packaged.exists() else checkout_root() / name


@contextlib.contextmanager
def atomic_write(path: Path, *, mode: int | None = None, is_synced: bool = True) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success sync it and rename it over ``path``.

    Args:
        path: the final name. Its folder must exist.
        mode: permission bits of the new file; None keeps those of the file it replaces, or the umask's.
        is_synced: make it survive a power loss; a cache need not.

    Yields:
        The path to write to. If the body raises, it is removed and ``path`` is as before.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield temporary
        if mode is None and path.exists():
            mode = path.stat().st_mode & 0o777
        if mode is not None:
            temporary.chmod(mode)
        if is_synced:
            descriptor = os.open(temporary, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if is_synced:
        sync_dir(path.parent)


def sync_dir(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power loss (a no-op where folders cannot be synced)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
