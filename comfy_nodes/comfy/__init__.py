"""The one door to ComfyUI: its folders, interrupt, progress, tokenizers, models, memory, notices and server.

ComfyUI's modules are imported when used, never at the top: the pack's classes can be looked at, documented and
tested on a machine without ComfyUI. Names that differ between versions are asked for with ``hasattr`` here only.
"""

from __future__ import annotations

import sys

from .folders import Folders
from .models import Models
from .prompts import Prompts
from .routes import WILDCARD_SUFFIXES, add_routes, register

__all__ = ["WILDCARD_SUFFIXES", "ComfyHost", "add_routes", "current_host", "is_running", "register"]


class ComfyHost(Folders, Models, Prompts):
    """What Luna's nodes and proxies need of the ComfyUI they run in (`luna_daemon.proxy.HostHooks`)."""


_HOST = ComfyHost()


def current_host() -> ComfyHost:
    """Return the ComfyUI this process runs in."""
    return _HOST


def is_running() -> bool:
    """Tell whether a ComfyUI runs in this process; without one the classes are only looked at."""
    return "folder_paths" in sys.modules
