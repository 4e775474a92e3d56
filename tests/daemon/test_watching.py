"""Events, metrics and drain of a real daemon process; gaps and stalls with time in hand."""

from __future__ import annotations

import threading
from array import array
from typing import TYPE_CHECKING, Any

import pytest

from luna_daemon import protocol as p
from luna_daemon.events import BUFFERED_MAX, KEPT_MAX, EventBoard
from luna_daemon.inbox import KEPT_MAX as INBOX_MAX
from luna_daemon.inbox import Inbox
from luna_daemon.meter import SECONDS, Meter
from luna_daemon.runtime.queue import RUNNING, Job
from luna_daemon.watch import Pulse, Watch
from luna_engine.errors import DaemonError, DaemonUnreachableError

from .conftest import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from luna_daemon.client import DaemonClient
    from luna_daemon.watch_messages import Event

    from .conftest import WireDaemon

IDS = p.WireTensor("ids", "i32", (1,), memoryview(array("i", [1])).cast("B"))


def tokens(set_id: str) -> p.EncodeTokens:
    return p.EncodeTokens(set_id, (p.TokenItem({"l": p.TokenRows((1,), "ids")}),))


def events(client: DaemonClient, enough: Callable[[list[Event]], bool], seconds: float = 10.0) -> list[Event]:
    """Collect events until there are enough."""
    found: list[Event] = []

    def more() -> bool:
        event = client.next_event(0.2)
        if event is not None:
            found.append(event)
        return enough(found)

    wait_for(more, seconds, what="the events")
    return found


def test_a_subscriber_sees_requests_begin_and_end_with_trace_and_times_and_without_text(wire: WireDaemon) -> None:
    watcher, worker = wire.client(name="watcher"), wire.client(name="worker")
    before = watcher.subscribe(["request"])
    text = p.EncodeText("s", (p.TextItem("a very private prompt"),))
    worker.call("encode_text", text, trace="00-feed-01")
    start, end = events(watcher, lambda found: len(found) == 2)
    assert (start.topic, start.event, start.body["command"]) == ("request", "start", "encode_text")
    assert (end.event, end.body["client"], end.body["outcome"], end.body["trace"]) == (
        "end",
        "worker",
        "ok",
        "00-feed-01",
    )
    assert end.body["ms"].keys() == {"queue", "window", "load", "run"}
    assert before.seq < start.seq < end.seq
    assert start.generation == wire.identity.generation
    assert "private" not in str((start, end))


def test_loras_that_come_and_go_are_told_by_their_hash(wire: WireDaemon) -> None:
    watcher, worker = wire.client(), wire.client()
    watcher.subscribe(["lora"])
    worker.lora_put(b"blob", hash="ab" * 32)
    worker.lora_drop(all=True)
    put, dropped = events(watcher, lambda found: len(found) == 2)
    assert (put.event, put.body["hash"]) == ("put", "ab" * 32)
    assert (dropped.event, "freed_bytes" in dropped.body) == ("dropped", True)


def test_every_topic_arrives_that_was_asked_for_and_no_other(wire: WireDaemon) -> None:
    watcher, worker = wire.client(), wire.client()
    watcher.subscribe(["model", "queue", "memory", "log"])
    worker.load_model([p.Part("l", id="seen")])
    with pytest.raises(DaemonError):
        worker.call("encode_tokens", tokens("bug"), [IDS])
    found = events(watcher, lambda found: {"model", "queue", "memory", "log"} <= {one.topic for one in found})
    by_topic = {one.topic: one for one in found}
    assert by_topic.keys() == {"model", "queue", "memory", "log"}
    assert (by_topic["model"].event, by_topic["model"].body["set"]) == ("loaded", "seen")
    assert by_topic["queue"].body.keys() == {"device", "load"}
    assert by_topic["memory"].body["rss_bytes"] > 0
    assert {one.body.get("code") for one in found if one.topic == "log"} >= {"internal"}
    assert "secret" not in str(found)


def test_unsubscribe_ends_topics_and_names_the_rest(wire: WireDaemon) -> None:
    client = wire.client()
    client.subscribe(["state", "log", "request"])
    assert client.unsubscribe(["log"]).topics == ("state", "request")
    assert client.unsubscribe().topics == ()
    assert client.unsubscribe(["state"]).topics == ()
    seq = client.subscribe(["state"]).seq
    client.call("encode_text", p.EncodeText("s", (p.TextItem("a"),)))
    assert client.subscribe(["state"]).seq == seq + 2, "events are counted whoever listens"
    assert client.next_event(0.0) is None


