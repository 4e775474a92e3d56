"""The weights port over a recorded shelf: for tests, goldens and `luna-tui` without a disk. It changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_engine.errors import InputFileError
from luna_engine.weights.precisions import PRECISIONS
from luna_tui.backend.scenes import GIB, MIB, NOW
from luna_tui.backend.weights_views import (
    DiskView,
    JobView,
    PlanView,
    PruneRow,
    SourceView,
    VariantView,
    WeightsView,
)
from luna_tui.views import Failure, Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luna_engine.weights.inspection import Inspection

ROOT = "/models/checkpoints"
_HOME = "/models/unet/optimized"
_FINER = "finer than its own F16"
_DAMAGED = Failure(
    "file-damaged", "broken.safetensors: 6,938,078,334 bytes are promised, 3,328,599,654 are there",
    "copy or download the file again",
)  # fmt: skip


def view(scene: str) -> WeightsView:
    """Return the recorded shelf of a scene."""
    if scene == "empty":
        return WeightsView(NOW, (ROOT,), disks=(DiskView("/", 930 * GIB, 88 * GIB, 0, 0, 0),))
    return WeightsView(
        NOW,
        (ROOT,),
        _sources(),
        _jobs(),
        (),
        (
            VariantView(
                f"{_HOME}/gone_Q8_0.gguf", "gone_Q8_0.gguf", "gguf_Q8_0", int(2.6 * GIB), "orphaned",
                "orphaned: its source gone.safetensors is gone · luna 0.1.0 · source 77aa01ff", is_usable=False,
            ),
        ),
        (DiskView("/mnt/fast", 930 * GIB, 88 * GIB, 4, int(9.2 * GIB), int(3.1 * GIB)),),
    )  # fmt: skip


def _sources() -> tuple[SourceView, ...]:
    pony = (
        VariantView(
            f"{_HOME}/ponyDiffusionV6XL_Q8_0.gguf", "ponyDiffusionV6XL_Q8_0.gguf", "gguf_Q8_0", int(2.57 * GIB),
            "stale", "stale: its source holds other values · pinned · luna 0.1.0 · source e3b0c442", is_usable=False,
            is_pinned=True,
        ),
        VariantView(
            f"{_HOME}/ponyDiffusionV6XL_fp8_e4m3fn_scaled_unet.safetensors",
            "ponyDiffusionV6XL_fp8_e4m3fn_scaled_unet.safetensors", "fp8_e4m3fn_scaled", int(2.39 * GIB), "current",
            "verified 11-20, RMS 2.7 % · used by comfy:8188 · luna 0.1.0 · source 51c2d0ab", is_verified=True,
            users=("comfy:8188",),
        ),
    )  # fmt: skip
    sd15 = VariantView(
        f"{_HOME}/dreamshaper_8_Q4_K_M.gguf", "dreamshaper_8_Q4_K_M.gguf", "gguf_Q4_K_M", int(0.53 * GIB), "current",
        "verified 11-22, RMS 7.3 % · used 11-22 · luna 0.1.0 · source 90bb13c4", is_verified=True,
    )  # fmt: skip
    return (
        SourceView(f"{ROOT}/broken.safetensors", "broken.safetensors", None, "unreadable", "", int(3.1 * GIB), (),
                   _DAMAGED),
        SourceView(f"{ROOT}/dreamshaper_8.safetensors", "dreamshaper_8.safetensors", "sd15", "sd15 checkpoint", "F16",
                   int(1.99 * GIB), (sd15,)),
        SourceView(f"{ROOT}/illustriousXL_v2.safetensors", "illustriousXL_v2.safetensors", "sdxl", "sdxl checkpoint",
                   "F16", int(6.46 * GIB)),
        SourceView(f"{ROOT}/odd_cascade.safetensors", "odd_cascade.safetensors", "stable-cascade",
                   "stable-cascade C diffusion model", "F16", int(2.1 * GIB), (), None,
                   {label: "stable-cascade: bf16 and fp16 only" for label in PRECISIONS if "16" not in label}),
        SourceView(f"{ROOT}/ponyDiffusionV6XL.safetensors", "ponyDiffusionV6XL.safetensors", "sdxl", "sdxl checkpoint",
                   "F16", int(6.46 * GIB), pony),
        SourceView(f"{ROOT}/small_fp8.safetensors", "small_fp8.safetensors", "sdxl", "sdxl checkpoint", "F8_E4M3",
                   int(3.2 * GIB), (), None, dict.fromkeys(("bf16", "fp16", "gguf_F16", "gguf_BF16"), _FINER)),
    )  # fmt: skip


def _jobs() -> tuple[JobView, ...]:
    illustrious = f"{ROOT}/illustriousXL_v2.safetensors"
    return (
        JobView("j12", "illustriousXL_v2 -> gguf_Q4_K_M", "running", "convert",
                "input_blocks.7.1.transformer_blocks.7.attn2.to_v.weight", 412, 1680, 0.42, 131e6, 190.0, 161 * MIB,
                f"{_HOME}/illustriousXL_v2_Q4_K_M.gguf", precision="gguf_Q4_K_M", source=illustrious),
        JobView("j13", "illustriousXL_v2 -> bf16", "queued", destination=f"{_HOME}/illustriousXL_v2_bf16.safetensors",
                precision="bf16", source=illustrious, place=1),
        JobView("j14", "dreamshaper_8 -> gguf_Q8_0", "queued", destination=f"{_HOME}/dreamshaper_8_Q8_0.gguf",
                precision="gguf_Q8_0", source=f"{ROOT}/dreamshaper_8.safetensors", place=2, is_paused=True),
        JobView("j11", "broken -> fp8_e4m3fn_scaled", "failed", destination=f"{_HOME}/broken.safetensors",
                is_over=True, error=_DAMAGED, precision="fp8_e4m3fn_scaled", source=f"{ROOT}/broken.safetensors"),
        JobView("j10", "dreamshaper_8 -> gguf_Q4_K_M", "done", fraction=1.0, rss_bytes=171 * MIB,
                destination=f"{_HOME}/dreamshaper_8_Q4_K_M.gguf", is_over=True, precision="gguf_Q4_K_M",
                source=f"{ROOT}/dreamshaper_8.safetensors"),
    )  # fmt: skip


class FakeWeights:
    """The port over a recorded shelf; calls are written down, nothing is done."""

    def __init__(self, scene: str, calls: list[tuple[str, ...]]) -> None:
        self._view = view(scene)
        self._calls = calls

    def snapshot(self) -> WeightsView:
        """Return the recorded shelf."""
        return self._view

    def inspect(self, path: str) -> Inspection:
        """Fail: recorded files have no bytes."""
        raise InputFileError("file-missing", f"there is no {path}", "the shelf is a recorded one", file=path)

    def plan(self, paths: Sequence[str], precisions: Sequence[str]) -> tuple[PlanView, ...]:
        """Return a recorded plan for each pair."""
        return tuple(
            PlanView(path, label, f"{_HOME}/x_{label}", 2 * GIB, 86 * GIB, 722, 958, 3, peak_ram_bytes=165 * MIB,
                     duration_s=61.0)
            for path in paths for label in precisions
        )  # fmt: skip

    def convert(self, paths: Sequence[str], precisions: Sequence[str]) -> Outcome:
        """Write down the call."""
        return self._noted("convert", *paths, *precisions)

    def verify(self, path: str) -> Outcome:
        """Write down the call."""
        return self._noted("verify", path)

    def prune_plan(self, paths: Sequence[str], rules: Sequence[str], unused_days: int) -> tuple[PruneRow, ...]:
        """Return the recorded files that the rules fit."""
        del unused_days
        rows = {
            "orphans": PruneRow(f"{_HOME}/gone_Q8_0.gguf", int(2.6 * GIB), "orphan: its source is gone"),
            "stale": PruneRow(f"{_HOME}/ponyDiffusionV6XL_Q8_0.gguf", int(2.57 * GIB),
                              "stale: its source holds other values", "pinned"),
        }  # fmt: skip
        return tuple(row for rule, row in rows.items() if rule in rules or row.path in paths)

    def prune(self, paths: Sequence[str]) -> Outcome:
        """Write down the call."""
        return self._noted("prune", *paths)

    def undo(self) -> Outcome:
        """Write down the call."""
        return self._noted("undo")

    def empty_trash(self) -> Outcome:
        """Write down the call."""
        return self._noted("empty_trash")

    def pin(self, path: str) -> Outcome:
        """Write down the call."""
        return self._noted("pin", path)

    def pause(self, job_id: str) -> Outcome:
        """Write down the call."""
        return self._noted("pause", job_id)

    def move(self, job_id: str, step: int) -> Outcome:
        """Write down the call."""
        return self._noted("move", job_id, str(step))

    def cancel(self, job_id: str) -> Outcome:
        """Write down the call."""
        return self._noted("cancel", job_id)

    def retry(self, job_id: str) -> Outcome:
        """Write down the call."""
        return self._noted("retry", job_id)

    def add(self, path: str) -> Outcome:
        """Write down the call."""
        return self._noted("add", path)

    def _noted(self, verb: str, *arguments: str) -> Outcome:
        self._calls.append((f"weights.{verb}", *arguments))
        return Outcome.done(f"{verb} noted")
