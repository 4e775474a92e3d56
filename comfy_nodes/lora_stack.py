"""A LORA_STACK applied to a CLIP: which entries count, which files they mean, what of them fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luna_engine.errors import LunaError
from luna_engine.loras.names import resolve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luna_daemon.proxy import DaemonCLIP

    from . import comfy


@dataclass(frozen=True, slots=True)
class ClipPatches:
    """The text encoders' part of a LoRA file.

    Attributes:
        patches: as ``add_patches`` takes them.
        unmatched: names in the file that are for a text encoder and that this CLIP lacks.
    """

    patches: dict[Any, Any]
    unmatched: tuple[str, ...]


def apply(host: comfy.ComfyHost, clip: DaemonCLIP, stack: Sequence[Sequence[Any]] | None, missing: str) -> None:
    """Add the text-encoder part of each LoRA at its clip strength; the stack is not changed.

    Args:
        host: the ComfyUI around.
        clip: gets the patches.
        stack: (file name, model strength, clip strength) in order.
        missing: ``error``, or ``skip`` to leave out what has no file.

    Raises:
        LunaError: ``lora-missing``, ``name-ambiguous``; ``wrong-type`` for a LoRA of another family;
            ``patch-unsupported``.
    """
    for file, strength in _wanted(host, stack or (), missing).items():
        if strength == 0.0:
            continue
        found = host.clip_patches(clip, file)
        if not found.patches and found.unmatched:
            raise LunaError(
                "wrong-type",
                f"{file} is for another model: none of its {len(found.unmatched)} text-encoder weights "
                f"fit {clip.remote.facts.family}",
                "use a LoRA of the model's own family",
            )
        if not found.patches:
            host.notice(f"{file} has nothing for text encoders and changes nothing here")
            continue
        clip.add_patches(found.patches, strength)
        if found.unmatched:
            host.notice(f"{len(found.unmatched)} text-encoder weights of {file} do not fit and are left out")


def _wanted(host: comfy.ComfyHost, stack: Sequence[Sequence[Any]], missing: str) -> dict[str, float]:
    """Return file → clip strength; of a file named twice the later strength counts."""
    files = host.lora_files()
    wanted: dict[str, float] = {}
    for name, model_strength, clip_strength in stack:
        if name in {"None", "none"} or (model_strength == 0.0 and clip_strength == 0.0):
            continue
        try:
            file = resolve(name, files)
        except LunaError as error:
            if error.code != "lora-missing" or missing == "error":
                raise
            host.notice(f"{name} was not found and is left out")
            continue
        if file in wanted:
            host.notice(f"{file} is in the stack twice; its later strengths are used")
            del wanted[file]
        wanted[file] = float(clip_strength)
    return wanted
