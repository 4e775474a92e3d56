"""Models sent over the wire by `put_model`: collected in memory, checked against their hash, kept for the next client.

An upload is a safetensors file holding one part. Nothing of it touches a disk. Finished ones stay, so that another
client or another set finds them, until room is needed; the longest unused goes first.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from luna_daemon.progress import counting
from luna_daemon.runtime.parts import KINDS, TORCH_DTYPES, Entry, find_part, require_floats
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable

    from luna_daemon.runtime.parts import Part

CHUNK_BYTES = 16 * 1024 * 1024
CAP_BYTES = 16 * 1024**3
UPLOADS_MAX = 8
IDLE_S = 60.0
SOURCE = "the sent model"


@dataclass(slots=True)
class _Upload:
    """An announced size is a promise; memory is taken as bytes come."""

    content: str
    nbytes: int
    touched: float
    data: bytearray = field(default_factory=bytearray)


@dataclass(slots=True)
class UploadStore:
    """Running uploads and finished ones by content hash.

    Attributes:
        cap_bytes: what all of them may hold together.
        evictions: finished uploads that had to go.
        clock: tells when an upload was given up: its client may have died.
    """

    cap_bytes: int = CAP_BYTES
    evictions: int = 0
    clock: Callable[[], float] = time.monotonic
    _running: dict[str, _Upload] = field(default_factory=dict)
    _finished: dict[str, tuple[Part, int]] = field(default_factory=dict)

    def begin(self, content: str, nbytes: int) -> str:
        """Start an upload and return its name.

        Raises:
            DaemonError: ``payload-too-large`` beyond the cap; ``daemon-busy`` for too many at once.
        """
        self._drop_abandoned()
        self._require_room(nbytes)
        if len(self._running) >= UPLOADS_MAX:
            raise DaemonError("daemon-busy", f"{UPLOADS_MAX} uploads run already", retry_after_ms=1000)
        name = secrets.token_hex(8)
        self._running[name] = _Upload(content, nbytes, self.clock())
        return name

    def _drop_abandoned(self) -> None:
        now = self.clock()
        self._running = {name: one for name, one in self._running.items() if now - one.touched < IDLE_S}

    def chunk(self, upload: str, offset: int, data: memoryview) -> None:
        """Write bytes at their place; they come in order, so that nothing is left out.

        Raises:
            DaemonError: ``request-invalid`` for an unknown upload or an offset out of order, ``payload-too-large``
                for bytes past the announced end, ``out-of-memory``.
        """
        entry = self._entry(upload)
        received = len(entry.data)
        if offset != received:
            raise DaemonError("request-invalid", f"offset {offset} is out of order, expected {received}")
        if offset + data.nbytes > entry.nbytes:
            raise DaemonError("payload-too-large", f"the upload was announced with {entry.nbytes} bytes")
        self._require_room(data.nbytes)
        try:
            entry.data += data
        except MemoryError as error:
            self.abort(upload)
            raise DaemonError("out-of-memory", f"there is no room for {entry.nbytes} bytes") from error
        entry.touched = self.clock()

    def commit(self, upload: str, check: Callable[[], None]) -> str:
        """Check an upload and keep it under its content hash.

        Raises:
            DaemonError: ``tensor-invalid`` if bytes are missing, the hash is another or it holds no part known here,
                ``file-damaged`` if it is no safetensors file. The upload is dropped.
        """
        entry = self._entry(upload)
        del self._running[upload]
        if len(entry.data) != entry.nbytes:
            raise DaemonError("tensor-invalid", f"{len(entry.data)} of {entry.nbytes} bytes have come")
        part = _read_part(bytes(entry.data))
        with counting(part.size_bytes, "bytes"):
            found = part.content(check)
        if found != entry.content:
            raise DaemonError(
                "tensor-invalid", f"the content hash is {found}, announced was {entry.content}", "send it again"
            )
        self._finished[found] = (part, entry.nbytes)
        return found

    def abort(self, upload: str) -> None:
        """Drop an upload; one that is not there is no error."""
        self._running.pop(upload, None)

    def part(self, content: str) -> Part | None:
        """Return a finished upload and count that as a use."""
        found = self._finished.pop(content, None)
        if found is None:
            return None
        self._finished[content] = found  # now the youngest
        return found[0]

    def clear(self) -> int:
        """Forget all finished uploads; return their bytes. What a set uses of them goes with the set."""
        freed = sum(size for _, size in self._finished.values())
        self._finished.clear()
        return freed

    def _require_room(self, nbytes: int) -> None:
        self._make_room(nbytes)
        if self.size_bytes() + nbytes > self.cap_bytes:
            raise DaemonError(
                "payload-too-large",
                f"{nbytes} bytes are too many: {self.size_bytes()} of {self.cap_bytes} for sent models are taken",
                "put the file below a model root of the daemon and load it by id",
            )

    def _make_room(self, nbytes: int) -> None:
        while self._finished and self.size_bytes() + nbytes > self.cap_bytes:
            del self._finished[next(iter(self._finished))]
            self.evictions += 1

    def size_bytes(self) -> int:
        """Return the bytes held."""
        running, finished = list(self._running.values()), list(self._finished.values())  # any thread may ask
        return sum(len(entry.data) for entry in running) + sum(size for _, size in finished)

    def __len__(self) -> int:
        return len(self._running) + len(self._finished)

    def _entry(self, upload: str) -> _Upload:
        entry = self._running.get(upload)
        if entry is None:
            raise DaemonError("request-invalid", f"there is no upload {upload!r}", "begin anew")
        return entry


def _read_part(data: bytes) -> Part:
    """Open a safetensors file that lies in memory."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise DaemonError(
            "file-damaged", f"{SOURCE} is no intact safetensors file: {error}", "send it again"
        ) from error
    names = {f"torch.{torch_name}": name for name, torch_name in TORCH_DTYPES.items()}
    entries = {
        name: Entry(names.get(str(tensor.dtype), str(tensor.dtype)), tuple(tensor.shape))
        for name, tensor in tensors.items()
    }
    for role in KINDS:
        part = find_part(role, entries, tensors.__getitem__, SOURCE)
        if part is not None:
            require_floats(part)
            return part
    raise DaemonError(
        "tensor-invalid",
        f"{SOURCE} is neither of: {', '.join(kind.label for kind in KINDS.values())}",
        "send one part in its standalone layout",
    )
