"""From parts of files to ComfyUI's CLIP and VAE objects: state dicts, types, and its complaints as errors."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from typing import TYPE_CHECKING, Any

from luna_daemon.runtime import encoder_files
from luna_daemon.runtime.parts import COPY_HINT, KINDS, is_quantised, require_complete
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import torch

    from luna_daemon.runtime.checkout import Comfy
    from luna_daemon.runtime.parts import Part

_TYPES = {"sd15": "STABLE_DIFFUSION", "sdxl": "STABLE_DIFFUSION", "z-image": "LUMINA2"}
"""Families whose text encoders ComfyUI's CLIPType calls otherwise."""
_MISSING = ("clip missing: ", "Missing VAE keys ")
"""How ComfyUI's log begins what it found missing in a state dict; it loads the model all the same."""
_MAY_BE_MISSING = ("text_projection.weight", "logit_scale", "position_ids")


def load_text(
    comfy: Comfy, family: str, parts: Mapping[str, Part], device: torch.device, check: Callable[[], None]
) -> Any:
    """Build the CLIP object of a family.

    Args:
        comfy: the checkout.
        family: one of Luna's, or any other by the name that ComfyUI's CLIPLoader lists.
        parts: role → part, in any order.
        device: where it will compute.
        check: raises on cancel or deadline; called between tensors.

    Raises:
        DaemonError: ``model-unsupported``, ``file-damaged``, ``wrong-type``.
    """
    kind = getattr(comfy.sd.CLIPType, _TYPES.get(family, family.replace("-", "_").upper()), None)
    if kind is None:
        raise DaemonError(
            "model-unsupported", f"ComfyUI {comfy.version} knows no text encoders of {family}", "update ComfyUI"
        )
    stored = [_state(comfy, role, part, check) for role, part in parts.items()]
    host = comfy.management.text_encoder_offload_device()
    places = {"load_device": device, "offload_device": host, "initial_device": host}
    with _complaints():
        clip = comfy.sd.load_text_encoder_state_dicts(
            state_dicts=stored, embedding_directory=None, clip_type=kind, model_options=places
        )
    found = text_modules(clip)
    if set(found) != set(parts):
        raise DaemonError(
            "wrong-type",
            f"ComfyUI makes the text encoders {', '.join(found)} of what was given as {', '.join(parts)} of {family}",
            "name the parts as ComfyUI's token dictionary does, and the family of the model",
        )
    return clip


def text_modules(clip: Any) -> dict[str, Any]:
    """Return role → text encoder of a CLIP object, in its own order."""
    children = clip.cond_stage_model.named_children()
    return {name.removeprefix("clip_"): module for name, module in children if hasattr(module, "set_clip_options")}


def load_vae(comfy: Comfy, part: Part, dtype: torch.dtype, device: torch.device, check: Callable[[], None]) -> Any:
    """Build the VAE object of a part.

    Raises:
        DaemonError: ``wrong-type``, ``file-damaged``.
    """
    with _complaints():
        vae = comfy.sd.VAE(sd=part.read_all(check), device=device, dtype=dtype)
    if vae.first_stage_model is None:
        raise DaemonError("wrong-type", f"{part.source} is no VAE that ComfyUI {comfy.version} knows", None)
    return vae


def text_bytes(part: Part) -> int:
    """Return what a text encoder's weights will hold: as stored, 16 bits at most."""
    return sum(math.prod(entry.shape) * (1 if _is_narrow(entry.dtype) else 2) for entry in part.entries.values())


def _is_narrow(dtype: str) -> bool:
    return dtype.startswith("F8") or dtype in {"U8", "I8", "BOOL"}


def _state(comfy: Comfy, role: str, part: Part, check: Callable[[], None]) -> dict[str, torch.Tensor]:
    """Read a part; layers quantised in an older way are renamed by ComfyUI itself, where it does that."""
    if role in KINDS and not part.is_whole and not is_quantised(part):
        require_complete(part, encoder_files.expected_shapes(role))
    stored = part.read_all(check)
    if hasattr(comfy.utils, "convert_old_quants"):
        stored, _ = comfy.utils.convert_old_quants(stored, model_prefix="", metadata=dict(part.metadata))
    return stored


class _Listener(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.missing: list[str] = []
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        """Note what is missing; what other threads say is not about this model."""
        if threading.get_ident() != self._thread:
            return
        said = record.getMessage()
        begun = next((begin for begin in _MISSING if said.startswith(begin)), None)
        if begun is not None:
            names = said.removeprefix(begun).strip("[]").replace("'", "").split(", ")
            self.missing += [name for name in names if not name.endswith(_MAY_BE_MISSING)]


@contextlib.contextmanager
def _complaints() -> Iterator[None]:
    """Turn missing weights, which ComfyUI only logs, into an error."""
    listener = _Listener()
    root = logging.getLogger()
    root.addHandler(listener)
    try:
        yield
    finally:
        root.removeHandler(listener)
    if listener.missing:
        raise DaemonError(
            "file-damaged",
            f"the model lacks {len(listener.missing)} tensors, first {listener.missing[0]}",
            COPY_HINT,
            details={"missing": listener.missing[:100], "missing_total": len(listener.missing)},
        )
