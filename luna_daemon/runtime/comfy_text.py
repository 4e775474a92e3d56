"""ComfyUI's text encoders as a set uses them: every prompt through ComfyUI's own encode, its options set anew.

What the encoders compute for several prompts is run together (`comfy_rows.py`), but for exact ones.
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any

import torch

from luna_daemon.model_messages import EncoderFacts
from luna_daemon.runtime import comfy_loading
from luna_daemon.runtime.backend import Encoded, EncoderInput, Row
from luna_daemon.runtime.comfy_rows import RowSharing
from luna_daemon.runtime.set_loras import SetLoras
from luna_daemon.runtime.side_path import find_slots
from luna_daemon.runtime.watched import Watched
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from luna_daemon.runtime.backend import EncodeItem
    from luna_daemon.runtime.checkout import Comfy
    from luna_daemon.runtime.comfy_rows import ForeseenRow, RowState
    from luna_daemon.runtime.set_loras import LoraPlan, LoraShelf
    from luna_daemon.runtime.side_path import Slot

    Check = Callable[[], None]

_ROW_MAX = 8192
"""Some tokenizers name no limit; a longer row would not fit beside its attention scores."""


class TextEncoders:
    """ComfyUI's CLIP object of a set: all of its text encoders."""

    def __init__(self, clip: Any, comfy: Comfy, shelf: LoraShelf) -> None:
        self._clip = clip
        self._comfy = comfy
        self.model: Any = clip.cond_stage_model
        self.modules = comfy_loading.text_modules(clip)
        self.facts = {role: _encoder_facts(module) for role, module in self.modules.items()}
        learned = {role: _positions(module) for role, module in self.modules.items()}
        self._positions = {role: count for role, count in learned.items() if count is not None}
        encoding = {role: module for role, module in self.modules.items() if hasattr(module, "encode")}
        self.loras = SetLoras({role: _slots(self.model, module) for role, module in encoding.items()}, {}, shelf)
        self._watched = Watched(self.model)
        self._sharing = RowSharing(encoding, comfy)
        self.shares_rows = self._sharing.has_any

    def encode(
        self, items: Sequence[EncodeItem], check: Check, row_cap: int | None, *, is_partial: bool
    ) -> list[Encoded]:
        """Encode prompts.

        Args:
            items: the prompts.
            check: raises on cancel or deadline.
            row_cap: rows at most in one forward; None is no limit.
            is_partial: whether the family does without CLIP encoders that a prompt has no tokens for.

        Raises:
            DaemonError: ``token-invalid`` for roles and rows that these encoders do not take.
        """
        for item in items:
            _require_roles(item, self.facts)
            _require_layers(item, self.facts)
            _require_lengths(item, self._positions, is_partial=is_partial)
        loras = self.loras.plan(items)
        tokens = [_tokens(item) for item in items]
        self.load()
        with self._watched.by(check):
            states = self._run_together(items, tokens, loras, check, row_cap)
            return [self._encode(item, index, tokens[index], loras, states) for index, item in enumerate(items)]

    def _run_together(
        self,
        items: Sequence[EncodeItem],
        tokens: Sequence[Mapping[str, Any]],
        loras: LoraPlan,
        check: Check,
        row_cap: int | None,
    ) -> dict[Hashable, RowState]:
        """Run the rows of several prompts; an exact prompt, and one that is alone, is run as ComfyUI would."""
        if len(items) == 1 or any(item.is_exact for item in items):
            return {}
        rows: list[ForeseenRow] = []
        for index, item in enumerate(items):
            self._set_options(item)
            rows += self._sharing.foresee(item, index, tokens[index], self._sharing.options())
        return self._sharing.run(rows, loras, row_cap or max(1, len(rows)), check)

    def _set_options(self, item: EncodeItem) -> None:
        self.model.reset_clip_options()
        for role, layer in item.layers.items():
            self.modules[role].set_clip_options({"layer": layer})
        if not item.projected:
            self.model.set_clip_options({"projected_pooled": False})
        # Said last, as ComfyUI does: it is then that a layer beyond an encoder's last falls back to its default.
        self.model.set_clip_options({"execution_device": self._clip.patcher.load_device})

    def _encode(
        self,
        item: EncodeItem,
        index: int,
        tokens: Mapping[str, Any],
        loras: LoraPlan,
        states: Mapping[Hashable, RowState],
    ) -> Encoded:
        """Encode one prompt as ComfyUI would, with its options set anew."""
        self._set_options(item)
        with self._sharing.fed(item, index, states, loras):
            cond, pooled, *more = self.model.encode_token_weights(tokens)
        return Encoded(
            cond.float().cpu(),
            None if pooled is None else pooled.float().cpu(),
            _tensors(more[0] if more else {}),
            sum(_dropped(given, self.facts[role].width) for role, given in item.encoders.items()),
            loras.did(index),
        )

    def tokenize(self, text: str) -> dict[str, EncoderInput]:
        """Tokenize with ComfyUI's tokenizer, which is given no embeddings folder: it would read pickles."""
        tokens = self._clip.tokenize(text)
        return {role: _given(tokens[role]) for role in self.facts if role in tokens}

    def load(self) -> None:
        """Have all weights on the device."""
        self._comfy.management.load_models_gpu([self._clip.patcher], force_full_load=True)

    def unload(self) -> None:
        """Have all weights in main memory."""
        self._clip.patcher.detach()


