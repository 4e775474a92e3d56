"""DaemonVAE: a VAE for ComfyUI's nodes that runs in a daemon. ComfyUI is reached through `HostHooks` alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luna_daemon.encode_messages import Tile
from luna_daemon.remote import RemoteOnlyError, RemoteSet
from luna_daemon.stand_ins import PatcherStandIn, RemoteModule
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from luna_daemon.progress import Report

VAE_PREFIX = "first_stage_model."
"""What stands before a VAE's names in a set; the module itself has them without."""


class DaemonVAE:
    """A VAE that runs in a daemon. Reentrant: ControlNet encodes during sampling."""

    def __init__(self, remote: RemoteSet) -> None:
        facts = remote.facts.vae
        if facts is None:
            raise DaemonError("component-missing", f"{remote.place} has no VAE")
        self.remote = remote
        self.latent_channels = facts.latent_channels
        self.latent_dim = facts.latent_dim
        self.output_channels = facts.output_channels
        self._spatial = facts.spatial
        self.downscale_ratio: Any = facts.spatial
        self.upscale_ratio: Any = facts.spatial
        self.downscale_index_formula: Any = None
        self.upscale_index_formula: Any = None
        if facts.latent_dim == 3 and facts.temporal is not None:
            self._set_ratios_in_time(facts.temporal)
        self.device = self.output_device = remote.host.intermediate_device()
        self.patcher = PatcherStandIn(remote, is_clip=False, prefix=VAE_PREFIX)
        self.first_stage_model = RemoteModule(remote, "vae.first_stage_model", VAE_PREFIX)
        self._temporal = facts.temporal
        self._dtype = facts.dtype

    def _set_ratios_in_time(self, step: int) -> None:
        """Say how many frames are how many latents, as a video VAE of ComfyUI does: the first frame has its own."""
        side = self._spatial
        self.downscale_ratio = (lambda frames: max(0, (frames + step - 1) // step), side, side)
        self.upscale_ratio = (lambda latents: max(0, latents * step - step + 1), side, side)
        self.downscale_index_formula = self.upscale_index_formula = (step, side, side)

    @property
    def vae_dtype(self) -> Any:
        """Return the dtype in which the daemon computes."""
        import torch

        return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(self._dtype, torch.float32)

    def encode(self, pixel_samples: Any) -> Any:
        """Encode images ``[B, H, W, C]`` in 0..1 to unscaled latents."""
        return self._encode(pixel_samples, None)

    def encode_tiled(
        self,
        pixel_samples: Any,
        tile_x: int | None = None,
        tile_y: int | None = None,
        overlap: int | None = None,
        tile_t: int | None = None,
        overlap_t: int | None = None,
    ) -> Any:
        """Encode in tiles; sizes in pixels, 512 with 64 overlap unless given."""
        return self._encode(pixel_samples, self._tile((tile_x, tile_y, overlap), (512, 64), (tile_t, overlap_t)))

    def decode(self, samples_in: Any, vae_options: Mapping[str, Any] | None = None) -> Any:
        """Decode latents to images ``[B, H, W, C]`` in 0..1."""
        return self._decode(samples_in, None, vae_options)

    def decode_tiled(
        self,
        samples: Any,
        tile_x: int | None = None,
        tile_y: int | None = None,
        overlap: int | None = None,
        tile_t: int | None = None,
        overlap_t: int | None = None,
    ) -> Any:
        """Decode in tiles; sizes in latent units, 64 with 16 overlap unless given."""
        return self._decode(samples, self._tile((tile_x, tile_y, overlap), (64, 16), (tile_t, overlap_t)), None)

    def _encode(self, pixels: Any, tile: Tile | None) -> Any:
        from luna_daemon.tensors import from_torch, to_torch

        sent = from_torch("pixels", pixels.float())
        host = self.remote.host
        reply, returned = self.remote.call(
            lambda client, set_id: client.vae_encode(
                set=set_id, pixels=sent, tile=tile, poll=host.check_interrupt, on_progress=self._progress(tile)
            )
        )
        self._tell(reply.did, pixels)
        return to_torch(returned).to(self.output_device)

    def _decode(self, samples: Any, tile: Tile | None, options: Mapping[str, Any] | None) -> Any:
        from luna_daemon.tensors import from_torch, to_torch

        if getattr(samples, "is_nested", False):
            raise DaemonError("latent-mismatch", "a nested latent (video with sound) cannot be decoded here")
        sent = from_torch("latent", samples.float())
        host = self.remote.host
        reply, returned = self.remote.call(
            lambda client, set_id: client.vae_decode(
                set=set_id,
                latent=sent,
                tile=tile,
                options=dict(options or {}),
                poll=host.check_interrupt,
                on_progress=self._progress(tile),
            )
        )
        self._tell(reply.did, None)
        return to_torch(returned).to(self.output_device)

    def _progress(self, tile: Tile | None) -> Report | None:
        """Return what shows the user how many tiles are done; plain runs show nothing, as in ComfyUI."""
        if tile is None:
            return None
        show = self.remote.host.progress()
        return lambda done, total, _unit: show(done, total)

    def _tile(
        self,
        sizes: tuple[int | None, int | None, int | None],
        defaults: tuple[int, int],
        temporal: tuple[int | None, int | None],
    ) -> Tile:
        x, y, overlap = sizes
        side, default_overlap = defaults
        t, overlap_t = temporal if self.latent_dim > 2 else (None, None)  # stock nodes give them to image VAEs too
        return Tile(
            x=side if x is None else x,
            y=side if y is None else y,
            overlap=default_overlap if overlap is None else overlap,
            t=t,
            overlap_t=overlap_t,
        )

    def _tell(self, did: Any, pixels: Any) -> None:
        """Pass on what the daemon did other than asked."""
        if did is None:
            return
        if did.tiled == "oom":
            self.remote.host.notice("the VAE ran out of memory and worked in tiles; the result differs slightly")
        if did.crop and pixels is not None:
            height, width = did.crop
            self.remote.host.notice(
                f"the image of {pixels.shape[-2]}x{pixels.shape[-3]} was cropped to {width}x{height} "
                f"(a multiple of {self._spatial})"
            )
        for entry in did.downgraded:
            self.remote.host.notice(f"{entry.did} instead of {entry.asked}: {entry.reason}")

    def spacial_compression_encode(self) -> int:
        """Return pixels per latent along one side."""
        return self._spatial

    def spacial_compression_decode(self) -> int:
        """Return pixels per latent along one side."""
        return self._spatial

    def temporal_compression_decode(self) -> int | None:
        """Return frames per latent, None for images."""
        return self._temporal

    def process_input(self, image: Any) -> Any:
        """Map 0..1 to -1..1."""
        return image * 2.0 - 1.0

    def process_output(self, image: Any) -> Any:
        """Map -1..1 to 0..1, clamped."""
        return ((image + 1.0) / 2.0).clamp(0.0, 1.0)

    def memory_used_encode(self, shape: Any, dtype: Any) -> int:  # noqa: ARG002 - ComfyUI's signature
        """Return 0: this process needs nothing for it."""
        return 0

    def memory_used_decode(self, shape: Any, dtype: Any) -> int:  # noqa: ARG002 - ComfyUI's signature
        """Return 0: this process needs nothing for it."""
        return 0

    def throw_exception_if_invalid(self) -> None:
        """Do nothing: an invalid VAE was refused when the set was loaded."""

    def get_ram_usage(self) -> int:
        """Return 0: the weights are not in this process."""
        return 0

    def get_sd(self) -> Any:
        """Refuse: saving needs the weights."""
        raise RemoteOnlyError("vae.get_sd", self.remote.place)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "remote" not in self.__dict__:
            raise AttributeError(name)
        raise RemoteOnlyError(f"vae.{name}", self.remote.place)
