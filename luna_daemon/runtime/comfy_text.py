"""ComfyUI's text encoders as a set uses them: one prompt at a time through ComfyUI's own encode, options set anew."""

from __future__ import annotations

import collections
import contextlib
from typing import TYPE_CHECKING, Any

import torch

from luna_daemon.model_messages import EncoderFacts
from luna_daemon.runtime import comfy_loading
from luna_daemon.runtime.backend import Encoded, EncoderInput, Row
from luna_daemon.runtime.set_loras import SetLoras
from luna_daemon.runtime.side_path import find_slots
from luna_daemon.runtime.watched import Watched
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from luna_daemon.runtime.backend import EncodeItem
    from luna_daemon.runtime.checkout import Comfy
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
        self.loras = SetLoras({role: _slots(self.model, module) for role, module in self.modules.items()}, {}, shelf)
        self._watched = Watched(self.model)

    def encode(self, items: Sequence[EncodeItem], check: Check, *, is_partial: bool) -> list[Encoded]:
        """Encode prompts, one after the other.

        Args:
            items: the prompts.
            check: raises on cancel or deadline.
            is_partial: whether the family does without CLIP encoders that a prompt has no tokens for.

        Raises:
            DaemonError: ``token-invalid`` for roles and rows that these encoders do not take.
        """
        for item in items:
            _require_roles(item, self.facts)
            _require_lengths(item, self._positions, is_partial=is_partial)
        loras = self.loras.plan(items)
        return [self._encode(item, index, loras, check) for index, item in enumerate(items)]

    def _encode(self, item: EncodeItem, index: int, loras: LoraPlan, check: Check) -> Encoded:
        """Encode one prompt as ComfyUI would, with its options set anew."""
        self.model.reset_clip_options()
        for role, layer in item.layers.items():
            self.modules[role].set_clip_options({"layer": layer})
        if not item.projected:
            self.model.set_clip_options({"projected_pooled": False})
        self.load()
        # Said last, as ComfyUI does: it is then that a layer beyond an encoder's last falls back to its default.
        self.model.set_clip_options({"execution_device": self._clip.patcher.load_device})
        tokens: dict[str, Any] = collections.defaultdict(list)
        tokens.update({role: _token_rows(given) for role, given in item.encoders.items()})
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._watched.by(check))
            for role in self.modules:
                stack.enter_context(loras.rows(role, [index] * _row_count(item.encoders.get(role))))
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


def _row_count(given: EncoderInput | None) -> int:
    """Return the rows of a prompt in one encoder: its chunks, and the empty row if it is weighted or has none."""
    rows = () if given is None else given.rows
    is_weighted = any(weight != 1.0 for row in rows for weight in row.weights)
    return len(rows) + int(is_weighted or not rows)


def _require_roles(item: EncodeItem, facts: Mapping[str, EncoderFacts]) -> None:
    unknown = sorted((set(item.encoders) | set(item.layers)) - set(facts))
    if unknown:
        raise DaemonError(
            "token-invalid",
            f"the set has no text encoder {unknown[0]!r}; it has {', '.join(sorted(facts))}",
            "tokenise with the tokenizer of the set's own family",
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
