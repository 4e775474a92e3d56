"""DaemonCLIP and DaemonVAE: objects that ComfyUI's own nodes accept as CLIP and VAE, computing in a daemon.

No stock node checks the type of what it is given, so these are plain classes with the members those nodes use.
"""

from __future__ import annotations

from luna_daemon.clip_proxy import DaemonCLIP
from luna_daemon.remote import HostHooks, RemoteOnlyError, RemoteSet
from luna_daemon.vae_proxy import DaemonVAE

__all__ = ["DaemonCLIP", "DaemonVAE", "HostHooks", "RemoteOnlyError", "RemoteSet"]
