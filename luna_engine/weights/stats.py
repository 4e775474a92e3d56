"""Sums over all converted files: per precision, family and root, and what could go."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from luna_engine.weights.trash import trash_bytes
from luna_engine.weights.variants import VariantState

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from luna_engine.weights.catalog import Listing
    from luna_engine.weights.memory import Memory
    from luna_engine.weights.variants import Variant

UNUSED_AFTER_S = 30 * 86400.0


def stats(found: Listing, homes: Iterable[Path], memory: Memory) -> dict[str, Any]:
    """Return sums as a JSON-safe record.

    Only files that Luna made are counted. ``share`` is their size over that of the diffusion parts they were made of;
    None where no source is known.
    """
    groups: dict[str, dict[str, list[tuple[Variant, int]]]] = {
        "precision": defaultdict(list), "family": defaultdict(list), "root": defaultdict(list),
    }  # fmt: skip
    made: list[tuple[Variant, int]] = []
    for row in found.sources:
        part = row.inspection.diffusion_bytes if row.inspection is not None else 0
        for variant in row.variants:
            made.append((variant, part))
            groups["family"][(row.inspection.family if row.inspection else None) or "unknown"].append((variant, part))
            groups["root"][str(row.root)].append((variant, part))
    made += [(variant, 0) for variant in found.strays if variant.provenance is not None]
    for variant, part in made:
        groups["precision"][variant.precision].append((variant, part))
    variants = [variant for variant, _ in made]
    return {
        **{f"by_{name}": {key: _sum(entries) for key, entries in sorted(group.items())}
           for name, group in groups.items()},
        "total": _sum(made),
        "unused_30_days": _bytes(v for v in variants if time.time() - v.age_from >= UNUSED_AFTER_S),
        "stale": _bytes(v for v in variants if v.state in {VariantState.STALE, VariantState.UNSURE}),
        "orphaned": _bytes(v for v in variants if v.state is VariantState.ORPHANED),
        "foreign": _bytes(v for v in found.strays if v.state is VariantState.FOREIGN),
        "trash_bytes": trash_bytes(homes, memory),
    }  # fmt: skip


def _sum(entries: list[tuple[Variant, int]]) -> dict[str, Any]:
    size = sum(variant.size_bytes for variant, _ in entries)
    known = [(variant, part) for variant, part in entries if part]
    parts = sum(part for _, part in known)
    share = sum(variant.size_bytes for variant, _ in known) / parts if parts else None
    return {"files": len(entries), "bytes": size, "share": None if share is None else round(share, 4)}


def _bytes(variants: Iterable[Variant]) -> dict[str, int]:
    listed = list(variants)
    return {"files": len(listed), "bytes": sum(variant.size_bytes for variant in listed)}
