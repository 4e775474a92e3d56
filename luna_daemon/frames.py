"""Frames of protocol 1: bytes on a stream <-> a checked header and raw segments. No torch, no knowledge of commands.

A frame is a 4-byte big-endian length N, N bytes of UTF-8 JSON (one object), then the bytes of its inline segments in
listed order with nothing between. Everything a peer claims is checked before anything is allocated for it.
"""

from __future__ import annotations

import json
import json.encoder
import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

LENGTH_BYTES = 4
HEADER_BYTES_MAX = 65_536
HELLO_BYTES_MAX = 4_096
DEPTH_MAX = 16
VALUES_MAX = 4_096
INTEGER_MAX = 2**53
INTEGER_DIGITS_MAX = 17  # with its sign
SEGMENTS_MAX = 256
DIMENSIONS_MAX = 8
NAME_LENGTH_MAX = 128
MIB = 1024 * 1024

ITEM_BYTES: Mapping[str, int] = {
    "f64": 8,
    "f32": 4,
    "f16": 2,
    "bf16": 2,
    "f8_e4m3": 1,
    "f8_e5m2": 1,
    "i64": 8,
    "i32": 4,
    "u8": 1,
    "bool": 1,
}

_LENGTH = struct.Struct(">I")
_SEGMENT_KEYS = frozenset({"name", "dtype", "shape", "nbytes", "via", "ref"})
INLINE = "inline"
ONLY_INLINE = frozenset({INLINE})


@dataclass(frozen=True, slots=True)
class Limits:
    """What one side accepts; the daemon's own are in its welcome."""

    header_bytes: int = HEADER_BYTES_MAX
    payload_in_bytes: int = 256 * MIB
    payload_out_bytes: int = 2048 * MIB
    connection_requests: int = 32
    connection_bytes: int = 512 * MIB
    total_requests: int = 512
    total_bytes: int = 512 * MIB
    connections: int = 128
    unauthenticated: int = 8
    shm_connection_bytes: int = 512 * MIB
    shm_total_bytes: int = 2048 * MIB
    arena_bytes: int = 128 * MIB
    arenas: int = 4


@dataclass(frozen=True, slots=True)
class WireTensor:
    """A named tensor as bytes: little-endian, C order.

    Attributes:
        name: the name by which the body refers to it, unique in its frame.
        dtype: one of `ITEM_BYTES`.
        shape: up to eight sizes; ``()`` is a scalar.
        data: exactly ``nbytes`` bytes, one-dimensional, format ``B``.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: memoryview

    @property
    def nbytes(self) -> int:
        """Return the size in bytes."""
        return self.data.nbytes

    @classmethod
    def of_bytes(cls, name: str, data: bytes | bytearray | memoryview) -> WireTensor:
        """Wrap plain bytes as a one-dimensional u8 tensor without copying."""
        view = memoryview(data).cast("B")
        return cls(name, "u8", (view.nbytes,), view)


@dataclass(frozen=True, slots=True)
class Ref:
    """Where a tensor lies that does not follow its header: which memory, and the first byte in it."""

    via: str
    generation: int
    offset: int


@dataclass(frozen=True, slots=True)
class Segment:
    """The checked announcement of one tensor in a header. ``ref`` is None for one that follows inline."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    ref: Ref | None = None

    def announce(self) -> dict[str, Any]:
        """Return the header's record of this segment."""
        record: dict[str, Any] = {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "nbytes": self.nbytes,
            "via": INLINE,
        }
        if self.ref is not None:
            record["via"] = self.ref.via
            record["ref"] = {"generation": self.ref.generation, "offset": self.ref.offset}
        return record


NO_REFS: Mapping[str, Ref] = {}


def broken(message: str) -> DaemonError:
    """Return the error of a frame after which the stream cannot be trusted."""
    return DaemonError("frame-invalid", message)


def tensor_bytes(dtype: str, shape: Iterable[int]) -> int:
    """Return product(shape) x itemsize in unbounded integers."""
    return math.prod(shape) * ITEM_BYTES[dtype]


def header_length(prefix: bytes | bytearray | memoryview, limit: int = HEADER_BYTES_MAX) -> int:
    """Return N from the first four bytes of a frame.

    Raises:
        DaemonError: ``frame-invalid`` if N is 0 or above the limit (as the start of an HTTP request line is).
    """
    length: int = _LENGTH.unpack_from(prefix)[0]
    if not 1 <= length <= limit:
        raise broken(f"a header of {length} bytes was announced, 1 to {limit} are accepted")
    return length


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise broken("an object repeats a key")
    return record


