"""Which set a request means: the family a user named, or the one that fits. Pure; the daemon's list comes in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from luna_daemon.model_messages import SetRow

LATENT_CHANNELS = {"sd15": 4, "sdxl": 4, "sd3": 16, "flux": 16, "z-image": 16}
FAMILIES = tuple(LATENT_CHANNELS)
_SAME_VAE = frozenset({"flux", "z-image"})
_WORDS = {"text": "text encoder", "vae": "VAE"}


def choose_set(rows: Iterable[SetRow], component: str, family: str = "auto", *, channels: int | None = None) -> SetRow:
    """Choose the set for a request.

    Args:
        rows: what the daemon serves.
        component: ``text`` or ``vae``.
        family: one of `FAMILIES`, or ``auto`` for the only one that fits.
        channels: of the latent to decode, if that is what decides.

    Raises:
        DaemonError: ``model-missing`` if nothing of the kind is served, ``wrong-type`` if the named family is not,
            ``latent-mismatch`` if no VAE takes these channels, or if several fit and none is the default.
    """
    word = _WORDS[component]
    served = [row for row in rows if _has(row, component)]
    if not served:
        raise DaemonError(
            "model-missing",
            f"the daemon serves no {word}",
            "name one in the settings ([daemon.sets.NAME]) and preload it, or use LunaCheckpointTunnel",
        )
    if family != "auto":
        fitting = [row for row in served if row.family == family]
        if not fitting and component == "vae" and family in _SAME_VAE:
            fitting = [row for row in served if row.family in _SAME_VAE]
        if not fitting:
            raise DaemonError("wrong-type", f"no {word} of {family} is served; there is {_names(served)}")
        return _single(fitting, word)
    if channels is None:
        return _single(served, word)
    fitting = [row for row in served if LATENT_CHANNELS.get(row.family) == channels]
    if not fitting:
        raise DaemonError(
            "latent-mismatch",
            f"the latent has {channels} channels; the VAEs served are {_names(served, channels=True)}",
            "decode it with a VAE of the model that made it",
        )
    return _single(fitting, word)


def _has(row: SetRow, component: str) -> bool:
    return ("vae" in row.parts) if component == "vae" else any(role != "vae" for role in row.parts)


def _single(rows: Sequence[SetRow], word: str) -> SetRow:
    if len(rows) == 1:
        return rows[0]
    default = [row for row in rows if row.default]
    if len(default) == 1:
        return default[0]
    raise DaemonError(
        "latent-mismatch",
        f"{len(rows)} sets with a {word} fit: {_names(rows)}",
        "choose the family on the node, or mark one set as default in the settings",
    )


def _names(rows: Iterable[SetRow], *, channels: bool = False) -> str:
    return ", ".join(
        f"{row.family} ({LATENT_CHANNELS.get(row.family)} channels)" if channels else f"{row.family} ({row.id})"
        for row in rows
    )
