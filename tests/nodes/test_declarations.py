"""Every registered node declares itself fully: tooltips, aliases, description, help page, widgets left alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import comfy_nodes

DOCS = Path(comfy_nodes.__file__).parent / "web" / "docs"
NODES = sorted(comfy_nodes.NODE_CLASS_MAPPINGS.items())


def inputs_of(node: type[Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    declared = node.INPUT_TYPES()
    return {**declared.get("required", {}), **declared.get("optional", {})}


@pytest.mark.parametrize(("node_id", "node"), NODES)
class TestEachNode:
    def test_says_what_it_is_and_how_it_is_found(self, node_id: str, node: type[Any]) -> None:
        assert comfy_nodes.NODE_DISPLAY_NAME_MAPPINGS[node_id] == node.DISPLAY_NAME
        assert node.DESCRIPTION
        assert node.SEARCH_ALIASES
        assert node.CATEGORY.startswith("Luna/")
        assert callable(getattr(node, node.FUNCTION))

    def test_has_a_tooltip_on_every_input_and_output(self, node_id: str, node: type[Any]) -> None:
        assert not [name for name, (_, options) in inputs_of(node).items() if not options.get("tooltip")]
        assert len(node.OUTPUT_TOOLTIPS) == len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
        assert all(node.OUTPUT_TOOLTIPS)

    def test_leaves_braces_in_text_widgets_to_luna(self, node_id: str, node: type[Any]) -> None:
        for name, (kind, options) in inputs_of(node).items():
            if kind == "STRING" and not options.get("forceInput"):
                assert options["dynamicPrompts"] is False, name

    def test_has_a_help_page_that_names_every_input_and_no_other(self, node_id: str, node: type[Any]) -> None:
        page = (DOCS / f"{node_id}.md").read_text("utf-8")
        named = set(re.findall(r"^\| `([a-z_0-9]+)` \|", page.partition("## Outputs")[0], re.MULTILINE))
        assert named == set(inputs_of(node))
        outputs = set(re.findall(r"^\| `([a-z_0-9]+)` \|", page.partition("## Outputs")[2], re.MULTILINE))
        assert outputs == set(node.RETURN_NAMES)
        for section in ("## Errors", "## Example"):
            assert section in page

    def test_never_declares_prompt_comes_in_as_unique_id(self, node_id: str, node: type[Any]) -> None:
        """The id would become part of the cache key and split equal nodes."""
        assert set(node.INPUT_TYPES().get("hidden", {}).values()) <= {"STRING"}, "only the linked outputs"
        assert not hasattr(node, "NOT_IDEMPOTENT")


def test_no_help_page_is_left_of_a_node_that_is_gone() -> None:
    assert {page.stem for page in DOCS.glob("*.md")} == set(comfy_nodes.NODE_CLASS_MAPPINGS)


def test_the_status_node_makes_its_nan_anew() -> None:
    """ComfyUI compares by identity first: one shared NaN object would count as unchanged."""
    node = comfy_nodes.NODE_CLASS_MAPPINGS["LunaDaemonStatus"]
    first, second = node.IS_CHANGED(), node.IS_CHANGED()
    assert first != first  # noqa: PLR0124 - that is what NaN means
    assert first is not second


def test_the_table_in_the_docs_is_what_the_classes_say() -> None:
    """Renew it with ``python -m comfy_nodes.tables --write``."""
    from comfy_nodes import tables

    assert tables.PAGE.read_text("utf-8") == tables.render()


@pytest.mark.parametrize(
    "path", sorted((DOCS.parents[2] / "example_workflows").glob("*.json")), ids=lambda path: path.stem
)
def test_the_example_workflows_fit_the_classes(path: Path) -> None:
    """Stored values are positional: one for each widget, and one for the control behind each seed."""
    workflow = json.loads(path.read_text("utf-8"))
    ours = [node for node in workflow["nodes"] if node["type"] in comfy_nodes.NODE_CLASS_MAPPINGS]
    assert ours
    kinds = {link[0]: link[5] for link in workflow["links"]}
    for node in ours:
        kind = comfy_nodes.NODE_CLASS_MAPPINGS[node["type"]]
        assert [output["name"] for output in node["outputs"]] == list(kind.RETURN_NAMES)
        for output, declared in zip(node["outputs"], kind.RETURN_TYPES, strict=True):
            assert all(kinds[link] == output["type"] == declared for link in output["links"] or ())
        widgets = [
            options
            for what, options in inputs_of(kind).values()
            if (isinstance(what, list) or what in {"STRING", "INT", "FLOAT", "BOOLEAN"})
            and not options.get("forceInput")
        ]
        controls = sum(bool(options.get("control_after_generate")) for options in widgets)
        assert len(node["widgets_values"]) == len(widgets) + controls
