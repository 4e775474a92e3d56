"""Hostile frames that know the protocol: good requests of every command, bent at one or a few places."""

from __future__ import annotations

import copy
import json
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luna_daemon import frames
from luna_daemon.protocol import COMMANDS, WireTensor, plain
from tests.daemon.test_protocol_table import REQUESTS

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

# These would end or close what is being tested.
NEVER_SENT = frozenset({"shutdown", "drain", "hello", "auth"})
NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**53, 2**53 + 1, 2**64, -(2**63), 1e308, 0.5, "", "a", "x" * 5000, "\0",
    "../../etc/passwd", "/etc/passwd", "é\u2028", "nan", [], [0], [[]], {}, {"a": {"b": []}}, [0] * 600,
    "content:00",
)  # fmt: skip
RAW_VALUES = (b"NaN", b"Infinity", b"-Infinity", b"1e999", b"[" * 20 + b"]" * 20, b'{"a":1,"a":2}', b'"\xff"', b"01")
DTYPES = ("f32", "f16", "i32", "i64", "u8", "bool", "f64", "bf16", "f128", "", None, 7)


@dataclass(frozen=True, slots=True)
class Case:
    """One frame to send. ``is_whole``: the daemon may answer it; otherwise only its end can come."""

    raw: bytes
    is_whole: bool
    kind: str


def _tensor(name: str, dtype: str, shape: tuple[int, ...]) -> WireTensor:
    size = frames.ITEM_BYTES[dtype]
    for side in shape:
        size *= side
    return WireTensor(name, dtype, shape, memoryview(bytes(size)))


def _segments(command: str, body: Any) -> list[WireTensor]:
    row = COMMANDS[command]
    if row.named_by_body:
        ids = array("i", [49406, 320, 2368, 49407] * 100)
        return [
            WireTensor("ids", "i32", (154,), memoryview(ids[:154]).cast("B")),
            _tensor("weights", "f64", (154,)),
            _tensor("v0", "f32", (2, 64)),
        ][: len(body.segments())]
    return [_tensor(rule.name, rule.dtypes[0], (4,) * rule.dimensions[0]) for rule in row.takes]


