"""A wildcard file as a list of references, ready to paste."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luna_engine.errors import InputFileError
from luna_engine.loras.names import closest
from luna_engine.wildcards import Severity

from . import comfy, wildcard_library
from .widgets import flag, integer, text
from .wildcard_library import library_of
from .wildcards import CATEGORY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from luna_engine.wildcards import TreeNode, WildcardLibrary


class LunaYAMLWildcardExplorer:
    """List what a wildcard file offers."""

    DISPLAY_NAME = "Luna Wildcard Explorer"
    DESCRIPTION = (
        "Lists the references of one wildcard file, one a line, with the numbers of items and of combinations behind "
        "a #; without the numbers each line can be pasted as it is. Problems of the file stand at the end."
    )
    SEARCH_ALIASES = ["list paths", "browse wildcards"]
    CATEGORY = CATEGORY
    FUNCTION = "explore"
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("available_paths",)
    OUTPUT_TOOLTIPS = ("One reference a line. They are also shown on the node.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the file and how much of it to list."""
        files = _files(library_of()) if comfy.is_running() else []
        tooltip = "The file. With yaml_directory a file of that folder may be typed by an API client."
        return {
            "required": {"yaml_file": (files, {"tooltip": tooltip})},
            "optional": {
                "max_depth": integer("How many levels of keys to list.", 4, 1, 10),
                "show_item_counts": flag("Write numbers behind each reference.", default=True),
                "yaml_directory": text("Folder to list instead of ComfyUI's wildcards folders and the bundled ones."),
                "filter": text("Only references that hold all of these words."),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, yaml_file: str | None = None) -> bool:
        """Leave the check of the file to the run, which knows the folder."""
        return True

    @classmethod
    def IS_CHANGED(cls, yaml_directory: str | None = "", **_: Any) -> str:
        """Fingerprint the whole library: numbers and problems depend on other files too."""
        return wildcard_library.fingerprint((None,), yaml_directory, "")

    def explore(
        self,
        yaml_file: str,
        max_depth: int = 4,
        show_item_counts: bool = True,  # noqa: FBT001, FBT002 - ComfyUI passes widgets by name
        yaml_directory: str = "",
        filter: str = "",  # noqa: A002 - the widget's name
    ) -> dict[str, Any]:
        """List the file.

        Raises:
            InputFileError: ``file-missing`` with the closest names.
        """
        library = library_of(yaml_directory)
        node = _node_of(library, yaml_file)
        words = filter.casefold().split()
        lines = [
            line
            for line in _lines(node, max_depth, with_counts=show_item_counts)
            if all(word in line.partition("  #")[0].casefold() for word in words)
        ]
        problems = [
            f"# {wildcard_library.problem_line(found)}"
            for found in library.lint()
            if found.file == node.file and found.severity is not Severity.HINT
        ]
        listed = "\n".join([*lines, *problems])
        return {"ui": {"text": [listed]}, "result": (listed,)}


class LunaYAMLPathExplorer(LunaYAMLWildcardExplorer):
    """The same node under an older id."""

    DISPLAY_NAME = "Luna Wildcard Explorer (older id)"


def _files(library: WildcardLibrary) -> list[str]:
    """Return the files of a library by path, sub-folders included; of equal names the first root's."""
    return sorted({document.path for document in library.snapshot.documents})


def _node_of(library: WildcardLibrary, name: str) -> TreeNode:
    wanted = name.strip().replace("\\", "/")
    nodes = (node for top in library.tree(combinations=True) for node in top.walk() if node.kind == "file")
    by_path = {node.file: node for node in nodes if node.file is not None}
    if wanted in by_path:
        return by_path[wanted]
    close = closest(wanted, by_path)
    hint = f"did you mean {', '.join(close)}?" if close else "press R in ComfyUI to read the list of files again"
    raise InputFileError("file-missing", f"the library has no file {name!r}", hint)


def _lines(node: TreeNode, depth: int, *, with_counts: bool, level: int = 0) -> Iterator[str]:
    """Yield a reference for a file or key and for what is below it; notes are not drawn and not listed."""
    if node.is_note:
        return
    counts = ""
    if with_counts:
        combinations = "not known" if node.combinations is None else f"{node.combinations:,}"
        mark = "templates, " if node.address.partition(":")[2].partition(".")[0] == "templates" else ""
        counts = f"  # {mark}{node.items:,} items, {combinations} combinations"
    yield f"{{{node.address}}}{counts}"
    if level < depth:
        for child in node.children:
            yield from _lines(child, depth, with_counts=with_counts, level=level + 1)


NODES = (LunaYAMLWildcardExplorer, LunaYAMLPathExplorer)
