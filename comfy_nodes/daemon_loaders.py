"""Nodes that give the daemon's CLIP and VAE as objects for any node: by file, by default, or beside a lone MODEL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luna_daemon.proxy import DaemonCLIP, DaemonVAE
from luna_daemon.remote import RemoteSet
from luna_engine.errors import LunaError
from luna_engine.loras.names import resolve

from . import comfy, health
from .linked import INPUT, is_linked
from .lora_choices import check_names
from .reports import status_text
from .serving import CATEGORY, FAMILY, served
from .widgets import choice, socket

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from .widgets import Declaration

DEFAULT = "daemon default"
NONE = "None"
_EMPTY = frozenset({NONE, "none", "", None})
_VAES, _ENCODERS = "vae", "text_encoders"
_CLIP, _VAE = 1, 2
_ALIASES = ["proxy", "load clip", "load vae", "diffusion model daemon"]


class LunaDaemonVAELoader:
    """A VAE that runs in the daemon: a file, or what the daemon serves."""

    DISPLAY_NAME = "Luna Daemon VAE Loader"
    DESCRIPTION = (
        "Gives a VAE that runs in Luna's daemon, for any node that takes a VAE: the one of a file, or the one the "
        "daemon serves for a family. No weights are loaded here; a file that the daemon cannot see is sent to it once."
    )
    SEARCH_ALIASES = _ALIASES
    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = ("VAE",)
    RETURN_NAMES = ("vae",)
    OUTPUT_TOOLTIPS = ("The daemon's VAE, for any node that takes one.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the file and the family."""
        return {
            "required": {"vae_name": _file_choice(_VAES, DEFAULT, "A file of the vae folder, or what is served.")},
            "optional": {"family": FAMILY},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, vae_name: str | None = None) -> bool | str:
        """Say which files are nearest to a name that is not there."""
        return _valid(_VAES, {"vae_name": None if vae_name == DEFAULT else vae_name})

    @classmethod
    def IS_CHANGED(cls, vae_name: str | None = None, family: str = "auto") -> str:
        """Run again when the file was replaced, or the daemon serves another VAE for this."""
        if vae_name in {DEFAULT, "", None}:
            return health.served("vae", family)
        return f"{health.generations()} {_stamps(_VAES, [vae_name])}"

    def load(self, vae_name: str, family: str = "auto") -> tuple[DaemonVAE]:
        """Have the daemon load the file, or find what it serves."""
        host = comfy.current_host()
        if vae_name in {DEFAULT, ""}:
            return (DaemonVAE(served(host, "vae", family)),)
        path = host.file_path(_VAES, resolve(vae_name, host.files(_VAES), "model"))
        return (DaemonVAE(_remote(host, "vae", family, {"vae": path})),)


