"""Widgets that choose LoRA and embedding files, and checking what a stored workflow has in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_engine.errors import LunaError
from luna_engine.loras.names import resolve

from . import comfy

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .widgets import Declaration

NONE = "none"
_EMPTY = frozenset({"none", "None", ""})


def lora_choice(tooltip: str) -> Declaration:
    """Declare a choice of LoRA files."""
    return [NONE, *_listed("lora")], {"default": NONE, "tooltip": tooltip}


def embedding_choice(tooltip: str) -> Declaration:
    """Declare a choice of embedding files."""
    return [NONE, *_listed("embedding")], {"default": NONE, "tooltip": tooltip}


def is_empty(name: str | None) -> bool:
    """Tell whether a slot holds nothing."""
    return name is None or name in _EMPTY


def check(slots: Mapping[str, str | None], kind: str) -> bool | str:
    """Return what ``VALIDATE_INPUTS`` answers: True, or which slot names a file that is not there.

    Args:
        slots: widget to value; a linked one is None.
        kind: ``lora`` or ``embedding``.
    """
    return check_names(slots, _files(kind), kind)


def check_names(slots: Mapping[str, str | None], files: Iterable[str], kind: str) -> bool | str:
    """Do `check` with a list of files of any kind."""
    known = list(files)
    for slot, name in slots.items():
        if name is not None and not is_empty(name):
            try:
                resolve(name, known, kind)
            except LunaError as error:
                return f"{slot}: {error}"
    return True


def _listed(kind: str) -> list[str]:
    return _files(kind) if comfy.is_running() else []


def _files(kind: str) -> list[str]:
    host = comfy.current_host()
    return host.lora_files() if kind == "lora" else host.embedding_files()
