"""ComfyUI's VAE as a set uses it: plain or tiled as asked, never silently the one for the other."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

from luna_daemon.model_messages import VaeFacts
from luna_daemon.progress import advance, counting
from luna_daemon.runtime.tiling import count_tiles, decode_passes, encode_passes
from luna_daemon.runtime.watched import Watched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from luna_daemon.encode_messages import Tile
    from luna_daemon.runtime.checkout import Comfy

    Check = Callable[[], None]

VAE_TYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
VAE_NAMES = {dtype: name for name, dtype in VAE_TYPES.items()}


class ComfyVae:
    """ComfyUI's VAE object of a set."""

    def __init__(self, vae: Any, comfy: Comfy) -> None:
        self._vae = vae
        self._comfy = comfy
        self.model: torch.nn.Module = vae.first_stage_model
        self.facts = VaeFacts(
            latent_channels=vae.latent_channels,
            spatial=vae.spacial_compression_encode(),
            dtype=VAE_NAMES[vae.vae_dtype],
            latent_dim=vae.latent_dim,
            temporal=vae.temporal_compression_decode(),
            output_channels=vae.output_channels,
        )
        self._watched = Watched(self.model)
        for part in (getattr(self.model, name, None) for name in ("encoder", "decoder")):
            if isinstance(part, torch.nn.Module):
                part.register_forward_hook(_advance)

    def encode(self, pixels: torch.Tensor, check: Check, tile: Tile | None) -> torch.Tensor:
        """Encode as ComfyUI would."""
        with self._watched.by(check):
            if tile is not None:
                with self._counting(pixels.shape[:-1], encode_passes(tile), tile):
                    return self._out(self._vae.encode_tiled(pixels, **self._sizes(tile)))
            with self._without_silent_tiles():
                return self._out(self._vae.encode(pixels)).to(pixels.device)

    def decode(self, latent: torch.Tensor, check: Check, tile: Tile | None) -> torch.Tensor:
        """Decode as ComfyUI would."""
        with self._watched.by(check):
            if tile is not None:
                with self._counting((len(latent), *latent.shape[-2:]), decode_passes(tile), tile):
                    return self._out(self._vae.decode_tiled(latent, **self._sizes(tile)))
            with self._without_silent_tiles():
                return self._out(self._vae.decode(latent)).to(latent.device)

    def _counting(
        self, shape: Sequence[int], passes: Sequence[tuple[int, int]], tile: Tile
    ) -> contextlib.AbstractContextManager[None]:
        """Count the tiles of a batch of (images, height, width); a video VAE's are not counted."""
        if self.facts.latent_dim != 2:
            return contextlib.nullcontext()
        count, height, width = shape
        return counting(count * count_tiles(width, height, passes, tile.overlap), "tiles")

    def _sizes(self, tile: Tile) -> dict[str, int | None]:
        sizes: dict[str, int | None] = {"tile_x": tile.x, "tile_y": tile.y, "overlap": tile.overlap}
        return sizes if self.facts.latent_dim == 2 else {**sizes, "tile_t": tile.t, "overlap_t": tile.overlap_t}

    @contextlib.contextmanager
    def _without_silent_tiles(self) -> Iterator[None]:
        """Turn ComfyUI's own step to tiles, when memory runs out, into the error that the engine knows and reports."""

        def refuse(*_: Any, **__: Any) -> None:
            raise MemoryError("a VAE run without tiles")

        ways = [name for name in dir(self._vae) if name.startswith(("encode_tiled_", "decode_tiled_"))]
        for name in ways:
            setattr(self._vae, name, refuse)
        try:
            yield
        finally:
            for name in ways:
                delattr(self._vae, name)

    @staticmethod
    def _out(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.float().cpu().contiguous()

    def load(self) -> None:
        """Have all weights on the device."""
        self._comfy.management.load_models_gpu([self._vae.patcher], force_full_load=True)

    def unload(self) -> None:
        """Have all weights in main memory."""
        self._vae.patcher.detach()


def _advance(_module: torch.nn.Module, _given: Any, _made: Any) -> None:
    advance(1)
