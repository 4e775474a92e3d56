"""Each row of the family table, each kind of file and each stored form, from headers alone."""

# ruff: noqa: E501 - one row of the family table per line

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from luna_engine.errors import InputFileError
from luna_engine.weights import inspect
from luna_engine.weights.components import Form
from luna_engine.weights.demo.models import MODELS
from luna_engine.weights.kinds import Kind
from luna_engine.weights.verdicts import Confidence
from tests.synthetic_models import TINY_SDXL, Shapes, demo_shapes, under, write_holes

if TYPE_CHECKING:
    from pathlib import Path

W = ".weight"
FLUX = {
    "double_blocks.0.img_attn.norm.key_norm.scale": (128,),
    "img_in.weight": (3072, 64),
    "txt_in.weight": (3072, 4096),
}
UNET = {"input_blocks.0.0.weight": (320, 4, 3, 3), "output_blocks.0.0.in_layers.2.weight": (8, 8, 3, 3)}
TO_K = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
QWEN = {"txt_norm.weight": (8,), "transformer_blocks.0.attn.to_q.weight": (8, 8)}
WAN = {"head.modulation": (1, 2, 5120), "patch_embedding.weight": (5120, 16, 1, 2, 2)}
LTX = {"adaln_single.emb.timestep_embedder.linear_1.bias": (8,)}
COSMOS2 = {"blocks.0.mlp.layer1.weight": (8, 8), "x_embedder.proj.1.weight": (2048, 68)}

