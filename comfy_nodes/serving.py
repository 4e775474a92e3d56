"""What the nodes that use a daemon's models share: their category, the family input, and the set that serves them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_daemon.remote import RemoteSet
from luna_daemon.selection import FAMILIES, choose_set
from luna_daemon.sources import ServedSet

from . import health
from .widgets import choice

if TYPE_CHECKING:
    from . import comfy

CATEGORY = "Luna/Daemon"
FAMILY = choice(
    ("auto", *FAMILIES),
    "auto",
    "Which of the models the daemon serves: auto takes the only one that fits, or the daemon's default.",
)


def served(host: comfy.ComfyHost, component: str, family: str, *, channels: int | None = None) -> RemoteSet:
    """Return the set that the daemon serves for a request.

    Args:
        host: the ComfyUI around.
        component: ``text`` or ``vae``.
        family: or ``auto``.
        channels: of the latent, for a VAE.

    Raises:
        DaemonError: ``daemon-unreachable``, ``wrong-type``, ``model-missing``, ``latent-mismatch``.
    """
    services = health.services()
    connect = services.text if component == "text" else services.vae
    row = choose_set(connect().list_models(loaded=True).sets, component, family, channels=channels)
    return RemoteSet(connect, ServedSet(row.id), host)
