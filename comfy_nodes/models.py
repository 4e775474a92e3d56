"""Nodes for whole models. LunaCheckpointTunnel moves a checkpoint's CLIP and VAE to the daemon."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luna_daemon.proxy import DaemonCLIP, DaemonVAE
from luna_daemon.remote import RemoteSet
from luna_daemon.sources import SentParts
from luna_engine.errors import DaemonError, DaemonUnreachableError

from . import comfy, health
from .reports import status_text
from .widgets import socket

if TYPE_CHECKING:
    from luna_daemon.remote import Connect

_STAYS_LOCAL = frozenset(
    {"model-unsupported", "precision-unsupported", "wrong-type", "component-missing", "service-not-here"}
)
"""Refusals that mean "this daemon does not do this model": the component works on here. All others are errors."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of one component: the object to pass on, a word for the status, what to warn of."""

    value: Any
    word: str
    warning: str | None = None
    freed_bytes: int = 0


class LunaCheckpointTunnel:
    """Replace a checkpoint's CLIP and VAE by proxies of the daemon's."""

    DISPLAY_NAME = "Luna Checkpoint Tunnel"
    DESCRIPTION = (
        "Put it behind a checkpoint loader: CLIP and VAE move to Luna's daemon, which shares one copy between all "
        "ComfyUI instances; MODEL passes through. The weights are sent once, and only if the daemon does not have "
        "them. Without a daemon everything passes through unchanged, with a warning."
    )
    SEARCH_ALIASES = ["share clip vae", "proxy"]
    CATEGORY = "Luna/Models"
    FUNCTION = "tunnel"
    RETURN_TYPES = ("MODEL", "CLIP", "VAE", "STRING")
    RETURN_NAMES = ("model", "clip", "vae", "status")
    OUTPUT_TOOLTIPS = (
        "The model, the same object.",
        "The daemon's CLIP, for any node that takes one; or the local one, see status.",
        "The daemon's VAE, for any node that takes one; or the local one, see status.",
        "Per component: shared (the daemon had it), added (it was sent), or local with the reason.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the three parts of a checkpoint."""
        return {
            "required": {
                "model": socket("MODEL", "Passes through; tells the family."),
                "clip": socket("CLIP", "Moves to the daemon. With a LoRA already applied it stays local."),
                "vae": socket("VAE", "Moves to the daemon."),
            }
        }

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> str:
        """Run again when a daemon was started, stopped or restarted."""
        return health.generations()

    def tunnel(self, model: Any, clip: Any, vae: Any) -> tuple[Any, Any, Any, str]:
        """Move what can be moved."""
        host = comfy.current_host()
        services = health.services()
        family = host.model_family(model)
        outcomes = {
            "CLIP": _move_clip(host, services.text, family, clip),
            "VAE": _move_vae(host, services.vae, family, vae),
        }
        warnings = list(dict.fromkeys(found.warning for found in outcomes.values() if found.warning))
        for warning in warnings:
            host.notice(warning)
        freed = sum(found.freed_bytes for found in outcomes.values())
        words = " | ".join(f"{name} {found.word}" for name, found in outcomes.items())
        summary = f"[{family or 'unknown family'}] {words} | {freed:,} bytes freed on the device"
        return model, outcomes["CLIP"].value, outcomes["VAE"].value, status_text(summary, warnings=warnings)


def _move_clip(host: comfy.ComfyHost, connect: Connect, family: str | None, clip: Any) -> _Outcome:
    if isinstance(clip, DaemonCLIP):
        return _Outcome(clip, "shared")
    if host.is_patched(clip.patcher):
        return _Outcome(
            clip,
            "local: patched",
            "CLIP stays local: it already carries a LoRA or another patch, which the daemon cannot apply",
        )
    moved = _move(host, connect, family, host.clip_roles(clip), clip, "CLIP")
    if not isinstance(moved, _Moved):
        return moved
    proxy = DaemonCLIP(moved.remote, clip.tokenizer)
    proxy.layer_idx = clip.layer_idx
    proxy.tokenizer_options = dict(clip.tokenizer_options)
    proxy.use_clip_schedule = clip.use_clip_schedule
    proxy.apply_hooks_to_conds = clip.apply_hooks_to_conds
    return _Outcome(proxy, moved.word, freed_bytes=host.release(clip.patcher))


def _move_vae(host: comfy.ComfyHost, connect: Connect, family: str | None, vae: Any) -> _Outcome:
    if isinstance(vae, DaemonVAE):
        return _Outcome(vae, "shared")
    if host.is_patched(vae.patcher):
        return _Outcome(vae, "local: patched", "VAE stays local: it carries patches that the daemon cannot apply")
    moved = _move(host, connect, family, ("vae",), vae, "VAE")
    if not isinstance(moved, _Moved):
        return moved
    return _Outcome(DaemonVAE(moved.remote), moved.word, freed_bytes=host.release(vae.patcher))


@dataclass(frozen=True, slots=True)
class _Moved:
    remote: RemoteSet
    word: str


def _move(
    host: comfy.ComfyHost, connect: Connect, family: str | None, roles: tuple[str, ...], held: Any, name: str
) -> _Moved | _Outcome:
    if family is None:
        return _Outcome(held, "local: unknown family", f"{name} stays local: Luna does not know this model's family")
    source = SentParts(family, roles, host.weights_of(held.patcher), host.check_interrupt, host.progress())
    try:
        remote = RemoteSet(connect, source, host)
    except DaemonUnreachableError as error:
        return _Outcome(held, "local: no daemon", f"daemon not reachable, {name} stays local: {error}")
    except DaemonError as error:
        if error.code not in _STAYS_LOCAL:
            raise
        return _Outcome(held, f"local: {error.code}", f"{name} stays local: {error}")
    return _Moved(remote, "added" if source.was_sent else "shared")


NODES = (LunaCheckpointTunnel,)
