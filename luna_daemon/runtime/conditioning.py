"""From token rows to a family's conditioning: the extra empty row, prompt weights, clip skip, joining (DAEMON.md 7.1).

Rows of several prompts run as one batch; nothing a row gives depends on its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from luna_daemon.runtime.backend import Encoded, EncodeItem, EncoderInput, Row
from luna_daemon.runtime.clip_text import CLIP_G, CLIP_L, END, START, VOCABULARY, ClipShape, ClipTextEncoder
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class TextFamily:
    """How a family makes conditioning of its encoders' states.

    Attributes:
        shapes: role → encoder, in the order in which they are joined on the width.
        layer: the block taken by default (-1 the last).
        is_normed: whether a picked block passes the final norm.
        pooled: the role whose pooled state is the prompt's.
        is_projected: whether that state passes text_projection unless the request says otherwise.
    """

    shapes: Mapping[str, ClipShape]
    layer: int
    is_normed: bool
    pooled: str
    is_projected: bool


FAMILIES: Mapping[str, TextFamily] = {
    "sd15": TextFamily({"l": CLIP_L}, layer=-1, is_normed=True, pooled="l", is_projected=False),
    "sdxl": TextFamily({"l": CLIP_L, "g": CLIP_G}, layer=-2, is_normed=False, pooled="g", is_projected=True),
}


@dataclass(frozen=True, slots=True)
class _Prepared:
    """One row as the encoder reads it: ids of the embedded sequence, and where its pooled state is."""

    ids: tuple[int, ...]
    pooled_at: int


@dataclass(frozen=True, slots=True)
class _Plan:
    """One prompt in one encoder: where its rows are in the batch, the empty row last if there is one."""

    start: int
    sections: int
    has_empty_row: bool
    block: int | None
    dropped: int


@dataclass(frozen=True, slots=True)
class _RowState:
    """What one row gave: picked states [n, width] and the pooled state [width]."""

    hidden: torch.Tensor
    pooled: torch.Tensor


def encode(
    family: TextFamily,
    encoders: Mapping[str, ClipTextEncoder],
    items: Sequence[EncodeItem],
    row_cap: int,
    check: Callable[[], None],
) -> list[Encoded]:
    """Encode prompts in order.

    Args:
        family: how states become conditioning.
        encoders: role → encoder, for every role of the family.
        items: the prompts.
        row_cap: rows at most in one forward pass.
        check: raises on cancel or deadline; called before each pass.

    Raises:
        DaemonError: ``token-invalid`` for a role the family lacks, ``request-invalid`` for a layer that does not exist.
    """
    for item in items:
        _require_roles(family, item)
    per_role = {role: _encode_role(family, role, encoder, items, row_cap, check) for role, encoder in encoders.items()}
    return [
        _join(family, encoders, item, {role: done[index] for role, done in per_role.items()})
        for index, item in enumerate(items)
    ]


@dataclass(frozen=True, slots=True)
class _Section:
    """One prompt out of one encoder: [1, tokens, width] and the pooled state [1, width]."""

    cond: torch.Tensor
    pooled: torch.Tensor
    dropped: int


def _require_roles(family: TextFamily, item: EncodeItem) -> None:
    unknown = sorted((set(item.encoders) | set(item.layers)) - set(family.shapes))
    if unknown:
        raise DaemonError(
            "token-invalid",
            f"the set has no text encoder {unknown[0]!r}; it has {', '.join(sorted(family.shapes))}",
            "tokenise with the tokenizer of the set's own family",
        )


def _encode_role(
    family: TextFamily,
    role: str,
    encoder: ClipTextEncoder,
    items: Sequence[EncodeItem],
    row_cap: int,
    check: Callable[[], None],
) -> list[_Section]:
    rows: list[_Prepared] = []
    plans: list[_Plan] = []
    vectors: list[torch.Tensor] = []
    for item in items:
        given = item.encoders.get(role, EncoderInput(()))
        slots = _place_vectors(given.vectors, vectors, encoder.shape.width)
        start, weighted = len(rows), _is_weighted(given.rows)
        prepared = [_prepare(row, slots, encoder.shape) for row in given.rows]
        rows += [entry for entry, _ in prepared]
        if weighted or not given.rows:
            rows.append(_empty_row(given.rows, encoder.shape))
        block = _block(item.layers.get(role), family, encoder.shape)
        plans.append(
            _Plan(start, len(given.rows), weighted or not given.rows, block, sum(drop for _, drop in prepared))
        )
    blocks = {index: plan.block for plan in plans for index in range(plan.start, _stop(plan))}
    table = torch.cat(vectors) if vectors else None
    states = _run(family, encoder, rows, table, blocks, row_cap, check)
    return [
        _weigh(item.encoders.get(role, EncoderInput(())).rows, plan, states)
        for item, plan in zip(items, plans, strict=True)
    ]


def _stop(plan: _Plan) -> int:
    return plan.start + plan.sections + plan.has_empty_row


def _place_vectors(given: Sequence[torch.Tensor], table: list[torch.Tensor], width: int) -> list[int | None]:
    """Append the vectors of the right width to ``table``; return where each row went, None for a wrong width."""
    used = sum(len(block) for block in table)
    slots: list[int | None] = []
    for block in given:
        fits = block.shape[-1] == width
        slots += range(used, used + len(block)) if fits else [None] * len(block)
        if fits:
            table.append(block.float())
            used += len(block)
    return slots


def _is_weighted(rows: Sequence[Row]) -> bool:
    return any(weight != 1.0 for row in rows for weight in row.weights)


def _prepare(row: Row, slots: Sequence[int | None], shape: ClipShape) -> tuple[_Prepared, int]:
    """Turn a row into table ids; a vector without a slot is dropped, and a pad follows at the end for it."""
    ids: list[int] = []
    attended, dropped, is_ended = 0, 0, False
    for token in row.ids:
        if token >= 0:
            ids.append(token)
            attended += not is_ended
            is_ended = is_ended or token == END
        elif (slot := slots[-1 - token]) is None:
            dropped += 1
        else:
            ids.append(VOCABULARY + slot)
            attended += 1
    ids += [shape.pad] * dropped
    return _Prepared(tuple(ids), attended - 1), dropped


def _empty_row(rows: Sequence[Row], shape: ClipShape) -> _Prepared:
    """Return start, end and padding, as long as the longest row: what weights are measured from."""
    length = max((len(row.ids) for row in rows), default=0)
    return _Prepared((START, END, *[shape.pad] * (length - 2)), 1)


def _block(layer: int | None, family: TextFamily, shape: ClipShape) -> int | None:
    """Return the index of the block to pick, or None for the last state after the final norm."""
    if layer is None or abs(layer) > shape.layers:
        layer = family.layer
    if layer == shape.layers:
        raise DaemonError(
            "request-invalid",
            f"layer {layer} does not exist: counted from the front, the last is {shape.layers - 1}",
            "use -1 for the last layer",
        )
    index = layer if layer >= 0 else shape.layers + layer
    return None if family.is_normed and index == shape.layers - 1 else index


def _run(
    family: TextFamily,
    encoder: ClipTextEncoder,
    rows: Sequence[_Prepared],
    vectors: torch.Tensor | None,
    blocks: Mapping[int, int | None],
    row_cap: int,
    check: Callable[[], None],
) -> dict[int, _RowState]:
    by_length: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        by_length.setdefault(len(row.ids), []).append(index)
    states: dict[int, _RowState] = {}
    for members in by_length.values():
        for first in range(0, len(members), row_cap):
            check()
            batch = members[first : first + row_cap]
            wanted = {block for index in batch if (block := blocks[index]) is not None}
            out = encoder.run(torch.tensor([rows[index].ids for index in batch]), vectors, wanted)
            for place, index in enumerate(batch):
                block = blocks[index]
                hidden = out.last[place] if block is None else out.blocks[block][place]
                if block is not None and family.is_normed:
                    hidden = encoder.final_norm(hidden)
                states[index] = _RowState(hidden, out.last[place, rows[index].pooled_at])
    return states


def _weigh(rows: Sequence[Row], plan: _Plan, states: Mapping[int, _RowState]) -> _Section:
    """Apply the weights and lay the chunks one after the other; the pooled state is the first chunk's, unweighted."""
    if not rows:
        only = states[plan.start]
        return _Section(only.hidden[None].cpu(), only.pooled[None].cpu(), 0)
    chunks = [states[plan.start + index].hidden for index in range(plan.sections)]
    if plan.has_empty_row:
        empty = states[plan.start + plan.sections].hidden
        chunks = [_pull(chunk, empty, row.weights) for chunk, row in zip(chunks, rows, strict=True)]
    pooled = states[plan.start].pooled[None]
    return _Section(torch.cat(chunks)[None].cpu(), pooled.cpu(), plan.dropped)


def _pull(hidden: torch.Tensor, empty: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """Move every state of weight ≠ 1 along the line through the empty prompt's state: (h - e)·w + e."""
    factor = torch.tensor(weights, dtype=hidden.dtype, device=hidden.device)[:, None]
    base = empty[: len(hidden)]
    return torch.where(factor == 1.0, hidden, (hidden - base) * factor + base)


def _join(
    family: TextFamily,
    encoders: Mapping[str, ClipTextEncoder],
    item: EncodeItem,
    sections: Mapping[str, _Section],
) -> Encoded:
    tokens = min(section.cond.shape[1] for section in sections.values())
    cond = torch.cat([sections[role].cond[:, :tokens] for role in family.shapes], dim=-1)
    pooled = sections[family.pooled].pooled
    if family.is_projected and item.projected:
        pooled = encoders[family.pooled].project(pooled)
    return Encoded(cond, pooled, {}, sum(section.dropped for section in sections.values()))
