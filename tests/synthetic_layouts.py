"""Names and small shapes of whole models: Flux as diffusers calls them, AuraFlow as the reference does."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.synthetic_models import Shapes

FLUX: Shapes = {
    "x_embedder.weight": (8, 64),
    "transformer_blocks.0.attn.norm_added_k.weight": (8,),
    "transformer_blocks.0.attn.norm_q.weight": (8,),
    "transformer_blocks.0.attn.norm_k.weight": (8,),
    **{f"transformer_blocks.0.attn.{part}.weight": (64, 64) for part in ("to_q", "to_k", "to_v")},
    **{f"transformer_blocks.0.attn.{part}.bias": (64,) for part in ("to_q", "to_k", "to_v")},
    "transformer_blocks.0.ff.net.0.proj.weight": (256, 64),
    **{f"single_transformer_blocks.0.attn.{part}.weight": (64, 64) for part in ("to_q", "to_k", "to_v")},
    "single_transformer_blocks.0.proj_mlp.weight": (256, 64),
    "norm_out.linear.weight": (128, 64),
    "norm_out.linear.bias": (128,),
    "proj_out.weight": (64, 64),
}

AURA: Shapes = {
    "positional_encoding": (1, 64, 128),
    "register_tokens": (1, 8, 128),
    "init_x_linear.weight": (128, 16),
    "init_x_linear.bias": (128,),
    "cond_seq_linear.weight": (128, 2048),
    "t_embedder.mlp.0.weight": (128, 256),
    "t_embedder.mlp.0.bias": (128,),
    "t_embedder.mlp.2.weight": (128, 128),
    "t_embedder.mlp.2.bias": (128,),
    "modF.1.weight": (256, 128),
    "final_linear.weight": (16, 128),
    **{f"double_layers.{n}.attn.w{w}.weight": (128, 128) for n in range(2) for w in ("1q", "1k", "1v", "1o")},
    **{f"double_layers.{n}.attn.w{w}.weight": (128, 128) for n in range(2) for w in ("2q", "2k", "2v", "2o")},
    **{f"double_layers.{n}.{mod}.1.weight": (768, 128) for n in range(2) for mod in ("modC", "modX")},
    **{
        f"double_layers.{n}.{mlp}.c_fc{w}.weight": (256, 128)
        for n in range(2)
        for mlp in ("mlpC", "mlpX")
        for w in "12"
    },
    **{f"double_layers.{n}.{mlp}.c_proj.weight": (128, 256) for n in range(2) for mlp in ("mlpC", "mlpX")},
    **{f"single_layers.{n}.attn.w{w}.weight": (128, 128) for n in range(3) for w in ("1q", "1k", "1v", "1o")},
    **{f"single_layers.{n}.modCX.1.weight": (768, 128) for n in range(3)},
    **{f"single_layers.{n}.mlp.c_fc{w}.weight": (256, 128) for n in range(3) for w in "12"},
    **{f"single_layers.{n}.mlp.c_proj.weight": (128, 256) for n in range(3)},
}
