"""Rows of several prompts through one forward of ComfyUI's encoders, and then ComfyUI's own encode fed with them.

An architecture's encode calls ``encode(rows)`` of its encoders and goes on with what that gives. The rows it will ask
for are foreseen, run beside those of the other prompts, and handed over when it asks; rows that were not foreseen run
when they are asked for. So an encoder's own code decides what becomes of its states, and batching can only save runs.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

    from luna_daemon.runtime.backend import EncodeItem
    from luna_daemon.runtime.checkout import Comfy
    from luna_daemon.runtime.set_loras import LoraPlan

    Check = Callable[[], None]
    Tokens = Sequence[Any]

LAST = "last"
SHORT = 32
"""Rows of fewer tokens run by themselves: a matrix product of so few lines is summed in another order beside others.
On 2 cores of a Zen 4 that was seen for 1 to 3 lines with one thread, up to 10 with two."""


@dataclass(frozen=True, slots=True)
class _Options:
    """What an encoder is set to: which layer, and which pooled state."""

    layer: Any
    index: int | None
    projected: bool

    @classmethod
    def of(cls, module: Any) -> _Options:
        layer = tuple(module.layer) if isinstance(module.layer, list) else module.layer
        return cls(layer, module.layer_idx, module.return_projected_pooled)

    def give(self, module: Any) -> None:
        """Set an encoder to them."""
        module.layer = list(self.layer) if isinstance(self.layer, tuple) else self.layer
        module.layer_idx = self.index
        module.return_projected_pooled = self.projected


@dataclass(frozen=True, slots=True)
class ForeseenRow:
    """A row that an encoder will be asked for.

    Attributes:
        tokens: as ComfyUI writes them: numbers, and vectors in their places.
        owner: the place of its prompt.
        key: equal for rows that give the same.
    """

    role: str
    tokens: Tokens
    owner: int
    options: _Options
    key: Hashable


@dataclass(frozen=True, slots=True)
class RowState:
    """What one row gave; the first axis of each tensor is that row."""

    hidden: torch.Tensor
    pooled: torch.Tensor | None
    extras: Mapping[str, torch.Tensor] | None


class RowSharing:
    """Runs the rows of the encoders of one CLIP object.

    Args:
        modules: role → encoder; the rows of one with a forward of its own are not foreseen.
        comfy: the checkout.
    """

    def __init__(self, modules: Mapping[str, Any], comfy: Comfy) -> None:
        base = comfy.sd1_clip.SDClipModel
        self._modules = modules
        self._plain = {role: module for role, module in modules.items() if _is_plain(module, base)}
        self._fill = comfy.sd1_clip.gen_empty_tokens

    @property
    def has_any(self) -> bool:
        """Tell whether prompts can share anything."""
        return bool(self._plain)

    def options(self) -> dict[str, _Options]:
        """Return what each encoder is set to now."""
        return {role: _Options.of(module) for role, module in self._plain.items()}

    def foresee(
        self, item: EncodeItem, owner: int, tokens: Mapping[str, Sequence[Any]], options: Mapping[str, _Options]
    ) -> Iterator[ForeseenRow]:
        """Give the rows that a prompt's encode will ask for: its chunks, and the empty row if it is weighted."""
        for role, module in self._plain.items():
            chunks = tokens.get(role, ())
            rows = [[pair[0] for pair in chunk] for chunk in chunks]
            if not rows or any(isinstance(token, dict) for row in rows for token in row):
                continue
            if any(pair[1] != 1.0 for chunk in chunks for pair in chunk):
                rows.append(self._empty_row(module, max(map(len, rows))))
            for row in rows:
                key = (role, options[role], item.loras, _identity(row))
                yield ForeseenRow(role, row, owner, options[role], key)

    def _empty_row(self, module: Any, length: int) -> list[int]:
        fill = getattr(module, "gen_empty_tokens", self._fill)
        row: list[int] = fill(module.special_tokens, length)
        return row

    def run(self, rows: Sequence[ForeseenRow], loras: LoraPlan, row_cap: int, check: Check) -> dict[Hashable, RowState]:
        """Run rows, alike ones once, as many in one forward as fit together; return their states by their keys.

        Rows of CLIP share a forward whatever their options, others if they are of the same layer.
        """
        groups: dict[Hashable, list[ForeseenRow]] = {}
        for row in {row.key: row for row in rows}.values():
            shared = None if _is_clip(self._modules[row.role]) else row.options
            groups.setdefault((row.role, len(row.tokens), shared, loras.group(row.owner)), []).append(row)
        states: dict[Hashable, RowState] = {}
        for members in groups.values():
            most = row_cap if len(members[0].tokens) >= SHORT else 1
            for first in range(0, len(members), most):
                check()
                chosen = members[first : first + most]
                with loras.rows(chosen[0].role, [row.owner for row in chosen]):
                    states |= self._pass(self._modules[chosen[0].role], chosen)
        return states

    def _pass(self, module: Any, rows: Sequence[ForeseenRow]) -> dict[Hashable, RowState]:
        tokens = [list(row.tokens) for row in rows]
        if _is_clip(module):
            made = _pick(module, tokens, [row.options for row in rows])
        else:
            rows[0].options.give(module)
            made = _split(module.encode(tokens), len(rows))
        return {row.key: state for row, state in zip(rows, made, strict=True)}

    @contextlib.contextmanager
    def fed(self, item: EncodeItem, owner: int, states: Mapping[Hashable, RowState], loras: LoraPlan) -> Iterator[None]:
        """Let the encoders answer with these states; any other row they run, with the prompt's LoRAs."""
        for role, module in self._modules.items():
            module.encode = self._answering(role, module, item, owner, states, loras)
        try:
            yield
        finally:
            for module in self._modules.values():
                del module.encode

    @staticmethod
    def _answering(
        role: str, module: Any, item: EncodeItem, owner: int, states: Mapping[Hashable, RowState], loras: LoraPlan
    ) -> Callable[[Sequence[Tokens]], Any]:
        def encode(rows: Sequence[Tokens]) -> Any:
            options = _Options.of(module)
            keys = [(role, options, item.loras, _identity(row)) for row in rows]
            found = [states[key] for key in keys if key in states]
            with loras.rows(role, [owner] * len(rows)):
                return type(module).encode(module, rows) if len(found) < len(rows) else _join(module, found)

        return encode


