"""Texts as scalars of a YAML or JSON file: plain where that reads back equal, else in quotes."""

from __future__ import annotations

import json
import re

from luna_engine.wildcards.model import Kind
from luna_engine.wildcards.tree_events import RefusedFile, Scalar, Sequence, read_yaml

_PLAIN_KEY = re.compile(r"[^\W\d][\w .\-/]*\w|[^\W\d]")


def written_key(name: str, kind: Kind) -> str:
    """Return a key as it is written in a file of a kind."""
    if kind is Kind.JSON:
        return json.dumps(name, ensure_ascii=False)
    return name if _PLAIN_KEY.fullmatch(name) else written_scalar(name, "'", kind)


def written_scalar(text: str, style: str, kind: Kind, *, flow: bool = False) -> str:
    """Return a text as a scalar.

    Args:
        text: what it is to say.
        style: the quote that is wanted, ``""`` for none where none is needed.
        kind: of the file.
        flow: it stands in brackets.
    """
    if kind is Kind.JSON:
        return json.dumps(text, ensure_ascii=False)
    if style not in {"'", '"'} and _reads_back(text, text, flow=flow):
        return text
    single = "'" + text.replace("'", "''") + "'"
    if style != '"' and _reads_back(single, text, flow=flow):
        return single
    return json.dumps(text, ensure_ascii=False)


def _reads_back(written: str, text: str, *, flow: bool) -> bool:
    if "\n" in written or "\r" in written:
        return False
    try:
        documents = read_yaml(f"- [{written}, x]" if flow else f"- {written}", "").documents
    except RefusedFile:
        return False
    outer = documents[0] if documents else None
    entry = outer.entries[0] if isinstance(outer, Sequence) and outer.entries else None
    if flow and isinstance(entry, Sequence):
        entry = entry.entries[0] if len(entry.entries) == 2 else None
    return isinstance(entry, Scalar) and entry.value == text and not entry.is_absent
