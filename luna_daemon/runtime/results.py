"""Results that may be asked for again: the same prompt for the same set answers from memory, whoever asks. No torch.

Keys name contents, never files: a replaced file is another set and so another key.
"""

from __future__ import annotations

import collections
import hashlib
import threading
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from luna_daemon.frames import MIB
from luna_daemon.status_messages import CacheStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from luna_daemon.frames import WireTensor
    from luna_daemon.runtime.backend import EncodeItem

CAP_BYTES = 256 * MIB
_ENTRY_BYTES = 512  # key, records and dictionary slots, so that many small results count as well


@dataclass(frozen=True, slots=True)
class Result:
    """One prompt's tensors as they go out. Nobody writes to them; their memory is held by nothing larger."""

    cond: WireTensor
    pooled: WireTensor | None = None
    extras: Mapping[str, WireTensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Return the bytes of all tensors."""
        pooled = 0 if self.pooled is None else self.pooled.nbytes
        return self.cond.nbytes + pooled + sum(tensor.nbytes for tensor in self.extras.values())


class ResultCache:
    """The results used last, up to a number of bytes. Any thread may ask.

    Args:
        cap_bytes: a result larger than this is not kept.
    """

    def __init__(self, cap_bytes: int = CAP_BYTES) -> None:
        self.cap_bytes = cap_bytes
        self._lock = threading.Lock()
        self._kept: collections.OrderedDict[bytes, Result] = collections.OrderedDict()
        self._bytes = 0
        self._hits = self._misses = self._evictions = 0

    def get(self, key: bytes) -> Result | None:
        """Return a kept result, which is then the last to go."""
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                self._misses += 1
                return None
            self._hits += 1
            self._kept.move_to_end(key)
            return found

    def get_all(self, keys: Sequence[bytes]) -> list[Result] | None:
        """Return the results of all keys; None, uncounted, if one is missing: who computes it asks again."""
        with self._lock:
            found = [self._kept[key] for key in keys if key in self._kept]
            if len(found) < len(keys):
                return None
            self._hits += len(found)
            for key in keys:
                self._kept.move_to_end(key)
            return found

    def put(self, key: bytes, result: Result) -> None:
        """Keep a result, in place of an older one under its key and of those used longest ago."""
        size = result.nbytes + _ENTRY_BYTES
        if size > self.cap_bytes:
            return
        with self._lock:
            self._drop(self._kept.pop(key, None))
            self._kept[key] = result
            self._bytes += size
            while self._bytes > self.cap_bytes:
                self._drop(self._kept.popitem(last=False)[1])
                self._evictions += 1

    def _drop(self, result: Result | None) -> None:
        if result is not None:
            self._bytes -= result.nbytes + _ENTRY_BYTES

    def free(self, nbytes: int | None = None) -> int:
        """Forget the results used longest ago until that many bytes are free, or all; return the freed bytes."""
        with self._lock:
            before = self._bytes
            while self._kept and (nbytes is None or before - self._bytes < nbytes):
                self._drop(self._kept.popitem(last=False)[1])
            return before - self._bytes

    def status(self) -> CacheStatus:
        """Return what the daemon's status says of it."""
        with self._lock:
            return CacheStatus(self._bytes, self.cap_bytes, len(self._kept), self._hits, self._misses, self._evictions)


def keys_of(set_id: str, items: Sequence[EncodeItem], dtype: str, *, is_exact: bool) -> list[bytes]:
    """Return the key of each item: everything that its result depends on.

    Args:
        set_id: names the contents of the set's files, its precision and backend.
        items: of one request.
        dtype: of the result.
        is_exact: the batch that an item was computed in is then part of its key.
    """
    keys = [_key(set_id, item, dtype) for item in items]
    if not is_exact:
        return keys
    batch = b"".join(keys)
    return [hashlib.blake2b(b"%d" % index + batch, digest_size=32).digest() for index in range(len(keys))]


def _key(set_id: str, item: EncodeItem, dtype: str) -> bytes:
    recipe = [(use.hash, use.patch, use.model) for use in item.loras]
    facts = (set_id, dtype, item.projected, sorted(item.layers.items()), recipe)
    digest = hashlib.blake2b(repr(facts).encode(), digest_size=32)
    for role, given in sorted(item.encoders.items()):
        blocks = [_block(vectors) for vectors in given.vectors]
        shapes = [(name, shape) for name, shape, _ in blocks]
        digest.update(repr((role, [len(row.ids) for row in given.rows], shapes)).encode())
        for row in given.rows:
            digest.update(array("q", row.ids))
            digest.update(array("d", row.weights))
        for _, _, data in blocks:
            digest.update(data)
    return digest.digest()


def _block(vectors: object) -> tuple[str, tuple[int, ...], memoryview]:
    from luna_daemon.tensors import from_torch  # imports torch, where there are vectors it is there

    wire = from_torch("vectors", vectors)  # type: ignore[arg-type]  # a torch tensor, not named here
    return wire.dtype, wire.shape, wire.data
