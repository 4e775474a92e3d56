"""The hook for connections (WILDCARDS 10): which picks a link at an address takes, and older forms of such picks.

This module knows nothing of LoRA files; `luna_engine.loras` holds the links.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luna_engine.errors import LunaError

if TYPE_CHECKING:
    from collections.abc import Sequence

_JOINERS = str.maketrans("\\.:", "///")


@dataclass(frozen=True, slots=True)
class LinkKey:
    """One item drawn, for matching against stored links. ``written`` is the item as it stands in its file.

    ``choice`` is its index among the choices, None where the picks came from an older workflow.
    """

    address: str
    item_id: str | None
    value: str
    tags: tuple[str, ...]
    choice: int | None
    written: str = ""

    def is_taken_by(self, link: str) -> bool:
        """Tell whether a link at an address takes this pick.

        A link takes every pick at or below its address, cut at key borders; one that names an item, by id or whole
        text, takes that item alone.
        """
        wanted = _joined(link)
        address = _joined(self.address)
        if covers(wanted, address):
            return True
        names = (self.item_id, self.written)
        return any(name is not None and name and wanted == f"{address}/{_joined(name)}" for name in names)


def covers(path: str, address: str) -> bool:
    """Tell whether a joined path is an address or lies above it, cut at key borders."""
    return address.startswith(path) and (len(address) == len(path) or address[len(path)] == "/")


def _joined(name: str) -> str:
    return name.translate(_JOINERS).casefold()


def resolved_categories(keys: Sequence[LinkKey]) -> dict[str, list[str]]:
    """Return the form that older workflows read: the addresses drawn from, each once."""
    return {"resolved_categories": list(dict.fromkeys(key.address for key in keys))}


def read_link_keys(text: str) -> tuple[LinkKey, ...]:
    """Read the picks of a ``choices`` output, of ``{"resolved_categories": [...]}``, or of a list of addresses.

    Raises:
        LunaError: ``list-format`` if the text is none of these.
    """
    try:
        data = json.loads(text) if text.strip() else []
    except (ValueError, RecursionError) as error:
        raise _refused(f"not JSON: {error}") from error
    if isinstance(data, dict):
        data = data.get("resolved_categories")
    if not isinstance(data, list):
        raise _refused("neither a list nor an object with resolved_categories")
    keys = (_read_key(entry, number) for number, entry in enumerate(data))
    return tuple(key for key in keys if key is not None)


def _read_key(entry: Any, number: int) -> LinkKey | None:
    """Return the pick of one entry, None for a choice that drew no item."""
    if isinstance(entry, str):
        return LinkKey(entry, None, "", (), None)
    if not isinstance(entry, dict):
        raise _refused(f"entry {number + 1} is neither an address nor a choice")
    address = entry.get("path")
    if address is None:
        return None
    tags = entry.get("tags") or []
    if not isinstance(address, str) or not isinstance(tags, list):
        raise _refused(f"entry {number + 1} is no choice")
    item_id = entry.get("id")
    return LinkKey(
        address,
        item_id if isinstance(item_id, str) else None,
        str(entry.get("text", "")),
        tuple(map(str, tags)),
        number,
        str(entry.get("written", "")),
    )


def _refused(why: str) -> LunaError:
    return LunaError("list-format", f"the picks cannot be read: {why}", "give the choices output of a wildcard node")
