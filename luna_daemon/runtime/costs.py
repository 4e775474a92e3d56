"""How long a request will probably keep the device: moving averages by kind of work, model and size. No torch."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any

from luna_daemon.encode_messages import EncodeText, EncodeTokens, VaeDecode, VaeEncode

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping

    from luna_daemon.frames import WireTensor
    from luna_daemon.runtime.queue import Job

_UNKNOWN_MS = 100.0
_WEIGHT = 0.2
_KEPT = 1024
_LATENT_AREA = 64  # image pixels per position of a latent


def work_of(body: Any, tensors: Mapping[str, WireTensor]) -> tuple[Hashable, float]:
    """Return what kind of work a request is and how many units of it: rows of tokens, or megapixels.

    Rows of unlike length are other kinds, tiles too; texts count as one row each, since nobody has tokenised them yet.
    """
    if isinstance(body, EncodeTokens):
        rows = [length for item in body.items for given in item.encoders.values() for length in given.rows]
        return ("tokens", body.set, max(rows)), float(len(rows))
    if isinstance(body, EncodeText):
        return ("text", body.set), float(len(body.items))
    if isinstance(body, (VaeEncode, VaeDecode)):
        is_encode = isinstance(body, VaeEncode)
        shape = tensors["pixels" if is_encode else "latent"].shape
        # pixels are [B, (T,) H, W, C], a latent is [B, C, (T,) h, w]
        area = math.prod(shape[:-1]) if is_encode else shape[0] * math.prod(shape[2:]) * _LATENT_AREA
        return (type(body).__name__, body.set, body.tile is None), area / 1e6
    return (type(body).__name__,), 1.0


class Costs:
    """What requests took, remembered as milliseconds per unit of work. Any thread may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[Hashable, float] = {}

    def predict(self, body: Any, tensors: Mapping[str, WireTensor]) -> float:
        """Return the milliseconds that a request will probably take; 100 for a unit of what was never seen."""
        kind, units = work_of(body, tensors)
        with self._lock:
            return max(0.01, units * self._known.get(kind, _UNKNOWN_MS))

    def learn(self, jobs: Iterable[Job], spent_ms: float) -> None:
        """Note what one batch took. Its jobs share the time in proportion to their predicted costs."""
        work = [(work_of(job.body, job.tensors), job.cost) for job in jobs]
        predicted = sum(cost for _, cost in work)
        with self._lock:
            for (kind, units), cost in work:
                if units <= 0 or predicted <= 0:
                    continue
                found = spent_ms * cost / predicted / units
                before = self._known.pop(kind, None)
                self._known[kind] = found if before is None else before + _WEIGHT * (found - before)
            while len(self._known) > _KEPT:
                del self._known[next(iter(self._known))]
