"""Which daemon is asked for text and for images, over real daemons with a small engine."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from luna_daemon.services import Services
from luna_engine.errors import DaemonError, DaemonUnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, int], Services]]:
    with ExitStack() as stack:

        def point(port: int, vae_port: int) -> Services:
            monkeypatch.setenv("LUNA_DAEMON_PORT", str(port))
            monkeypatch.setenv("LUNA_DAEMON_VAE_PORT", str(vae_port))
            services = Services()
            stack.callback(services.close)
            return services

        yield point


def test_a_full_daemon_serves_both_over_one_kept_connection(start_daemon: Any, place: Any) -> None:
    daemon = start_daemon()
    services = place(daemon.port, closed_port())
    assert services.text() is services.vae()


def test_each_service_goes_to_its_own_daemon(start_daemon: Any, place: Any) -> None:
    clip = start_daemon("--service-type", "clip", name="one")
    vae = start_daemon("--service-type", "vae", name="two")
    services = place(clip.port, vae.port)
    assert services.text().port == clip.port
    assert services.vae().port == vae.port


def test_a_service_that_nobody_offers_is_said_with_the_command(start_daemon: Any, place: Any) -> None:
    clip = start_daemon("--service-type", "clip", name="one")
    vae = start_daemon("--service-type", "vae", name="two")
    with pytest.raises(DaemonError) as caught:
        place(clip.port, closed_port()).vae()
    assert caught.value.code == "service-not-here"
    assert "luna_daemon/server.py --service-type vae" in (caught.value.hint or "")
    with pytest.raises(DaemonError) as caught:
        place(vae.port, vae.port).text()
    assert caught.value.code == "service-not-here"


def test_nobody_at_all_is_unreachable_at_the_vae_port(place: Any) -> None:
    port, vae_port = closed_port(), closed_port()
    services = place(port, vae_port)
    with pytest.raises(DaemonUnreachableError) as caught:
        services.vae()
    assert str(vae_port) in caught.value.message
    with pytest.raises(DaemonUnreachableError) as caught:
        services.text()
    assert str(port) in caught.value.message


def test_a_daemon_that_comes_later_is_found(start_daemon: Any, place: Any) -> None:
    services = place(closed_port(), closed_port())
    with pytest.raises(DaemonUnreachableError):
        services.text()
    daemon = start_daemon()
    services = place(daemon.port, closed_port())
    generation = services.text().generation
    daemon.process.kill()
    daemon.process.wait()
    with pytest.raises(DaemonUnreachableError):
        services.text()
    again = start_daemon("--port", str(daemon.port), name="again")
    assert again.port == daemon.port
    assert services.text().generation != generation
