"""The kernels against their references, bit for bit: what ggml's C code packs decodes alike, casts equal torch's."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luna_engine.errors import LunaError
from luna_engine.weights.containers.ggml_types import BY_NAME, SCALE_PLACES
from luna_engine.weights.kernels import casts, seam
from luna_engine.weights.kernels.lanes import LaneBlocks
from luna_engine.weights.kernels.package import PackageBlocks

if TYPE_CHECKING:
    from luna_engine.weights.kernels.seam import Kernels

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
        "one large": np.where(np.arange(3072) % 256 == 200, 6e4, normal * 1e-3).astype(np.float32),
        "subnormal": (normal * np.float32(1e-39)).astype(np.float32),
    }


# ggml's number of each type
TYPES = {"Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14}
PACKAGE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
KERNELS = [*((LaneBlocks, dtype) for dtype in TYPES), *((PackageBlocks, dtype) for dtype in PACKAGE)]


class Ggml:
    """ggml's own C code, as its wheel ships it: what packs and what unpacks."""

    def __init__(self) -> None:
        libggml = pytest.importorskip("libggml", reason="no wheel of ggml's C code for this machine")
        self._library = ctypes.CDLL(str(Path(libggml.__file__).parent / "lib64" / "libggml-base.so"))
        pack = self._library.ggml_quantize_chunk
        pack.restype = ctypes.c_size_t
        pack.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def quantize(self, dtype: str, values: np.ndarray) -> np.ndarray:
        out = np.empty(BY_NAME[dtype].size_bytes(values.size), np.uint8)
        self._library.ggml_quantize_chunk(
            TYPES[dtype], values.ctypes.data, out.ctypes.data, 0, values.shape[0], values.shape[1], None
        )
        return out

    def decode(self, dtype: str, data: np.ndarray, count: int) -> np.ndarray:
        unpack = getattr(self._library, f"dequantize_row_{dtype.lower().replace('_k', '_K')}")
        unpack.restype, unpack.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        out = np.empty(count, np.float32)
        unpack(data.ctypes.data, out.ctypes.data, count)
        return out


@pytest.fixture(scope="module")
def ggml() -> Ggml:
    return Ggml()


@pytest.mark.parametrize(("kind", "dtype"), KERNELS, ids=lambda value: getattr(value, "__name__", value))
def test_blocks_decode_to_the_values_of_ggmls_c_code(ggml: Ggml, kind: type[Kernels], dtype: str) -> None:
    kernels = kind()
    for name, values in sets().items():
        reference = ggml.quantize(dtype, values)
        out = np.empty_like(reference)
        kernels.quantize(dtype, values.reshape(-1), out)
        expected = ggml.decode(dtype, reference, values.size)
        assert np.array_equal(ggml.decode(dtype, out, values.size), expected), name
        decoded = np.empty(values.size, np.float32)
        kernels.decode(dtype, out, decoded)
        assert np.array_equal(decoded, expected), name


@pytest.mark.parametrize("dtype", TYPES)
def test_a_last_group_that_fills_no_vector_is_packed_alike(ggml: Ggml, dtype: str) -> None:
    kernels, values = LaneBlocks(), sets()["heavy tails"].reshape(-1)
    for blocks in (1, 2, 3, 15, 17):
        part = values[: blocks * BY_NAME[dtype].block].copy()
        reference = ggml.quantize(dtype, part.reshape(1, -1))
        out = np.empty_like(reference)
        kernels.quantize(dtype, part, out)
        assert np.array_equal(ggml.decode(dtype, out, part.size), ggml.decode(dtype, reference, part.size)), blocks


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-60000, 60000, width=32), min_size=32, max_size=32))
@pytest.mark.parametrize("dtype", TYPES)
def test_any_block_decodes_to_ggmls_values(dtype: str, values: list[float]) -> None:
    ggml = Ggml()
    block = np.resize(np.array(values, np.float32), (1, BY_NAME[dtype].block))
    reference = ggml.quantize(dtype, block)
    for kind in (LaneBlocks, PackageBlocks):
        if (kind, dtype) in KERNELS:
            out = np.empty_like(reference)
            kind().quantize(dtype, block.reshape(-1), out)
            expected = ggml.decode(dtype, reference, block.size)
            assert np.array_equal(ggml.decode(dtype, out, block.size), expected), kind


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 5, 3071, 190_000])
@pytest.mark.parametrize(("kind", "dtype"), [(LaneBlocks, "Q4_K"), (LaneBlocks, "Q8_0"), (PackageBlocks, "Q4_0")])
def test_a_value_that_is_not_finite_shows_in_the_magnitude(
    kind: type[Kernels], dtype: str, place: int, bad: float
) -> None:
    values = np.ones(ROWS * 3072, np.float32)
    values[place] = bad
    magnitude = kind().quantize(dtype, values, np.empty(BY_NAME[dtype].size_bytes(values.size), np.uint8))
    assert not np.isfinite(magnitude)


@pytest.mark.parametrize("dtype", ["Q2_K", "Q3_K"])
def test_types_that_are_only_read_are_read_as_ggml_does(ggml: Ggml, dtype: str) -> None:
    data = np.random.default_rng(5).integers(0, 256, BY_NAME[dtype].block_bytes * 40, np.uint8)
    places = SCALE_PLACES[dtype]
    rows = data.reshape(-1, BY_NAME[dtype].block_bytes)
    for place in places:
        rows[:, place : place + 2] = np.full((len(rows), 1), 0.01, np.float16).view(np.uint8)
    for kind in (LaneBlocks, PackageBlocks):
        out = np.empty(len(rows) * 256, np.float32)
        kind().decode(dtype, data, out)
        assert np.array_equal(out, ggml.decode(dtype, data, out.size))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="another processor's name")
def test_a_processor_without_wide_vectors_computes_the_same(tmp_path: Path) -> None:
    values = sets()["normal"][:7].copy()
    np.save(tmp_path / "values.npy", values)
    code = (
        "import sys, numpy as np; from luna_engine.weights.kernels.lanes import LaneBlocks\n"
        "from luna_engine.weights.containers.ggml_types import BY_NAME\n"
        "values = np.load(sys.argv[1]).reshape(-1)\n"
        "for dtype in ('Q4_K', 'Q6_K', 'Q8_0'):\n"
        "    out = np.empty(BY_NAME[dtype].size_bytes(values.size), np.uint8)\n"
        "    LaneBlocks().quantize(dtype, values, out); out.tofile(sys.argv[2] + dtype)\n"
    )
    features = "+avx,+avx2,+f16c,+sse4.2"
    environment = {**os.environ, "NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": features}
    environment["NUMBA_CACHE_DIR"] = str(tmp_path / "cache")
    arguments = [sys.executable, "-c", code, str(tmp_path / "values.npy"), str(tmp_path) + "/"]
    subprocess.run(arguments, env=environment, check=True)
    for dtype in ("Q4_K", "Q6_K", "Q8_0"):
        out = np.empty(BY_NAME[dtype].size_bytes(values.size), np.uint8)
        LaneBlocks().quantize(dtype, values.reshape(-1), out)
        assert np.array_equal(np.fromfile(tmp_path / dtype, np.uint8), out)


def test_without_numba_and_its_kernels_what_is_lacking_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seam, "kernel_name", lambda: "package 1")
    seam.require_kernels(PACKAGE)
    with pytest.raises(LunaError, match="Q4_K, Q6_K need numba") as caught:
        seam.require_kernels(["Q8_0", "Q6_K", "Q4_K"])
    assert (caught.value.code, "pip install numba" in caught.value.hint) == ("precision-unsupported", True)


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
