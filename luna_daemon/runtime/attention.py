"""Attention in the order of operations that ComfyUI uses on the device, so that fp32 results are the same numbers.

On a CPU its text encoders compute scores, softmax and mixture one after the other; torch's fused kernel, which it uses
on cards, rounds otherwise. Through three narrow T5 blocks with large scores that alone came to 2.7e-5.
"""

from __future__ import annotations

import torch
from torch.nn import functional

_SCORES_MAX_BYTES = 1024**3
"""Larger score matrices are not made: the fused kernel needs none."""


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Mix values by the softmax of scaled scores plus bias.

    Args:
        q: [rows, heads, n, head width]; ``k`` and ``v`` alike.
        k: keys.
        v: values.
        bias: added to the scores, broadcast to [rows, heads, n, n].
    """
    rows, heads, length, width = q.shape
    if q.device.type != "cpu" or rows * heads * length**2 * q.element_size() > _SCORES_MAX_BYTES:
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    flat = [one.reshape(rows * heads, length, width).contiguous() for one in (q, k, v)]
    scores = torch.bmm(flat[0], flat[1].mT).mul_(width**-0.5)
    scores.view(rows, heads, length, length).add_(bias)
    return torch.bmm(scores.softmax(dim=-1), flat[2]).view(rows, heads, length, width)
