"""The life of a daemon process: order of start, exit codes, signals, drain, logs, what is left behind."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from array import array
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from luna_daemon import identity
from luna_daemon.identity import DaemonPlaces
from luna_daemon.protocol import EncodeTokens, Part, TokenItem, TokenRows, WireTensor
from luna_engine import paths
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import WireDaemon

IDS = WireTensor("ids", "i32", (1,), memoryview(array("i", [1])).cast("B"))


def encode(set_id: str, **aux: int) -> EncodeTokens:
    return EncodeTokens(set_id, (TokenItem({"l": TokenRows((1,), "ids")}, aux=aux),))


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_product_s_own_entry_runs_by_path_from_any_folder(luna_home: Path, tmp_path: Path) -> None:
    """A folder with modules of a ComfyUI's names must not get in the way, nor ours in the way of the library's."""
    for name in ("server", "protocol", "platform", "queue", "nodes"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')\n", "utf-8")
    entry = paths.checkout_root() / "luna_daemon" / "server.py"
    done = subprocess.run(
        [sys.executable, str(entry), "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--service-type" in done.stdout


def test_ping_and_status_answer_while_it_loads_and_requests_wait(
    start_daemon: Callable[..., WireDaemon], tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    daemon = start_daemon(LUNA_TEST_START="slow", LUNA_TEST_GATE=str(gate))
    client = daemon.client()
    until(lambda: client.ping().phase == "models")
    assert client.ping().state == client.welcome.state == "loading"
    status = client.status()
    assert (status.phase, status.phase_done) == ("models", 0.5)
    answers: list[object] = []
    waiting = threading.Thread(target=lambda: answers.append(client.call("encode_tokens", encode("s"), [IDS])))
    waiting.start()
    until(lambda: client.status().queue["device"].depth == 1)
    with pytest.raises(DaemonError) as caught:
        client.load_model([Part("l", id="x")], wait=False)
    assert caught.value.code == "daemon-loading"
    gate.touch()
    waiting.join(10)
    assert len(answers) == 1
    assert client.ping().state == "ready"


def test_shutdown_finishes_what_is_queued_refuses_what_is_new_and_leaves_nothing(
    start_daemon: Callable[..., WireDaemon],
) -> None:
    daemon = start_daemon()
    port, path = daemon.port, daemon.identity.socket
    worker, late = daemon.client(), daemon.client()
    outcome: list[object] = []
    thread = threading.Thread(target=lambda: outcome.append(worker.call("encode_tokens", encode("sleep:0.5"), [IDS])))
    thread.start()
    until(lambda: late.ping().state == "busy")
    assert late.shutdown().accepted is True
    until(lambda: late.ping().state == "stopping")
    assert late.shutdown().accepted is False
    with pytest.raises(DaemonError) as caught:
        late.call("encode_tokens", encode("s"), [IDS])
    assert caught.value.code == "daemon-draining"
    thread.join(10)
    assert len(outcome) == 1
    assert daemon.wait_exit() == 0
    places = DaemonPlaces("wire")
    assert not places.identity.exists()
    assert path is not None
    assert not Path(path).exists()
    record = identity.read_exit("wire")
    assert record is not None
    assert (record.code, record.asked, record.pid) == (0, True, daemon.process.pid)
    with socket.create_server(("127.0.0.1", port)):
        pass  # the port is free again


def test_a_drain_past_its_deadline_refuses_the_queue(start_daemon: Callable[..., WireDaemon]) -> None:
    daemon = start_daemon()
    client = daemon.client()
    codes: list[str] = []

    def work(name: str) -> None:
        try:
            client.call("encode_tokens", encode(name), [IDS])
        except DaemonError as error:
            codes.append(error.code)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("until-cancelled", "s")]
    threads[0].start()
    until(lambda: client.ping().state == "busy")
    threads[1].start()
    until(lambda: client.status().queue["device"].depth == 1)
    client.shutdown(deadline_ms=100)
    for thread in threads:
        thread.join(10)
    assert sorted(codes) == ["cancelled", "daemon-draining"]
    assert daemon.wait_exit() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_exits_0(start_daemon: Callable[..., WireDaemon], number: signal.Signals) -> None:
    daemon = start_daemon()
    daemon.process.send_signal(number)
    assert daemon.wait_exit() == 0
    record = identity.read_exit("wire")
    assert record is not None
    assert number.name in record.reason


def test_sigterm_ends_a_daemon_that_still_loads(start_daemon: Callable[..., WireDaemon], tmp_path: Path) -> None:
    daemon = start_daemon(LUNA_TEST_START="slow", LUNA_TEST_GATE=str(tmp_path / "never"))
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.wait_exit() == 0


@pytest.mark.parametrize(
    ("told", "code"),
    [
        ("model-missing", 66),
        ("file-damaged", 66),
        ("device-unusable", 69),
        ("device-lost", 75),
        ("backend-unusable", 78),
        ("crash", 1),
    ],
)
def test_a_start_that_fails_has_its_exit_code_and_says_why(
    run_daemon: Callable[..., tuple[int, str]], told: str, code: int
) -> None:
    assert run_daemon("--port", "0", LUNA_TEST_START=told)[0] == code
    record = identity.read_exit("wire")
    assert record is not None
    assert record.code == code
    assert told in record.reason or told == "crash"
    assert not DaemonPlaces("wire").identity.exists()
    assert ("RuntimeError" in DaemonPlaces("wire").log.read_text("utf-8")) == (told == "crash")


def test_a_taken_port_is_71_and_names_the_holder(run_daemon: Callable[..., tuple[int, str]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run_daemon("--port", str(port))[0] == 71
    record = identity.read_exit("wire")
    assert record is not None
    assert str(port) in record.reason
    assert "pid" in record.reason


def test_a_held_lock_is_73_and_leaves_the_holder_alone(
    start_daemon: Callable[..., WireDaemon], run_daemon: Callable[..., tuple[int, str]]
) -> None:
    daemon = start_daemon()
    before = daemon.identity
    code, said = run_daemon("--port", "0")
    assert code == 73
    assert str(daemon.process.pid) in said
    assert daemon.identity == before
    assert daemon.client().ping()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--service-type", "llm"),
        ("--device", "tpu"),
        ("--port", "80"),
        ("--port", "x"),
        ("--threads", "0"),
        ("--no-such-option",),
        ("--precision", "int4"),
    ],
)
def test_bad_options_are_78(run_daemon: Callable[..., tuple[int, str]], arguments: tuple[str, ...]) -> None:
    code, said = run_daemon(*arguments)
    assert code == 78
    assert "settings-invalid" in said


def test_a_bad_name_is_78(run_daemon: Callable[..., tuple[int, str]]) -> None:
    assert run_daemon("--port", "0", name="../up")[0] == 78


def test_a_host_that_is_not_loopback_is_refused(run_daemon: Callable[..., tuple[int, str]]) -> None:
    paths.config_dir().mkdir(parents=True)
    paths.settings_file().write_text('[daemon]\nhost = "0.0.0.0"\n', "utf-8")
    code, said = run_daemon("--port", "0")
    assert code == 78
    assert "loopback" in said


def test_no_tcp_listens_on_the_unix_socket_only(start_daemon: Callable[..., WireDaemon]) -> None:
    daemon = start_daemon("--no-tcp")
    assert daemon.identity.port is None
    connection, _reader = daemon.greeted()
    connection.close()


# DAEMON S22
def test_a_left_over_socket_and_identity_of_a_killed_daemon_are_taken_over(
    start_daemon: Callable[..., WireDaemon],
) -> None:
    first = start_daemon()
    generation = first.identity.generation
    first.process.kill()
    first.process.wait(10)
    assert DaemonPlaces("wire").identity.exists()
    assert not first.identity.is_alive()
    second = start_daemon()
    assert second.identity.generation != generation
    assert second.client().ping()


def test_the_log_is_json_lines_with_the_generation_and_the_run_before_is_kept(
    start_daemon: Callable[..., WireDaemon],
) -> None:
    first = start_daemon()
    generation = first.client().generation
    first.client().shutdown()
    assert first.wait_exit() == 0
    start_daemon()
    lines = [json.loads(line) for line in DaemonPlaces("wire").previous_log.read_text("utf-8").splitlines()]
    assert {line["generation"] for line in lines} == {generation}
    assert lines[-1]["message"].startswith("exit 0")
    assert {"at", "level", "logger", "message"} <= lines[0].keys()


# DAEMON S23
def test_no_prompt_text_reaches_the_log(start_daemon: Callable[..., WireDaemon]) -> None:
    from luna_daemon.protocol import TextItem

    daemon = start_daemon()
    daemon.client().encode_text(set="s", items=[TextItem("a very private prompt")])
    assert "private" not in DaemonPlaces("wire").log.read_text("utf-8")
