"""From token rows to a family's conditioning: the extra empty row, prompt weights, clip skip, joining (DAEMON.md 7.1).

Rows of several prompts run as one batch; nothing a row gives depends on its neighbours.
"""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from luna_daemon.runtime.backend import Encoded, EncodeItem, EncoderInput, Row
from luna_daemon.runtime.families import Joined, Section, TextFamily
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from luna_daemon.messages import LoraDid
    from luna_daemon.runtime.families import Pick
    from luna_daemon.runtime.text_encoder import EncoderShape, TextEncoder

_TOGETHER = ("l", "g")


@dataclass(frozen=True, slots=True)
class _Prepared:
    """One row as the encoder reads it: ids of the embedded sequence, its mask, and where its pooled state is."""

    ids: tuple[int, ...]
    mask: tuple[int, ...]
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
class _Batch:
    """All rows for one encoder.

    Attributes:
        blocks: row → the block to pick, None for the last state after the final norm.
        owners: row → the place of its prompt.
        same: row → the first row that is alike in all that its result depends on; its state is computed once.
        vectors: textual inversions of all rows.
    """

    role: str
    encoder: TextEncoder
    pick: Pick
    rows: Sequence[_Prepared]
    blocks: Mapping[int, int | None]
    owners: Mapping[int, int]
    same: Mapping[int, int]
    vectors: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class _RowState:
    """What one row gave: picked states [n, width], the pooled state [width] if there is one, and the row's mask."""

    hidden: torch.Tensor
    pooled: torch.Tensor | None
    mask: tuple[int, ...]


class RowLoras(Protocol):
    """The LoRAs of prompts, by the place of the prompt (see `luna_daemon.runtime.set_loras.LoraPlan`)."""

    def group(self, index: int) -> Hashable:
        """Return a key; rows of prompts with the same key may share a forward pass."""

    def rows(self, role: str, indexes: Sequence[int]) -> AbstractContextManager[object]:
        """Return the context of a forward pass whose rows belong to these prompts, in order."""

    def did(self, index: int) -> tuple[LoraDid, ...]:
        """Say what is done for one prompt."""


class _WithoutLoras:
    """No prompt has LoRAs."""

    def group(self, index: int) -> Hashable:  # noqa: ARG002 - the seam
        return None

    def rows(self, role: str, indexes: Sequence[int]) -> AbstractContextManager[object]:  # noqa: ARG002 - the seam
        return nullcontext()

    def did(self, index: int) -> tuple[LoraDid, ...]:  # noqa: ARG002 - the seam
        return ()


def encode(
    family: TextFamily,
    encoders: Mapping[str, TextEncoder],
    items: Sequence[EncodeItem],
    row_cap: int,
    check: Callable[[], None],
    loras: RowLoras | None = None,
) -> list[Encoded]:
    """Encode prompts in order.

    Args:
        family: how states become conditioning.
        encoders: role → encoder, for every role of the family unless it may lack some.
        items: the prompts.
        row_cap: rows at most in one forward pass.
        check: raises on cancel or deadline; called before each pass.
        loras: what is added to each of the prompts; None adds nothing.

    Raises:
        DaemonError: ``token-invalid`` for a role the family lacks, ``request-invalid`` for a layer that does not exist.
    """
    for item in items:
        _require_roles(encoders, item)
    added = loras or _WithoutLoras()
    per_role = {
        role: _encode_role(family, role, encoder, items, added, row_cap, check) for role, encoder in encoders.items()
    }
    return [
        _join(family, encoders, item, index, added, {role: done[index] for role, done in per_role.items()})
        for index, item in enumerate(items)
    ]


def _require_roles(encoders: Mapping[str, TextEncoder], item: EncodeItem) -> None:
    unknown = sorted((set(item.encoders) | set(item.layers)) - set(encoders))
    if unknown:
        raise DaemonError(
            "token-invalid",
            f"the set has no text encoder {unknown[0]!r}; it has {', '.join(sorted(encoders))}",
            "tokenise with the tokenizer of the set's own family",
        )


