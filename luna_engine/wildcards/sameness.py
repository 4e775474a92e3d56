"""When two items, or two lists, say the same: NFC, case and blanks evened, and the order of a list ignored."""

from __future__ import annotations

import hashlib
import unicodedata
from typing import TYPE_CHECKING

from luna_engine.wildcards.lines import Lines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from luna_engine.wildcards.model import ItemList

LEAST_ITEMS = 3
MOST_ITEMS = 200_000


def evened(text: str) -> str:
    """Return a text as duplicates are compared: NFC, case and blanks evened."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def texts_of(found: ItemList) -> Iterator[str]:
    """Yield the texts of a list without weights; no item of a txt file is made."""
    items = found.items
    return map(items.text, range(len(items))) if isinstance(items, Lines) else (item.text for item in items)


def list_digest(found: ItemList) -> bytes | None:
    """Return a digest that lists of the same texts share; None for lists too short to say anything, or too long."""
    if not LEAST_ITEMS <= len(found.items) <= MOST_ITEMS:
        return None
    texts = {evened(text) for text in texts_of(found)}
    if len(texts) < LEAST_ITEMS:
        return None
    digest = hashlib.blake2b(digest_size=16)
    for text in sorted(texts):
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.digest()