def _is_plain(module: Any, base: Any) -> bool:
    names = ("encode", "forward", "process_tokens", "encode_token_weights")
    return isinstance(module, base) and all(getattr(type(module), name) is getattr(base, name) for name in names)


def _identity(row: Tokens) -> tuple[Hashable, ...]:
    """Return what tells rows apart; a vector is only itself."""
    return tuple(token if isinstance(token, int) else ("object", id(token)) for token in row)


def _split(out: Sequence[Any], count: int) -> list[RowState]:
    hidden, pooled, *more = out
    extras: Mapping[str, torch.Tensor] | None = more[0] if more else None
    return [
        RowState(
            hidden[index : index + 1],
            None if pooled is None else pooled[index : index + 1],
            None if extras is None else {name: value[index : index + 1] for name, value in extras.items()},
        )
        for index in range(count)
    ]


def _join(module: Any, states: Sequence[RowState]) -> tuple[Any, ...]:
    """Return states as an encoder gives them, in memory of their own: prompt weights are applied in place."""
    first = states[0]
    hidden = torch.cat([state.hidden for state in states])
    pooled = None if first.pooled is None else torch.cat([state.pooled for state in states])  # type: ignore[misc]  # all or none
    if _is_clip(module) and module.return_projected_pooled:
        # Here and not beside the rows of others: it is a product of as many lines as there are rows (see SHORT).
        pooled = module.transformer.text_projection(pooled).float()
    if first.extras is None:
        return hidden, pooled
    return hidden, pooled, {name: torch.cat([state.extras[name] for state in states]) for name in first.extras}  # type: ignore[index]  # likewise


def _is_clip(module: Any) -> bool:
    """Tell whether an encoder is ComfyUI's CLIP, whose forward gives pooled states before and after projection."""
    text = getattr(module.transformer, "text_model", None)
    return hasattr(text, "encoder") and hasattr(module.transformer, "text_projection")


def _pick(module: Any, tokens: Sequence[Tokens], options: Sequence[_Options]) -> list[RowState]:
    """Run rows of a CLIP that may be wanted with different options: each takes its own layer.

    The layers are caught where they arise, the last state and the unprojected pooled one in what the forward gives.
    """
    layers = module.transformer.text_model.encoder.layers
    wanted = {one.index % len(layers) for one in options if one.layer != LAST and one.index is not None}
    caught: dict[int, torch.Tensor] = {}
    given: list[Any] = []
    with contextlib.ExitStack() as stack:
        for index in wanted:
            stack.enter_context(_caught(layers[index], lambda out, index=index: caught.update({index: out.clone()})))  # type: ignore[misc]  # bound now
        stack.enter_context(_caught(module.transformer, given.append))
        _Options(LAST, None, projected=True).give(module)
        module.encode(tokens)
    last, _, _, pooled = given[0]
    if module.layer_norm_hidden_state:
        caught = {index: module.transformer.text_model.final_layer_norm(out) for index, out in caught.items()}
    states = []
    for row, one in enumerate(options):
        hidden = last if one.layer == LAST or one.index is None else caught[one.index % len(layers)]
        states.append(RowState(hidden[row : row + 1].float(), pooled[row : row + 1].float(), None))
    return states


@contextlib.contextmanager
def _caught(module: torch.nn.Module, keep: Callable[[Any], None]) -> Iterator[None]:
    """Give what a module returns to ``keep`` while the context lasts."""

    def look(_module: torch.nn.Module, _given: Any, out: Any) -> None:
        keep(out)

    handle = module.register_forward_hook(look)
    try:
        yield
    finally:
        handle.remove()
