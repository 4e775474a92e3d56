"""Results are remembered: the same prompt answers from memory, another one never does."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luna_daemon.encode_messages import EncodeText, EncodeTokens, ResultForm, TextItem, TokenItem, TokenRows
from luna_daemon.frames import WireTensor
from luna_daemon.runtime.backend import EncodeItem, EncoderInput, Row
from luna_daemon.runtime.results import Result, ResultCache, keys_of
from luna_daemon.tensors import from_torch

if TYPE_CHECKING:
    from luna_daemon.runtime.engine import Engine

ROW = Row((1, -1, 3), (1.0, 1.0, 1.2))
ITEM = EncodeItem({"l": EncoderInput((ROW,), (torch.ones(1, 4),))}, {"l": -1})


def never() -> None:
    return


def result(nbytes: int) -> Result:
    return Result(WireTensor.of_bytes("", bytes(nbytes)))


def key(number: int) -> bytes:
    return number.to_bytes(4, "big")


def changed(**more: Any) -> EncodeItem:
    return dataclasses.replace(ITEM, **more)


@pytest.mark.parametrize(
    "other",
    [
        changed(projected=False),
        changed(layers={"l": -2}),
        changed(layers={}),
        changed(encoders={"g": ITEM.encoders["l"]}),
        changed(encoders={**ITEM.encoders, "g": EncoderInput(())}),
        changed(encoders={"l": EncoderInput((Row((1, -1, 4), ROW.weights),), ITEM.encoders["l"].vectors)}),
        changed(encoders={"l": EncoderInput((Row(ROW.ids, (1.0, 1.0, 1.3)),), ITEM.encoders["l"].vectors)}),
        changed(encoders={"l": EncoderInput((ROW, ROW), ITEM.encoders["l"].vectors)}),
        changed(
            encoders={
                "l": EncoderInput((Row((1, -1), (1.0, 1.0)), Row((3,), (1.2,))), ITEM.encoders["l"].vectors),
            }
        ),
        changed(encoders={"l": EncoderInput((ROW,), (torch.zeros(1, 4),))}),
        changed(encoders={"l": EncoderInput((ROW,), (torch.ones(1, 4, dtype=torch.float16),))}),
        changed(encoders={"l": EncoderInput((ROW,), (torch.ones(2, 2),))}),
        changed(encoders={"l": EncoderInput((ROW,))}),
    ],
)
def test_whatever_changes_a_result_changes_its_key(other: EncodeItem) -> None:
    assert keys_of("s", [ITEM], "f32", is_exact=False) != keys_of("s", [other], "f32", is_exact=False)


def test_set_dtype_and_an_exact_batch_are_part_of_the_key() -> None:
    keys = {
        keys_of("s", [ITEM], "f32", is_exact=False)[0],
        keys_of("t", [ITEM], "f32", is_exact=False)[0],
        keys_of("s", [ITEM], "f16", is_exact=False)[0],
        keys_of("s", [ITEM], "f32", is_exact=True)[0],
        *keys_of("s", [ITEM, ITEM], "f32", is_exact=True),
    }
    assert len(keys) == 6
    same = dataclasses.replace(ITEM, encoders={"l": EncoderInput((ROW,), (torch.ones(1, 4),))})
    assert keys_of("s", [ITEM], "f32", is_exact=False) == keys_of("s", [same], "f32", is_exact=False)


def test_the_one_used_longest_ago_goes_first() -> None:
    cache = ResultCache(3 * 10_512)
    for number in range(3):
        cache.put(key(number), result(10_000))
    assert cache.get(key(0)) is not None
    cache.put(key(3), result(10_000))
    assert [cache.get(key(number)) is None for number in range(4)] == [False, True, False, False]
    status = cache.status()
    assert (status.entries, status.evictions, status.hits, status.misses) == (3, 1, 4, 1)


def test_all_or_nothing_is_answered_from_memory() -> None:
    cache = ResultCache()
    cache.put(key(1), result(5))
    assert cache.get_all([key(1), key(2)]) is None
    assert cache.status().hits == 0
    assert cache.get_all([key(1), key(1)]) == [result(5), result(5)]


# DAEMON S21
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3000)), max_size=60))
def test_the_cap_holds_whatever_comes(puts: list[tuple[int, int]]) -> None:
    cache = ResultCache(8000)
    last: dict[int, int] = {}
    for number, nbytes in puts:
        cache.put(key(number), result(nbytes))
        last[number] = nbytes
        assert cache.status().bytes <= 8000
    kept = {number: found for number in range(10) if (found := cache.get(key(number))) is not None}
    assert cache.status().bytes == sum(found.nbytes + 512 for found in kept.values())
    assert all(found.nbytes == last[number] for number, found in kept.items())


def test_what_is_larger_than_the_whole_cache_is_not_kept_and_evicts_nothing() -> None:
    cache = ResultCache(2000)
    cache.put(key(1), result(100))
    cache.put(key(2), result(3000))
    assert (cache.status().entries, cache.status().evictions) == (1, 0)


@pytest.fixture
def counted(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the prompts that the model of the engine really encodes."""
    (held,) = engine._store.sets.values()
    encode, seen = type(held.model).encode, []

    def counting(self: Any, items: Any, *arguments: Any) -> Any:
        seen.append(len(items))
        return encode(self, items, *arguments)

    monkeypatch.setattr(type(held.model), "encode", counting)
    return seen