def _constant(name: str) -> float:
    raise broken(f"{name} is no JSON number")


def _integer(digits: str) -> int:
    number = int(digits) if len(digits) <= INTEGER_DIGITS_MAX else INTEGER_MAX + 1
    if not -INTEGER_MAX <= number <= INTEGER_MAX:
        raise broken("an integer is outside +-2**53")
    return number


def _float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise broken("a number is too large")
    return number


_decoder = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer, parse_float=_float)
_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _compiled_encoder() -> Callable[[Any], str]:
    """Return the encoder that `json` builds anew for each text, built once; elsewhere than in CPython the usual one."""
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return _encoder.encode
    text = json.encoder.encode_basestring
    write = make(None, _encoder.default, text, None, ":", ",", False, False, False)  # noqa: FBT003 - its own order
    return lambda record: "".join(write(record, 0))


_encode = _compiled_encoder()
_scan = _decoder.scan_once  # type: ignore[attr-defined]  # typeshed does not list it


def decode_header(raw: bytes | bytearray | memoryview) -> dict[str, Any]:
    """Parse and check the JSON of a header.

    Returns:
        One object: no repeated keys, no NaN or infinity, at most 16 deep and 4,096 values, integers within +-2**53,
        strings that are valid Unicode.

    Raises:
        DaemonError: ``frame-invalid``.
    """
    try:
        text = str(raw, "utf-8")
        header = _parse(text)
    except (ValueError, RecursionError) as error:
        raise broken(f"the header is no JSON in UTF-8: {type(error).__name__}") from error
    if not isinstance(header, dict):
        raise broken("the header is no JSON object")
    if not _is_plain(text):
        _check_values(header)
    return header


def _parse(text: str) -> Any:
    """Parse a whole text; spaces around the value, which nobody sends, take the decoder's longer way."""
    try:
        header, end = _scan(text, 0)
    except StopIteration:
        return _decoder.decode(text)
    return header if end == len(text) else _decoder.decode(text)


def _is_plain(text: str) -> bool:
    """Tell from the characters alone that a header need not be walked: shallow, small, no escaped surrogates.

    Each value takes a character, each container an opening bracket: both bound it from above, whatever the texts hold.
    """
    return len(text) <= VALUES_MAX and "\\" not in text and text.count("{") + text.count("[") <= DEPTH_MAX


def _check_values(header: dict[str, Any]) -> None:
    """Walk level by level: no recursion, and the common small header costs a few microseconds."""
    level: list[Any] = [header]
    depth = values = 0
    while level:
        depth += 1
        if depth > DEPTH_MAX:
            raise broken(f"the header is nested deeper than {DEPTH_MAX}")
        following: list[Any] = []
        for container in level:
            values += len(container)
            if values > VALUES_MAX:
                raise broken(f"the header holds more than {VALUES_MAX} values")
            if type(container) is dict:
                for key in container:
                    if not key.isascii():
                        _check_text(key)
                container = container.values()  # noqa: PLW2901 - the values are what is looked at
            for child in container:
                kind = type(child)
                if kind is str:
                    if not child.isascii():
                        _check_text(child)
                elif kind is dict or kind is list:
                    following.append(child)
        level = following


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise broken("a string holds half a surrogate pair") from error


def decode_segments(
    header: Mapping[str, Any], payload_limit: int, vias: frozenset[str] = ONLY_INLINE
) -> tuple[Segment, ...]:
    """Check the announced segments of a header.

    Args:
        header: from `decode_header`.
        payload_limit: most bytes of all segments together.
        vias: the transports that this connection has opened.

    Raises:
        DaemonError: ``frame-invalid`` for a malformed list, a name used twice, or an nbytes that is not
            product(shape) x itemsize; ``payload-too-large`` above the limit.
    """
    records = header.get("segments")
    if records is None:
        return ()
    if not isinstance(records, list) or len(records) > SEGMENTS_MAX:
        raise broken(f"segments must be a list of at most {SEGMENTS_MAX}")
    segments = tuple(_segment(record, index, vias) for index, record in enumerate(records))
    if len({segment.name for segment in segments}) != len(segments):
        raise broken("two segments have the same name")
    total = sum(segment.nbytes for segment in segments)
    if total > payload_limit:
        raise DaemonError(
            "payload-too-large",
            f"{total} bytes of tensors in one message, {payload_limit} are accepted",
            "send fewer images at a time",
        )
    return segments