def test_what_happened_meanwhile_is_sent_again_from_a_number_on(wire: WireDaemon) -> None:
    first = wire.client()
    seq = first.subscribe(["request"]).seq
    first.close()
    other = wire.client()
    other.call("encode_text", p.EncodeText("s", (p.TextItem("a"),)))
    again = wire.client()
    told = again.subscribe(["request"], from_seq=seq + 1)
    assert told.missed == 0
    assert [one.event for one in events(again, lambda found: len(found) == 2)] == ["start", "end"]
    assert told.seq == seq + 2


@pytest.mark.parametrize("body", [{"topics": []}, {"topics": ["weather"]}, {}, {"topics": ["log"], "from_seq": -1}])
def test_a_subscription_to_what_is_not_there_is_refused(wire: WireDaemon, body: dict[str, Any]) -> None:
    connection, reader = wire.greeted()
    with connection:
        for buffer in p_frame({"id": 2, "cmd": "subscribe", "body": body}):
            connection.sendall(buffer)
        assert reader.announced().header["error"]["code"] == "request-invalid"


def p_frame(header: dict[str, Any]) -> Any:
    from luna_daemon import frames

    return frames.encode_frame(header)


def test_the_death_of_the_daemon_ends_the_wait_for_events(start_daemon: Callable[..., WireDaemon]) -> None:
    daemon = start_daemon()
    client = daemon.client()
    client.subscribe(["state"])
    threading.Timer(0.2, daemon.process.kill).start()

    def listen() -> None:
        while True:
            client.next_event(10.0)

    with pytest.raises(DaemonUnreachableError):
        listen()


def test_drain_takes_no_work_until_it_is_reopened(start_daemon: Callable[..., WireDaemon]) -> None:
    daemon = start_daemon()
    client, worker = daemon.client(), daemon.client()
    client.subscribe(["state"])
    outcome: list[Any] = []
    running = threading.Thread(target=lambda: outcome.append(worker.call("encode_tokens", tokens("sleep:0.5"), [IDS])))
    running.start()
    wait_for(lambda: client.status().queue["device"].running == 1)
    drained = client.drain(deadline_ms=5000)
    assert (drained.queued, drained.running) == (0, 1)
    with pytest.raises(DaemonError) as caught:
        client.call("encode_tokens", tokens("s"), [IDS])
    assert caught.value.code == "daemon-draining"
    assert caught.value.retry_after_ms
    assert client.ping().phase == client.status().phase == "draining"
    running.join(10)
    assert len(outcome) == 1, "what ran when the drain began is finished"
    client.drain(reopen=True)
    assert client.ping().phase is None
    assert client.call("encode_tokens", tokens("s"), [IDS]).body.items
    told = [one.event for one in events(client, lambda found: bool(found) and found[-1].event == "reopened")]
    assert told[-2:] == ["draining", "reopened"]


def test_what_waits_at_the_deadline_of_a_drain_is_refused_and_what_runs_goes_on(
    start_daemon: Callable[..., WireDaemon],
) -> None:
    daemon = start_daemon()
    client = daemon.client()
    codes: dict[str, str] = {}

    def work(name: str) -> None:
        try:
            client.call("encode_tokens", tokens(name), [IDS], timeout_s=1.5)
        except DaemonError as error:
            codes[name] = error.code

    threads = [threading.Thread(target=work, args=(name,)) for name in ("until-cancelled", "s")]
    threads[0].start()
    wait_for(lambda: client.status().queue["device"].running == 1)
    threads[1].start()
    wait_for(lambda: client.status().queue["device"].depth == 1)
    assert client.drain(deadline_ms=100).queued == 1
    for thread in threads:
        thread.join(10)
    assert codes == {"s": "daemon-draining", "until-cancelled": "daemon-timeout"}


