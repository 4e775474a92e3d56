"""docs/nodes.md from the node classes: ``python -m comfy_nodes.tables`` checks it, ``--write`` renews it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy_nodes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PAGE = Path(__file__).resolve().parent.parent / "docs" / "nodes.md"
_HEAD = """# Nodes

Made from the node classes by `python -m comfy_nodes.tables --write`; do not edit. Each node has a help page in
ComfyUI (the (i) button), kept in `comfy_nodes/web/docs/`.
"""


def render() -> str:
    """Return the page."""
    nodes = sorted(comfy_nodes.NODE_CLASS_MAPPINGS.items(), key=lambda pair: (pair[1].CATEGORY, pair[0]))
    lines = [_HEAD, *_index(nodes)]
    for node_id, node in nodes:
        lines.extend(_section(node_id, node))
    return "\n".join(lines) + "\n"


def _index(nodes: Sequence[tuple[str, Any]]) -> Iterator[str]:
    yield "| node | id | category |"
    yield "|---|---|---|"
    for node_id, node in nodes:
        yield f"| [{node.DISPLAY_NAME}](#{node_id.lower()}) | `{node_id}` | {node.CATEGORY} |"


def _section(node_id: str, node: Any) -> Iterator[str]:
    yield f"\n## {node_id}\n\n{node.DESCRIPTION}\n"
    declared = node.INPUT_TYPES()
    rows = [
        (name, kind, options, group == "required")
        for group in ("required", "optional")
        for name, (kind, options) in declared.get(group, {}).items()
    ]
    if rows:
        yield "| input | type | default | |"
        yield "|---|---|---|---|"
    for name, kind, options, is_required in rows:
        word = "" if is_required else " (optional)"
        yield f"| `{name}` | {_kind(kind)}{word} | {_default(options)} | {_cell(options['tooltip'])} |"
    yield "\n| output | type | |"
    yield "|---|---|---|"
    for name, kind, tooltip in zip(node.RETURN_NAMES, node.RETURN_TYPES, node.OUTPUT_TOOLTIPS, strict=True):
        yield f"| `{name}` | {kind} | {_cell(tooltip)} |"


def _kind(kind: Any) -> str:
    return ", ".join(kind) if isinstance(kind, list) else str(kind)


def _default(options: dict[str, Any]) -> str:
    default = options.get("default")
    return "" if default in {None, ""} else f"`{_cell(str(default))}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> int:
    """Check or write the page."""
    parser = argparse.ArgumentParser(prog="python -m comfy_nodes.tables", description=__doc__)
    parser.add_argument("--write", action="store_true", help="renew docs/nodes.md")
    page = render()
    if parser.parse_args().write:
        PAGE.write_text(page, "utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text("utf-8") == page:
        return 0
    sys.stderr.write(f"{PAGE} is not what the node classes say; run with --write\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