class LunaDaemonCLIPLoader:
    """A CLIP that runs in the daemon, of one to three files."""

    DISPLAY_NAME = "Luna Daemon CLIP Loader"
    DESCRIPTION = (
        "Gives a CLIP that runs in Luna's daemon, for any node that takes a CLIP. The family comes from what the files "
        "hold. No weights are loaded here; a file that the daemon cannot see is sent to it once."
    )
    SEARCH_ALIASES = _ALIASES
    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = ("CLIP",)
    RETURN_NAMES = ("clip",)
    OUTPUT_TOOLTIPS = ("The daemon's CLIP, for any node that takes one.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the files and the family."""
        more = "A further text encoder, in any order."
        return {
            "required": {
                "clip_name1": _file_choice(_ENCODERS, None, "A text encoder: what it is, its header says."),
                "clip_name2": _file_choice(_ENCODERS, NONE, more),
            },
            "optional": {"clip_name3": _file_choice(_ENCODERS, NONE, more), "family": FAMILY},
        }

    @classmethod
    def VALIDATE_INPUTS(
        cls, clip_name1: str | None = None, clip_name2: str | None = None, clip_name3: str | None = None
    ) -> bool | str:
        """Say which files are nearest to a name that is not there."""
        return _valid(_ENCODERS, {"clip_name1": clip_name1, "clip_name2": clip_name2, "clip_name3": clip_name3})

    @classmethod
    def IS_CHANGED(
        cls,
        clip_name1: str | None = None,
        clip_name2: str | None = None,
        clip_name3: str | None = None,
        family: str = "auto",
    ) -> str:
        """Run again when a file was replaced, or a daemon was started, stopped or restarted."""
        return f"{health.generations()} {_stamps(_ENCODERS, [clip_name1, clip_name2, clip_name3])}"

    def load(
        self, clip_name1: str, clip_name2: str = NONE, clip_name3: str = NONE, family: str = "auto"
    ) -> tuple[DaemonCLIP]:
        """Look what the files are and have the daemon load them together."""
        from luna_daemon.encoder_choice import choose_encoders

        host = comfy.current_host()
        names = [name for name in (clip_name1, clip_name2, clip_name3) if name not in _EMPTY]
        listed = host.files(_ENCODERS)
        paths = [host.file_path(_ENCODERS, resolve(name, listed, "model")) for name in names]
        found, files = choose_encoders(paths, family)
        return (DaemonCLIP(_remote(host, "text", found, files), host.tokenizer(found)),)


class LunaUNetTunnel:
    """The daemon's CLIP and VAE beside a MODEL that came alone."""

    DISPLAY_NAME = "Luna UNet Tunnel"
    DESCRIPTION = (
        "Put it behind a loader of a diffusion model alone: it adds the CLIP and the VAE that Luna's daemon serves for "
        "that family. A CLIP or VAE that is wired wins. MODEL passes through."
    )
    SEARCH_ALIASES = _ALIASES
    CATEGORY = CATEGORY
    FUNCTION = "tunnel"
    RETURN_TYPES = ("MODEL", "CLIP", "VAE", "STRING")
    RETURN_NAMES = ("model", "clip", "vae", "status")
    OUTPUT_TOOLTIPS = (
        "The model, the same object.",
        "The CLIP that was wired, else the daemon's of the family.",
        "The VAE that was wired, else the daemon's of the family.",
        "The family, and per component where it comes from.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the model, its family, and what may be wired besides."""
        kind, options = FAMILY
        return {
            "required": {
                "model": socket("MODEL", "A diffusion model; passes through."),
                "model_type": (kind, {**options, "tooltip": "The model's family; auto asks the model."}),
            },
            "optional": {
                "clip": socket("CLIP", "Passes through in place of the daemon's."),
                "vae": socket("VAE", "Passes through in place of the daemon's."),
            },
            "hidden": {INPUT: "STRING"},
        }

    @classmethod
    def IS_CHANGED(cls, model_type: str = "auto", **_: Any) -> str:
        """Run again when the daemon serves something else for this."""
        return f"{health.served('text', model_type)} {health.served('vae', model_type)}"

    def tunnel(
        self, model: Any, model_type: str = "auto", clip: Any = None, vae: Any = None, luna_linked: str | None = None
    ) -> tuple[Any, Any, Any, str]:
        """Add what is linked and not wired."""
        host = comfy.current_host()
        family = host.model_family(model) if model_type == "auto" else model_type
        if family is None:
            raise LunaError(
                "wrong-type", "the family of this model is not one that Luna knows", "choose it as model_type"
            )
        words = {"CLIP": "wired", "VAE": "wired"}
        if clip is None:
            words["CLIP"] = "not linked"
            if is_linked(luna_linked, _CLIP):
                remote = served(host, "text", family)
                clip, words["CLIP"] = DaemonCLIP(remote, host.tokenizer(family)), f"daemon's {remote.set_id}"
        if vae is None:
            words["VAE"] = "not linked"
            if is_linked(luna_linked, _VAE):
                remote = served(host, "vae", family)
                vae, words["VAE"] = DaemonVAE(remote), f"daemon's {remote.set_id}"
        summary = " | ".join(f"{name} {word}" for name, word in words.items())
        return model, clip, vae, status_text(f"[{family}] {summary}")


def _file_choice(kind: str, first: str | None, tooltip: str) -> Declaration:
    """Declare a choice of files, with a word before them that stands for none of them."""
    names = tuple(comfy.current_host().files(kind)) if comfy.is_running() else ()
    offered = names if first is None else (first, *names)
    return choice(offered, offered[0] if offered else "", tooltip)


def _valid(kind: str, slots: Mapping[str, str | None]) -> bool | str:
    """Return what ``VALIDATE_INPUTS`` answers; a linked widget's value is None."""
    return check_names(slots, comfy.current_host().files(kind), "model")


def _stamps(kind: str, names: Sequence[str | None]) -> str:
    """Return size and time of each file; never raises. A name that comes over a link is not known yet."""
    host = comfy.current_host()
    found = []
    for name in names:
        if name in _EMPTY:
            found.append("none")
            continue
        try:
            stat = host.file_path(kind, resolve(str(name), host.files(kind), "model")).stat()
        except (LunaError, OSError):
            found.append("missing")
        else:
            found.append(f"{stat.st_size} {stat.st_mtime_ns}")
    return " ".join(found)


def _remote(host: comfy.ComfyHost, component: str, family: str, files: Mapping[str, Path]) -> RemoteSet:
    from luna_daemon.file_sources import FileParts

    services = health.services()
    connect = services.text if component == "text" else services.vae
    return RemoteSet(connect, FileParts(family, files, host.check_interrupt, host.progress()), host)


NODES = (LunaDaemonVAELoader, LunaDaemonCLIPLoader, LunaUNetTunnel)