def _segment(record: object, index: int, vias: frozenset[str]) -> Segment:
    place = f"segments[{index}]"
    if not isinstance(record, dict) or not record.keys() <= _SEGMENT_KEYS:
        raise broken(f"{place} is no segment")
    name, dtype, shape, nbytes = (record.get(key) for key in ("name", "dtype", "shape", "nbytes"))
    if not isinstance(name, str) or not 1 <= len(name) <= NAME_LENGTH_MAX:
        raise broken(f"{place}.name must be a text of 1 to {NAME_LENGTH_MAX} characters")
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise broken(f"{place}.dtype is none of {' '.join(ITEM_BYTES)}")
    if not isinstance(shape, list) or len(shape) > DIMENSIONS_MAX or not all(map(_is_size, shape)):
        raise broken(f"{place}.shape must be at most {DIMENSIONS_MAX} sizes, each 0 or more")
    if not _is_size(nbytes) or nbytes != tensor_bytes(dtype, shape):
        raise broken(f"{place}.nbytes is not what {dtype} {shape} takes")
    return Segment(name, dtype, tuple(shape), nbytes, _ref(record, place, vias))


def _ref(record: Mapping[str, Any], place: str, vias: frozenset[str]) -> Ref | None:
    via, ref = record.get("via"), record.get("ref")
    if via == INLINE and ref is None:
        return None
    if not isinstance(via, str) or via not in vias or via == INLINE:
        raise broken(f"{place}.via must be {' or '.join(sorted(vias))} on this connection")
    if not isinstance(ref, dict) or ref.keys() != {"generation", "offset"} or not all(map(_is_size, ref.values())):
        raise broken(f"{place}.ref must be a generation and an offset")
    return Ref(via, ref["generation"], ref["offset"])


def _is_size(value: object) -> bool:
    return type(value) is int and value >= 0


def encode_frame(
    header: Mapping[str, Any],
    tensors: Sequence[WireTensor] = (),
    limit: int = HEADER_BYTES_MAX,
    refs: Mapping[str, Ref] = NO_REFS,
) -> list[memoryview]:
    """Return the buffers of one frame in order; tensor bytes are not copied.

    Args:
        header: everything but the segments.
        tensors: in order.
        limit: most bytes of the header.
        refs: where the tensors lie that do not follow inline, by name.

    Raises:
        DaemonError: ``request-invalid`` if the header outgrows the limit; ``tensor-invalid`` if a tensor's data and
            its dtype and shape disagree, or there are too many.
    """
    record = header
    if tensors:
        if len(tensors) > SEGMENTS_MAX:
            raise DaemonError("tensor-invalid", f"{len(tensors)} tensors in one message, {SEGMENTS_MAX} fit")
        record = {**header, "segments": [_announcement(tensor, refs.get(tensor.name)) for tensor in tensors]}
    raw = _encode(record).encode()
    if len(raw) > limit:
        raise DaemonError(
            "request-invalid",
            f"the header of this message takes {len(raw)} bytes, {limit} fit",
            "send fewer items or shorter texts in one request",
        )
    prefixed = memoryview(_LENGTH.pack(len(raw)) + raw)
    if not tensors:
        return [prefixed]
    return [prefixed, *(tensor.data.cast("B") for tensor in tensors if tensor.nbytes and tensor.name not in refs)]


def _announcement(tensor: WireTensor, ref: Ref | None) -> dict[str, Any]:
    if tensor.dtype not in ITEM_BYTES or tensor.nbytes != tensor_bytes(tensor.dtype, tensor.shape):
        raise DaemonError(
            "tensor-invalid",
            f"{tensor.name}: {tensor.nbytes} bytes are no {tensor.dtype} {list(tensor.shape)}",
        )
    return Segment(tensor.name, tensor.dtype, tensor.shape, tensor.nbytes, ref).announce()


def tensors_in(segments: Iterable[Segment], payload: memoryview) -> dict[str, WireTensor]:
    """Cut the received bytes of inline segments into their tensors, by name, without copying."""
    tensors: dict[str, WireTensor] = {}
    offset = 0
    for segment in segments:
        data = payload[offset : offset + segment.nbytes]
        tensors[segment.name] = WireTensor(segment.name, segment.dtype, segment.shape, data)
        offset += segment.nbytes
    return tensors
