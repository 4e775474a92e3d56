"""Which items of a pack a peer's engine reads otherwise than the native profile does. Compares trees; draws nothing."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from luna_engine.wildcards.model import Kind
from luna_engine.wildcards.parser import is_plain, parse
from luna_engine.wildcards.path_index import path_index
from luna_engine.wildcards.scan import item_without_comments
from luna_engine.wildcards.syntax import Argument, Bracket, Option, Profile, Prompt, Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luna_engine.wildcards.model import Document, Item
    from luna_engine.wildcards.syntax import Node

PEERS = (Profile.DYNAMICPROMPTS, Profile.IMPACT)
_PLACES = frozenset({"start", "end"})
_Shape = tuple[object, ...]


def differing_profiles(item: Item, document: Document, profiles: Sequence[Profile] = PEERS) -> tuple[Profile, ...]:
    """Return those of ``profiles`` in which an item of a file means something else than in the native one."""
    is_txt = document.kind is Kind.TXT
    text = item.text
    weighed = is_txt and item.weight.micro != 1_000_000
    if is_plain(text) and not weighed and "#" not in text and "/" not in text:
        return ()
    native = _shapes(parse(text, Profile.NATIVE, comments=False).nodes, document)
    return tuple(
        profile
        for profile in profiles
        if (weighed and profile is Profile.DYNAMICPROMPTS) or _shapes(parse_peer(text, profile), document) != native
    )


def parse_peer(text: str, profile: Profile) -> tuple[Node, ...]:
    """Return the nodes of an item as a peer's pack means them."""
    read = item_without_comments(text) if profile is Profile.DYNAMICPROMPTS else text
    return parse(read, profile, comments=False).nodes


def _shapes(nodes: tuple[Node, ...], document: Document) -> _Shape:
    """Return what nodes mean, without places; neighbouring texts are one."""
    found: list[object] = []
    for node in nodes:
        for part in _parts(node, document):
            if isinstance(part, str) and found and isinstance(found[-1], str):
                found[-1] += part
            elif part != "":
                found.append(part)
    return tuple(found)


def _parts(node: Node, document: Document) -> list[object]:
    """Return a node's meaning as texts and tuples."""
    if isinstance(node, Text):
        return [node.value]
    if isinstance(node, Bracket) and not _is_substituted(node, document):
        return ["[", *_shapes(node.nodes, document), "]"]
    return [_shape(node, document)]


def _is_substituted(node: Bracket, document: Document) -> bool:
    if document.kind is Kind.TXT or not node.path:
        return False
    return path_index(document).find(node.path, bare_items=False) is not None


def _shape(node: Node | Option | Argument, document: Document) -> _Shape:
    """Return what a construct holds, field by field, places left out."""
    held = (getattr(node, field.name) for field in dataclasses.fields(node) if field.name not in _PLACES)
    return (type(node).__name__, *(_value(value, document) for value in held))


def _value(value: object, document: Document) -> object:
    if isinstance(value, Prompt):
        return _shapes(value.nodes, document)
    if not isinstance(value, tuple) or not value:
        return value
    if isinstance(value[0], (Option, Argument)):
        return tuple(_shape(part, document) for part in value)
    return _shapes(value, document)
