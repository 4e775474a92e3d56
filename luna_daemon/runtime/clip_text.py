"""One CLIP text encoder on transformers' model class: token rows in, hidden states out.

Activations are fp32 throughout, as in ComfyUI (DAEMON.md N8, N10, N11). Textual inversion vectors enter as extra rows
of the token table, so the public forward of every supported transformers version is used as it is. Picked layers are
caught by hooks, because versions differ in what they return.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from luna_daemon.model_messages import EncoderFacts
from luna_daemon.runtime.casting import hold_fp32, store_fp16
from luna_daemon.runtime.side_path import Slot, find_slots
from luna_daemon.runtime.text_encoder import HiddenStates, look_up

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

VOCABULARY = 49408
START, END = 49406, 49407
POSITIONS = 77


@dataclass(frozen=True, slots=True)
class ClipShape:
    """Sizes of a CLIP text encoder; heads are 64 wide in all of them."""

    layers: int
    width: int
    activation: str
    pad: int
    vocabulary: int = VOCABULARY
    start: int | None = START
    end: int | None = END


CLIP_L = ClipShape(layers=12, width=768, activation="quick_gelu", pad=END)
CLIP_G = ClipShape(layers=32, width=1280, activation="gelu", pad=0)


class TokenTable(nn.Module):
    """The token embedding, with room behind the vocabulary for the vectors of the running batch."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.weight = table.weight
        self.vectors: torch.Tensor | None = None

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Look ids up in fp32; id ``VOCABULARY + k`` is vector k."""
        return look_up(self.weight, ids, self.vectors)


class ClipTextEncoder:
    """A CLIP text encoder with its weights.

    Args:
        shape: sizes.
        tensors: standalone names (``text_model.…``) → tensors of any float type. They are rounded to fp16 first, as
            ComfyUI stores them, and held upcast on a CPU, where memory is cheaper than converting per use.
        device: where it runs, once `to` has moved it there.
    """

    dtype = torch.float16
    has_pooled = True
    is_masked = False

    def __init__(self, shape: ClipShape, tensors: Mapping[str, torch.Tensor], device: torch.device) -> None:
        self.shape = shape
        self.device = device
        # ComfyUI computes attention step by step on a CPU and with torch's fused kernel on a card (see `attention`).
        self._model = _empty_model(shape, attention="eager" if device.type == "cpu" else "sdpa")
        text = _text_module(self._model)
        prefix = "text_model." if text is not self._model else ""
        weights = {
            prefix + name.removeprefix("text_model."): tensor.to(torch.float16)
            for name, tensor in tensors.items()
            if name.startswith("text_model.")
        }
        self._model.load_state_dict(weights, strict=True, assign=True)
        text.embeddings.position_ids = torch.arange(POSITIONS).expand(1, -1)
        self._projection = _projection(tensors.get("text_projection.weight"))
        self._keep = hold_fp32 if device.type == "cpu" else store_fp16
        self._table = TokenTable(text.embeddings.token_embedding)
        text.embeddings.token_embedding = self._table
        for module in self._modules():
            self._keep(module)
            module.requires_grad_(requires_grad=False).eval()
        self._final_norm = text.final_layer_norm
        self._wanted: frozenset[int] = frozenset()
        self._caught: dict[int, torch.Tensor] = {}
        for index, block in enumerate(text.encoder.layers):
            block.register_forward_hook(self._catcher(index))

    @property
    def facts(self) -> EncoderFacts:
        """Sizes for tokenizers."""
        return EncoderFacts(self.shape.layers, self.shape.width, POSITIONS, VOCABULARY)

    def _catcher(self, index: int) -> Any:
        def catch(_module: nn.Module, _args: Any, output: Any) -> None:
            if index in self._wanted:
                self._caught[index] = output[0] if isinstance(output, tuple) else output

        return catch

    def run(
        self,
        ids: torch.Tensor,
        vectors: torch.Tensor | None,
        blocks: Iterable[int],
        mask: torch.Tensor | None = None,  # noqa: ARG002 - never masked
    ) -> HiddenStates:
        """Encode rows of equal length.

        Args:
            ids: [rows, n] int64 on the CPU; ``VOCABULARY + k`` is vector k.
            vectors: [k, width] or None.
            blocks: indexes of the blocks whose raw output is wanted.
            mask: not used; CLIP sees its padding.
        """
        self._wanted = frozenset(blocks)
        self._caught = {}
        self._table.vectors = None if vectors is None else vectors.to(self.device, torch.float32)
        try:
            output = self._model(input_ids=ids.to(self.device))
            return HiddenStates(output.last_hidden_state, self._caught)
        finally:
            self._wanted, self._caught, self._table.vectors = frozenset(), {}, None

    def final_norm(self, hidden: torch.Tensor) -> torch.Tensor:
        """Apply the norm behind the last block."""
        out: torch.Tensor = self._final_norm(hidden)
        return out

    def project(self, pooled: torch.Tensor) -> torch.Tensor:
        """Apply text_projection; a file without one projects by the identity."""
        if self._projection is None:
            return pooled
        out: torch.Tensor = self._projection(pooled.to(self.device)).to(pooled.device)
        return out

    def state(self) -> dict[str, torch.Tensor]:
        """Return the weights under their standalone names."""
        prefix = "" if _text_module(self._model) is not self._model else "text_model."
        named = {prefix + name: tensor for name, tensor in self._model.state_dict().items()}
        if self._projection is not None:
            named["text_projection.weight"] = self._projection.weight
        return named

    def slots(self) -> dict[str, Slot]:
        """Return where each weight lives, by its standalone name."""
        prefix = "" if _text_module(self._model) is not self._model else "text_model."
        found = {prefix + name: slot for name, slot in find_slots(self._model, self.dtype)}
        if self._projection is not None:
            found["text_projection.weight"] = Slot(self._projection, "weight", self.dtype)
        return found

    def _modules(self) -> Iterator[nn.Module]:
        yield self._model
        if self._projection is not None:
            yield self._projection

    def to(self, device: torch.device) -> None:
        """Move the weights; they compute where they are."""
        for module in self._modules():
            module.to(device)
        self.device = device


def _projection(weight: torch.Tensor | None) -> nn.Linear | None:
    """Return text_projection as a layer, None where the file has none."""
    if weight is None:
        return None
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.load_state_dict({"weight": weight.to(torch.float16)}, assign=True)
    return layer


def expected_shapes(shape: ClipShape) -> dict[str, tuple[int, ...]]:
    """Return standalone name → shape of every tensor that a file of this encoder must hold."""
    model = _empty_model(shape)
    prefix = "" if _text_module(model) is not model else "text_model."
    return {prefix + name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _text_module(model: Any) -> Any:
    """Return the module that holds embeddings and encoder: transformers 4 nests it, 5 does not."""
    return dict(model.named_children()).get("text_model", model)


def _empty_model(shape: ClipShape, attention: str = "eager") -> Any:
    """Build the module on the meta device: no memory, no random numbers."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.width,
        intermediate_size=4 * shape.width,
        projection_dim=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.width // 64,
        max_position_embeddings=POSITIONS,
        hidden_act=shape.activation,
        layer_norm_eps=1e-5,
        bos_token_id=START,
        eos_token_id=END,
        pad_token_id=shape.pad,
        attn_implementation=attention,
    )
    with torch.device("meta"):
        return CLIPTextModel(config)