def _encode_role(
    family: TextFamily,
    role: str,
    encoder: TextEncoder,
    items: Sequence[EncodeItem],
    loras: RowLoras,
    row_cap: int,
    check: Callable[[], None],
) -> list[Section]:
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
        block = _block(item.layers.get(role), family.picks[role], encoder.shape)
        plans.append(
            _Plan(start, len(given.rows), weighted or not given.rows, block, sum(drop for _, drop in prepared))
        )
    blocks = {index: plan.block for plan in plans for index in range(plan.start, _stop(plan))}
    owners = {index: place for place, plan in enumerate(plans) for index in range(plan.start, _stop(plan))}
    table = torch.cat(vectors) if vectors else None
    same = _first_alike(rows, blocks, [items[owners[index]] for index in range(len(rows))])
    batch = _Batch(role, encoder, family.picks[role], rows, blocks, owners, same, table)
    states = _run(batch, loras, row_cap, check)
    return [
        _weigh(item.encoders.get(role, EncoderInput(())).rows, plan, states)
        for item, plan in zip(items, plans, strict=True)
    ]


def _first_alike(
    rows: Sequence[_Prepared], blocks: Mapping[int, int | None], owners: Sequence[EncodeItem]
) -> dict[int, int]:
    """Return for each row the first that gives the same: above all, weighted prompts share their empty row.

    An exact prompt shares nothing, so that its batch is the one that ComfyUI would have run.
    """
    first: dict[Hashable, int] = {}
    return {
        index: index if item.is_exact else first.setdefault((row, blocks[index], item.loras), index)
        for index, (row, item) in enumerate(zip(rows, owners, strict=True))
    }


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


def _prepare(row: Row, slots: Sequence[int | None], shape: EncoderShape) -> tuple[_Prepared, int]:
    """Turn a row into table ids; a vector without a slot is dropped, and a pad follows at the end for it.

    Tokens behind the first end token are padding; without an end token, those from the first pad on.
    """
    ids: list[int] = []
    mask: list[int] = []
    attended, dropped, is_ended = 0, 0, False
    for token in row.ids:
        if token >= 0:
            ids.append(token)
            attended += not is_ended
            mask.append(int(not is_ended and (shape.end is not None or token != shape.pad)))
            is_ended = is_ended or token == (shape.pad if shape.end is None else shape.end)
        elif (slot := slots[-1 - token]) is None:
            dropped += 1
        else:
            ids.append(shape.vocabulary + slot)
            mask.append(1)
            attended += 1
    ids += [shape.pad] * dropped
    mask += [0] * dropped
    return _Prepared(tuple(ids), tuple(mask), attended - 1), dropped


def _empty_row(rows: Sequence[Row], shape: EncoderShape) -> _Prepared:
    """Return start, end and padding, as long as the longest row: what weights are measured from."""
    head = [token for token in (shape.start, shape.end) if token is not None]
    length = max((len(row.ids) for row in rows), default=0)
    ids = (*head, *[shape.pad] * (length - len(head)))
    if not ids:
        raise DaemonError("token-invalid", "the prompt has no tokens", "send one row of padding at least")
    mask = (*[1] * len(head), *[0] * (len(ids) - len(head)))
    return _Prepared(ids, mask, len(head) - 1)


def _block(layer: int | None, pick: Pick, shape: EncoderShape) -> int | None:
    """Return the index of the block to pick, or None for the last state after the final norm."""
    if layer is None or abs(layer) > shape.layers:
        layer = pick.layer
    if layer == shape.layers:
        raise DaemonError(
            "request-invalid",
            f"layer {layer} does not exist: counted from the front, the last is {shape.layers - 1}",
            "use -1 for the last layer",
        )
    index = layer if layer >= 0 else shape.layers + layer
    return None if pick.is_normed and index == shape.layers - 1 else index