ROWS: list[tuple[str, str, Shapes]] = [
    ("sd3", "3.0 medium", {"joint_blocks.0.context_block.attn.qkv.weight": (8, 8), "x_embedder.proj.weight": (1536, 16, 2, 2)}),
    ("sd3", "3.5 large", {"joint_blocks.0.context_block.attn.qkv.weight": (8, 8), "joint_blocks.0.context_block.attn.ln_q.weight": (64,), "x_embedder.proj.weight": (2432, 16, 2, 2)}),
    ("sd3", "3.5 medium", {"joint_blocks.0.context_block.attn.qkv.weight": (8, 8), "joint_blocks.3.x_block.attn2.qkv.weight": (8, 8), "x_embedder.proj.weight": (1536, 16, 2, 2)}),
    ("stable-cascade", "C lite", {"clf.1.weight": (8, 8, 1, 1), "clip_txt_mapper.weight": (1536, 1280)}),
    ("stable-cascade", "C", {"clf.1.weight": (8, 8, 1, 1), "clip_txt_mapper.weight": (2048, 1280)}),
    ("stable-cascade", "B", {"clf.1.weight": (8, 8, 1, 1), "clip_mapper.weight": (8, 8)}),
    ("stable-audio", "", {"transformer.rotary_pos_emb.inv_freq": (16,), "transformer.x": (4,)}),
    ("aura", "4+2 layers", {"double_layers.0.attn.w1q.weight": (8, 8), **{f"double_layers.{i}.x": (8,) for i in range(4)}, **{f"single_layers.{i}.x": (8,) for i in range(2)}}),
    ("hunyuan-dit", "1.1", {"mlp_t5.0.weight": (8, 8), "extra_embedder.0.weight": (8, 3968)}),
    ("hunyuan-dit", "1.2", {"mlp_t5.0.weight": (8, 8), "extra_embedder.0.weight": (8, 1024)}),
    ("hunyuan-video", "video", {"txt_in.individual_token_refiner.blocks.0.norm1.weight": (8,), "img_in.proj.weight": (8, 16, 1, 2, 2)}),
    ("hunyuan-video", "image", {"txt_in.individual_token_refiner.blocks.0.norm1.weight": (8,), "img_in.proj.weight": (8, 16, 2, 2)}),
    ("hunyuan-video", "1.5 image-to-video", {"txt_in.individual_token_refiner.blocks.0.norm1.weight": (8,), "img_in.proj.weight": (8, 33, 1, 2, 2), "vision_in.proj.0.weight": (8, 8)}),
    ("flux2", "6144 wide, text 15360", {"double_blocks.0.img_attn.norm.key_norm.scale": (128,), "img_in.weight": (6144, 128), "txt_in.weight": (6144, 15360), "double_stream_modulation_img.lin.weight": (8, 8)}),
    ("chroma", "", {"double_blocks.0.img_attn.norm.key_norm.scale": (128,), "distilled_guidance_layer.norms.0.scale": (8,), "x": (4,)}),
    ("radiance", "x0 prediction", {"double_blocks.0.img_attn.norm.key_norm.scale": (128,), "distilled_guidance_layer.0.norms.0.scale": (8,), "nerf_blocks.0.norm.scale": (8,), "__x0__": ()}),
    ("ovis", "", {**FLUX, "double_blocks.0.img_mlp.gate_proj.weight": (8, 8), "txt_norm.scale": (8,)}),
    ("flux", "dev", {**FLUX, "guidance_in.in_layer.weight": (8, 256)}),
    ("flux", "dev fill", {**FLUX, "img_in.weight": (3072, 384), "guidance_in.in_layer.weight": (8, 256)}),
    ("flux", "dev canny or depth", {**FLUX, "img_in.weight": (3072, 128), "guidance_in.in_layer.weight": (8, 256)}),
    ("flux", "schnell", {**FLUX, "time_in.in_layer.weight": (8, 8)}),
    ("mochi", "", {"t5_yproj.weight": (8, 8), "a": (4,), "b": (4,), "c": (4,)}),
    ("ltxv", "", {**LTX, "a": (4,), "b": (4,), "c": (4,)}),
    ("ltx-av", "", {**LTX, "audio_adaln_single.linear.weight": (8, 8), "b": (4,), "c": (4,)}),
    ("pixart", "diffusers layout", {**LTX, "pos_embed.proj.bias": (8,), "b": (4,), "c": (4,)}),
    ("ace-step", "1", {"genre_embedder.weight": (8, 8), "a": (4,), "b": (4,), "c": (4,)}),
    ("ace-step", "1.5", {"encoder.lyric_encoder.layers.0.input_layernorm.weight": (8,), "a": (4,), "b": (4,), "c": (4,)}),
    ("pixart", "alpha", {"t_block.1.weight": (8, 8), "ar_embedder.mlp.0.weight": (8, 8), "b": (4,), "c": (4,)}),
    ("pixart", "sigma", {"t_block.1.weight": (8, 8), "a": (4,), "b": (4,), "c": (4,)}),
    ("cosmos", "1 7B", {"blocks.block0.blocks.0.block.attn.to_q.0.weight": (4096, 8), "a": (4,), "b": (4,), "c": (4,)}),
    ("cosmos", "1 14B", {"blocks.block0.blocks.0.block.attn.to_q.0.weight": (5120, 8), "a": (4,), "b": (4,), "c": (4,)}),
    ("lumina2", "", {"cap_embedder.1.weight": (2304, 2304), "a": (4,), "b": (4,), "c": (4,)}),
    ("newbie", "", {"cap_embedder.1.weight": (2304, 2560), "clip_text_pooled_proj.0.weight": (1024,), "b": (4,), "c": (4,)}),
    ("z-image", "turbo", {"cap_embedder.1.weight": (3840, 2560), "cap_pad_token": (1, 3840), "b": (4,), "c": (4,)}),
    ("z-image", "turbo image-conditioned", {"cap_embedder.1.weight": (3840, 2560), "siglip_embedder.0.weight": (1152,), "b": (4,), "c": (4,)}),
    ("wan", "t2v 14B", {**WAN, "a": (4,), "b": (4,)}),
    ("wan", "t2v 1.3B", {**WAN, "head.modulation": (1, 2, 1536), "a": (4,), "b": (4,)}),
    ("wan", "t2v 5B", {**WAN, "head.modulation": (1, 2, 3072), "a": (4,), "b": (4,)}),
    ("wan", "vace 14B", {**WAN, "vace_patch_embedding.weight": (8, 8), "b": (4,)}),
    ("wan", "camera 14B", {**WAN, "control_adapter.conv.weight": (8, 8), "b": (4,)}),
    ("wan", "s2v 14B", {**WAN, "casual_audio_encoder.encoder.x": (8, 8), "b": (4,)}),
    ("wan", "humo 14B", {**WAN, "audio_proj.audio_proj_glob_1.layer.bias": (8,), "b": (4,)}),
    ("wan", "animate 14B", {**WAN, "face_adapter.fuser_blocks.0.x": (8, 8), "b": (4,)}),
    ("wan", "i2v 14B", {**WAN, "img_emb.proj.0.bias": (8,), "b": (4,)}),
    ("hunyuan3d", "2", {"latent_in.weight": (8, 8), "a": (4,), "b": (4,), "c": (4,)}),
    ("hunyuan3d", "2.1", {"t_embedder.mlp.2.weight": (8, 8), "blocks.0.x": (4,), "b": (4,), "c": (4,)}),
    ("hidream", "", {"caption_projection.0.linear.weight": (8, 8), "a": (4,), "b": (4,), "c": (4,)}),
    ("cosmos-predict2", "t2i 2B", {**COSMOS2, "a": (4,), "b": (4,)}),
    ("cosmos-predict2", "i2v 14B", {**COSMOS2, "x_embedder.proj.1.weight": (5120, 72), "a": (4,), "b": (4,)}),
    ("anima", "2B", {**COSMOS2, "llm_adapter.blocks.0.cross_attn.q_proj.weight": (8, 8), "b": (4,)}),
    ("omnigen2", "", {"time_caption_embed.timestep_embedder.linear_1.bias": (8,), "a": (4,), "b": (4,), "c": (4,)}),
    ("qwen-image", "", {**QWEN, "a": (4,), "b": (4,)}),
    ("qwen-image", "edit 2511", {**QWEN, "__index_timestep_zero__": (0,), "b": (4,)}),
    ("qwen-image", "layered", {**QWEN, "time_text_embed.addition_t_embedding.weight": (8, 8), "b": (4,)}),
    ("kandinsky5", "1792 wide", {"visual_transformer_blocks.0.cross_attention.key_norm.weight": (8,), "visual_embeddings.in_layer.bias": (1792,), "a": (4,), "b": (4,)}),
    ("sd15", "", {**UNET, TO_K: (320, 768), "out.2.weight": (4, 8, 3, 3)}),
    ("sd15", "inpaint", {**UNET, "input_blocks.0.0.weight": (320, 9, 3, 3), TO_K: (320, 768)}),
    ("sd15", "instruct-pix2pix", {**UNET, "input_blocks.0.0.weight": (320, 8, 3, 3), TO_K: (320, 768)}),
    ("sd2", "", {**UNET, TO_K: (320, 1024), "out.2.weight": (4, 8, 3, 3)}),
    ("sd2", "unCLIP L", {**UNET, TO_K: (320, 1024), "label_emb.0.0.weight": (8, 1536)}),
    ("sd2", "unCLIP H", {**UNET, TO_K: (320, 1024), "label_emb.0.0.weight": (8, 2048)}),
    ("x4-upscaler", "", {**UNET, "input_blocks.0.0.weight": (256, 7, 3, 3), TO_K: (320, 1024)}),
    ("lotus", "", {**UNET, TO_K: (320, 1024), "label_emb.0.0.weight": (8, 4)}),
    ("svd", "instruct-pix2pix", {**UNET, "input_blocks.0.0.weight": (320, 8, 3, 3), TO_K: (320, 1024), "label_emb.0.0.weight": (8, 768), "input_blocks.1.1.time_stack.0.attn1.to_q.weight": (8, 8)}),
    ("sv3d", "instruct-pix2pix", {**UNET, "input_blocks.0.0.weight": (320, 8, 3, 3), TO_K: (320, 1024), "label_emb.0.0.weight": (8, 256), "input_blocks.1.1.time_stack.0.attn1.to_q.weight": (8, 8)}),
    ("sdxl-refiner", "", {**UNET, "input_blocks.0.0.weight": (384, 4, 3, 3), TO_K: (384, 1280), "label_emb.0.0.weight": (8, 2560)}),
    ("sdxl", "", TINY_SDXL),
    ("flux", "diffusers layout", {"transformer_blocks.0.attn.norm_added_k.weight": (128,), "x_embedder.weight": (8, 64), "a": (4,), "b": (4,)}),
    ("sd3", "diffusers layout", {"transformer_blocks.0.attn.add_q_proj.weight": (8, 8), "pos_embed.proj.weight": (8, 8, 2, 2), "a": (4,), "b": (4,)}),
    ("aura", "diffusers layout", {"joint_transformer_blocks.0.attn.add_k_proj.weight": (8, 8), "a": (4,), "b": (4,), "c": (4,)}),
    ("z-image", "diffusers layout", {"all_x_embedder.2-1.weight": (8, 8), "a": (4,), "b": (4,), "c": (4,)}),
    ("sdxl", "diffusers layout", {"conv_in.weight": (320, 4, 3, 3), "down_blocks.1.attn2.to_k.weight": (8, 2048), "up_blocks.0.x": (4,), "add_embedding.linear_1.weight": (8, 2816)}),
    ("sd15", "diffusers layout", {"conv_in.weight": (320, 4, 3, 3), "down_blocks.1.attn2.to_k.weight": (8, 768), "up_blocks.0.x": (4,), "b": (4,)}),
    ("sd2", "diffusers layout", {"conv_in.weight": (320, 4, 3, 3), "down_blocks.1.attn2.to_k.weight": (8, 1024), "up_blocks.0.x": (4,), "b": (4,)}),
]  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize(("family", "variant", "shapes"), ROWS, ids=[f"{f} {v}".strip() for f, v, _ in ROWS])
def test_family_is_recognised_bare_and_behind_its_prefix(
    tmp_path: Path, family: str, variant: str, shapes: Shapes, prefix: str
) -> None:
    shapes = {**shapes, **{f"filler.{index}": (4,) for index in range(6)}}
    found = inspect(write_holes(tmp_path / "x.safetensors", under(prefix, shapes)))
    assert (found.family, found.variant, found.prefix) == (family, variant, prefix)
    assert found.kind is Kind.DIFFUSION_MODEL
    assert found.evidence[0].startswith(prefix)
    assert found.confidence in {Confidence.CERTAIN, Confidence.LIKELY}


