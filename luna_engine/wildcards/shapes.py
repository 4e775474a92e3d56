"""What a file says, without how it is written: the measure of an edit, which may change one thing and no other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luna_engine.wildcards.tree_events import Raw, Scalar, Sequence

if TYPE_CHECKING:
    from collections.abc import Callable


def shape_of(node: Raw) -> Any:
    """Return what a node says, without how it is written."""
    if isinstance(node, Scalar):
        return [] if node.is_absent else node.value
    if isinstance(node, Sequence):
        return [shape_of(entry) for entry in node.entries]
    return ("map", [(key.value, shape_of(value)) for key, value in node.entries])


def as_list(shape: Any) -> list[Any]:
    """Return the entries of a list as it reads; a single text is a list of one, nothing an empty one."""
    if shape is None:
        return []
    return list(shape) if isinstance(shape, list) else [shape]


def changed(shape: Any, keys: tuple[str, ...], change: Callable[[Any], Any], *, make: bool = False) -> Any:
    """Return a shape with one place changed; with ``make`` the keys to it are made."""
    if not keys:
        return change(shape)
    entries = list(shape[1]) if isinstance(shape, tuple) else []
    for at, (key, value) in enumerate(entries):
        if key == keys[0]:
            entries[at] = (key, changed(value, keys[1:], change, make=make))
            return ("map", entries)
    if make:
        entries.append((keys[0], changed(None, keys[1:], change, make=True)))
    return ("map", entries)
