"""Where the weights behind a proxy come from: a set the daemon serves, files it can read, or tensors sent to it once.

Sent tensors are named by their content hash, so a second instance with the same model sends nothing. The sender keeps
only a weak reference to the module: while ComfyUI holds it, the weights can be sent again to a restarted daemon.
"""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luna_daemon.frames import MIB, WireTensor
from luna_daemon.model_messages import Part as NamedPart
from luna_daemon.model_messages import PutModel
from luna_daemon.runtime.parts import FLOATS, KINDS, SMALL_FLOATS, Entry, byte_view, find_part, require_floats
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from luna_daemon.client import DaemonClient
    from luna_daemon.model_messages import ModelFacts
    from luna_daemon.runtime.parts import Part

CHUNK_BYTES = 16 * MIB
_DTYPES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.float8_e5m2": "F8_E5M2",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}
"""torch's names -> those of safetensors headers."""
_FLOAT_BYTES = {**FLOATS, **SMALL_FLOATS}
"""A part that is sent holds nothing else (`require_floats`)."""


@dataclass(frozen=True, slots=True)
class ServedSet:
    """A set that the daemon serves already, by id or by family for its default."""

    name: str

    def load(self, client: DaemonClient) -> tuple[str, ModelFacts]:
        """Ask what it is."""
        description, _ = client.describe_model(self.name)
        return description.set, description.facts


class Sending:
    """How parts of one model get to a daemon: named by content, and sent only if it has no such content.

    Args:
        family: of the model.
        check: raises when the user cancels.
        on_progress: is told bytes sent and bytes in all, for each part that must be sent.
    """

    def __init__(
        self, family: str, check: Callable[[], None], on_progress: Callable[[int, int], None] | None = None
    ) -> None:
        self._family = family
        self._check = check
        self._on_progress = on_progress
        self._content: dict[str, str] = {}
        self.was_sent = False
        """Whether the last load had to send weights; False if the daemon had all of them."""

    def _send(self, client: DaemonClient, parts: Mapping[str, Part]) -> tuple[str, ModelFacts]:
        self.was_sent = False
        for role, part in parts.items():
            if role not in self._content:
                self._content[role] = part.content(self._check)
        shared = self._served(client)
        if shared is not None:
            return ServedSet(shared).load(client)
        for role, part in parts.items():
            self.was_sent |= self._put(client, part, self._content[role])
        named = [NamedPart(role, content=self._content[role]) for role in parts]
        loaded = client.load_model(named, family=self._family, poll=self._check)
        return loaded.set, loaded.facts

    def _served(self, client: DaemonClient) -> str | None:
        """Return a set of the family that already holds these very parts, whatever else it holds."""
        wanted = self._content.items()
        return next(
            (
                row.id
                for row in client.list_models(loaded=True).sets
                if self._family in {"auto", row.family} and wanted <= row.parts.items()
            ),
            None,
        )

    def _put(self, client: DaemonClient, part: Part, content: str) -> bool:
        """Upload a part as a safetensors file, piece by piece; tell whether that was needed."""
        header = _header(part)
        total = len(header) + sum(map(_nbytes, part.entries.values()))
        begun = client.put_model(
            PutModel("begin", content=content, nbytes=total)
        )  # no poll: the reply names the upload
        if begun.have:
            return False
        offset = 0
        try:
            for piece in _pieces(header, part, begun.chunk_bytes or CHUNK_BYTES):
                tensor = WireTensor.of_bytes("bytes", piece)
                chunk = PutModel("chunk", upload=begun.upload, offset=offset)
                client.put_model(chunk, [tensor], poll=self._check)
                offset += piece.nbytes
                if self._on_progress is not None:
                    self._on_progress(offset, total)
                self._check()
            client.put_model(PutModel("commit", upload=begun.upload), poll=self._check)
        except BaseException:
            with contextlib.suppress(DaemonError):  # the first error is the one to tell
                client.put_model(PutModel("abort", upload=begun.upload))
            raise
        return True


class SentParts(Sending):
    """Parts of one model whose tensors are in this process.

    Args:
        family: of the model.
        roles: what the tensors must turn out to hold, such as ``("l",)`` or ``("vae",)``.
        tensors: gives name -> tensor as they are now, or None once the module is gone. Called for each load.
        check: raises when the user cancels.
        on_progress: is told bytes sent and bytes in all, for each part that must be sent.
    """

    def __init__(
        self,
        family: str,
        roles: tuple[str, ...],
        tensors: Callable[[], Mapping[str, Any] | None],
        check: Callable[[], None],
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__(family, check, on_progress)
        self._roles = roles
        self._tensors = tensors

    def load(self, client: DaemonClient) -> tuple[str, ModelFacts]:
        """Send what the daemon does not have by content, and load the set.

        Raises:
            DaemonError: ``model-unsupported`` or ``wrong-type`` if the tensors are no such parts,
                ``daemon-model-changed`` if they are gone, or what the daemon answers.
        """
        return self._send(client, self._parts())

    def _parts(self) -> dict[str, Part]:
        unknown = [role for role in self._roles if role not in KINDS]
        if unknown:
            raise DaemonError(
                "model-unsupported", f"parts {', '.join(unknown)} of {self._family} cannot be sent to a daemon yet"
            )
        tensors = self._tensors()
        if tensors is None:
            raise DaemonError(
                "daemon-model-changed",
                "the daemon was restarted and the weights are no longer in this ComfyUI",
                "queue the workflow again; the tunnel sends them anew",
            )
        entries = {
            name: Entry(_DTYPES.get(str(tensor.dtype), str(tensor.dtype)), tuple(tensor.shape))
            for name, tensor in tensors.items()
        }
        parts: dict[str, Part] = {}
        for role in self._roles:
            part = find_part(role, entries, lambda name: tensors[name].detach().cpu(), "the model given")
            if part is None:
                raise DaemonError("wrong-type", f"the model given holds no {KINDS[role].label}")
            require_floats(part)
            parts[role] = part
        return parts


def _nbytes(entry: Entry) -> int:
    return math.prod(entry.shape) * _FLOAT_BYTES[entry.dtype]


def _header(part: Part) -> bytes:
    """Return length and JSON of a safetensors file (format: huggingface/safetensors, README "Format")."""
    entries: dict[str, Any] = {}
    offset = 0
    for name, entry in part.entries.items():
        end = offset + _nbytes(entry)
        entries[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _pieces(header: bytes, part: Part, size: int) -> Iterator[memoryview]:
    """Cut the file into pieces of at most ``size`` bytes; tensors are not joined, so pieces may be smaller."""
    yield memoryview(header)
    for name in part.names:
        data = byte_view(part.tensor(name))
        for start in range(0, data.nbytes, size):
            yield data[start : start + size]
