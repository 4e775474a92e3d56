"""The image autoencoders of SD, SDXL, SD3 and Flux (Rombach et al. 2022, the CompVis layout), as files name them.

Written out in torch instead of taken from diffusers: installing diffusers into a ComfyUI whose transformers is 4.x
pulls huggingface_hub past what that transformers accepts, and ComfyUI no longer starts. Tests hold it to diffusers.

Rules N16 and N17 of DAEMON.md: the mean of the posterior, no scaling or shift factor, images clamped to 0..1.
Cropping and channel rules are the caller's (``images.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from luna_daemon.model_messages import VaeFacts
from luna_daemon.progress import advance, counting
from luna_daemon.runtime.tiling import count_tiles, decode_passes, encode_passes, mean_of_passes

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Mapping, Sequence

    from luna_daemon.encode_messages import Tile

FACTOR = 8
_CPU = torch.device("cpu")
_WIDTHS = (128, 256, 512, 512)
_BLOCKS = 2
_PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True, slots=True)
class VaeLayout:
    """What differs between the image VAEs.

    Attributes:
        channels: of the latent.
        has_quant_convs: whether convolutions of size 1 stand between encoder, latent and decoder.
    """

    channels: int
    has_quant_convs: bool


SD = VaeLayout(channels=4, has_quant_convs=True)
"""SD 1.x, SD 2.x and SDXL."""
SD3 = VaeLayout(channels=16, has_quant_convs=False)
"""SD3, Flux and Z-Image."""


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6)


class ResidualBlock(nn.Module):
    """Norm, swish, convolution, twice, added to the input; a shortcut convolution where the width changes."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.norm1 = _norm(inside)
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=1)
        self.norm2 = _norm(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1)
        self.nin_shortcut = nn.Identity() if inside == outside else nn.Conv2d(inside, outside, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, inside, h, w] to [B, outside, h, w]."""
        h = self.conv1(functional.silu(self.norm1(x)))
        h = self.conv2(functional.silu(self.norm2(h)))
        out: torch.Tensor = self.nin_shortcut(x) + h
        return out


class AttentionBlock(nn.Module):
    """Attention over all positions, one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, C, h, w] to the same shape."""
        normed = self.norm(x)
        # [B, 1 head, h·w positions, C]
        q, k, v = (layer(normed).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v))
        mixed = functional.scaled_dot_product_attention(q, k, v)
        out: torch.Tensor = x + self.proj_out(mixed[:, 0].transpose(1, 2).reshape(x.shape))
        return out


class Downsample(nn.Module):
    """Halves both sides; one row and column of zeros are added at the end, none at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, C, h, w] to [B, C, h/2, w/2]."""
        out: torch.Tensor = self.conv(functional.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Doubles both sides by repeating pixels, then smooths."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, C, h, w] to [B, C, 2h, 2w]."""
        out: torch.Tensor = self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class Level(nn.Module):
    """The blocks of one resolution, and the change to the next."""

    def __init__(self, inside: int, width: int, blocks: int, change: dict[str, nn.Module]) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(inside if index == 0 else width, width) for index in range(blocks))
        self._change = next(iter(change), None)
        for name, module in change.items():
            self.add_module(name, module)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the blocks, then the change."""
        for block in self.block:
            x = block(x)
        return x if self._change is None else self.get_submodule(self._change)(x)


class Middle(nn.Module):
    """Two blocks round the attention, at the lowest resolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(width, width)
        self.attn_1 = AttentionBlock(width)
        self.block_2 = ResidualBlock(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, C, h, w] to the same shape."""
        out: torch.Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return out


class Encoder(nn.Module):
    """Pixels to the moments of the posterior."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, _WIDTHS[0], 3, padding=1)
        inside = (_WIDTHS[0], *_WIDTHS[:-1])
        last = len(_WIDTHS) - 1
        self.down = nn.ModuleList(
            Level(inside[level], width, _BLOCKS, {} if level == last else {"downsample": Downsample(width)})
            for level, width in enumerate(_WIDTHS)
        )
        self.mid = Middle(_WIDTHS[-1])
        self.norm_out = _norm(_WIDTHS[-1])
        self.conv_out = nn.Conv2d(_WIDTHS[-1], 2 * channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, 3, 8h, 8w] to [B, 2 · channels, h, w]."""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        out: torch.Tensor = self.conv_out(functional.silu(self.norm_out(self.mid(x))))
        return out


class Decoder(nn.Module):
    """Latent to pixels. Levels are numbered from the full resolution downwards and run from the last to the first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, _WIDTHS[-1], 3, padding=1)
        self.mid = Middle(_WIDTHS[-1])
        inside = (*_WIDTHS[1:], _WIDTHS[-1])
        self.up = nn.ModuleList(
            Level(inside[level], width, _BLOCKS + 1, {} if level == 0 else {"upsample": Upsample(width)})
            for level, width in enumerate(_WIDTHS)
        )
        self.norm_out = _norm(_WIDTHS[0])
        self.conv_out = nn.Conv2d(_WIDTHS[0], 3, 3, padding=1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Map [B, channels, h, w] to [B, 3, 8h, 8w]."""
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        out: torch.Tensor = self.conv_out(functional.silu(self.norm_out(x)))
        return out


class AutoencoderModule(nn.Module):
    """Encoder, decoder and, where the layout has them, the convolutions of size 1 between them and the latent."""

    def __init__(self, layout: VaeLayout) -> None:
        super().__init__()
        channels = layout.channels
        self.channels = channels
        self.encoder = Encoder(channels)
        self.decoder = Decoder(channels)
        has_them = layout.has_quant_convs
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1) if has_them else nn.Identity()
        self.post_quant_conv = nn.Conv2d(channels, channels, 1) if has_them else nn.Identity()

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the mean of the posterior: the first half of the moments."""
        mean: torch.Tensor = self.quant_conv(self.encoder(pixels))[:, : self.channels]
        return mean

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Return pixels in about -1..1."""
        pixels: torch.Tensor = self.decoder(self.post_quant_conv(latent))
        return pixels


def expected_shapes(layout: VaeLayout) -> dict[str, tuple[int, ...]]:
    """Return name → shape of every weight."""
    return {name: tuple(tensor.shape) for name, tensor in _empty_module(layout).state_dict().items()}


def _empty_module(layout: VaeLayout) -> AutoencoderModule:
    """Build the module on the meta device: no memory, no random numbers."""
    with torch.device("meta"):
        return AutoencoderModule(layout)


class Autoencoder:
    """A VAE with its weights.

    Args:
        layout: which of the VAEs it is.
        tensors: original names (``encoder.conv_in.weight``, ``quant_conv.bias``, …) → tensors of any float type.
            Attention weights may be stored as linear layers, without the axes of size 1.
        dtype: what it computes in.
        device: where it runs, once `to` has moved it there.
    """

    def __init__(
        self, layout: VaeLayout, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.layout = layout
        self.dtype = dtype
        self.device = device
        self._module = _empty_module(layout)
        weights = {name: tensors[name].to(dtype).reshape(shape) for name, shape in expected_shapes(layout).items()}
        self._module.load_state_dict(weights, strict=True, assign=True)
        self._module.requires_grad_(requires_grad=False).eval()

    @property
    def facts(self) -> VaeFacts:
        """Shape rules."""
        return VaeFacts(latent_channels=self.layout.channels, spatial=FACTOR, dtype=_PRECISIONS[self.dtype])

    def encode(self, pixels: torch.Tensor, check: Callable[[], None], tile: Tile | None = None) -> torch.Tensor:
        """Encode [B, H, W, 3] in 0..1 to the posterior's mean [B, C, H/8, W/8], fp32 where the pixels lie.

        Tiles are in pixels; they are put together on the CPU.
        """
        home = pixels.device if tile is None else _CPU

        def run(x: torch.Tensor) -> torch.Tensor:
            check()
            latent = self._module.encode(x.to(self.device, self.dtype)).float().to(home)
            advance(1)
            return latent

        latents = []
        passes = () if tile is None else encode_passes(tile)
        with _counting(pixels.shape[:-1], passes, tile):
            for image in pixels.unbind():
                x = image[None].movedim(-1, 1).float() * 2.0 - 1.0
                latents.append(run(x) if tile is None else mean_of_passes(x, passes, tile.overlap, 1 / FACTOR, run))
        return torch.cat(latents)

    def decode(self, latent: torch.Tensor, check: Callable[[], None], tile: Tile | None = None) -> torch.Tensor:
        """Decode [B, C, h, w] to [B, 8h, 8w, 3] in 0..1, fp32 where the latent lies.

        Tiles are in latent units; they are put together on the CPU.
        """
        home = latent.device if tile is None else _CPU

        def run(z: torch.Tensor) -> torch.Tensor:
            check()
            image = self._module.decode(z.to(self.device, self.dtype)).float().to(home)
            advance(1)
            return image

        images = []
        passes = () if tile is None else decode_passes(tile)
        with _counting((len(latent), *latent.shape[-2:]), passes, tile):
            for one in (each[None] for each in latent.unbind()):
                y = run(one) if tile is None else mean_of_passes(one, passes, tile.overlap, FACTOR, run)
                images.append(((y + 1.0) / 2.0).clamp_(0.0, 1.0).movedim(1, -1))
        return torch.cat(images)

    def state(self) -> dict[str, torch.Tensor]:
        """Return the weights under their original names."""
        return dict(self._module.state_dict())

    def to(self, device: torch.device) -> None:
        """Move the weights; they compute where they are."""
        self._module.to(device)
        self.device = device


def _counting(
    shape: Sequence[int], passes: Sequence[tuple[int, int]], tile: Tile | None
) -> contextlib.AbstractContextManager[None]:
    """Count a batch of (images, height, width) in tiles, or in images where there are none."""
    count, height, width = shape
    if tile is None:
        return counting(count, "images")
    return counting(count * count_tiles(width, height, passes, tile.overlap), "tiles")