def text(engine: Engine, *prompts: str, cache: str = "use", dtype: str = "f32") -> tuple[Any, dict[str, bytes]]:
    body = EncodeText("sd15", tuple(map(TextItem, prompts)), cache=cache, result=ResultForm(dtype))
    reply, tensors = engine.encode_text(body, {}, never)
    return reply, {tensor.name: bytes(tensor.data) for tensor in tensors}


def test_a_repeated_prompt_is_not_computed_and_is_the_same(engine: Engine, counted: list[int]) -> None:
    before = engine.snapshot().caches["results"]
    first, tensors = text(engine, "a repeated lighthouse")
    second, again = text(engine, "a repeated lighthouse")
    after = engine.snapshot().caches["results"]
    assert counted == [1]
    assert again == tensors
    assert (first.items[0].cached, first.did.cached, first.did.rows) == (False, False, 1)
    assert (second.items[0].cached, second.did.cached, second.did.rows) == (True, True, None)
    assert second.items[0].tokens == first.items[0].tokens
    assert (after.hits - before.hits, after.misses - before.misses, after.entries - before.entries) == (1, 1, 1)
    assert after.bytes - before.bytes >= 77 * 768 * 4


def test_only_what_is_new_is_computed_and_the_order_stays(engine: Engine, counted: list[int]) -> None:
    _, alone = text(engine, "an old friend")
    reply, tensors = text(engine, "a new face", "an old friend", "another new face")
    assert counted == [1, 2]
    assert [item.cached for item in reply.items] == [False, True, False]
    assert not reply.did.cached
    assert tensors["1.cond"] == alone["0.cond"]
    assert len(tensors) == 6


def test_bypass_and_refresh_do_what_they_say(engine: Engine, counted: list[int]) -> None:
    text(engine, "a modest proposal", cache="bypass")
    text(engine, "a modest proposal")
    text(engine, "a modest proposal", cache="refresh")
    text(engine, "a modest proposal", cache="bypass")
    assert counted == [1, 1, 1, 1]
    assert text(engine, "a modest proposal")[0].did.cached
    assert not text(engine, "a modest proposal", dtype="f16")[0].did.cached
    assert counted == [1, 1, 1, 1, 1]


def test_tokens_meet_the_result_of_their_text_and_are_recalled_on_any_thread(
    engine: Engine, counted: list[int]
) -> None:
    _, tensors = text(engine, "cat")
    ids = from_torch("ids", torch.tensor([49406, 2368, 49407] + [49407] * 74, dtype=torch.int32))
    body = EncodeTokens("sd15", (TokenItem({"l": TokenRows((77,), "ids")}),))
    recalled = engine.recall(body, {"ids": ids})
    assert recalled is not None
    reply, found = recalled
    assert counted == [1]
    assert reply.items[0].cached
    assert reply.did.cached
    assert {tensor.name: bytes(tensor.data) for tensor in found} == tensors
    assert engine.recall(dataclasses.replace(body, cache="refresh"), {"ids": ids}) is None
    other = from_torch("ids", torch.tensor([49406, 2369, 49407] + [49407] * 74, dtype=torch.int32))
    assert engine.recall(body, {"ids": other}) is None
