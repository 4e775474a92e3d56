"""Requests that share a batch: each gets what it would have got alone, and what two ask for is computed once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from luna_daemon.encode_messages import EncodeText, EncodeTokens, ResultForm, TextItem, TokenItem, TokenRows
from luna_daemon.tensors import from_torch, to_torch

if TYPE_CHECKING:
    from luna_daemon.runtime.engine import Engine

pytest.importorskip("instant_clip_tokenizer", reason="no wheel for this Python")

TOLERANCE = {("cpu", "f32"): 1e-5, ("cpu", "f16"): 2e-3}
"""How far a value of a few units may move by its neighbours in a batch, by device and dtype of the result.

fp32 rows of CLIP were bit-equal on the CPUs tried; another matrix kernel may be taken for another number of rows. A
result in f16 moves by one rounding at most.
"""


def never() -> None:
    return


def mixed(engine: Engine, dtype: str = "f32") -> list[tuple[Any, dict[str, Any]]]:
    """Requests that differ in everything that may differ within a batch."""
    form = ResultForm(dtype)
    vectors = torch.randn(2, 768, generator=torch.Generator().manual_seed(3)) * 0.02
    segments = {
        "ids": from_torch("ids", torch.tensor([49406, 320, -1, -2] + [49407] * 73, dtype=torch.int32)),
        "v": from_torch("v", vectors),
    }
    inverted = TokenItem({"l": TokenRows((77,), "ids", vectors=("v",))})
    texts = [
        TextItem("a cat"),
        TextItem("a (cat:1.4) on a [chair]", layer=-2),
        TextItem("dog " * 80, projected=False),
        TextItem(""),
    ]
    requests: list[tuple[Any, dict[str, Any]]] = [
        (EncodeText("sd15", (text,), cache="bypass", result=form), {}) for text in texts
    ]
    return [*requests, (EncodeTokens("sd15", (inverted,), cache="bypass", result=form), segments)]


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_what_a_row_gives_does_not_depend_on_its_neighbours(engine: Engine, dtype: str) -> None:
    requests = mixed(engine, dtype)
    alone = [engine.encode([engine.prepare(body, segments, never)], never).answers[0] for body, segments in requests]
    together = engine.encode([engine.prepare(body, segments, never) for body, segments in requests], never).answers
    rows = sum(len(encoding.wanted[0].encoders["l"].rows) for encoding in prepared(engine, requests))
    tolerance = TOLERANCE["cpu", dtype]
    for (one, first), (other, second) in zip(alone, together, strict=True):
        assert (other.did.rows, other.did.requests) == (rows, len(requests))
        assert one.did.requests == 1
        for mine, theirs in zip(first, second, strict=True):
            assert mine.shape == theirs.shape
            assert torch.allclose(to_torch(mine).float(), to_torch(theirs).float(), rtol=0, atol=tolerance)


def prepared(engine: Engine, requests: list[tuple[Any, dict[str, Any]]]) -> list[Any]:
    return [engine.prepare(body, segments, never) for body, segments in requests]


def test_unlike_requests_of_one_set_fit_and_exact_ones_run_alone(engine: Engine) -> None:
    keys = {encoding.key for encoding in prepared(engine, mixed(engine))}
    assert len(keys) == 1
    exact = EncodeText("sd15", (TextItem("a cat"),), exact=True)
    assert engine.prepare(exact, {}, never).key is None
    assert engine.group(exact) is None
    short = from_torch("ids", torch.tensor([49406, 320, 49407], dtype=torch.int32))
    other = EncodeTokens("sd15", (TokenItem({"l": TokenRows((3,), "ids")}),))
    assert engine.prepare(other, {"ids": short}, never).key not in keys
    by_family, by_id = other, EncodeTokens(engine.snapshot().sets[0].set, other.items)
    assert engine.group(by_family) == engine.group(by_id)


def test_a_prompt_that_two_ask_for_is_computed_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    (held,) = engine._store.sets.values()
    encode, counts = type(held.model).encode, []

    def counting(self: Any, items: Any, *arguments: Any) -> Any:
        counts.append(len(items))
        return encode(self, items, *arguments)

    monkeypatch.setattr(type(held.model), "encode", counting)
    same = [(EncodeText("sd15", (TextItem("one and the same"),)), {}) for _ in range(3)]
    answers = engine.encode(prepared(engine, same), never).answers
    assert counts == [1]
    first, *others = ([bytes(tensor.data) for tensor in tensors] for _, tensors in answers)
    assert all(one == first for one in others)
    assert [(reply.did.rows, reply.did.requests, reply.did.cached) for reply, _ in answers] == [(1, 3, False)] * 3


def test_weighted_prompts_share_their_empty_row_but_exact_ones_do_not(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (held,) = engine._store.sets.values()
    encoder, passes = held.model._encoders["l"], []
    run = encoder.run

    def counting(ids: torch.Tensor, *arguments: Any) -> Any:
        passes.append(len(ids))
        return run(ids, *arguments)

    monkeypatch.setattr(encoder, "run", counting)
    weighted = tuple(TextItem(f"a (cat:1.{number})") for number in range(2, 6))
    requests = [(EncodeText("sd15", (item,), cache="bypass"), {}) for item in weighted]
    shared = engine.encode(prepared(engine, requests), never).answers
    exact = [
        engine.encode_text(EncodeText("sd15", (item,), exact=True, cache="bypass"), {}, never) for item in weighted
    ]
    assert passes == [2, 2, 2, 2, 2]  # the words of these prompts are the same too
    for (_, mine), (_, theirs) in zip(shared, exact, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert torch.allclose(to_torch(one), to_torch(other), rtol=0, atol=1e-5)
    passes.clear()
    several = EncodeText("sd15", (*weighted, TextItem("a dog"), TextItem("a (dog:1.5)", layer=-2)), cache="bypass")
    engine.encode_text(several, {}, never)
    assert passes == [5]  # cat, empty, dog; and with another layer: dog, empty
