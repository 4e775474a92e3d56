"""Tiled VAE passes: where tiles lie, how they blend, and that nothing is lost at borders."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luna_daemon.encode_messages import Tile, VaeDecode, VaeEncode
from luna_daemon.runtime.images import require_tile
from luna_daemon.runtime.tiling import decode_passes, encode_passes, mean_of_passes
from luna_daemon.tensors import from_torch, to_torch
from luna_engine.errors import DaemonError


def enlarge(tile: torch.Tensor) -> torch.Tensor:
    """A per-pixel "decoder": every latent pixel becomes 8 by 8 equal pixels."""
    return tile.repeat_interleave(8, 2).repeat_interleave(8, 3)


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    half=st.integers(2, 8),
    overlap=st.integers(0, 7),
    seed=st.integers(0, 9),
)
def test_a_per_pixel_model_gives_the_same_tiled_or_not(
    height: int, width: int, half: int, overlap: int, seed: int
) -> None:
    tile = Tile(2 * half, 2 * half, min(overlap, half - 1))
    source = torch.rand(1, 4, height, width, generator=torch.Generator().manual_seed(seed))
    tiled = mean_of_passes(source, decode_passes(tile), tile.overlap, 8, enlarge)
    assert float((tiled - enlarge(source)).abs().max()) <= 1e-6


def test_passes_are_square_wide_and_tall() -> None:
    tile = Tile(512, 256, 64)
    assert encode_passes(tile) == ((512, 256), (1024, 128), (256, 512))
    assert decode_passes(tile) == ((256, 512), (1024, 128), (512, 256))


def test_the_last_tile_is_cut_short_at_the_border() -> None:
    seen: list[int] = []

    def note(part: torch.Tensor) -> torch.Tensor:
        seen.append(part.shape[3])
        return enlarge(part)

    mean_of_passes(torch.zeros(1, 4, 8, 20), [(8, 8)], 2, 8, note)
    assert seen == [8, 8, 8]  # starts 0, 6, 12
    seen.clear()
    mean_of_passes(torch.zeros(1, 4, 8, 21), [(8, 8)], 2, 8, note)
    assert seen == [8, 8, 8, 3]  # starts 0, 6, 12, 18


def test_edges_fade_linearly_into_each_other() -> None:
    """Two tiles of constant 0 and 1: in the overlap the second rises by its share of both ramps."""
    values = iter([0.0, 1.0])

    def constant(part: torch.Tensor) -> torch.Tensor:
        return torch.full((1, 1, part.shape[2] * 8, part.shape[3] * 8), next(values))

    (row,) = mean_of_passes(torch.zeros(1, 1, 1, 6), [(4, 4)], 2, 8, constant)[0, 0, :1]
    assert row[:16].tolist() == [0.0] * 16
    assert row[32:].tolist() == [1.0] * 16
    expected = [(i + 1) / 17 for i in range(16)]  # (i+1)/16 against (16-i)/16
    assert row[16:32].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("overlap", [32, 40])
def test_an_overlap_of_half_a_tile_is_refused(overlap: int) -> None:
    with pytest.raises(DaemonError) as caught:
        require_tile(Tile(64, 64, overlap))
    assert caught.value.code == "value-range"


def test_the_engine_tiles_when_asked_and_says_so(engine: object) -> None:
    never = lambda: None  # noqa: E731 - as short as it is
    latent = from_torch("latent", torch.randn(1, 4, 6, 8, generator=torch.Generator().manual_seed(2)))
    reply, (tiled,) = engine.vae_decode(VaeDecode("sd15", Tile(4, 4, 1)), {"latent": latent}, never)  # type: ignore[attr-defined]
    _, (plain,) = engine.vae_decode(VaeDecode("sd15"), {"latent": latent}, never)  # type: ignore[attr-defined]
    assert reply.did.tiled == "asked"
    assert to_torch(tiled).shape == to_torch(plain).shape == (1, 48, 64, 3)
    assert not torch.allclose(to_torch(tiled), to_torch(plain), atol=1e-3)
    fits = Tile(64, 64, 16)
    _, (one_tile,) = engine.vae_decode(VaeDecode("sd15", fits), {"latent": latent}, never)  # type: ignore[attr-defined]
    assert torch.allclose(to_torch(one_tile), to_torch(plain), atol=1e-6)
    pixels = from_torch("pixels", torch.rand(1, 48, 64, 3, generator=torch.Generator().manual_seed(3)))
    reply, (encoded,) = engine.vae_encode(VaeEncode("sd15", Tile(32, 32, 8)), {"pixels": pixels}, never)  # type: ignore[attr-defined]
    assert reply.did.tiled == "asked"
    assert encoded.shape == (1, 4, 6, 8)
