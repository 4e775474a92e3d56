"""What is quantised in each family and under which name its GGUF files travel.

A tensor is quantised only if it stands in a repeating block: a name that a later model adds elsewhere stays 16-bit.
The architecture names are those that ComfyUI's GGUF loaders open; the model itself is recognised from its keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType

_LEAST_ELEMENTS = 512


@dataclass(frozen=True, slots=True)
class Architecture:
    """One row: ``blocks`` are prefixes, ``keep`` substrings, ``keep_whole`` complete names."""

    label: str
    blocks: tuple[str, ...]
    keep: tuple[str, ...]
    keep_whole: frozenset[str] = frozenset()
    bare: tuple[str, ...] = ()
    quantises_convolutions: bool = False

    def is_quantised(self, name: str, shape: tuple[int, ...]) -> bool:
        """Tell whether a tensor (its name without prefix) may be stored in blocks."""
        ranks = {2, 4} if self.quantises_convolutions else {2}
        return (
            name.endswith(".weight")
            and name.startswith(self.blocks)
            and name not in self.keep_whole
            and "norm" not in name
            and not any(pattern in name for pattern in self.keep)
            and len(shape) in ranks
            and math.prod(shape) >= _LEAST_ELEMENTS
        )


def _unet(label: str) -> Architecture:
    return Architecture(
        label,
        blocks=("input_blocks.", "middle_block.", "output_blocks."),
        keep=(
            "time_embed.",
            "label_emb.",
            "class_embedding.",
            "time_embedding.",
            "add_embedding.",
            "conv_in.",
            "conv_out.",
        ),
        keep_whole=frozenset({"input_blocks.0.0.weight", "out.2.weight"}),
        quantises_convolutions=True,
    )


_SD1, _SDXL = _unet("sd1"), _unet("sdxl")
_FLUX = Architecture(
    "flux",
    blocks=("double_blocks.", "single_blocks."),
    keep=(
        "txt_in.",
        "img_in.",
        "time_in.",
        "vector_in.",
        "guidance_in.",
        "final_layer.",
        "distilled_guidance_layer.",
        "double_stream_modulation",
        "single_stream_modulation",
        "nerf_",
    ),
)
_SD3 = Architecture(
    "sd3",
    blocks=("joint_blocks.",),
    keep=(
        "final_layer.",
        "context_embedder.",
        "t_embedder.",
        "y_embedder.",
        "x_embedder.",
        "time_text_embed.",
        "proj_out.weight",
        "pos_embed",
    ),
    bare=("pos_embed",),
)
_LUMINA2 = Architecture(
    "lumina2",
    blocks=("layers.",),
    keep=(
        "t_embedder.",
        "x_embedder.",
        "cap_embedder.",
        "final_layer.",
        "context_refiner.",
        "noise_refiner.",
        "siglip_",
        "x_pad_token",
        "cap_pad_token",
    ),
    bare=("x_pad_token", "cap_pad_token"),
)
_WAN = Architecture(
    "wan",
    blocks=("blocks.", "vace_blocks."),
    keep=(
        "modulation",
        "patch_embedding.",
        "text_embedding.",
        "time_projection.",
        "time_embedding.",
        "img_emb.",
        "head.",
        "vace_patch_embedding.",
        "audio_",
        "face_",
        "control_adapter.",
    ),
    bare=("modulation", "img_emb.emb_pos"),
)
_QWEN_IMAGE = Architecture(
    "qwen_image",
    blocks=("transformer_blocks.",),
    keep=("img_in.", "txt_in.", "txt_norm", "time_text_embed.", "norm_out.", "proj_out."),
)
_HUNYUAN_VIDEO = Architecture(
    "hyvid",
    blocks=("double_blocks.", "single_blocks."),
    keep=(
        "txt_in.",
        "img_in.",
        "time_in.",
        "time_r_in.",
        "vector_in.",
        "guidance_in.",
        "final_layer.",
        "byt5_in.",
        "vision_in.",
        "cond_type_embedding",
    ),
)
_LTXV = Architecture(
    "ltxv",
    blocks=("transformer_blocks.",),
    keep=("adaln_single", "caption_projection", "patchify_proj", "proj_out.", "scale_shift_table"),
    bare=("scale_shift_table",),
)
_HIDREAM = Architecture(
    "hidream",
    blocks=("double_stream_blocks.", "single_stream_blocks."),
    keep=(
        "p_embedder.",
        "t_embedder.",
        "x_embedder.",
        "final_layer.",
        "caption_projection.",
        ".ff_i.gate.weight",
        "img_emb.emb_pos",
    ),
    bare=(".ff_i.gate.weight", "img_emb.emb_pos"),
)
_COSMOS = Architecture(
    "cosmos",
    blocks=("blocks.",),
    keep=(
        "p_embedder.",
        "t_embedder.",
        "t_embedding_norm.",
        "x_embedder.",
        "pos_embedder.",
        "final_layer.",
        "llm_adapter.",
    ),
    bare=("pos_embedder",),
)
_AURA = Architecture(
    "aura",
    blocks=("double_layers.", "single_layers."),
    keep=(
        "t_embedder.",
        "init_x_linear.",
        "modF.1.weight",
        "cond_seq_linear.",
        "final_linear.",
        "positional_encoding",
        "register_tokens",
    ),
    bare=("positional_encoding", "register_tokens"),
)

ARCHITECTURES = MappingProxyType(
    {
        "sd15": _SD1,
        "sd2": _SD1,
        "sdxl": _SDXL,
        "sdxl-refiner": _SDXL,
        "flux": _FLUX,
        "flux2": _FLUX,
        "chroma": _FLUX,
        "radiance": _FLUX,
        "ovis": _FLUX,
        "sd3": _SD3,
        "z-image": _LUMINA2,
        "lumina2": _LUMINA2,
        "newbie": _LUMINA2,
        "wan": _WAN,
        "qwen-image": _QWEN_IMAGE,
        "hunyuan-video": _HUNYUAN_VIDEO,
        "ltxv": _LTXV,
        "ltx-av": _LTXV,
        "hidream": _HIDREAM,
        "cosmos-predict2": _COSMOS,
        "anima": _COSMOS,
        "aura": _AURA,
    }
)

_LAYER_PARAMETERS = (".weight", ".bias", ".scale")


def is_bare(architecture: Architecture, name: str) -> bool:
    """Tell whether a parameter is owned by no layer: loaders read only F32 and F16 there."""
    return not name.endswith(_LAYER_PARAMETERS) or any(part in name for part in architecture.bare)
