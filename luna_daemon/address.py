"""Finding a daemon: default addresses, the Unix socket behind a port, and what to say when nobody answers."""

from __future__ import annotations

import os
from pathlib import Path

from luna_daemon import identity
from luna_daemon.link import Address
from luna_engine import settings
from luna_engine.errors import DaemonError, DaemonUnreachableError

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def default_host() -> str:
    """Return ``LUNA_DAEMON_HOST``, or the host of the settings."""
    return os.environ.get("LUNA_DAEMON_HOST", "").strip() or settings.load().daemon.host


def default_port(service_type: str = "clip") -> int:
    """Return the port of a service: ``LUNA_DAEMON_PORT`` or ``LUNA_DAEMON_VAE_PORT``, or that of the settings.

    Raises:
        DaemonError: ``request-invalid`` if the variable holds no port.
    """
    variable = "LUNA_DAEMON_VAE_PORT" if service_type == "vae" else "LUNA_DAEMON_PORT"
    text = os.environ.get(variable, "").strip()
    if not text:
        daemon = settings.load().daemon
        return daemon.vae_port if service_type == "vae" else daemon.port
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise DaemonError("request-invalid", f"{variable} is {text!r}, expected a port from 1 to 65535")
    return int(text)


def request_timeout() -> float:
    """Return the deadline of a request in seconds, from the settings."""
    return settings.load().daemon.timeout_s


def find(host: str, port: int, transport: str = "auto") -> Address:
    """Return how to reach the daemon at an address: over the Unix socket of a live one of this user, else TCP."""
    if transport != "tcp" and host in _LOOPBACK:
        for found in identity.live_identities():
            if found.port == port and found.socket and Path(found.socket).is_socket():
                return Address(host, port, found.socket)
    return Address(host, port)


def start_command(port: int) -> str:
    """Return the command that starts a daemon for this port."""
    configured = settings.load()
    for name, instance in configured.daemons.items():
        if instance.port == port:
            return f"luna daemon start {name}"
    service = "vae" if port == default_port("vae") else "full"
    return f"python luna_daemon/server.py --service-type {service} --port {port}"


def unreachable(host: str, port: int, error: Exception) -> DaemonUnreachableError:
    """Return the error for an address at which nobody answers."""
    why = getattr(error, "strerror", None) or getattr(error, "message", None) or str(error)
    return DaemonUnreachableError(
        "daemon-unreachable",
        f"no daemon answers at {host}:{port}: {why}",
        f"start it with: {start_command(port)}",
        details={"host": host, "port": port},
    )
