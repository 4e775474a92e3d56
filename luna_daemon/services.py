"""Which daemon does what, and one kept connection per daemon.

Text goes to the main port. VAE work goes to the VAE port if a daemon that has one answers there, else to the main
port if that daemon is ``full``.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from luna_daemon import address
from luna_daemon.client import DaemonClient
from luna_engine.errors import DaemonError, DaemonUnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from luna_daemon.messages import Welcome


class Services:
    """The kept connections of this process. Thread-safe; addresses are read anew at each use."""

    def __init__(self, name: str = "comfyui", connect: Callable[..., DaemonClient] | None = None) -> None:
        self._name = name
        self._connect = connect or DaemonClient.connect
        self._clients: dict[tuple[str, int], DaemonClient] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close all connections; the next use makes new ones."""
        with self._lock:
            clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            client.close()

    def at(self, host: str, port: int) -> tuple[DaemonClient, Welcome]:
        """Return the kept client of an address and what the daemon there says of itself.

        Raises:
            DaemonUnreachableError: nothing answers within 2 s.
        """
        with self._lock:
            client = self._clients.get((host, port))
            if client is None:
                client = self._connect(host, port, name=self._name)
                self._clients[host, port] = client
        client.ping()  # a kept connection does not notice by itself that its daemon died
        return client, client.welcome

    def text(self) -> DaemonClient:
        """Return the daemon that encodes text.

        Raises:
            DaemonUnreachableError: none answers; the hint holds the command that starts one.
            DaemonError: ``service-not-here`` if what answers serves a VAE only.
        """
        host, port = address.default_host(), address.default_port("clip")
        client, welcome = self.at(host, port)
        if welcome.service_type == "vae":
            raise DaemonError(
                "service-not-here",
                f"the daemon at {host}:{port} serves a VAE only, no text encoder",
                f"stop it and start one with text encoders: {address.start_command(port)}",
            )
        return client

    def vae(self) -> DaemonClient:
        """Return the daemon that encodes and decodes images.

        Raises:
            DaemonUnreachableError: none answers; the hint holds the command that starts one.
            DaemonError: ``service-not-here`` if there is only one without a VAE.
        """
        host = address.default_host()
        vae_port, port = address.default_port("vae"), address.default_port("clip")
        first: DaemonUnreachableError | None = None
        try:
            client, welcome = self.at(host, vae_port)
        except DaemonUnreachableError as error:
            first = error
        else:
            if welcome.service_type != "clip":
                return client
        try:
            client, welcome = self.at(host, port)
        except DaemonUnreachableError as error:
            raise first or error from None
        if welcome.service_type == "clip":
            raise DaemonError(
                "service-not-here",
                f"the daemon at {host}:{port} serves text encoders only, and no VAE daemon answers at {vae_port}",
                f"start one with: {address.start_command(vae_port)}",
            )
        return client
