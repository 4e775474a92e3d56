"""How LoRA files name the weights of text encoders, and what each tensor of such a file is.

kohya and OneTrainer write ``lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight``, diffusers and PEFT
``text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_B.weight``, the generic form is
``text_encoders.<name in ComfyUI's state dict>``. Which encoder is meant follows from the shape of the name and, for
the two CLIPs, from its number: 1 or none is CLIP-L, 2 is CLIP-G.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_NUMBERED = re.compile(r"(?:lora_(?:prior_)?te(?P<kohya>\d?)_|text_encoder(?:_(?P<dotted>\d))?\.)(?P<rest>.+)")
_NAMED = re.compile(r"(?P<name>clip_l|clip_g|t5xxl|t5|qwen3_4b)\.(?P<rest>.+)")
_WRAPPERS = ("base_model.model.", "transformer.")
_GENERIC = "text_encoders."
_ROOTS: Mapping[str, str] = {"l": "clip_l", "g": "clip_g", "t5": "t5xxl", "qwen": "qwen3_4b"}

_CLIP = re.compile(r"text_model[._]encoder[._]layers[._](\d+)[._](.+)")
_T5 = re.compile(
    r"encoder[._]block[._](\d+)[._]layer[._](\d)[._](SelfAttention|DenseReluDense)[._](q|k|v|o|wi_0|wi_1|wo)"
)
_QWEN = re.compile(r"(?:model[._])?layers[._](\d+)[._](self_attn|mlp)[._]((?:q|k|v|o|gate|up|down)_proj|[qk]_norm)")
_IN_CLIP: Mapping[str, str] = {
    name.replace(".", "_"): name
    for name in (
        *(f"self_attn.{which}_proj" for which in ("q", "k", "v", "out")),
        "mlp.fc1",
        "mlp.fc2",
        "layer_norm1",
        "layer_norm2",
    )
}
_IN_CLIP_ROOT: Mapping[str, str] = {
    name.replace(".", "_"): name
    for name in (
        "text_projection",
        "text_model.final_layer_norm",
        "text_model.embeddings.token_embedding",
        "text_model.embeddings.position_embedding",
    )
}


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a tensor of a file is: a field of a kind of patch (kind None: of whatever its weight has)."""

    kind: str | None
    field: str
    is_bias: bool = False


_SUFFIXES: Mapping[str, Meaning] = {
    **{
        f"{stem}{name}{end}": Meaning("lora", which)
        for stem, up, down, end in (
            (".lora_", "up", "down", ".weight"),
            ("_lora.", "up", "down", ".weight"),
            (".lora.", "up", "down", ".weight"),
            (".lora_linear_layer.", "up", "down", ".weight"),
            (".lora_", "B", "A", ".weight"),
            (".lora_", "B", "A", ".default.weight"),
            (".lora_", "B", "A", ""),
        )
        for which, name in (("up", up), ("down", down))
    },
    **{f".hada_{name}": Meaning("loha", name) for name in ("w1_a", "w1_b", "w2_a", "w2_b")},
    **{f".lokr_{name}": Meaning("lokr", name) for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")},
    **{f".{name}.weight": Meaning("glora", name) for name in ("a1", "a2", "b1", "b2")},
    ".oft_blocks": Meaning("oft", "blocks"),
    ".rescale": Meaning("oft", "rescale"),
    ".alpha": Meaning(None, "alpha"),
    ".dora_scale": Meaning(None, "dora_scale"),
    ".lora_magnitude_vector": Meaning(None, "dora_scale"),
    ".lora_magnitude_vector.weight": Meaning(None, "dora_scale"),
    ".lora_magnitude_vector.default.weight": Meaning(None, "dora_scale"),
    ".diff": Meaning("diff", "weight"),
    ".w_norm": Meaning("diff", "weight"),
    ".diff_b": Meaning("diff", "weight", is_bias=True),
    ".b_norm": Meaning("diff", "weight", is_bias=True),
    ".set_weight": Meaning("set", "weight"),
    # Convolutions and widened weights, which no text encoder has: recognised so that they are not left out unsaid.
    ".lora_mid.weight": Meaning("lora", "mid"),
    ".reshape_weight": Meaning("lora", "reshape"),
    ".hada_t1": Meaning("loha", "t1"),
    ".hada_t2": Meaning("loha", "t2"),
    ".lokr_t2": Meaning("lokr", "t2"),
}
_BY_LENGTH = sorted(_SUFFIXES, key=len, reverse=True)


def meaning(name: str) -> tuple[str, Meaning] | None:
    """Return the stem of a tensor's name and what the tensor is, or None for a name that no trainer writes."""
    for suffix in _BY_LENGTH:
        if name.endswith(suffix):
            return name.removesuffix(suffix), _SUFFIXES[suffix]
    return None


def is_for_text(name: str) -> bool:
    """Tell whether a name of a file is meant for a text encoder; all else is the diffusion model's."""
    return name.startswith(_GENERIC) or bool(_NUMBERED.match(name) or _NAMED.match(name))


def weight_of(stem: str) -> str | None:
    """Return the weight in ComfyUI's state-dict names, without ``.weight``, or None if the stem names none."""
    if stem.startswith(_GENERIC):
        return stem.removeprefix(_GENERIC)
    if found := _NAMED.match(stem):
        number = "2" if found["name"] == "clip_g" else "1"
        return _standalone(found["rest"], number)
    if found := _NUMBERED.match(stem):
        return _standalone(found["rest"], found["kohya"] or found["dotted"] or "1")
    return None


def _standalone(rest: str, number: str) -> str | None:
    for wrapper in _WRAPPERS:
        rest = rest.removeprefix(wrapper)
    if found := _T5.fullmatch(rest):
        return f"{_ROOTS['t5']}.transformer.encoder.block.{found[1]}.layer.{found[2]}.{found[3]}.{found[4]}"
    if found := _QWEN.fullmatch(rest):
        return f"{_ROOTS['qwen']}.transformer.model.layers.{found[1]}.{found[2]}.{found[3]}"
    root = {"1": _ROOTS["l"], "2": _ROOTS["g"]}.get(number)
    inner = _in_clip(rest)
    return None if root is None or inner is None else f"{root}.transformer.{inner}"


def _in_clip(rest: str) -> str | None:
    if found := _CLIP.fullmatch(rest):
        inner = _IN_CLIP.get(found[2].replace(".", "_"))
        return None if inner is None else f"text_model.encoder.layers.{found[1]}.{inner}"
    return _IN_CLIP_ROOT.get(rest.replace(".", "_"))
