"""Families of diffusion models by their keys: one row per family, the first that matches wins.

The order matters: later rows use keys that also occur in earlier families. Each variant function looks only at keys
and shapes; what those cannot tell is returned as ``possible``, never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from luna_engine.weights.diffusers_layouts import Z_IMAGE_MARK, detect_diffusers
from luna_engine.weights.unet_families import detect_unet
from luna_engine.weights.verdicts import Verdict, certain, likely

if TYPE_CHECKING:
    from collections.abc import Callable

    from luna_engine.weights.keys import Keys


@dataclass(frozen=True, slots=True)
class FamilyRule:
    """A row of the table: all of ``keys`` and, if given, one of ``any_of`` must be present."""

    family: str
    keys: tuple[str, ...]
    variant: Callable[[Keys], Verdict]
    any_of: tuple[str, ...] = ()

    def matches(self, keys: Keys) -> bool:
        """Tell whether the row's keys are there (a key that ends with a dot is a prefix)."""
        return all(_has(keys, key) for key in self.keys) and (
            not self.any_of or any(_has(keys, key) for key in self.any_of)
        )


def _has(keys: Keys, key: str) -> bool:
    return keys.has_prefix(key) if key.endswith(".") else key in keys


def detect_family(keys: Keys) -> Verdict | None:
    """Return the family of the diffusion keys (prefix already removed), or None.

    Every verdict's evidence starts with the key that decided it.
    """
    if Z_IMAGE_MARK in keys:  # else taken for the reference's: most of its names are the same
        return detect_diffusers(keys)
    for rule in RULES:
        if rule.matches(keys):
            return rule.variant(keys).behind(rule.family, rule.keys[0])
    return detect_unet(keys) or detect_diffusers(keys)


def _plain(_keys: Keys) -> Verdict:
    return certain("")


def _sd3(keys: Keys) -> Verdict:
    depth = keys.rows("x_embedder.proj.weight") // 64
    size = {24: "medium", 38: "large"}.get(depth, f"depth {depth}")
    has_key_norm = "joint_blocks.0.context_block.attn.ln_q.weight" in keys
    release = "3.5" if has_key_norm or keys.first(".x_block.attn2.qkv") else "3.0"
    return certain(f"{release} {size}", f"x_embedder.proj.weight has {64 * depth} rows")


def _cascade(keys: Keys) -> Verdict:
    if "clip_txt_mapper.weight" in keys:
        size = {1536: "C lite", 2048: "C"}.get(keys.rows("clip_txt_mapper.weight"), "C")
        return certain(size, "clip_txt_mapper.weight")
    return certain("B", "clip_mapper.weight") if "clip_mapper.weight" in keys else likely("", ("B", "C"))


def _aura(keys: Keys) -> Verdict:
    return certain(f"{len(keys.blocks('double_layers.'))}+{len(keys.blocks('single_layers.'))} layers")


def _hunyuan_dit(keys: Keys) -> Verdict:
    return certain("1.1" if keys.columns("extra_embedder.0.weight") == 3968 else "1.2")


def _hunyuan_video(keys: Keys) -> Verdict:
    patch = keys.shape("img_in.proj.weight")
    kind = "image" if len(patch) == 4 else "video"
    notes = [f"img_in.proj.weight has rank {len(patch)}"]
    if len(patch) > 1 and patch[1] >= 32:
        kind = "image-to-video"
        notes.append(f"{patch[1]} input channels")
    if "vision_in.proj.0.weight" in keys:
        kind = f"1.5 {kind}"
    notes += [f"has {part}" for part in ("byt5_in.", "time_r_in.", "guidance_in.") if keys.has_prefix(part)]
    return certain(kind, *notes)


def _flux(keys: Keys) -> Verdict:
    if "double_stream_modulation_img.lin.weight" in keys:
        width, text = keys.rows("img_in.weight"), keys.columns("txt_in.weight")
        return certain(f"{width} wide, text {text}").of("flux2", "double_stream_modulation_img.lin.weight")
    if keys.has_prefix("distilled_guidance_layer."):
        if "nerf_blocks.0.norm.scale" in keys:
            prediction = "x0 prediction" if "__x0__" in keys else "flow prediction"
            return certain(prediction).of("radiance", "nerf_blocks.0.norm.scale")
        return certain("").of("chroma", "distilled_guidance_layer.")
    if "double_blocks.0.img_mlp.gate_proj.weight" in keys and "txt_norm.scale" in keys:
        return certain("").of("ovis", "double_blocks.0.img_mlp.gate_proj.weight")
    columns = keys.columns("img_in.weight")
    use = {64: "", 384: " fill", 128: " canny or depth"}.get(columns, f" with {columns} input columns")
    note = f"img_in.weight has {columns} columns"
    if "guidance_in.in_layer.weight" in keys:
        return likely(f"dev{use}", ("dev", "Kontext", "Krea", "a fine-tune"), "guidance_in.in_layer.weight", note)
    return likely(f"schnell{use}", ("schnell", "a guidance-free merge"), "no guidance_in", note)


def _ltxv(keys: Keys) -> Verdict:
    if "pos_embed.proj.bias" in keys:
        return certain("diffusers layout").of("pixart", "pos_embed.proj.bias")
    if "audio_adaln_single.linear.weight" in keys:
        return certain("").of("ltx-av", "audio_adaln_single.linear.weight")
    return certain("")


def _ace(keys: Keys) -> Verdict:
    return certain("1" if "genre_embedder.weight" in keys else "1.5")


def _pixart(keys: Keys) -> Verdict:
    return certain("alpha" if "ar_embedder.mlp.0.weight" in keys else "sigma")


