"""A daemon's numbers in Prometheus' text format. prometheus_client is imported when somebody asks for them, not before.

Nothing here may carry what a client sent: labels are commands, codes, ids of sets and words of this program.
"""

from __future__ import annotations

import importlib.util
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from luna_daemon.meter import Histogram, Reading
    from luna_daemon.status_messages import DaemonStatus

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def render(reading: Reading, status: DaemonStatus) -> bytes:
    """Return the text.

    Args:
        reading: what was counted since the start.
        status: in full; the gauges come from it.
    """
    require_library()
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(reading, status))
    return generate_latest(registry)


def require_library() -> None:
    """Make sure that prometheus_client is there: a ComfyUI's own Python may have only half of requirements.txt.

    Raises:
        DaemonError: ``settings-invalid``.
    """
    if importlib.util.find_spec("prometheus_client") is None:
        raise DaemonError(
            "settings-invalid",
            "this Python has no prometheus_client, which metrics need",
            "install it: python -m pip install prometheus-client",
        )


class _Families:
    """What prometheus_client calls a collector."""

    def __init__(self, reading: Reading, status: DaemonStatus) -> None:
        self._reading = reading
        self._status = status

    def collect(self) -> Iterator[Any]:
        """Yield every metric."""
        yield from self._counters()
        yield from self._histograms()
        yield from self._gauges()

    def _counters(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily as Counter

        reading, caches = self._reading, self._status.caches
        yield _filled(
            Counter("luna_requests", "Requests answered.", labels=("command", "outcome")), reading.requests.items()
        )
        yield _filled(
            Counter("luna_transport_bytes", "Bytes of tensors that crossed.", labels=("via", "direction")),
            reading.transport_bytes.items(),
        )
        yield _filled(
            Counter("luna_downgrades", "Times that something other than asked was done.", labels=("kind", "reason")),
            reading.downgrades.items(),
        )
        yield _filled(
            Counter("luna_oom", "Times that memory ran out, by what was done.", labels=("step",)),
            (((step,), count) for step, count in reading.out_of_memory.items()),
        )
        yield _filled(
            Counter("luna_lora_rows", "Uses of a LoRA, by the way it was applied.", labels=("path",)),
            (((path,), count) for path, count in reading.lora_rows.items()),
        )
        yield _filled(
            Counter("luna_cache_events", "What happened in caches.", labels=("cache", "event")),
            (
                ((name, event), getattr(cache, event))
                for name, cache in caches.items()
                for event in ("hits", "misses", "evictions")
            ),
        )

    def _histograms(self) -> Iterator[Any]:
        from prometheus_client.core import HistogramMetricFamily

        seconds = HistogramMetricFamily(
            "luna_request_seconds", "Time of requests, by phase.", labels=("command", "phase")
        )
        for key, histogram in sorted(self._reading.seconds.items()):
            seconds.add_metric(key, _buckets(histogram), histogram.total)
        rows = HistogramMetricFamily("luna_batch_rows", "Rows that a batch of text had.", labels=())
        rows.add_metric((), _buckets(self._reading.rows), self._reading.rows.total)
        yield seconds
        yield rows

    def _gauges(self) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily as Gauge
        from prometheus_client.core import InfoMetricFamily

        status = self._status
        queue = Gauge("luna_queue_depth", "Requests that wait.", labels=("lane",))
        models = Gauge("luna_model_bytes", "Bytes of loaded sets.", labels=("set", "place"))
        caches = Gauge("luna_cache_bytes", "Bytes in caches.", labels=("cache",))
        yield _filled(queue, (((lane,), facts.depth) for lane, facts in status.queue.items()))
        yield _filled(models, (((row.set, row.place), row.bytes) for row in status.sets))
        yield _filled(caches, (((name,), cache.bytes) for name, cache in status.caches.items()))
        yield _filled(Gauge("luna_vram_bytes", "Memory of the device.", labels=("kind",)), self._device_bytes())
        connections = Gauge("luna_connections", "Open connections.")
        connections.add_metric((), len(status.clients))
        yield connections
        build = {"version": status.version, "service_type": status.service_type, "backend": status.backend or "none"}
        yield InfoMetricFamily("luna_build", "What runs here.", value=build)

    def _device_bytes(self) -> Iterator[tuple[tuple[str], int]]:
        """Yield the bytes of a card by kind; a CPU has none, and what is unknown is left out."""
        device = self._status.device
        if device.kind != "cuda":
            return
        for kind in ("total", "free", "torch_allocated", "torch_reserved", "other"):
            value = getattr(device, f"{kind}_bytes")
            if value is not None:
                yield (kind,), value


def _filled(family: Any, rows: Any) -> Any:
    for labels, value in sorted(rows):
        family.add_metric(labels, value)
    return family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    bounds = [*(str(bound) for bound in histogram.bounds), "+Inf"]
    return list(zip(bounds, accumulate(histogram.counts), strict=True))