def test_metrics_count_what_was_done_in_prometheus_format(wire: WireDaemon) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    client = wire.client()
    client.load_model([p.Part("l", id="counted")])
    for _ in range(3):
        client.call("encode_tokens", tokens("s"), [IDS])
    with pytest.raises(DaemonError):
        client.call("encode_tokens", tokens("error:out-of-memory"), [IDS])
    families = {family.name: family for family in text_string_to_metric_families(client.metrics())}
    samples = {
        (one.name, tuple(sorted(one.labels.items()))): one.value
        for family in families.values()
        for one in family.samples
    }
    assert families.keys() >= {
        "luna_requests",
        "luna_request_seconds",
        "luna_queue_depth",
        "luna_batch_rows",
        "luna_model_bytes",
        "luna_cache_bytes",
        "luna_cache_events",
        "luna_vram_bytes",
        "luna_transport_bytes",
        "luna_downgrades",
        "luna_oom",
        "luna_lora_rows",
        "luna_connections",
        "luna_build_info",
    }
    encoded = samples["luna_requests_total", (("command", "encode_tokens"), ("outcome", "ok"))]
    assert encoded >= 3
    key = (("command", "encode_tokens"), ("phase", "run"))
    assert samples["luna_request_seconds_count", key] >= encoded
    assert samples["luna_oom_total", (("step", "refused"),)] >= 1
    assert samples["luna_model_bytes", (("place", "host"), ("set", "counted"))] == 10
    assert samples["luna_batch_rows_count", ()] >= 3
    assert samples["luna_transport_bytes_total", (("direction", "in"), ("via", "inline"))] >= 12
    assert samples["luna_connections", ()] >= 1


def test_errors_in_the_status_are_those_of_the_metrics(wire: WireDaemon) -> None:
    client = wire.client()
    with pytest.raises(DaemonError):
        client.call("encode_tokens", tokens("error:lora-missing"), [IDS])
    assert client.status().totals.errors["lora-missing"] >= 1


class Collector:
    """A sink that a test opens and closes."""

    def __init__(self) -> None:
        self.is_clogged = False
        self.records: list[dict[str, Any]] = []

    def send_event(self, record: dict[str, Any]) -> None:
        self.records.append(record)


def test_a_slow_subscriber_gets_what_was_buffered_then_a_gap_with_the_count_then_the_rest() -> None:
    board, slow, quick = EventBoard("g"), Collector(), Collector()
    slow.is_clogged = True
    board.subscribe(slow, ["log"], None)
    board.subscribe(quick, ["log"], None)
    for index in range(BUFFERED_MAX + 50):
        board.publish("log", "line", {"n": index})
        if index % 500 == 0:
            wait_for(lambda: len(quick.records) == index + 1, what="the quick one's events")  # noqa: B023 - called at once
    wait_for(lambda: len(quick.records) == BUFFERED_MAX + 50, what="the quick one's events")
    assert slow.records == []
    slow.is_clogged = False
    wait_for(lambda: len(slow.records) == BUFFERED_MAX + 1, what="the slow one's events")
    assert [one["body"]["n"] for one in slow.records[:-1]] == list(range(BUFFERED_MAX))
    gap = slow.records[-1]
    assert (gap["event"], gap["body"], gap["seq"]) == ("gap", {"missed": 50}, BUFFERED_MAX)
    board.publish("log", "line", {"n": "after"})
    wait_for(lambda: slow.records[-1]["body"] == {"n": "after"}, what="the event after the gap")
    for sink in (slow, quick):
        board.forget(sink)


def test_events_that_are_not_kept_any_more_are_counted_as_missed() -> None:
    board, sink = EventBoard("g"), Collector()
    for index in range(KEPT_MAX + 10):
        board.publish("log", "line", {"n": index})
    assert board.subscribe(sink, ["log"], 5) == (KEPT_MAX + 10, 6)
    wait_for(lambda: len(sink.records) == KEPT_MAX)
    board.forget(sink)


def test_an_inbox_that_nobody_empties_keeps_the_newest_and_says_how_many_went() -> None:
    inbox = Inbox()
    for seq in range(1, INBOX_MAX + 8):
        inbox.put({"event": "line", "topic": "log", "seq": seq, "at_ms": 0, "generation": "g", "body": {}})
    first, second = inbox.take(), inbox.take()
    assert first is not None
    assert second is not None
    assert (first.event, first.body, second.seq) == ("gap", {"missed": 7}, 8)


def job_of(command: str) -> Job:
    job = Job("client", 3, p.COMMANDS[command], None, {}, 1e9, lambda *_: None)
    job.state, job.started = RUNNING, 1000.0
    return job


