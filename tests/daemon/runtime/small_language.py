"""A tiny Qwen3-VL or Qwen3 with random weights and a byte tokenizer, written as a Hugging Face folder."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from pathlib import Path

MARKS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip
FIRST_MARK = 256
VOCABULARY = FIRST_MARK + len(MARKS)
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "rope_theta": 10_000,
}
VISION = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "in_channels": 3,
    "patch_size": 16,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "out_hidden_size": 64,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0, 1],
}


def mark(name: str) -> int:
    return FIRST_MARK + MARKS.index(name)


def config(*, has_vision: bool, is_tied: bool = False) -> dict[str, Any]:
    """Return what ``config.json`` holds."""
    if not has_vision:
        return {"model_type": "qwen3", "tie_word_embeddings": is_tied, **TEXT}
    rope = {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    return {
        "model_type": "qwen3_vl",
        "tie_word_embeddings": is_tied,
        "image_token_id": mark("<|image_pad|>"),
        "video_token_id": mark("<|video_pad|>"),
        "vision_start_token_id": mark("<|vision_start|>"),
        "vision_end_token_id": mark("<|vision_end|>"),
        "text_config": {**TEXT, "rope_scaling": rope},
        "vision_config": VISION,
    }


def reference(given: dict[str, Any]) -> Any:
    """Return transformers' own model of a configuration, random weights, fp32."""
    import transformers

    known = {key: value for key, value in given.items() if key != "model_type"}
    torch.manual_seed(11)
    if given["model_type"] == "qwen3":
        made: Any = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**known))
    else:
        made = transformers.Qwen3VLForConditionalGeneration(transformers.Qwen3VLConfig(**known))
    with torch.no_grad():
        for parameter in made.parameters():  # larger than at the start of a training, so that answers differ
            parameter.copy_(torch.randn_like(parameter) * 0.15)
    return made.eval()


def write(folder: Path, *, has_vision: bool = True, is_tied: bool = False, shards: int = 1) -> Any:
    """Write a model folder; return transformers' own model with the same weights."""
    folder.mkdir(parents=True)
    given = config(has_vision=has_vision, is_tied=is_tied)
    model = reference(given)
    state = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    if is_tied:
        del state["lm_head.weight"]
    names = sorted(state)
    for index in range(shards):
        file = f"model-{index + 1:05}-of-{shards:05}.safetensors" if shards > 1 else "model.safetensors"
        save_file({name: state[name] for name in names[index::shards]}, folder / file)
    (folder / "config.json").write_text(json.dumps(given), "utf-8")
    write_tokenizer(folder)
    return model


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer whose tokens are bytes, and Qwen's marks."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True) for name in MARKS])
    made.save(str(folder / "tokenizer.json"))
