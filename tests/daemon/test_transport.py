"""What a connection receives: its memory is used again only when nobody can see it any more."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

import pytest

from luna_daemon import frames
from luna_daemon.frames import Limits, WireTensor
from luna_daemon.stream import ConnectionLostError, FrameReader, FrameWriter, send_all
from luna_daemon.transport import Carrier

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def exchange(pair: tuple[socket.socket, socket.socket], transport: Carrier, data: bytes) -> dict[str, WireTensor]:
    send_all(pair[0], frames.encode_frame({"id": 1}, [WireTensor.of_bytes("t", data)]), 1.0)
    reader = FrameReader(pair[1], Limits())
    return transport.receive(reader, reader.announced())


def test_a_released_buffer_is_used_again(pair: tuple[socket.socket, socket.socket]) -> None:
    transport = Carrier(is_reusing=True)
    first = exchange(pair, transport, b"a" * 1000)
    owner = first["t"].data.obj
    transport.release(first)
    second = exchange(pair, transport, b"b" * 900)
    assert second["t"].data.obj is owner
    assert bytes(second["t"].data) == b"b" * 900


def test_a_released_tensor_cannot_be_read_by_mistake(pair: tuple[socket.socket, socket.socket]) -> None:
    transport = Carrier(is_reusing=True)
    tensors = exchange(pair, transport, b"a" * 10)
    transport.release(tensors)
    with pytest.raises(ValueError, match="released"):
        bytes(tensors["t"].data)


def test_memory_that_somebody_still_sees_is_left_alone(pair: tuple[socket.socket, socket.socket]) -> None:
    transport = Carrier(is_reusing=True)
    first = exchange(pair, transport, b"a" * 1000)
    kept = first["t"].data[10:20]
    transport.release(first)
    exchange(pair, transport, b"b" * 1000)
    assert bytes(kept) == b"a" * 10


def test_a_client_s_tensors_are_its_own(pair: tuple[socket.socket, socket.socket]) -> None:
    transport = Carrier()
    first = exchange(pair, transport, b"a" * 100)
    transport.release(first)
    assert bytes(first["t"].data) == b"a" * 100


def test_a_writer_keeps_the_order_of_frames_when_the_reader_is_slow(pair: tuple[socket.socket, socket.socket]) -> None:
    lost: list[bool] = []
    writer = FrameWriter(pair[0], lambda: lost.append(True))
    for index in range(40):
        tensor = WireTensor.of_bytes("t", bytes([index]) * 100_000)
        writer.send(frames.encode_frame({"id": index}, [tensor]))
    reader = FrameReader(pair[1], Limits())
    transport = Carrier()
    for index in range(40):
        announced = reader.announced()
        assert announced.header["id"] == index
        assert set(bytes(transport.receive(reader, announced)["t"].data)) == {index}
    writer.close(1.0)
    assert lost == []


def test_a_gone_reader_is_noticed_and_later_frames_are_dropped(pair: tuple[socket.socket, socket.socket]) -> None:
    lost: list[bool] = []
    writer = FrameWriter(pair[0], lambda: lost.append(True))
    pair[1].close()
    writer.send(frames.encode_frame({"id": 1}))
    writer.send(frames.encode_frame({"id": 2}))
    assert lost == [True]


def test_a_sender_too_slow_for_its_payload_is_dropped(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = FrameReader(pair[1], Limits())
    buffers = frames.encode_frame({"id": 1}, [WireTensor.of_bytes("t", bytes(50))])
    pair[0].sendall(buffers[0])
    announced = reader.announced(frame_s=0.05)
    with pytest.raises(ConnectionLostError):
        Carrier().receive(reader, announced)


def test_whoever_does_not_read_its_replies_cannot_ask_for_more(pair: tuple[socket.socket, socket.socket]) -> None:
    writer = FrameWriter(pair[0], lambda: None)
    buffers = frames.encode_frame({"id": 1}, [WireTensor.of_bytes("t", bytes(4_000_000))])
    writer.send(buffers)
    passed = threading.Event()
    waiting = threading.Thread(target=lambda: (writer.wait_below(1_000_000), passed.set()))
    waiting.start()
    assert not passed.wait(0.1)
    reader = FrameReader(pair[1], Limits())
    reader.skip(reader.announced().payload_bytes)
    assert passed.wait(5.0)
    waiting.join()
    writer.wait_below(0)
    writer.close()
