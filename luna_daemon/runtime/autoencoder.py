"""The SD and SDXL autoencoder on diffusers' AutoencoderKL, fed from files in the original key layout.

Rules N16 and N17 of DAEMON.md: the mean of the posterior, no scaling or shift factor, images clamped to 0..1.
Cropping and channel rules are the caller's (``images.py``).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

from luna_daemon.model_messages import VaeFacts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FACTOR = 8
CHANNELS = 4
_WIDTHS = (128, 256, 512, 512)
_PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}

# diffusers' spelling → the original one, tried in order on every name.
_RENAMES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), original)
    for pattern, original in (
        (r"^encoder\.down_blocks\.(\d)\.resnets\.", r"encoder.down.\1.block."),
        (r"^encoder\.down_blocks\.(\d)\.downsamplers\.0\.", r"encoder.down.\1.downsample."),
        (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
        (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
        (r"\.mid_block\.attentions\.0\.group_norm\.", ".mid.attn_1.norm."),
        (r"\.mid_block\.attentions\.0\.to_([qkv])\.", r".mid.attn_1.\1."),
        (r"\.mid_block\.attentions\.0\.to_out\.0\.", ".mid.attn_1.proj_out."),
        (r"\.conv_shortcut\.", ".nin_shortcut."),
        (r"\.conv_norm_out\.", ".norm_out."),
    )
)
_UP = re.compile(r"^decoder\.up_blocks\.(\d)\.(resnets|upsamplers\.0)\.")


def original_name(name: str) -> str:
    """Return the original (CompVis) name of a weight of diffusers' AutoencoderKL.

    The original numbers the decoder's levels from the full resolution downwards, diffusers in running order.
    """
    if match := _UP.match(name):
        level = len(_WIDTHS) - 1 - int(match[1])
        kind = "block" if match[2] == "resnets" else "upsample"
        name = f"decoder.up.{level}.{kind}.{name[match.end() :]}"
    for pattern, original in _RENAMES:
        name = pattern.sub(original, name)
    return name


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """Return original name → shape of every weight (attention as linear layers, without the axes of size 1)."""
    return {original_name(name): tuple(tensor.shape) for name, tensor in _empty_model().state_dict().items()}


class Autoencoder:
    """A VAE with its weights.

    Args:
        tensors: original names (``encoder.conv_in.weight``, ``quant_conv.bias``, …) → tensors of any float type.
        dtype: what it computes in.
        device: where it runs.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype, device: torch.device) -> None:
        self.dtype = dtype
        self.device = device
        self._model = _empty_model()
        # The attention's convolutions of size 1 are linear layers in diffusers: same numbers, two axes fewer.
        weights = {
            name: tensors[original_name(name)].to(dtype).reshape(empty.shape)
            for name, empty in self._model.state_dict().items()
        }
        self._model.load_state_dict(weights, strict=True, assign=True)
        self._model.requires_grad_(requires_grad=False).eval().to(device)

    @property
    def facts(self) -> VaeFacts:
        """Shape rules."""
        return VaeFacts(latent_channels=CHANNELS, spatial=FACTOR, dtype=_PRECISIONS[self.dtype])

    def encode(self, pixels: torch.Tensor, check: Callable[[], None]) -> torch.Tensor:
        """Encode [B, H, W, 3] in 0..1 to the posterior's mean [B, 4, H/8, W/8], fp32 on the CPU."""
        latents = []
        for image in pixels.unbind():
            check()
            x = (image[None].movedim(-1, 1).float() * 2.0 - 1.0).to(self.device, self.dtype)
            latents.append(self._model.encode(x).latent_dist.mean.float().cpu())
        return torch.cat(latents)

    def decode(self, latent: torch.Tensor, check: Callable[[], None]) -> torch.Tensor:
        """Decode [B, 4, h, w] to [B, 8h, 8w, 3] in 0..1, fp32 on the CPU."""
        images = []
        for one in latent.unbind():
            check()
            y = self._model.decode(one[None].to(self.device, self.dtype)).sample.float().cpu()
            images.append(((y + 1.0) / 2.0).clamp_(0.0, 1.0).movedim(1, -1))
        return torch.cat(images)

    def state(self) -> dict[str, torch.Tensor]:
        """Return the weights under their original names."""
        return {original_name(name): tensor for name, tensor in self._model.state_dict().items()}

    def to(self, device: torch.device) -> None:
        """Move the weights; they compute where they are."""
        self._model.to(device)
        self.device = device


def _empty_model() -> Any:
    """Build the module on the meta device: no memory, no random numbers."""
    from diffusers import AutoencoderKL

    levels = len(_WIDTHS)
    with torch.device("meta"):
        return AutoencoderKL(
            in_channels=3,
            out_channels=3,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=_WIDTHS,
            layers_per_block=2,
            act_fn="silu",
            latent_channels=CHANNELS,
            norm_num_groups=32,
        )
