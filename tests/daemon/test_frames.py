"""Frames: what is written is read back, and nothing else gets through or costs memory."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luna_daemon import frames
from luna_daemon.frames import ITEM_BYTES, WireTensor
from luna_engine.errors import DaemonError

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), st.text()
)
bodies = st.dictionaries(
    st.text(max_size=8), st.recursive(scalars, lambda inner: st.lists(inner, max_size=4), max_leaves=8), max_size=6
)


@st.composite
def tensors(draw: st.DrawFn, name: str = "t") -> WireTensor:
    dtype = draw(st.sampled_from(sorted(ITEM_BYTES)))
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
    data = draw(st.binary(min_size=(size := math.prod(shape) * ITEM_BYTES[dtype]), max_size=size))
    return WireTensor(name, dtype, shape, memoryview(data))


@given(bodies, st.lists(tensors(), max_size=4))
def test_a_frame_is_read_as_it_was_written(body: dict[str, Any], drawn: list[WireTensor]) -> None:
    sent = [WireTensor(f"t{index}", one.dtype, one.shape, one.data) for index, one in enumerate(drawn)]
    raw = b"".join(bytes(buffer) for buffer in frames.encode_frame({"body": body}, sent))
    length = frames.header_length(raw)
    header = frames.decode_header(raw[4 : 4 + length])
    segments = frames.decode_segments(header, 10**9)
    received = frames.tensors_in(segments, memoryview(raw)[4 + length :])
    assert header["body"] == body
    assert [(one.name, one.dtype, one.shape, bytes(one.data)) for one in received.values()] == [
        (one.name, one.dtype, one.shape, bytes(one.data)) for one in sent
    ]


def test_tensor_bytes_are_not_copied() -> None:
    data = bytearray(1000)
    buffers = frames.encode_frame({"id": 1}, [WireTensor.of_bytes("t", data)])
    data[7] = 42
    assert buffers[1][7] == 42


@given(st.binary(max_size=300))
@settings(max_examples=500)
def test_random_bytes_are_a_header_or_a_typed_error(raw: bytes) -> None:
    code = None
    try:
        header = frames.decode_header(raw)
    except DaemonError as error:
        code = error.code
    assert code == "frame-invalid" or isinstance(header, dict)


pieces = st.sampled_from(
    ['"a"', '"\\ud800"', '"\\u003a"', '":,{["', "9007199254740992", "9007199254740993", "-1", "1e999", "0.5", "NaN"]
)
texts = st.recursive(
    pieces,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]"),
        st.lists(st.tuples(st.sampled_from(['"a"', '"b"', '"\\u0061"']), inner), max_size=3).map(
            lambda items: "{" + ",".join(f"{key}: {value}" for key, value in items) + "}"
        ),
    ),
    max_leaves=30,
)


def judged(raw: bytes) -> object:
    try:
        return frames.decode_header(raw)
    except DaemonError as error:
        return error.message


@given(texts, st.integers(0, 20))
def test_the_short_way_through_a_header_judges_as_the_long_one_does(text: str, depth: int) -> None:
    """Most headers are not walked; what that leaves out must never have mattered."""
    raw = f'{{"a":{"[" * depth}{text}{"]" * depth}}}'.encode()
    short = judged(raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "_is_plain", lambda _text: False)
        assert judged(raw) == short


# DAEMON S7
@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"1",
        b"{",
        b'{"a":1}x',
        b'{"a":1,"a":2}',
        b'{"a":{"b":1,"b":2}}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":1e999}',
        b'{"a":9007199254740993}',
        b'{"a":-9007199254740993}',
        b'{"a":"\\ud800"}',
        b'{"\\ud800":1}',
        b'{"a":"\xff"}',
        b'\xef\xbb\xbf{"a":1}',
        b'{"a":' + b"[" * 16 + b"]" * 16 + b"}",
        b'{"a":' + b"[" * 30000 + b"]" * 30000 + b"}",
        b'{"a":[' + b"1," * 4096 + b"1]}",
        b'{"a":' + b"1" * 5000 + b"}",
    ],
    ids=lambda raw: repr(raw[:24]),
)
def test_a_header_that_breaks_a_rule_is_refused(raw: bytes) -> None:
    with pytest.raises(DaemonError) as caught:
        frames.decode_header(raw)
    assert caught.value.code == "frame-invalid"


def test_headers_at_the_limits_are_accepted() -> None:
    assert frames.decode_header(b'{"a":' + b"[" * 15 + b"]" * 15 + b"}")
    assert len(frames.decode_header(b'{"a":[' + b"1," * 4094 + b"1]}")["a"]) == 4095
    assert frames.decode_header(b'{"a":9007199254740992}')["a"] == 2**53


@pytest.mark.parametrize(
    "prefix", [b"GET ", b"\x16\x03\x01\x02", b"\0\0\0\0", b"\xff\xff\xff\xff", (65_537).to_bytes(4, "big")]
)
def test_a_length_out_of_bounds_is_refused_before_reading(prefix: bytes) -> None:
    with pytest.raises(DaemonError) as caught:
        frames.header_length(prefix)
    assert caught.value.code == "frame-invalid"


def segment(**changes: Any) -> dict[str, Any]:
    return {"name": "t", "dtype": "f32", "shape": [2, 3], "nbytes": 24, "via": "inline", **changes}


# DAEMON S8, S9
@pytest.mark.parametrize(
    "records",
    [
        {},
        "t",
        [1],
        [segment(nbytes=23)],
        [segment(nbytes=-24)],
        [segment(nbytes=24.0)],
        [segment(nbytes=True, shape=[1], dtype="u8")],
        [segment(shape=[-2, -3])],
        [segment(shape=[2, True, 3])],
        [segment(shape=[2**53, 2**53])],
        [segment(shape=[1] * 9, nbytes=4)],
        [segment(shape=6)],
        [segment(dtype="complex64")],
        [segment(dtype=["f32"])],
        [segment(name="")],
        [segment(name="n" * 129)],
        [segment(name=7)],
        [segment(via="shm")],
        [segment(ref={"offset": 0})],
        [segment(extra=1)],
        [segment(), segment()],
        [segment(name=f"t{index}", shape=[0], nbytes=0) for index in range(257)],
    ],
    ids=repr,
)
def test_a_wrong_announcement_is_refused(records: Any) -> None:
    with pytest.raises(DaemonError) as caught:
        frames.decode_segments({"segments": records}, 10**9)
    assert caught.value.code == "frame-invalid"


def test_a_payload_over_the_limit_is_refused_by_its_announcement() -> None:
    with pytest.raises(DaemonError) as caught:
        frames.decode_segments({"segments": [segment(shape=[2**40], nbytes=2**42)]}, 2**30)
    assert caught.value.code == "payload-too-large"


def test_our_own_mistakes_are_errors_before_anything_is_sent() -> None:
    with pytest.raises(DaemonError) as caught:
        frames.encode_frame({"id": 1}, [WireTensor("t", "f32", (2,), memoryview(b"1234"))])
    assert caught.value.code == "tensor-invalid"
    with pytest.raises(DaemonError) as caught:
        frames.encode_frame({"body": "x" * 70_000})
    assert caught.value.code == "request-invalid"


@given(
    st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5)
    )
)
def test_any_json_in_place_of_segments_is_checked(value: Any) -> None:
    code = None
    try:
        frames.decode_segments(json.loads(json.dumps({"segments": value})), 10**6)
    except DaemonError as error:
        code = error.code
    assert code in {None, "frame-invalid", "payload-too-large"}