@pytest.mark.parametrize(
    ("runs_ms", "after_s", "is_stalled"),
    [((), 59.0, False), ((), 61.0, True), ((20_000.0,) * 30, 61.0, False), ((900.0,) * 30, 61.0, True)],
)
def test_what_runs_over_a_minute_and_five_times_its_usual_time_is_stalled_once(
    runs_ms: tuple[float, ...],
    after_s: float,
    is_stalled: bool,  # noqa: FBT001 - a parameter
) -> None:
    now = [1000.0]
    watch, sink = Watch("g", lambda: now[0]), Collector()
    for run_ms in runs_ms:
        watch.meter.answered("vae_decode", "ok", {"run": run_ms})
    job: list[Job | None] = [job_of("vae_decode")]
    pulse = Pulse(dict, dict, lambda: {"device": job[0]}, dict)
    watch.events.subscribe(sink, ["stalled"], None)
    now[0] += after_s
    for _ in range(3):
        watch.tick(pulse)
    assert watch.is_stalled("device") is is_stalled
    if is_stalled:
        wait_for(lambda: sink.records)
        assert [one["body"]["command"] for one in sink.records] == ["vae_decode"]
    job[0] = None
    watch.tick(pulse)
    assert not watch.is_stalled("device")
    watch.events.forget(sink)


def test_what_was_done_other_than_asked_is_counted_kept_and_told() -> None:
    watch, sink = Watch("g"), Collector()
    watch.events.subscribe(sink, ["downgrade"], None)
    did = {
        "batch": {"rows": 6, "requests": 2},
        "loras": [{"hash": "x", "path": "side", "unmatched": 0}],
        "downgraded": [{"from": "passes of 8 rows", "to": "half", "reason": "out-of-memory"}],
        "tiled": "oom",
    }
    for _ in range(12):
        watch.ended(job_of("vae_decode"), "c", "ok", {"run": 1.0}, did)
    wait_for(lambda: len(sink.records) == 12)
    assert sink.records[0]["body"] == {"from": "passes of 8 rows", "to": "half", "reason": "out-of-memory"}
    assert len(watch.downgrades) == 10
    read = watch.meter.read()
    assert read.downgrades == {("passes of 8 rows", "out-of-memory"): 12}
    assert (read.lora_rows, read.out_of_memory) == ({"side": 12}, {"tiled": 12, "halved": 12})
    assert read.rows.counts[3] == 6, "two requests report each batch, which is one"
    assert read.rows.total == 36
    watch.events.forget(sink)


def test_labels_stay_few_whatever_the_reasons_say() -> None:
    meter = Meter()
    for index in range(500):
        meter.did({"downgraded": [{"from": f"{index}", "to": "x", "reason": "y"}]})
    assert len(meter.read().downgrades) == 65
    assert meter.read().downgrades["other", "other"] == 436


def test_times_are_counted_from_a_quarter_of_a_millisecond_to_64_seconds() -> None:
    meter = Meter()
    for ms in (0.1, 0.25, 0.26, 64_000.0, 100_000.0):
        meter.answered("vae_decode", "ok", {"run": ms})
    histogram = meter.read().seconds["vae_decode", "run"]
    assert (SECONDS[0], SECONDS[-1]) == (0.00025, 64.0)
    assert (histogram.counts[0], histogram.counts[1], histogram.counts[-2], histogram.counts[-1]) == (2, 1, 1, 1)
    assert meter.usual_run_s("vae_decode") is None, "five runs tell nothing yet"


def test_a_set_that_was_moved_is_told_within_a_second() -> None:
    watch, sink = Watch("g"), Collector()
    watch.events.subscribe(sink, ["model"], None)
    seen = [{"a": "device", "b": "device"}, {"a": "host", "b": "device", "c": "disk"}, {"a": "host"}, {"a": "device"}]
    for places in seen:
        watch.tick(Pulse(dict, dict, dict, places.copy))
    wait_for(lambda: len(sink.records) == 2)
    assert [(one["event"], one["body"]) for one in sink.records] == [
        ("moved", {"set": "a", "place": "host", "from": "device"}),
        ("moved", {"set": "a", "place": "device", "from": "host"}),
    ]
    watch.events.forget(sink)


def test_what_is_unknown_of_a_card_is_absent_and_never_0() -> None:
    from luna_daemon.exposition import render
    from luna_daemon.status_messages import DaemonStatus, DeviceStatus

    status = DaemonStatus(
        "1", 1, "n", "g", "full", (), 1, "ready", None, None, None, 1.0, None, None, "native", None,
        DeviceStatus("cuda", total_bytes=100, free_bytes=None),
    )  # fmt: skip
    text = render(Meter().read(), status).decode()
    assert 'luna_vram_bytes{kind="total"} 100.0' in text
    assert 'kind="free"' not in text
