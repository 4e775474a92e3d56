"""The kernels against their references: ggml's values by the gguf package, and torch's casts, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luna_engine.weights.kernels import casts
from luna_engine.weights.kernels.numpy_blocks import NumpyBlocks

Q8_0 = gguf.GGMLQuantizationType.Q8_0
ROWS = 63


def sets() -> dict[str, np.ndarray]:
    """Return the sets of values that kernels are judged by; row counts are odd on purpose."""
    random = np.random.default_rng(7)
    shape = (ROWS, 3072)
    normal = random.standard_normal(shape).astype(np.float32)
    sparse = np.where(random.random(shape) < 0.99, 0, normal).astype(np.float32)
    blocks = np.exp(3 * random.standard_normal((ROWS, 96, 1))).astype(np.float32)
    halves = normal.astype(np.float16).astype(np.float32)
    halves[::7, ::5] = -0.0
    ties = (random.integers(-254, 255, shape) / 2).astype(np.float32)
    ties[:, ::32] = 127  # so that d is 1 and every x/d lies on or between two whole numbers
    return {
        "normal": normal,
        "zeros": np.zeros(shape, np.float32),
        "constant": np.full(shape, 0.7, np.float32),
        "minus constant": np.full(shape, -0.7, np.float32),
        "all positive": np.abs(normal),
        "all negative": -np.abs(normal),
        "sparse": sparse,
        "tiny": normal * np.float32(1e-7),
        "large": np.clip(normal * np.float32(2e4), -6e4, 6e4),
        "heavy tails": np.clip(random.standard_t(2, shape), -6e4, 6e4).astype(np.float32),
        "scales far apart": (normal.reshape(ROWS, 96, 32) * blocks).reshape(shape),
        "halves with minus zero": halves,
        "ties": ties,
        "subnormal": (normal * np.float32(1e-39)).astype(np.float32),
    }


@pytest.mark.parametrize("name", sets())
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the package divides by zero on zero blocks
def test_q8_0_decodes_to_ggmls_values(name: str) -> None:
    values = sets()[name]
    out = np.empty(values.size // 32 * 34, np.uint8)
    kernels = NumpyBlocks()
    kernels.quantize("Q8_0", values.reshape(-1), out)
    reference = gguf.quants.quantize(values, Q8_0)
    expected = gguf.quants.dequantize(reference, Q8_0)
    assert np.array_equal(gguf.quants.dequantize(out.reshape(ROWS, -1), Q8_0), expected)
    decoded = np.empty(values.size, np.float32)
    kernels.decode("Q8_0", out, decoded)
    assert np.array_equal(decoded.reshape(values.shape), expected)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-60000, 60000, width=32), min_size=32, max_size=32))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_q8_0_agrees_on_any_block(values: list[float]) -> None:
    block = np.array(values, np.float32)
    out = np.empty(34, np.uint8)
    NumpyBlocks().quantize("Q8_0", block, out)
    reference = gguf.quants.dequantize(gguf.quants.quantize(block[None], Q8_0), Q8_0)
    assert np.array_equal(gguf.quants.dequantize(out[None], Q8_0), reference)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 5, 3071, 190_000])
def test_a_value_that_is_not_finite_shows_in_the_magnitude(bad: float, place: int) -> None:
    values = np.ones(ROWS * 3072, np.float32)
    values[place] = bad
    magnitude = NumpyBlocks().quantize("Q8_0", values, np.empty(values.size // 32 * 34, np.uint8))
    assert not np.isfinite(magnitude)


TORCH = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F32": torch.float32,
}


def patterns(dtype: str) -> np.ndarray:
    """Return every bit pattern of an 8- or 16-bit type as bytes."""
    bits = 8 if dtype.startswith("F8") else 16
    return np.arange(1 << bits, dtype=np.uint16 if bits == 16 else np.uint8).view(np.uint8)


def as_torch(dtype: str, data: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(data.copy()).view(TORCH[dtype])


@pytest.mark.parametrize("source", ["F16", "BF16", "F8_E4M3", "F8_E5M2"])
@pytest.mark.parametrize("target", ["F16", "BF16", "F32"])
def test_cast_equals_torch_on_every_bit_pattern(source: str, target: str) -> None:
    data = patterns(source)
    expected = as_torch(source, data).to(torch.float32).to(TORCH[target])
    out = np.empty(expected.numel() * expected.element_size(), np.uint8)
    casts.cast(source, data, target, out)
    got = as_torch(target, out)
    assert torch.equal(got.isnan(), expected.isnan())
    kind = torch.int32 if target == "F32" else torch.int16
    assert torch.equal(got.view(kind)[~got.isnan()], expected.view(kind)[~got.isnan()])


@pytest.mark.parametrize("target", ["F16", "BF16"])
def test_cast_from_single_precision_equals_torch(target: str) -> None:
    random = np.random.default_rng(3)
    bits = random.integers(0, 2**32, 200_000, dtype=np.uint32)
    values = bits.view(np.float32)
    values = values[np.isfinite(values)].copy()
    out = np.empty(values.size * 2, np.uint8)
    casts.narrow(target, values, out)
    expected = torch.from_numpy(values).to(TORCH[target])
    assert torch.equal(as_torch(target, out).view(torch.int16), expected.view(torch.int16))


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F8_E4M3", "F8_E5M2", "F32"])
def test_greatest_magnitude_is_seen_through_the_bits(dtype: str) -> None:
    values = torch.tensor([0.5, -3.0, 2.0, -0.0])
    data = values.to(TORCH[dtype]).view(torch.uint8).numpy().copy()
    assert casts.greatest(dtype, data) == 3.0
    data = torch.tensor([1.0, float("nan"), -2.0]).to(TORCH[dtype]).view(torch.uint8).numpy().copy()
    assert np.isnan(casts.greatest(dtype, data))
