"""Models sent over the wire: chunk by chunk, checked against their hash, bounded in size and number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psutil
import pytest
import torch
from safetensors.torch import save

from luna_daemon.runtime.parts import OpenFile
from luna_daemon.runtime.uploads import UPLOADS_MAX, UploadStore
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def never() -> None:
    """Check nothing."""


def code_of(call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(DaemonError) as caught:
        call(*arguments)
    return caught.value.code


@pytest.fixture(scope="module")
def vae(model_root: Path) -> tuple[str, bytes]:
    """Content hash and bytes of a VAE file."""
    path = model_root / "vae/vae.safetensors"
    with OpenFile(path, "vae") as file:
        part = file.find("vae")
        assert part is not None
        return part.content(never), path.read_bytes()


def send(store: UploadStore, content: str, data: bytes, size: int = 1 << 24) -> str:
    upload = store.begin(content, len(data))
    for start in range(0, len(data), size):
        store.chunk(upload, start, memoryview(data)[start : start + size])
    return upload


def test_what_is_sent_is_the_part_that_a_file_holds(vae: tuple[str, bytes], model_root: Path) -> None:
    content, data = vae
    store = UploadStore()
    assert store.commit(send(store, content, data), never) == content
    part = store.part(content)
    assert part is not None
    with OpenFile(model_root / "vae/vae.safetensors", "vae") as file:
        original = file.find("vae")
        assert original is not None
        assert part.entries == original.entries
        assert torch.equal(part.tensor("decoder.conv_in.weight"), original.tensor("decoder.conv_in.weight"))
    assert store.clear() == len(data)
    assert store.part(content) is None
    assert store.size_bytes() == 0


def test_another_hash_or_missing_bytes_drop_the_upload(vae: tuple[str, bytes]) -> None:
    content, data = vae
    store = UploadStore()
    assert code_of(store.commit, send(store, "0" * 64, data), never) == "tensor-invalid"
    begun = store.begin(content, len(data))
    store.chunk(begun, 0, memoryview(data)[:100])
    assert code_of(store.commit, begun, never) == "tensor-invalid"
    assert len(store) == 0


def test_what_is_no_model_or_no_part_is_refused() -> None:
    store = UploadStore()
    assert code_of(store.commit, send(store, "0" * 64, b"x" * 100), never) == "file-damaged"
    assert code_of(store.commit, send(store, "0" * 64, save({"a": torch.zeros(3)})), never) == "tensor-invalid"


def test_chunks_come_in_order_and_within_the_announced_size() -> None:
    store = UploadStore()
    upload = store.begin("0" * 64, 10)
    assert code_of(store.chunk, upload, 4, memoryview(b"late")) == "request-invalid"
    store.chunk(upload, 0, memoryview(b"four"))
    assert code_of(store.chunk, upload, 0, memoryview(b"four")) == "request-invalid"
    assert code_of(store.chunk, upload, 4, memoryview(b"1234567")) == "payload-too-large"
    assert code_of(store.chunk, "unknown", 0, memoryview(b"x")) == "request-invalid"
    store.abort(upload)
    store.abort(upload)
    assert code_of(store.commit, upload, never) == "request-invalid"


def test_finished_models_make_room_for_new_ones(vae: tuple[str, bytes]) -> None:
    content, data = vae
    store = UploadStore(cap_bytes=len(data) + 10)
    store.commit(send(store, content, data), never)
    first, second = store.begin("0" * 64, 10), store.begin("1" * 64, 10)
    store.chunk(first, 0, memoryview(bytes(10)))
    assert store.part(content) is not None
    store.chunk(second, 0, memoryview(bytes(1)))
    assert store.part(content) is None
    assert store.evictions == 1


def test_bytes_and_number_are_bounded() -> None:
    store = UploadStore(cap_bytes=100)
    assert code_of(store.begin, "0", 101) == "payload-too-large"
    upload, other = store.begin("0", 60), store.begin("1", 60)
    store.chunk(upload, 0, memoryview(bytes(60)))
    assert code_of(store.chunk, other, 0, memoryview(bytes(60))) == "payload-too-large"
    assert code_of(store.begin, "2", 60) == "payload-too-large"
    many = UploadStore()
    for index in range(UPLOADS_MAX):
        many.begin(str(index), 1)
    assert code_of(many.begin, "more", 1) == "daemon-busy"


def test_an_announcement_takes_no_memory_and_one_that_was_given_up_makes_room_for_others() -> None:
    """S8, S18: the client that announced it may have died, or never meant to send anything."""
    now = [0.0]
    store = UploadStore(clock=lambda: now[0])
    before = psutil.Process().memory_info().rss
    for _ in range(8):
        store.begin("0" * 64, 2**34)
    assert psutil.Process().memory_info().rss - before < 2**26
    assert code_of(store.begin, "0" * 64, 100) == "daemon-busy"
    now[0] = 59.0
    assert code_of(store.begin, "0" * 64, 100) == "daemon-busy"
    now[0] = 61.0
    assert store.begin("0" * 64, 100)
    assert len(store) == 1
