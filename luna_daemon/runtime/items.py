"""Encode requests as the backend's items, checked: ids inside the vocabulary, rows that add up, vectors that exist."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from luna_daemon.runtime.backend import EncodeItem, EncoderInput, Row
from luna_daemon.tensors import to_torch
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch

    from luna_daemon.encode_messages import Layer, TokenItem, TokenRows
    from luna_daemon.frames import WireTensor
    from luna_daemon.model_messages import EncoderFacts

_FORMATS: Mapping[str, Literal["i", "d"]] = {"i32": "i", "f64": "d"}


def token_item(
    item: TokenItem,
    segments: Mapping[str, WireTensor],
    encoders: Mapping[str, EncoderFacts],
    place: str,
    *,
    is_exact: bool = False,
) -> EncodeItem:
    """Return the backend's item of a wire item.

    Args:
        item: the prompt as rows.
        segments: the request's tensors.
        encoders: facts of the set's encoders.
        place: where the item stands in the request, for messages.
        is_exact: whether the request asks for ComfyUI's own arithmetic.

    Raises:
        DaemonError: ``token-invalid`` or ``tensor-invalid`` with the place; ``model-unsupported`` for what the native
            backend does not do.
    """
    if item.aux:
        raise DaemonError("model-unsupported", f"{place}.aux: the native backend reads no extra tokenizer values", None)
    inputs = {
        role: _input(rows, segments, _facts(role, encoders, place), f"{place}.encoders.{role}")
        for role, rows in item.encoders.items()
    }
    return EncodeItem(
        inputs,
        layers(item.layer, encoders),
        projected=item.projected is not False,
        loras=item.loras,
        is_exact=is_exact,
    )


def layers(layer: Layer, encoders: Mapping[str, EncoderFacts]) -> dict[str, int]:
    """Return the asked-for layer per role; a single number goes to every encoder."""
    if layer is None:
        return {}
    return dict(layer) if isinstance(layer, dict) else dict.fromkeys(encoders, layer)


def _facts(role: str, encoders: Mapping[str, EncoderFacts], place: str) -> EncoderFacts:
    if role not in encoders:
        raise DaemonError(
            "token-invalid",
            f"{place}.encoders: the set has no text encoder {role!r}; it has {', '.join(sorted(encoders)) or 'none'}",
            "tokenise with the tokenizer of the set's own family",
        )
    return encoders[role]


def _input(rows: TokenRows, segments: Mapping[str, WireTensor], facts: EncoderFacts, place: str) -> EncoderInput:
    if rows.images:
        raise DaemonError("model-unsupported", f"{place}.images: this text encoder takes no images", None)
    total = sum(rows.rows)
    ids: list[int] = _flat(segments[rows.ids], "i32", total, f"{place}.ids")
    weights = [1.0] * total if rows.weights is None else _flat(segments[rows.weights], "f64", total, f"{place}.weights")
    vectors = tuple(_vectors(segments[name], f"{place}.vectors") for name in rows.vectors)
    _check_values(ids, weights, sum(block.shape[0] for block in vectors), facts, place)
    if facts.row_max is not None and any(length > facts.row_max for length in rows.rows):
        raise DaemonError("token-invalid", f"{place}.rows: a row is longer than {facts.row_max} tokens")
    return EncoderInput(tuple(_cut(rows.rows, ids, weights)), vectors)


def _flat(tensor: WireTensor, dtype: str, length: int, place: str) -> list[Any]:
    """Return a short list's numbers, without the cost of a tensor."""
    if tensor.dtype != dtype or tensor.shape != (length,):
        raise DaemonError(
            "tensor-invalid", f"{place}: expected {dtype} [{length}], found {tensor.dtype} {list(tensor.shape)}"
        )
    return tensor.data.cast(_FORMATS[dtype]).tolist()


def _vectors(tensor: WireTensor, place: str) -> torch.Tensor:
    if tensor.dtype not in {"f32", "f16", "bf16"} or len(tensor.shape) != 2:
        raise DaemonError(
            "tensor-invalid", f"{place}: expected f32 or f16 [n, width], found {tensor.dtype} {list(tensor.shape)}"
        )
    block = to_torch(tensor)
    if not bool(block.isfinite().all()):
        raise DaemonError("token-invalid", f"{place}: {tensor.name} has values that are not finite numbers")
    return block


def _check_values(ids: list[int], weights: list[float], vectors: int, facts: EncoderFacts, place: str) -> None:
    wrong = next((value for value in ids if not -vectors <= value < facts.vocab), None)
    if wrong is not None:
        what = f"vector {-1 - wrong} of {vectors}" if wrong < 0 else f"id {wrong} of {facts.vocab}"
        raise DaemonError("token-invalid", f"{place}.ids: {what} does not exist")
    if not all(map(math.isfinite, weights)):
        raise DaemonError("token-invalid", f"{place}.weights: a weight is not a finite number")


def _cut(lengths: Iterable[int], ids: list[int], weights: list[float]) -> Iterable[Row]:
    start = 0
    for length in lengths:
        yield Row(tuple(ids[start : start + length]), tuple(weights[start : start + length]))
        start += length
