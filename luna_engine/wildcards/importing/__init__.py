"""Importing packs of wildcard files: a plan first, then files that never overwrite others, and a way back."""

from __future__ import annotations

from luna_engine.wildcards.importing.apply import UndoPlan, apply_import, apply_undo, plan_undo
from luna_engine.wildcards.importing.plan import CONFLICTS, ImportOptions, plan_import
from luna_engine.wildcards.importing.records import FileState, ImportPlan, PlannedFile

__all__ = [
    "CONFLICTS",
    "FileState",
    "ImportOptions",
    "ImportPlan",
    "PlannedFile",
    "UndoPlan",
    "apply_import",
    "apply_undo",
    "plan_import",
    "plan_undo",
]