def _encoder_facts(module: Any) -> EncoderFacts:
    table = module.transformer.get_input_embeddings().weight
    longest = min(int(module.max_length), _ROW_MAX)
    return EncoderFacts(int(module.num_layers), int(table.shape[1]), longest, int(table.shape[0]))


def _slots(model: torch.nn.Module, module: torch.nn.Module) -> dict[str, Slot]:
    """Return where each weight of one encoder is, by its name in the state dict of all."""
    name = next(name for name, child in model.named_children() if child is module)
    # As wide as can be: ComfyUI holds each weight in the very type that it counts as.
    return {f"{name}.{inner}": slot for inner, slot in find_slots(module, torch.float32)}


def _require_roles(item: EncodeItem, facts: Mapping[str, EncoderFacts]) -> None:
    unknown = sorted((set(item.encoders) | set(item.layers)) - set(facts))
    if unknown:
        raise DaemonError(
            "token-invalid",
            f"the set has no text encoder {unknown[0]!r}; it has {', '.join(sorted(facts))}",
            "tokenise with the tokenizer of the set's own family",
        )


def _require_layers(item: EncodeItem, facts: Mapping[str, EncoderFacts]) -> None:
    """Check that layers counted from the front exist; ComfyUI takes the number of layers for a layer and fails."""
    for role, layer in item.layers.items():
        if layer == facts[role].layers:
            raise DaemonError(
                "request-invalid",
                f"layer {layer} does not exist: counted from the front, the last is {layer - 1}",
                "use -1 for the last layer",
            )


def _require_lengths(item: EncodeItem, positions: Mapping[str, int], *, is_partial: bool) -> None:
    """Check what ComfyUI would fail on with an error about tensors: CLIP reads rows of one length, one at least.

    A partial family goes without its CLIP encoders if a prompt has tokens for none of them.
    """
    rows = {role: item.encoders[role].rows if role in item.encoders else () for role in positions}
    is_without = is_partial and not any(rows.values())
    for role, length in positions.items():
        if not is_without and (not rows[role] or any(len(row.ids) != length for row in rows[role])):
            raise DaemonError(
                "token-invalid",
                f"{role} takes rows of {length} tokens, one at least",
                "tokenise with the tokenizer of the set's own family",
            )


def _positions(module: Any) -> int | None:
    """Return how many positions an encoder has learned, None where they are computed."""
    embeddings = getattr(getattr(module.transformer, "text_model", None), "embeddings", None)
    table = getattr(embeddings, "position_embedding", None)
    return None if table is None else int(table.weight.shape[0])


def _tokens(item: EncodeItem) -> dict[str, Any]:
    """Return a prompt's tokens as ComfyUI's tokenizers make them; an encoder that it has none for reads no rows."""
    tokens: dict[str, Any] = collections.defaultdict(list)
    tokens.update({role: _token_rows(given) for role, given in item.encoders.items()})
    return tokens


def _token_rows(given: EncoderInput) -> list[list[tuple[Any, float]]]:
    """Return rows as ComfyUI's tokenizers make them: a number, or a vector in its place."""
    vectors = [row for block in given.vectors for row in block]
    return [
        [
            (vectors[-1 - token] if token < 0 else token, weight)
            for token, weight in zip(row.ids, row.weights, strict=True)
        ]
        for row in given.rows
    ]


def _given(rows: Sequence[Sequence[Any]]) -> EncoderInput:
    return EncoderInput(
        tuple(Row(tuple(int(pair[0]) for pair in row), tuple(float(pair[1]) for pair in row)) for row in rows)
    )


def _dropped(given: EncoderInput, width: int) -> int:
    wrong = [block for block in given.vectors if block.shape[-1] != width]
    return sum(len(block) for block in wrong)


def _tensors(extras: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    odd = next((name for name, value in extras.items() if not torch.is_tensor(value)), None)
    if odd is not None:
        raise DaemonError(
            "model-unsupported",
            f"this text encoder gives {odd}, which is no tensor",
            "keep this model in ComfyUI itself",
        )
    return {name: value.cpu() for name, value in extras.items()}