class Mutator:
    """Makes cases. The same chance gives the same cases."""

    def __init__(self, chance: random.Random, set_id: str) -> None:
        self._chance = chance
        self._commands = sorted(REQUESTS.keys() - NEVER_SENT)
        self._requests = {}
        for name in self._commands:
            body = REQUESTS[name]
            record = plain(body)
            if "set" in record:
                record["set"] = set_id
            self._requests[name] = (record, _segments(name, body))
        self._ways: tuple[tuple[Callable[[dict[str, Any], list[WireTensor]], Case], int], ...] = (
            (self._as_it_is, 10), (self._bent_value, 60), (self._bent_segment, 16), (self._raw_value, 4),
            (self._flipped_bytes, 4), (self._wrong_length, 2), (self._cut, 2), (self._noise, 2),
        )  # fmt: skip

    def case(self, request: int) -> Case:
        """Return the next case with that id of request, unless its mutation hits the id."""
        name = self._chance.choice(self._commands)
        record, tensors = self._requests[name]
        header = {"id": request, "cmd": name, "body": copy.deepcopy(record), "deadline_ms": 5000}
        ways, weights = zip(*self._ways, strict=True)
        way = self._chance.choices(ways, weights)[0]
        return way(header, list(tensors))

    def _as_it_is(self, header: dict[str, Any], tensors: list[WireTensor]) -> Case:
        if self._chance.random() < 0.3:
            tensors = tensors[:-1] or [_tensor("surplus", "f32", (2, 2))]
        return Case(_encoded(header, tensors), is_whole=True, kind="good")

    def _bent_value(self, header: dict[str, Any], tensors: list[WireTensor]) -> Case:
        for _ in range(self._chance.choice((1, 1, 1, 2, 4))):
            self._bend(header)
        return Case(_encoded(_harmless(header), tensors), is_whole=True, kind="values")

    def _bend(self, header: dict[str, Any]) -> None:
        """Replace, remove, rename or add one value somewhere in a header."""
        is_inside = isinstance(header.get("body"), dict) and header["body"] and self._chance.random() < 0.8
        holder, key = self._place(header["body"] if is_inside else header)
        roll = self._chance.randrange(8)
        value = copy.deepcopy(self._chance.choice(NASTY))
        if roll < 5:
            holder[key] = value
        elif isinstance(holder, list) or roll == 5:
            del holder[key]
        elif roll == 6:
            holder[f"{key}x"] = holder.pop(key)
        else:
            holder[self._chance.choice(("extra", "id", "set", "released", "trace", "priority"))] = value

    def _place(self, header: dict[str, Any]) -> tuple[Any, Any]:
        holder: Any = header
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            key = self._chance.choice(keys)
            inner = holder[key]
            if not isinstance(inner, (dict, list)) or not inner or self._chance.random() < 0.15:
                return holder, key
            holder = inner

    def _bent_segment(self, header: dict[str, Any], tensors: list[WireTensor]) -> Case:
        records, payload = _listed(tensors or [_tensor("x", "u8", (4,))])
        chance = self._chance
        record = chance.choice(records)
        match chance.randrange(9):
            case 0:
                record["nbytes"] = chance.choice((-1, 0, record["nbytes"] - 1, record["nbytes"] + 1, 2**40, 2**62, "4"))
            case 1:
                record["shape"] = chance.choice(([-1], [0], [2**40, 2**40], [1] * 9, [], [True], ["4"], None, [2**62]))
            case 2:
                record["dtype"] = chance.choice(DTYPES)
            case 3:
                record["via"] = chance.choice(("shm", "cuda_ipc", "pigeon", None, 3))
            case 4:
                record["via"] = "shm"
                offset = chance.choice((0, -1, 2**40, "0", None))
                record["ref"] = chance.choice(({"generation": 1, "offset": offset}, {"offset": offset}, 5, {}, None))
            case 5:
                records.append(dict(record))
            case 6:
                records *= 300
            case 7:
                record[chance.choice(("name", "surprise"))] = copy.deepcopy(chance.choice(NASTY))
            case _:
                payload = payload[: len(payload) // 2] + chance.randbytes(len(payload) - len(payload) // 2)
        header["segments"] = records
        said = sum(one["nbytes"] for one in records if isinstance(one.get("nbytes"), int) and one["nbytes"] > 0)
        is_whole = said == len(payload)
        return Case(_framed(header) + payload, is_whole=is_whole, kind="segments")

    def _raw_value(self, header: dict[str, Any], tensors: list[WireTensor]) -> Case:
        """Put a text that is no JSON, or no JSON of ours, in the place of a value."""
        holder, key = self._place(header)
        holder[key] = "@@here@@"
        raw = json.dumps(header).encode().replace(b'"@@here@@"', self._chance.choice(RAW_VALUES))
        return Case(len(raw).to_bytes(4, "big") + raw, is_whole=not tensors, kind="text")

    def _flipped_bytes(self, header: dict[str, Any], tensors: list[WireTensor]) -> Case:
        raw = bytearray(_encoded(header, tensors))
        for _ in range(self._chance.randrange(1, 8)):
            raw[self._chance.randrange(len(raw))] = self._chance.randrange(256)
        return Case(bytes(raw), is_whole=False, kind="bytes")

    def _wrong_length(self, header: dict[str, Any], tensors: list[WireTensor]) -> Case:
        raw = _encoded(header, tensors)
        length = int.from_bytes(raw[:4], "big")
        wrong = self._chance.choice((0, 1, length - 1, length + 1, 65_536, 65_537, 2**31, 2**32 - 1))
        return Case(wrong.to_bytes(4, "big") + raw[4:], is_whole=False, kind="length")

    def _cut(self, header: dict[str, Any], tensors: list[WireTensor]) -> Case:
        raw = _encoded(header, tensors)
        return Case(raw[: self._chance.randrange(len(raw))], is_whole=False, kind="cut")

    def _noise(self, _header: dict[str, Any], _tensors: list[WireTensor]) -> Case:
        return Case(self._chance.randbytes(self._chance.randrange(1, 300)), is_whole=False, kind="noise")


def _harmless(header: dict[str, Any]) -> dict[str, Any]:
    if isinstance(header.get("cmd"), str) and header["cmd"] in NEVER_SENT:
        header["cmd"] = "ping"
    return header


def _listed(tensors: list[WireTensor]) -> tuple[list[dict[str, Any]], bytes]:
    records = [
        {"name": one.name, "dtype": one.dtype, "shape": list(one.shape), "nbytes": one.nbytes, "via": "inline"}
        for one in tensors
    ]
    return records, b"".join(bytes(one.data) for one in tensors)


def _framed(header: dict[str, Any]) -> bytes:
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(4, "big") + raw


def _encoded(header: dict[str, Any], tensors: list[WireTensor]) -> bytes:
    """Write a frame without the checks that keep our own side from sending nonsense."""
    records, payload = _listed(tensors)
    return _framed({**header, "segments": records} if records else header) + payload
