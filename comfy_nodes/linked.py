"""Which outputs of a node are linked: written into a posted prompt, so that parts that nobody uses are not read.

A node that wants to know declares the hidden input ``luna_linked``. As an input it is part of ComfyUI's cache key:
wiring another output runs the node again.
"""

from __future__ import annotations

from typing import Any

INPUT = "luna_linked"


def write_linked_outputs(posted: dict[str, Any], wanting: frozenset[str]) -> dict[str, Any]:
    """Write the linked slots of each node of the classes ``wanting`` into its inputs, as ``"0,2"``.

    Args:
        posted: what the front end posts to ``/prompt``; changed in place and returned.
        wanting: class names of nodes with lazy outputs.
    """
    prompt = posted.get("prompt")
    if not isinstance(prompt, dict):
        return posted
    nodes = {key: node for key, node in prompt.items() if isinstance(node, dict)}
    lazy = {key for key, node in nodes.items() if node.get("class_type") in wanting}
    slots: dict[str, set[int]] = {key: set() for key in lazy}
    for node in nodes.values():
        for value in (node.get("inputs") or {}).values():
            if isinstance(value, list) and len(value) == 2 and value[0] in slots and isinstance(value[1], int):
                slots[value[0]].add(value[1])
    for key, found in slots.items():
        nodes[key].setdefault("inputs", {})[INPUT] = ",".join(map(str, sorted(found)))
    return posted


def is_linked(written: str | None, slot: int) -> bool:
    """Tell whether an output is linked; where nobody wrote it down (an expanded graph), all count as linked."""
    return written is None or str(slot) in written.split(",")