def _run(batch: _Batch, loras: RowLoras, row_cap: int, check: Callable[[], None]) -> dict[int, _RowState]:
    alike: dict[Hashable, list[int]] = {}
    for index in sorted(set(batch.same.values())):
        alike.setdefault((len(batch.rows[index].ids), loras.group(batch.owners[index])), []).append(index)
    states: dict[int, _RowState] = {}
    for members in alike.values():
        for first in range(0, len(members), row_cap):
            check()
            chosen = members[first : first + row_cap]
            with loras.rows(batch.role, [batch.owners[index] for index in chosen]):
                states |= _pass(batch, chosen)
    return {index: states[first] for index, first in batch.same.items()}


def _pass(batch: _Batch, chosen: Sequence[int]) -> dict[int, _RowState]:
    """Run one forward pass over rows of equal length."""
    encoder, rows, pick = batch.encoder, batch.rows, batch.pick
    wanted = {block for index in chosen if (block := batch.blocks[index]) is not None}
    ids = torch.tensor([rows[index].ids for index in chosen])
    mask = torch.tensor([rows[index].mask for index in chosen]) if encoder.is_masked else None
    out = encoder.run(ids, batch.vectors, wanted, mask)
    states = {}
    for place, index in enumerate(chosen):
        block = batch.blocks[index]
        hidden = out.last[place] if block is None else out.blocks[block][place]
        if block is not None and pick.is_normed:
            hidden = encoder.final_norm(hidden)
        pooled = out.last[place, rows[index].pooled_at] if encoder.has_pooled else None
        states[index] = _RowState(hidden, pooled, rows[index].mask)
    return states


def _weigh(rows: Sequence[Row], plan: _Plan, states: Mapping[int, _RowState]) -> Section:
    """Apply the weights and lay the chunks one after the other; the pooled state is the first chunk's, unweighted."""
    count = plan.sections or 1  # a prompt of no rows is the empty row's state
    of_rows = [states[plan.start + index] for index in range(count)]
    chunks = [state.hidden for state in of_rows]
    if rows and plan.has_empty_row:
        empty = states[plan.start + plan.sections].hidden
        chunks = [_pull(chunk, empty, row.weights) for chunk, row in zip(chunks, rows, strict=True)]
    pooled = of_rows[0].pooled
    mask = torch.tensor([[seen for state in of_rows for seen in state.mask]])
    return Section(torch.cat(chunks)[None].cpu(), None if pooled is None else pooled[None].cpu(), mask, plan.dropped)


def _pull(hidden: torch.Tensor, empty: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """Move every state of weight ≠ 1 along the line through the empty prompt's state: (h - e)·w + e."""
    factor = torch.tensor(weights, dtype=hidden.dtype, device=hidden.device)[:, None]
    base = empty[: len(hidden)]
    return torch.where(factor == 1.0, hidden, (hidden - base) * factor + base)


def _join(
    family: TextFamily,
    encoders: Mapping[str, TextEncoder],
    item: EncodeItem,
    index: int,
    loras: RowLoras,
    sections: Mapping[str, Section],
) -> Encoded:
    dropped = sum(section.dropped for section in sections.values())
    used = {role: section for role, section in sections.items() if _is_used(family, item, role)}
    pooled = used[family.pooled].pooled if family.pooled in used else None
    if family.pooled is not None and pooled is not None and family.is_projected and item.projected:
        with loras.rows(family.pooled, [index]):
            projected = encoders[family.pooled].project(pooled)
        used[family.pooled] = dataclasses.replace(used[family.pooled], pooled=projected)
    joined: Joined = family.join(family, used)
    return Encoded(joined.cond, joined.pooled, joined.extras, dropped, loras.did(index))


def _is_used(family: TextFamily, item: EncodeItem, role: str) -> bool:
    """Tell whether an encoder has its say: a partial family without tokens for l and g goes without both."""
    return not family.is_partial or role not in _TOGETHER or any(other in item.encoders for other in _TOGETHER)
