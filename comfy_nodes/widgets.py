"""How inputs are declared: one function per kind, so that no prompt widget forgets `dynamicPrompts` or its tooltip."""

from __future__ import annotations

from typing import Any

Declaration = tuple[Any, dict[str, Any]]
SEED_MAX = 2**64 - 1


def text(tooltip: str, default: str = "", *, multiline: bool = False) -> Declaration:
    """Declare a text widget that the front end leaves alone (it would rewrite ``{a|b}`` itself)."""
    return "STRING", {
        "default": default,
        "multiline": multiline,
        "dynamicPrompts": False,
        "tooltip": tooltip,
    }


def choice(options: tuple[str, ...], default: str, tooltip: str) -> Declaration:
    """Declare a choice out of a fixed list."""
    return list(options), {"default": default, "tooltip": tooltip}


def integer(tooltip: str, default: int, low: int, high: int, step: int = 1) -> Declaration:
    """Declare a whole number within bounds, both included."""
    return "INT", {"default": default, "min": low, "max": high, "step": step, "tooltip": tooltip}


def seed(tooltip: str) -> Declaration:
    """Declare a 64-bit seed. Drawing anew on each queue is ComfyUI's own control beside it."""
    return "INT", {
        "default": 0,
        "min": 0,
        "max": SEED_MAX,
        "control_after_generate": True,
        "tooltip": tooltip,
    }


def socket(kind: str, tooltip: str) -> Declaration:
    """Declare an input that only a link can fill."""
    return kind, {"tooltip": tooltip}


def number(tooltip: str, default: float, low: float, high: float, step: float) -> Declaration:
    """Declare a decimal number on a grid, both ends included."""
    return "FLOAT", {"default": default, "min": low, "max": high, "step": step, "round": 0.001, "tooltip": tooltip}


def flag(tooltip: str, *, default: bool) -> Declaration:
    """Declare a switch."""
    return "BOOLEAN", {"default": default, "tooltip": tooltip}