def _cosmos1(keys: Keys) -> Verdict:
    rows = keys.rows("blocks.block0.blocks.0.block.attn.to_q.0.weight")
    return certain({4096: "1 7B", 5120: "1 14B"}.get(rows, f"1, {rows} wide"))


def _lumina(keys: Keys) -> Verdict:
    rows = keys.rows("cap_embedder.1.weight")
    note = f"cap_embedder.1.weight has {rows} rows"
    if rows == 3840:
        use = " image-conditioned" if "siglip_embedder.0.weight" in keys else ""
        pads = ("has cap_pad_token",) if "cap_pad_token" in keys else ()
        return likely(f"turbo{use}", ("Turbo", "base"), note, *pads).of("z-image", "cap_embedder.1.weight")
    if "clip_text_pooled_proj.0.weight" in keys:
        return certain("", note).of("newbie", "clip_text_pooled_proj.0.weight")
    return certain("" if rows == 2304 else f"{rows} wide", note)


_WAN_MARKS = (
    ("vace_patch_embedding.", "vace"),
    ("control_adapter.conv.", "camera"),
    ("casual_audio_encoder.", "s2v"),
    ("audio_proj.audio_proj_glob_1.", "humo"),
    ("face_adapter.fuser_blocks.", "animate"),
    ("img_emb.proj.0.bias", "i2v"),
)


def _wan(keys: Keys) -> Verdict:
    width = keys.last("head.modulation")
    size = {1536: "1.3B", 3072: "5B", 5120: "14B"}.get(width, f"{width} wide")
    kind = next((name for mark, name in _WAN_MARKS if _has(keys, mark)), "t2v")
    channels = keys.columns("patch_embedding.weight")
    note = f"head.modulation is {width} wide, {channels} input channels"
    return likely(f"{kind} {size}", ("2.1", "2.2 high noise", "2.2 low noise"), note)


def _hunyuan3d(keys: Keys) -> Verdict:
    return certain("2" if "latent_in.weight" in keys else "2.1")


def _hidream(_keys: Keys) -> Verdict:
    return likely("", ("full", "dev", "fast"))


def _cosmos2(keys: Keys) -> Verdict:
    width = keys.rows("x_embedder.proj.1.weight")
    channels = keys.columns("x_embedder.proj.1.weight") // 4 - 1
    size = {2048: "2B", 5120: "14B"}.get(width, f"{width} wide")
    kind = {16: "t2i", 17: "i2v"}.get(channels, f"{channels} channels")
    note = f"x_embedder.proj.1.weight {list(keys.shape('x_embedder.proj.1.weight'))}"
    if "llm_adapter.blocks.0.cross_attn.q_proj.weight" in keys:
        return certain(size, note).of("anima", "llm_adapter.blocks.0.cross_attn.q_proj.weight")
    return certain(f"{kind} {size}", note)


def _qwen_image(keys: Keys) -> Verdict:
    if "__index_timestep_zero__" in keys:
        return certain("edit 2511", "__index_timestep_zero__")
    if "time_text_embed.addition_t_embedding.weight" in keys:
        return certain("layered", "time_text_embed.addition_t_embedding.weight")
    return likely("", ("Qwen-Image", "an Edit before 2511"))


def _kandinsky(keys: Keys) -> Verdict:
    return certain(f"{keys.rows('visual_embeddings.in_layer.bias')} wide")


RULES = (
    FamilyRule("sd3", ("joint_blocks.0.context_block.attn.qkv.weight",), _sd3),
    FamilyRule("stable-cascade", ("clf.1.weight",), _cascade),
    FamilyRule("stable-audio", ("transformer.rotary_pos_emb.inv_freq",), _plain),
    FamilyRule("aura", ("double_layers.0.attn.w1q.weight",), _aura),
    FamilyRule("hunyuan-dit", ("mlp_t5.0.weight",), _hunyuan_dit),
    FamilyRule("hunyuan-video", ("txt_in.individual_token_refiner.blocks.0.norm1.weight",), _hunyuan_video),
    FamilyRule(
        "flux",
        ("double_blocks.0.img_attn.norm.key_norm.scale",),
        _flux,
        (
            "img_in.weight",
            "distilled_guidance_layer.norms.0.scale",
            "distilled_guidance_layer.0.norms.0.scale",
        ),
    ),
    FamilyRule("mochi", ("t5_yproj.weight",), _plain),
    FamilyRule("ltxv", ("adaln_single.emb.timestep_embedder.linear_1.bias",), _ltxv),
    FamilyRule("ace-step", ("genre_embedder.weight",), _ace),
    FamilyRule("ace-step", ("encoder.lyric_encoder.layers.0.input_layernorm.weight",), _ace),
    FamilyRule("pixart", ("t_block.1.weight",), _pixart),
    FamilyRule("cosmos", ("blocks.block0.blocks.0.block.attn.to_q.0.weight",), _cosmos1),
    FamilyRule("lumina2", ("cap_embedder.1.weight",), _lumina),
    FamilyRule("wan", ("head.modulation",), _wan),
    FamilyRule("hunyuan3d", ("latent_in.weight",), _hunyuan3d),
    FamilyRule("hidream", ("caption_projection.0.linear.weight",), _hidream),
    FamilyRule("cosmos-predict2", ("blocks.0.mlp.layer1.weight",), _cosmos2),
    # In families above this key occurs as well: here it stands alone.
    FamilyRule("hunyuan3d", ("t_embedder.mlp.2.weight", "blocks."), _hunyuan3d),
    FamilyRule("omnigen2", ("time_caption_embed.timestep_embedder.linear_1.bias",), _plain),
    FamilyRule("qwen-image", ("txt_norm.weight", "transformer_blocks."), _qwen_image),
    FamilyRule("kandinsky5", ("visual_transformer_blocks.0.cross_attention.key_norm.weight",), _kandinsky),
)
