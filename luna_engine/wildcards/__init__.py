"""The wildcard language and its engine: one parser, one library, one expansion for every node, command and screen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from luna_engine import paths
from luna_engine.wildcards.completion import Completion
from luna_engine.wildcards.diagnostics import Diagnostic, Severity, TextFix
from luna_engine.wildcards.edits import (
    Edit,
    add_items,
    apply_edit,
    move_item,
    remove_items,
    rename_key,
    replace_item,
    split_texts,
)
from luna_engine.wildcards.expansion import Batch, Choice, ChoiceKind, Expansion
from luna_engine.wildcards.files import Root
from luna_engine.wildcards.fixing import plan_fixes
from luna_engine.wildcards.library import WildcardLibrary
from luna_engine.wildcards.linking import LinkKey, read_link_keys, resolved_categories
from luna_engine.wildcards.odds import Share, SiteOdds
from luna_engine.wildcards.parser import parse
from luna_engine.wildcards.rules.links import LinkedEmbedding, LinkedLora, Links
from luna_engine.wildcards.rules.records import RuleOptions
from luna_engine.wildcards.steps import Step
from luna_engine.wildcards.syntax import Parsed, Profile
from luna_engine.wildcards.tidying import tidy
from luna_engine.wildcards.tree import TreeNode
from luna_engine.wildcards.uses import Use
from luna_engine.wildcards.watching import Change, Watch

if TYPE_CHECKING:
    from luna_engine.settings import Settings

__all__ = [
    "Batch",
    "Change",
    "Choice",
    "ChoiceKind",
    "Completion",
    "Diagnostic",
    "Edit",
    "Expansion",
    "LinkKey",
    "LinkedEmbedding",
    "LinkedLora",
    "Links",
    "Parsed",
    "Profile",
    "Root",
    "RuleOptions",
    "Severity",
    "Share",
    "SiteOdds",
    "Step",
    "TextFix",
    "TreeNode",
    "Use",
    "Watch",
    "WildcardLibrary",
    "add_items",
    "apply_edit",
    "default_roots",
    "move_item",
    "parse",
    "plan_fixes",
    "read_link_keys",
    "remove_items",
    "rename_key",
    "replace_item",
    "resolved_categories",
    "split_texts",
    "tidy",
]


def default_roots(settings: Settings) -> list[Path]:
    """Return the configured wildcard folders, then the bundled library unless it is switched off."""
    roots = [Path(root).expanduser() for root in settings.wildcards.roots]
    if settings.wildcards.bundled:
        roots.append(paths.bundled("wildcards"))
    return roots