@pytest.mark.parametrize(
    ("depths", "variant"),
    [((0, 0, 2, 2, 4, 4), "SSD-1B"), ((0, 0, 1, 1, 2, 2), "Vega"), ((0, 2, 5), "KOALA 700M"), ((0, 2, 6), "KOALA 1B")],
)  # fmt: skip
def test_distilled_sdxl_is_told_by_its_depths(tmp_path: Path, depths: tuple[int, ...], variant: str) -> None:
    shapes: Shapes = {**UNET, "label_emb.0.0.weight": (8, 2816)}
    for index, depth in enumerate(depths, 1):
        shapes[f"input_blocks.{index}.0.in_layers.0.weight"] = (8,)
        for block in range(depth):
            shapes[f"input_blocks.{index}.1.transformer_blocks.{block}.attn2.to_k.weight"] = (8, 2048)
    found = inspect(write_holes(tmp_path / "x.safetensors", shapes))
    assert (found.family, found.variant) == ("sdxl", variant)


DEMO = {
    "sd15": ("sd15", Kind.CHECKPOINT, {"diffusion", "clip_l", "vae"}),
    "sdxl": ("sdxl", Kind.CHECKPOINT, {"diffusion", "clip_l", "clip_g", "vae"}),
    "flux": ("flux", Kind.DIFFUSION_MODEL, {"diffusion"}),
    "sd3": ("sd3", Kind.DIFFUSION_MODEL, {"diffusion"}),
    "z_image": ("z-image", Kind.DIFFUSION_MODEL, {"diffusion"}),
    "clip_l": (None, Kind.TEXT_ENCODER, {"clip_l"}),
    "clip_g": (None, Kind.TEXT_ENCODER, {"clip_g"}),
    "t5xxl": (None, Kind.TEXT_ENCODER, {"t5xxl"}),
    "sd15_vae": (None, Kind.VAE, {"4 channels"}),
    "sdxl_vae": (None, Kind.VAE, {"4 channels"}),
    "ae": (None, Kind.VAE, {"16 channels"}),
    "lora_sd15": (None, Kind.LORA, {"lora"}),
    "lora_sdxl": (None, Kind.LORA, {"lora"}),
    "lora_flux": (None, Kind.LORA, {"lora"}),
    "lora_z_image": (None, Kind.LORA, {"lora"}),
    "ti_sd15": (None, Kind.EMBEDDING, {"embedding"}),
    "ti_sdxl": (None, Kind.EMBEDDING, {"embedding"}),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_demo_model_is_named_with_its_parts(tmp_path: Path, name: str) -> None:
    found = inspect(write_holes(tmp_path / "x.safetensors", demo_shapes(name)))
    assert (found.family, found.kind, {part.name for part in found.components}) == DEMO[name]
    assert sum(part.size_bytes for part in found.components) + found.header.header_bytes == found.size_bytes


@pytest.mark.parametrize(
    ("shapes", "kind", "part"),
    [
        ({"control_model.input_blocks.0.0.weight": (320, 4, 3, 3), "a": (4,), "b": (4,), "c": (4,)}, Kind.CONTROLNET, ""),
        ({"controlnet_cond_embedding.conv_in.weight": (8, 3, 3, 3), "conv_in.weight": (8, 4, 3, 3), "b": (4,), "c": (4,)}, Kind.CONTROLNET, ""),
        ({"emb_params": (5, 768)}, Kind.EMBEDDING, ""),
        ({"decoder.middle.0.residual.0.gamma": (8,), "a": (4,), "b": (4,), "c": (4,)}, Kind.VAE, "Wan"),
        ({"encoder.down_blocks.0.resnets.0.conv1.weight": (8, 8, 3, 3), "a": (4,), "b": (4,), "c": (4,)}, Kind.VAE, "diffusers layout"),
        ({"vae.decoder.conv_in.weight": (8, 4, 3, 3), "vae.encoder.conv_in.weight": (8, 3, 3, 3), "b": (4,), "c": (4,)}, Kind.VAE, "4 channels"),
        ({"text_model.encoder.layers.0.mlp.fc1.weight": (4096, 1024), "a": (4,), "b": (4,), "c": (4,)}, Kind.TEXT_ENCODER, "clip_h"),
        ({"model.layers.0.self_attn.q_proj.weight": (8, 2560), "model.layers.1.x": (4,), "b": (4,), "c": (4,)}, Kind.TEXT_ENCODER, "language model 2560 wide, 2 layers"),
        ({"model.layers.0.self_attn.q_proj.weight": (8, 2560), "visual.x": (4,), "b": (4,), "c": (4,)}, Kind.TEXT_ENCODER, "vision-language model 2560 wide, 1 layers"),
        ({"vision_model.encoder.layers.0.x": (8, 8), "a": (4,), "b": (4,), "c": (4,)}, Kind.VISION_ENCODER, ""),
        ({"body.0.rdb1.conv1.weight": (8, 8, 3, 3), "a": (4,), "b": (4,), "c": (4,)}, Kind.UPSCALER, ""),
        ({"model.0.weight": (8, 8, 3, 3), "model.1.sub.0.x": (4,), "b": (4,), "c": (4,)}, Kind.UPSCALER, ""),
        ({"x.hada_w1_a": (8, 4), "x.hada_w1_b": (4, 8), "x.alpha": ()}, Kind.LORA, ""),
        ({"something.else": (8, 8), "a": (4,), "b": (4,), "c": (4,)}, Kind.UNKNOWN, ""),
    ],
)  # fmt: skip
def test_other_kinds_of_file_are_told_apart(tmp_path: Path, shapes: Shapes, kind: Kind, part: str) -> None:
    found = inspect(write_holes(tmp_path / "x.safetensors", shapes))
    assert (found.kind, found.part, found.family) == (kind, part, None)


def test_a_unet_without_a_way_up_is_no_diffusion_model(tmp_path: Path) -> None:
    """A ControlNet shares the way down with a UNet: only ``output_blocks`` make one."""
    shapes = {name: shape for name, shape in {**UNET, TO_K: (320, 768)}.items() if "output" not in name}
    shapes |= {f"f.{index}": (4,) for index in range(4)}
    assert inspect(write_holes(tmp_path / "x.safetensors", shapes)).family is None


@pytest.mark.parametrize(
    ("markers", "prediction"),
    [
        ({"edm_mean": (4,), "edm_std": (4,)}, "EDM"),
        ({"edm_vpred.sigma_max": ()}, "v-EDM"),
        ({"v_pred": (0,)}, "v"),
        ({"v_pred": (0,), "ztsnr": (0,)}, "v, zero terminal SNR"),
        ({}, "eps"),
    ],
)
def test_sdxl_prediction_is_read_from_its_markers(tmp_path: Path, markers: Shapes, prediction: str) -> None:
    found = inspect(write_holes(tmp_path / "x.safetensors", {**under("model.diffusion_model.", TINY_SDXL), **markers}))
    assert found.prediction == prediction
    assert ("nothing in the file says" in " ".join(found.open_questions)) == (prediction == "eps")


@pytest.mark.parametrize(
    ("extra", "dtype", "form"),
    [
        ({}, "F16", Form.FLOAT),
        ({}, "F8_E4M3", Form.FP8_PLAIN),
        ({"scaled_fp8": (0,)}, "F8_E4M3", Form.FP8_SCALED_LEGACY),
        ({"input_blocks.4.1.proj_in.weight_scale": (), "input_blocks.4.1.proj_in.comfy_quant": (30,)}, "F8_E4M3", Form.FP8_SCALED),
        ({"input_blocks.4.1.proj_in.comfy_quant": (30,)}, "U8", Form.OTHER_LAYOUT),
        ({"input_blocks.4.1.proj_in.weight_scale_2": ()}, "U8", Form.NVFP4),
        ({"input_blocks.4.1.proj_in.weight.quant_state.bitsandbytes__nf4": (30,)}, "U8", Form.BITSANDBYTES),
        ({"input_blocks.4.1.proj_in.wscales": (30,)}, "I8", Form.NUNCHAKU),
    ],
)  # fmt: skip
def test_stored_form_is_recognised(tmp_path: Path, extra: Shapes, dtype: str, form: Form) -> None:
    found = inspect(write_holes(tmp_path / "x.safetensors", {**TINY_SDXL, **extra}, dtype))
    assert found.form is form
    assert found.family == "sdxl"


def test_precision_is_that_of_most_parameters_not_of_the_first_tensor(tmp_path: Path) -> None:
    from tests.synthetic_models import random_values, write_values

    values = {"a_first": random_values({"x": (2,)}, "F32")["x"], **random_values(TINY_SDXL, "F16")}
    found = inspect(write_values(tmp_path / "fp8_named.safetensors", values))
    assert found.precision == "F16"
    assert found.components[0].dtypes["F32"] == 2


def test_a_pickle_is_said_to_be_one_and_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    found = inspect(path)
    assert (found.kind, found.family) == (Kind.PICKLE, None)
    assert "unknown until loaded" in found.evidence[0]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputFileError) as caught:
        inspect(tmp_path / "gone.safetensors")
    assert (caught.value.code, caught.value.exit_code) == ("file-missing", 4)
