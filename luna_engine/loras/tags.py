"""``<lora:…>`` tags in prompt text: read exactly, or refused with their place; removed without touching the rest."""

from __future__ import annotations

import re
from dataclasses import dataclass

from luna_engine.errors import LunaError

_TAG = re.compile(r"<lora:([^<>\r\n]*)>", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)")


@dataclass(frozen=True, slots=True)
class LoraTag:
    """One tag: the name as written, both strengths, and its [start, end) in the text."""

    name: str
    model_strength: float
    clip_strength: float
    span: tuple[int, int]


def parse_tags(text: str) -> list[LoraTag]:
    """Return the tags of a text in reading order.

    Forms: ``<lora:name>`` (1.0), ``<lora:name:w>``, ``<lora:name:model:clip>``, named ``te=`` and ``unet=``.

    Raises:
        LunaError: ``lora-tag`` for a tag that holds anything else.
    """
    return [_parsed(found, text) for found in _TAG.finditer(text)]


def _parsed(found: re.Match[str], text: str) -> LoraTag:
    name, *fields = found[1].split(":")
    plain = [field.strip() for field in fields if "=" not in field]
    named = dict(_named(field, found, text) for field in fields if "=" in field)
    if not name.strip() or len(plain) > 2 or not all(_NUMBER.fullmatch(field) for field in plain):
        raise _bad(found, text)
    model = named.get("unet", float(plain[0]) if plain else 1.0)
    clip = named.get("te", float(plain[1]) if len(plain) > 1 else model)
    return LoraTag(name.strip(), model, clip, found.span())


def _named(field: str, found: re.Match[str], text: str) -> tuple[str, float]:
    key, _, value = (part.strip() for part in field.partition("="))
    if key not in {"te", "unet"} or not _NUMBER.fullmatch(value):
        raise _bad(found, text)
    return key, float(value)


def _bad(found: re.Match[str], text: str) -> LunaError:
    line = text.count("\n", 0, found.start()) + 1
    column = found.start() - text.rfind("\n", 0, found.start())
    return LunaError(
        "lora-tag",
        f"{found[0]} at line {line}, column {column} is no LoRA tag",
        "write <lora:name>, <lora:name:0.8> or <lora:name:0.8:0.6>",
    )


def format_tag(name: str, strength: float) -> str:
    """Return a tag with the fewest decimals that show the strength, at least one."""
    return f"<lora:{without_extension(name)}:{decimal_text(strength)}>"


def decimal_text(value: float) -> str:
    """Return a number with the fewest decimals that show it to six places, at least one, never an exponent."""
    text = f"{value:.6f}".rstrip("0")
    text += "0" if text.endswith(".") else ""
    return text.removeprefix("-") if not text.strip("-0.") else text


def without_extension(name: str) -> str:
    """Return a file's name without its model extension; dots of other kinds stay."""
    stem, dot, extension = name.rpartition(".")
    return stem if dot and extension.lower() in _EXTENSIONS else name


_EXTENSIONS = frozenset({"safetensors", "ckpt", "pt", "pt2", "pth", "bin", "sft", "pkl"})
