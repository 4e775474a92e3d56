"""Requests beside each other: deadlines, cancelling, what waits for the device and what does not, batches, threads."""

from __future__ import annotations

import itertools
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from luna_daemon.protocol import plain
from luna_engine.errors import DaemonError

from .test_commands import IDS, read, send, tokens, wait_for_none_in_flight, wire_items, wire_tensor

if TYPE_CHECKING:
    from .conftest import WireDaemon


def test_a_request_past_its_deadline_is_a_timeout(wire: WireDaemon) -> None:
    with pytest.raises(DaemonError) as caught:
        wire.client().call("encode_tokens", tokens("until-cancelled"), [IDS], timeout_s=0.2)
    assert caught.value.code == "daemon-timeout"


def test_poll_is_called_while_waiting_and_what_it_raises_cancels(wire: WireDaemon) -> None:
    class InterruptedByUserError(Exception):
        pass

    calls = []

    def poll() -> None:
        calls.append(time.monotonic())
        if len(calls) > 3:
            raise InterruptedByUserError

    client = wire.client()
    with pytest.raises(InterruptedByUserError):
        client.call("encode_tokens", tokens("until-cancelled"), [IDS], poll=poll)
    assert max(after - before for before, after in itertools.pairwise(calls)) < 0.5
    deadline = time.monotonic() + 5
    while client.status().state != "ready":
        assert time.monotonic() < deadline, "the cancelled request still runs"
    assert client.status().totals.cancelled >= 1


def test_cancel_tells_what_became_of_the_request(wire: WireDaemon) -> None:
    connection, reader = wire.greeted()
    with connection:
        send(connection, {"id": 2, "cmd": "encode_tokens", "body": plain(tokens("until-cancelled"))}, [IDS])
        send(connection, {"id": 3, "cmd": "encode_tokens", "body": plain(tokens("s"))}, [IDS])
        wait_busy(wire)
        send(connection, {"id": 4, "cmd": "cancel", "body": {"request": 3}})
        replies = [read(reader) for _ in range(2)]
        assert {row["id"]: row.get("error", {}).get("code") for row in replies} == {3: "cancelled", 4: None}
        send(connection, {"id": 5, "cmd": "cancel", "body": {"request": 2}})
        replies = [read(reader) for _ in range(2)]
        assert {row["id"]: (row.get("body") or row["error"]) for row in replies}[5] == {"outcome": "stopping"}
        send(connection, {"id": 6, "cmd": "cancel", "body": {"request": 99}})
        assert read(reader)["body"] == {"outcome": "unknown"}


def wait_busy(daemon: WireDaemon, name: str = "busy-watch") -> None:
    client = daemon.client(name=name)
    deadline = time.monotonic() + 5
    while client.status().queue["device"].running == 0:
        assert time.monotonic() < deadline


def test_what_is_in_memory_does_not_wait_for_the_device(wire: WireDaemon) -> None:
    client = wire.client()
    worker = threading.Thread(target=lambda: client.call("encode_tokens", tokens("sleep:0.5"), [IDS]))
    worker.start()
    wait_busy(wire)
    reply = client.call("encode_tokens", tokens("recalled"), [IDS])
    assert worker.is_alive()
    with pytest.raises(DaemonError) as caught:
        client.call("encode_tokens", tokens("recall-bug"), [IDS])
    assert worker.is_alive()
    worker.join()
    assert reply.body.items[0].cached
    assert reply.timing.queue >= 0.0
    assert caught.value.code == "internal"
    assert "secret" not in caught.value.message
    assert wait_for_none_in_flight(client)


def test_ping_and_status_answer_while_the_device_works(wire: WireDaemon) -> None:
    client = wire.client()
    worker = threading.Thread(target=lambda: client.call("encode_tokens", tokens("sleep:0.5"), [IDS]))
    worker.start()
    wait_busy(wire)
    began = time.monotonic()
    assert client.ping().state == "busy"
    assert time.monotonic() - began < 0.3
    worker.join()
    assert client.ping().state == "ready"


def test_the_33rd_request_of_a_connection_is_told_to_come_back(wire: WireDaemon) -> None:
    connection, reader = wire.greeted()
    with connection:
        send(connection, {"id": 2, "cmd": "encode_tokens", "body": plain(tokens("until-cancelled"))}, [IDS])
        for index in range(3, 35):
            send(connection, {"id": index, "cmd": "encode_tokens", "body": plain(tokens("s"))}, [IDS])
        refused = read(reader)
        assert (refused["id"], refused["error"]["code"]) == (34, "daemon-busy")
        assert refused["error"]["retry_after_ms"] > 0
        send(connection, {"id": 50, "cmd": "ping", "body": {}})
        assert read(reader)["id"] == 50


def test_an_id_in_flight_is_not_taken_twice(wire: WireDaemon) -> None:
    connection, reader = wire.greeted()
    with connection:
        send(connection, {"id": 2, "cmd": "encode_tokens", "body": plain(tokens("until-cancelled"))}, [IDS])
        send(connection, {"id": 2, "cmd": "encode_tokens", "body": plain(tokens("s"))}, [IDS])
        assert read(reader)["error"]["code"] == "request-invalid"


def test_one_thread_runs_all_models(wire: WireDaemon) -> None:
    clients = [wire.client(name=f"c{index}") for index in range(4)]
    results: list[Any] = []

    def work(client: Any) -> None:
        for _ in range(20):
            body, tensors = client.encode_tokens(set="s", items=tokens("s").items, tensors=[IDS])
            results.append(list(memoryview(tensors[body.items[0].cond].data).cast("f")))

    threads = [threading.Thread(target=work, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[1.0, 2.0, 3.0]] * 80


def test_requests_of_several_clients_share_a_batch_and_are_told_so(wire: WireDaemon) -> None:
    clients = [wire.client(name=f"b{index}") for index in range(4)]
    found: list[Any] = []

    def work(client: Any) -> None:
        found.extend(client.call("encode_tokens", tokens("batch"), [IDS]) for _ in range(5))

    threads = [threading.Thread(target=work, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    assert max(reply.did.requests for reply in found) > 1
    assert all(reply.did.rows == reply.did.requests for reply in found)
    assert all(list(memoryview(reply.tensors["cond.0"].data).cast("f")) == [1.0, 2.0, 3.0] for reply in found)
    assert all(
        min(reply.timing.queue, reply.timing.window, reply.timing.load, reply.timing.run) >= 0 for reply in found
    )
    assert any(reply.timing.queue > 0 for reply in found)


def test_who_breaks_a_batch_is_refused_alone(wire: WireDaemon) -> None:
    told: dict[int, str] = {}

    def work(index: int) -> None:
        client = wire.client(name=f"p{index}")
        try:
            client.call("encode_tokens", tokens("batch", told="error:token-invalid" if index == 1 else ""), [IDS])
        except DaemonError as error:
            told[index] = error.code
        else:
            told[index] = "ok"

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == {0: "ok", 1: "token-invalid", 2: "ok", 3: "ok"}


def test_one_client_may_be_used_by_many_threads(wire: WireDaemon) -> None:
    client = wire.client()
    failures: list[BaseException] = []

    def work(index: int) -> None:
        ids = wire_tensor(index)
        try:
            for _ in range(20):
                body, tensors = client.encode_tokens(set="s", items=(wire_items(1),), tensors=[ids])
                assert memoryview(tensors[body.items[0].cond].data).cast("f")[0] == float(index)
        except BaseException as error:  # noqa: BLE001 - a thread's border; the test reports it
            failures.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
