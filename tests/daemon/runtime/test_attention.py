"""The two ways to compute attention agree, and the one that ComfyUI uses on the device is taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from luna_daemon.runtime import attention

if TYPE_CHECKING:
    import pytest


def made() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, 4, 9, 16, generator=generator) * 3 for _ in range(3))
    bias = torch.randn(1, 4, 9, 9, generator=generator) + torch.full((9, 9), torch.finfo(torch.float32).min).triu_(1)
    return q, k, v, bias


def test_step_by_step_and_fused_agree_in_double_precision() -> None:
    q, k, v, bias = (one.double() for one in made())
    expected = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    assert torch.allclose(attention.attend(q, k, v, bias), expected, rtol=1e-12, atol=1e-12)


def test_scores_that_would_not_fit_are_left_to_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v, bias = made()
    stepwise = attention.attend(q, k, v, bias)
    monkeypatch.setattr(attention, "_SCORES_MAX_BYTES", 100)
    fused = attention.attend(q, k, v, bias)
    assert torch.equal(fused, functional.scaled_dot_product_attention(q, k, v, attn_mask=bias))
    assert torch.allclose(fused, stepwise, atol=1e-5)
