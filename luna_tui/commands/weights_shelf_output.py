"""What `luna weights list`, `prune` and `undo` print: records for programs and lines for people, from one place."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

from luna_tui.commands.weights_group import printable
from luna_tui.wording import size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from luna_engine.weights.assembly import SourceRow
    from luna_engine.weights.disks import Disk
    from luna_engine.weights.memory import Check
    from luna_engine.weights.pruning import PruneItem, PrunePlan
    from luna_engine.weights.trash import Batch
    from luna_engine.weights.variants import Variant

_STALE = frozenset({"stale", "unsure", "damaged"})


def moment(seconds: float | None) -> str | None:
    """Return a Unix time as RFC 3339 in UTC, to the second."""
    if seconds is None:
        return None
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def source_fields(row: SourceRow) -> dict[str, Any]:
    """Return one entry of ``luna.weights.list/1``."""
    found = row.inspection
    architecture = None
    if found is not None:
        architecture = {"value": found.family, "source": "header", "confidence": found.confidence.value}
    return {
        "path": str(row.path),
        "bytes": row.size_bytes,
        "modified_at": moment(row.modified_s),
        "kind": found.kind.value if found else None,
        "architecture": architecture,
        "precision": found.precision if found else None,
        "error": row.error,
        "variants": [variant_fields(variant) for variant in row.variants],
    }


def variant_fields(variant: Variant) -> dict[str, Any]:
    """Return one converted file of ``luna.weights.list/1``; what only Luna's own files say is null for others."""
    made = variant.provenance
    return {
        "path": str(variant.path),
        "format": variant.path.suffix.removeprefix("."),
        "precision": variant.precision or None,
        "bytes": variant.size_bytes,
        "source_sha256": made.source_sha256 if made else None,
        "tool_version": made.version if made else None,
        "created_at": made.created if made else None,
        "verified": _verified(variant.check),
        "stale": variant.state.value in _STALE,
        "stale_reason": variant.reason or None,
        "state": variant.state.value,
        "pinned": variant.is_pinned,
        "used_by": list(variant.users),
        "last_used": moment(variant.used_at),
        "dtypes": dict(variant.dtypes),
        "suggested_source": str(variant.suggestion) if variant.suggestion else None,
        "errors": dict(made.errors) if made else {},
    }


def _verified(check: Check | None) -> dict[str, Any] | None:
    if check is None or check.error is not None:
        return None
    return {"at": check.at, "max_error": check.max_error, "rms_error": check.rms_error}


def disk_fields(disk: Disk) -> dict[str, Any]:
    """Return one disk of ``luna.weights.list/1``."""
    return {
        "path": str(disk.path),
        "total_bytes": disk.total_bytes,
        "free_bytes": disk.free_bytes,
        "variants_bytes": disk.variants_bytes,
        "trash_bytes": disk.trash_bytes,
    }


def list_text(rows: Sequence[SourceRow], strays: Sequence[Variant]) -> str:
    """Return sources, their variants and files without a source for people."""
    if not rows and not strays:
        return "No checkpoints found: set weights.paths or LUNA_MODELS, or name a folder."
    names = [*(row.path.name for row in rows), *(variant.path.name for variant in strays)]
    width = max(len(printable(name)) for name in names)
    lines: list[str] = []
    for row in rows:
        found = row.inspection
        what = found.name if found else f"{row.error['code']}: {row.error['message']}" if row.error else "?"
        lines.append(f"{printable(row.path.name):<{width}}  {size(row.size_bytes):>10}  {printable(what)}")
        lines += [_variant_text(variant, width) for variant in row.variants]
    if strays:
        lines.append("without a source here:")
        lines += [_variant_text(variant, width) for variant in strays]
    return "\n".join(lines)


def _variant_text(variant: Variant, width: int) -> str:
    words = [variant.precision or "?", variant.state.value]
    words += [f"({printable(variant.reason)})"] if variant.reason else []
    words += ["pinned"] if variant.is_pinned else []
    words += [f"used by {printable(', '.join(variant.users))}"] if variant.users else []
    return f"  {printable(variant.path.name):<{width}}{size(variant.size_bytes):>10}  {' '.join(words)}"


def duplicates_text(groups: Sequence[Sequence[SourceRow]]) -> str:
    """Return files of one content for people."""
    if not groups:
        return "No two sources hold the same."
    lines = []
    for rows in groups:
        lines.append(f"the same {size(rows[0].size_bytes)}:")
        lines += [f"  {printable(str(row.path))}" for row in rows]
    return "\n".join(lines)


def stats_text(found: Mapping[str, Any]) -> str:
    """Return sums for people."""
    lines = []
    for title in ("by_precision", "by_family", "by_root"):
        lines.append(f"{title.replace('_', ' ')}:")
        lines += [f"  {printable(name):<20} {_sum_text(entry)}" for name, entry in found[title].items()]
    lines.append(f"in all {_sum_text(found['total'])}")
    lines += [
        f"{name.replace('_', ' ')}: {found[name]['files']} files, {size(found[name]['bytes'])}"
        for name in ("unused_30_days", "stale", "orphaned", "foreign")
    ]
    lines.append(f"trash: {size(found['trash_bytes'])}")
    return "\n".join(lines)


def _sum_text(entry: Mapping[str, Any]) -> str:
    share = "" if entry["share"] is None else f", {100 * entry['share']:.0f} % of the sources' diffusion parts"
    return f"{entry['files']:>4} files {size(entry['bytes']):>10}{share}"


def prune_text(plan: PrunePlan, trash_bytes: int | None) -> str:
    """Return what a pruning would do or did for people."""
    if not plan.items:
        return "Nothing can go."
    lines = [_item_text(item, is_dry_run=plan.is_dry_run) for item in plan.items]
    if plan.is_dry_run:
        lines.append(f"{size(plan.total_bytes)} would go into the trash: --apply does it")
    else:
        lines.append(f"{size(plan.total_bytes)} left the catalogue, {size(trash_bytes)} wait in the trash")
        if plan.batch is not None and trash_bytes:
            lines.append(f"`luna weights undo {plan.batch}` brings them back; after 14 days they are deleted")
    return "\n".join(lines)


def _item_text(item: PruneItem, *, is_dry_run: bool) -> str:
    if item.refused is not None:
        fate = f"stays: {item.refused}"
    else:
        fate = "would go" if is_dry_run else "gone" if item.trash_id is None else "in the trash"
    used = moment(item.used_at)
    last = f", last used {used}" if used else ""
    return f"{printable(str(item.path))}  {size(item.size_bytes)}  {printable(item.reason)}{last}  {printable(fate)}"


def batch_fields(batch: Batch) -> dict[str, Any]:
    """Return one batch of ``luna.weights.trash/1``."""
    return {
        "id": batch.id,
        "at": moment(batch.at),
        "folder": str(batch.folder),
        "bytes": batch.size_bytes,
        "items": [{"path": str(item.original), "bytes": item.size_bytes, "reason": item.reason} for item in batch.held],
    }


def trash_text(batches: Sequence[Batch]) -> str:
    """Return what waits in the trash for people."""
    if not batches:
        return "The trash is empty."
    lines = []
    for batch in batches:
        lines.append(f"{batch.id}  {size(batch.size_bytes)}")
        lines += [f"  {printable(str(item.original))}  {printable(item.reason)}" for item in batch.held]
    return "\n".join(lines)
