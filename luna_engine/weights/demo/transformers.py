"""The diffusion transformers Flux, SD3 and Z-Image with one or two blocks in place of dozens.

Widths are the least that loaders recognise: 128 for Flux and SD3 (they read it from the weights), the full 3840 for
Z-Image (there the width is what tells the family).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_engine.weights.demo.parts import RandomTensor, linear, norm, typed, under, weight, zeroed

if TYPE_CHECKING:
    from collections.abc import Iterator

_T5_WIDTH = 4096
_MODULATION_GAIN = 0.5  # shifts, scales and gates stay well below the signal they act on


def flux(width: int = 128, head: int = 128) -> Iterator[RandomTensor]:
    """Yield Flux.1 dev with one double and one single block."""
    yield from linear("img_in", width, 64)
    yield from linear("txt_in", width, _T5_WIDTH)
    for name, columns in (("time_in", 256), ("vector_in", 768), ("guidance_in", 256)):
        yield from linear(f"{name}.in_layer", width, columns)
        yield from linear(f"{name}.out_layer", width, width)
    for stream in ("img", "txt"):
        yield from under(f"double_blocks.0.{stream}_", _flux_stream(width, head))
    yield from under("single_blocks.0.", _flux_single(width, head))
    yield from linear("final_layer.adaLN_modulation.1", 2 * width, width, gain=_MODULATION_GAIN)
    yield from linear("final_layer.linear", 64, width)


def _flux_stream(width: int, head: int) -> Iterator[RandomTensor]:
    yield from linear("mod.lin", 6 * width, width, gain=_MODULATION_GAIN)
    yield from linear("attn.qkv", 3 * width, width)
    yield from _scales("attn.norm", head)
    yield from linear("attn.proj", width, width)
    yield from linear("mlp.0", 4 * width, width)
    yield from linear("mlp.2", width, 4 * width)


def _flux_single(width: int, head: int) -> Iterator[RandomTensor]:
    yield from linear("modulation.lin", 3 * width, width, gain=_MODULATION_GAIN)
    yield from linear("linear1", 7 * width, width)
    yield from linear("linear2", width, 5 * width)
    yield from _scales("norm", head)


def _scales(name: str, head: int) -> Iterator[RandomTensor]:
    yield RandomTensor(f"{name}.query_norm.scale", (head,), 0.1, 1.0)
    yield RandomTensor(f"{name}.key_norm.scale", (head,), 0.1, 1.0)


def sd3(depth: int = 2) -> Iterator[RandomTensor]:
    """Yield SD3 (without the key norms of 3.5): ``depth`` blocks, 64 times as wide as deep."""
    width = 64 * depth
    yield weight("x_embedder.proj.weight", (width, 16, 2, 2))
    yield RandomTensor("x_embedder.proj.bias", (width,), 0.02)
    yield RandomTensor("pos_embed", (1, 192 * 192, width), 0.5)
    yield from linear("context_embedder", width, _T5_WIDTH)
    for name, columns in (("t_embedder", 256), ("y_embedder", 2048)):
        yield from linear(f"{name}.mlp.0", width, columns)
        yield from linear(f"{name}.mlp.2", width, width)
    for index in range(depth):
        is_last = index == depth - 1
        yield from under(f"joint_blocks.{index}.context_block.", _sd3_block(width, ends_here=is_last))
        yield from under(f"joint_blocks.{index}.x_block.", _sd3_block(width, ends_here=False))
    yield from linear("final_layer.adaLN_modulation.1", 2 * width, width, gain=_MODULATION_GAIN)
    yield from linear("final_layer.linear", 64, width)


def _sd3_block(width: int, *, ends_here: bool) -> Iterator[RandomTensor]:
    yield from linear("adaLN_modulation.1", (2 if ends_here else 6) * width, width, gain=_MODULATION_GAIN)
    yield from linear("attn.qkv", 3 * width, width)
    if ends_here:  # the text stream's last block only feeds the attention of the image stream
        return
    yield from linear("attn.proj", width, width)
    yield from linear("mlp.fc1", 4 * width, width)
    yield from linear("mlp.fc2", width, 4 * width)


def z_image(width: int = 3840) -> Iterator[RandomTensor]:
    """Yield Z-Image in bfloat16 with one layer; the second of its refiners are zero and pass on."""
    return typed("BF16", _z_image(width))


def _z_image(width: int) -> Iterator[RandomTensor]:
    yield from linear("x_embedder", width, 64)
    yield RandomTensor("x_pad_token", (1, width), 0.5)
    yield from norm("cap_embedder.0", 2560, bias=False)
    yield from linear("cap_embedder.1", width, 2560)
    yield RandomTensor("cap_pad_token", (1, width), 0.5)
    yield from linear("t_embedder.mlp.0", 1024, 256)
    yield from linear("t_embedder.mlp.2", 256, 1024)
    for part, is_modulated in (("noise_refiner", True), ("context_refiner", False)):
        yield from under(f"{part}.0.", _z_image_block(width, is_modulated=is_modulated))
        yield from zeroed(under(f"{part}.1.", _z_image_block(width, is_modulated=is_modulated)))
    yield from under("layers.0.", _z_image_block(width, is_modulated=True))
    yield from linear("final_layer.adaLN_modulation.1", width, 256, gain=_MODULATION_GAIN)
    yield from linear("final_layer.linear", 64, width)


def _z_image_block(width: int, *, is_modulated: bool) -> Iterator[RandomTensor]:
    hidden = 256 * -(-(8 * width // 3) // 256)  # 8/3 of the width, rounded up to 256
    if is_modulated:
        yield from linear("adaLN_modulation.0", 4 * width, 256, gain=_MODULATION_GAIN)
    for name in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"):
        yield from norm(name, width, bias=False)
    yield from linear("attention.qkv", 3 * width, width, bias=False)
    yield from linear("attention.out", width, width, bias=False)
    yield from norm("attention.q_norm", 128, bias=False)
    yield from norm("attention.k_norm", 128, bias=False)
    yield from linear("feed_forward.w1", hidden, width, bias=False)
    yield from linear("feed_forward.w2", width, hidden, bias=False)
    yield from linear("feed_forward.w3", hidden, width, bias=False)
