"""UNets of the Stable Diffusion line, told apart by widths and by the depth of their attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_engine.weights.verdicts import Verdict, certain, likely

if TYPE_CHECKING:
    from luna_engine.weights.keys import Keys

# Transformer blocks behind each residual block on the way down.
_SDXL_DEPTHS = {
    (0, 0, 2, 2, 10, 10): "",
    (0, 0, 2, 2, 4, 4): "SSD-1B",
    (0, 0, 1, 1, 2, 2): "Vega",
    (0, 2, 5): "KOALA 700M",
    (0, 2, 6): "KOALA 1B",
}
_INPUTS = {4: "", 9: "inpaint", 8: "instruct-pix2pix"}


def detect_unet(keys: Keys) -> Verdict | None:
    """Return the family of a UNet, or None if the keys are no UNet's (a ControlNet has no way up)."""
    if "input_blocks.0.0.weight" not in keys or not keys.has_prefix("output_blocks."):
        return None
    context, pooled = _context(keys), keys.columns("label_emb.0.0.weight")
    width, inputs = keys.rows("input_blocks.0.0.weight"), keys.columns("input_blocks.0.0.weight")
    found = _by_widths(keys, context, pooled, width, inputs)
    note = f"context {context}, pooled {pooled or 'none'}, {width} wide, {inputs} input channels"
    return Verdict(
        found.family,
        " ".join(part for part in (found.variant, _INPUTS.get(inputs, "")) if part),
        found.confidence,
        ("input_blocks.0.0.weight", note, *found.evidence),
        found.possible,
    )


def _by_widths(keys: Keys, context: int, pooled: int, width: int, inputs: int) -> Verdict:
    if keys.first("time_stack.") or keys.first("time_mix_blocks."):
        kind = {768: "svd", 256: "sv3d", 1280: "sv3d"}.get(pooled, "svd")
        return certain("").of(kind, "time_stack")
    if context == 2048 and pooled == 2816:
        return _sdxl(keys)
    if context == 1280 and width == 384:
        return certain("").of("sdxl-refiner", "384 wide")
    if context == 768 and not pooled:
        return certain("", possible=("SD 1.4", "SD 1.5", "a fine-tune")).of("sd15", "context 768")
    if context == 1024:
        return _sd2(keys, pooled, inputs)
    return Verdict("unet", f"context {context}", certain("").confidence)


def _sdxl(keys: Keys) -> Verdict:
    depths = unet_depths(keys)
    note = f"attention depths {list(depths)}"
    line = ("SDXL base", "Pony", "Illustrious", "NoobAI", "a fine-tune")
    return certain(_SDXL_DEPTHS.get(depths, "unusual depth"), note, possible=line).of("sdxl", "label_emb.0.0.weight")


def _sd2(keys: Keys, pooled: int, inputs: int) -> Verdict:
    if pooled in {1536, 2048}:
        return certain(f"unCLIP {'L' if pooled == 1536 else 'H'}").of("sd2", f"pooled {pooled}")
    if inputs == 7:
        return certain("").of("x4-upscaler", "7 input channels")
    if pooled == 4:
        return certain("").of("lotus", "pooled 4")
    if keys.shape("input_blocks.1.1.proj_in.weight")[2:]:
        return likely("square convolutions", ("unknown",)).of("sd2", "context 1024")
    return likely("", ("eps", "v prediction")).of("sd2", "context 1024")


def _context(keys: Keys) -> int:
    name = keys.first("1.transformer_blocks.0.attn2.to_k.weight")
    return keys.columns(name) if name else 0


def unet_depths(keys: Keys) -> tuple[int, ...]:
    """Return the number of transformer blocks behind each residual block of ``input_blocks``, in order."""
    return tuple(
        len(keys.blocks(f"input_blocks.{index}.1.transformer_blocks."))
        for index in sorted(keys.blocks("input_blocks."))
        if f"input_blocks.{index}.0.in_layers.0.weight" in keys
    )
