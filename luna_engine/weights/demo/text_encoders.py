"""The text encoders: CLIP in both namings, and T5-XXL."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from luna_engine.weights.demo.parts import RandomTensor, linear, norm, typed, under, weight, zeroed

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_VOCABULARY = 49408
_POSITIONS = 77
_EMBEDDING_SPREAD = 0.5

CLIP_G_DEPTH = 32
# Layers that are drawn; the others are zero and pass on. The last two stand so that "stop at layer" matters.
CLIP_G_DRAWN = frozenset({0, 1, 30, 31})
T5_DEPTH = 24
T5_DRAWN = frozenset({0, 23})


def clip_l() -> Iterator[RandomTensor]:
    """Yield OpenAI CLIP ViT-L/14's text model under the transformers library's names (768 wide, 12 layers)."""
    yield from _clip(768, 12, range(12))


def clip_g() -> Iterator[RandomTensor]:
    """Yield OpenCLIP bigG's text model under the transformers library's names (1280 wide, 32 layers)."""
    yield from _clip(1280, CLIP_G_DEPTH, CLIP_G_DRAWN)
    yield weight("text_projection.weight", (1280, 1280))


def _clip(width: int, depth: int, drawn: Collection[int]) -> Iterator[RandomTensor]:
    yield RandomTensor("text_model.embeddings.token_embedding.weight", (_VOCABULARY, width), _EMBEDDING_SPREAD)
    yield RandomTensor("text_model.embeddings.position_embedding.weight", (_POSITIONS, width), 0.1)
    for index in range(depth):
        layer = under(f"text_model.encoder.layers.{index}.", _clip_layer(width))
        yield from layer if index in drawn else zeroed(layer)
    yield from norm("text_model.final_layer_norm", width)


def _clip_layer(width: int) -> Iterator[RandomTensor]:
    yield from norm("layer_norm1", width)
    for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
        yield from linear(f"self_attn.{part}", width, width)
    yield from norm("layer_norm2", width)
    yield from linear("mlp.fc1", 4 * width, width)
    yield from linear("mlp.fc2", width, 4 * width)


def open_clip_g() -> Iterator[RandomTensor]:
    """Yield the same model under OpenCLIP's own names, as SDXL checkpoints hold it (q, k and v in one tensor)."""
    width = 1280
    yield RandomTensor("positional_embedding", (_POSITIONS, width), 0.1)
    yield RandomTensor("token_embedding.weight", (_VOCABULARY, width), _EMBEDDING_SPREAD)
    for index in range(CLIP_G_DEPTH):
        layer = under(f"transformer.resblocks.{index}.", _open_clip_layer(width))
        yield from layer if index in CLIP_G_DRAWN else zeroed(layer)
    yield from norm("ln_final", width)
    yield weight("text_projection", (width, width))
    yield RandomTensor("logit_scale", (), 0.0, 4.6055)


def _open_clip_layer(width: int) -> Iterator[RandomTensor]:
    yield from norm("ln_1", width)
    yield weight("attn.in_proj_weight", (3 * width, width))
    yield RandomTensor("attn.in_proj_bias", (3 * width,), 0.02)
    yield from linear("attn.out_proj", width, width)
    yield from norm("ln_2", width)
    yield from linear("mlp.c_fc", 4 * width, width)
    yield from linear("mlp.c_proj", width, 4 * width)


def t5xxl() -> Iterator[RandomTensor]:
    """Yield T5-XXL's encoder as plain fp8 (4096 wide, 24 layers, two of them drawn)."""
    width, heads, head_width, hidden = 4096, 64, 64, 10240
    yield RandomTensor("shared.weight", (32128, width), 1.0, dtype="F8_E4M3")
    for index in range(T5_DEPTH):
        layer = under(f"encoder.block.{index}.layer.", _t5_layer(width, heads * head_width, hidden))
        yield from layer if index in T5_DRAWN else zeroed(layer)
        if index == 0:
            yield RandomTensor("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (32, heads), 0.5)
    yield from norm("encoder.final_layer_norm", width, bias=False)


def _t5_layer(width: int, inner: int, hidden: int) -> Iterator[RandomTensor]:
    yield from norm("0.layer_norm", width, bias=False)
    # T5 does not divide its attention scores by sqrt(64): the query weights carry that factor.
    yield from typed("F8_E4M3", [weight("0.SelfAttention.q.weight", (inner, width), 1 / math.sqrt(64))])
    for part in "kv":
        yield from typed("F8_E4M3", [weight(f"0.SelfAttention.{part}.weight", (inner, width))])
    yield from typed("F8_E4M3", [weight("0.SelfAttention.o.weight", (width, inner))])
    yield from norm("1.layer_norm", width, bias=False)
    for part, rows, columns in (("wi_0", hidden, width), ("wi_1", hidden, width), ("wo", width, hidden)):
        yield from typed("F8_E4M3", [weight(f"1.DenseReluDense.{part}.weight", (rows, columns))])
