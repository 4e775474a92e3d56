"""S6: the metrics over HTTP, read by Prometheus and by nobody's web page."""

from __future__ import annotations

import contextlib
import http.client
import socket
from typing import TYPE_CHECKING

import pytest

from luna_daemon import auth, metrics_http

from .conftest import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .conftest import WireDaemon


@pytest.fixture
def server(luna_home: None) -> Iterator[metrics_http.MetricsServer]:
    listening = socket.create_server(("127.0.0.1", 0))
    made = metrics_http.MetricsServer(listening, lambda: b"luna_up 1\n", b"\x07" * 32)
    made.start()
    yield made
    made.close()


def port_of(server: metrics_http.MetricsServer) -> int:
    return int(server.url.rsplit(":", 1)[1].split("/")[0])


def ask(port: int, method: str = "GET", path: str = "/metrics", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


TOKEN = {"Authorization": "Bearer " + "07" * 32}


# DAEMON S6
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE", "BREW"])
def test_only_get_is_answered(server: metrics_http.MetricsServer, method: str) -> None:
    status, headers, _ = ask(port_of(server), method, **TOKEN)
    assert status == 405
    assert not [name for name in headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "localhost:9999", "[::1]:80", "LOCALHOST"])
def test_this_machine_s_names_are_served(server: metrics_http.MetricsServer, host: str) -> None:
    assert ask(port_of(server), Host=host, **TOKEN)[0] == 200


# DAEMON S6
@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.", "localhost:80:80", "", "::1", "127.0.0.2", "[::1"]
)
@pytest.mark.parametrize("path", ["/livez", "/metrics"])
def test_any_other_host_is_refused_so_that_no_name_can_be_rebound_to_us(
    server: metrics_http.MetricsServer, host: str, path: str
) -> None:
    status, _, body = ask(port_of(server), path=path, Host=host, **TOKEN)
    assert status == 421
    assert b"luna_up" not in body


def test_two_hosts_are_none(server: metrics_http.MetricsServer) -> None:
    with socket.create_connection(("127.0.0.1", port_of(server)), 10) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
        assert b" 421 " in connection.recv(1000)


# DAEMON S6
@pytest.mark.parametrize("path", ["/livez", "/metrics"])
def test_a_web_page_is_refused_whoever_it_says_it_is(server: metrics_http.MetricsServer, path: str) -> None:
    status, headers, body = ask(port_of(server), path=path, Origin="http://localhost", **TOKEN)
    assert status == 403
    assert b"luna_up" not in body
    assert not [name for name in headers if name.lower().startswith("access-control")]


# DAEMON S6
def test_the_sign_of_life_is_open_and_the_rest_needs_the_token(server: metrics_http.MetricsServer) -> None:
    port = port_of(server)
    assert ask(port, path="/livez")[::2] == (200, b"ok\n")
    for headers in ({}, {"Authorization": "Bearer " + "08" * 32}, {"Authorization": "Basic x"}, {"Authorization": "ü"}):
        for path in ("/metrics", "/", "/status", "/../token"):
            status, _, body = ask(port, path=path, **headers)
            assert status == 401
            assert b"luna_up" not in body
    status, headers, body = ask(port, **TOKEN)
    assert (status, body) == (200, b"luna_up 1\n")
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert ask(port, path="/else", **TOKEN)[0] == 404


@pytest.mark.parametrize("raw", [b"\x16\x03\x01", b"GET\r\n\r\n", b"\0" * 70_000, b"GET / HTTP/9.9\r\n\r\n", b""])
def test_what_is_no_request_is_closed_and_the_next_is_served(server: metrics_http.MetricsServer, raw: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port_of(server)), 10) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            assert b"luna_up" not in connection.recv(100_000)
    assert ask(port_of(server), path="/livez")[0] == 200


def test_dawdlers_are_cut_off_and_then_others_are_served(
    server: metrics_http.MetricsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_http, "WHOLE_SECONDS", 0.3)
    held = [socket.create_connection(("127.0.0.1", port_of(server)), 10) for _ in range(metrics_http.AT_ONCE + 2)]
    try:
        for connection in held:
            connection.sendall(b"GET /met")
        assert wait_for(lambda: ask(port_of(server), path="/livez")[0] == 200)
    finally:
        for connection in held:
            connection.close()


def test_a_bug_in_the_metrics_is_not_the_end(luna_home: None) -> None:
    def fail() -> bytes:
        raise ZeroDivisionError

    server = metrics_http.MetricsServer(socket.create_server(("127.0.0.1", 0)), fail, b"\x07" * 32)
    server.start()
    try:
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            ask(port_of(server), **TOKEN)
        assert ask(port_of(server), path="/livez")[0] == 200
    finally:
        server.close()


def test_a_daemon_serves_its_metrics_where_its_status_says(start_daemon: Callable[..., WireDaemon]) -> None:
    daemon = start_daemon("--metrics-port", "0")
    (url,) = [one for one in daemon.client().status().addresses if one.startswith("http:")]
    port = int(url.rsplit(":", 1)[1].split("/")[0])
    assert ask(port, path="/livez")[0] == 200
    assert ask(port)[0] == 401
    status, _, body = ask(port, Authorization=f"Bearer {auth.read_token().hex()}")
    assert status == 200
    assert b"luna_build_info" in body


def test_a_taken_metrics_port_is_71_and_a_bad_one_78(run_daemon: Callable[..., tuple[int, str]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert run_daemon("--port", "0", "--metrics-port", str(taken.getsockname()[1]))[0] == 71
    assert run_daemon("--port", "0", "--metrics-port", "80")[0] == 78
