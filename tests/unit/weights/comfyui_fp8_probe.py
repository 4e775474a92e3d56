"""Runs under ComfyUI's Python: loads a scaled fp8 file with the stock loader and compares it with value x scale.

`python comfyui_fp8_probe.py COMFYUI FP8_FILE DECODED_FILE`; prints one JSON object. DECODED_FILE is written: the same
model with every weight multiplied back, in single precision, which the stock loader then runs for comparison.
"""

from __future__ import annotations

import json
import logging
import sys


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def main(root: str, path: str, decoded: str) -> None:
    """Load both, compare weights and one step."""
    sys.argv = ["probe", "--cpu"]
    sys.path.insert(0, root)
    import comfy.options

    comfy.options.enable_args_parsing()
    collector = _Collector()
    logging.getLogger().addHandler(collector)
    import comfy.sd
    import safetensors.torch
    import torch

    with torch.inference_mode():
        stored = safetensors.torch.load_file(path)
        suffix = ".weight_scale" if any(name.endswith(".weight_scale") for name in stored) else ".scale_weight"
        scales = {name.removesuffix(suffix): value for name, value in stored.items() if name.endswith(suffix)}
        expected = {f"{layer}.weight": stored[f"{layer}.weight"].float() * scale for layer, scale in scales.items()}
        model = comfy.sd.load_diffusion_model(path, model_options={"dtype": torch.float32})
        layers = dict(model.model.diffusion_model.named_modules())
        weights = {f"{layer}.weight": layers[layer].weight for layer in scales}
        rest = {
            name: value.float()
            for name, value in stored.items()
            if name not in expected and not name.endswith((suffix, ".comfy_quant", "scaled_fp8"))
        }
        safetensors.torch.save_file({**rest, **expected}, decoded)
        plain = comfy.sd.load_diffusion_model(decoded, model_options={"dtype": torch.float32})
        outputs = [_step(patcher.model) for patcher in (model, plain)]
    words = ("missing", "unexpected", "left over", "not loaded", "error", "shape mismatch")
    facts = {
        "config": type(model.model.model_config).__name__,
        "quantised": sum(type(weight).__name__ == "QuantizedTensor" for weight in weights.values()),
        "layers": len(scales),
        "different": [name for name, weight in weights.items() if not torch.equal(_decode(weight), expected[name])],
        "difference": float((outputs[0] - outputs[1]).abs().max()),
        "spread": float(outputs[1].std()),
        "complaints": [
            line
            for line in collector.lines
            if any(word in line.lower() for word in words)
            and not line.startswith("torchaudio missing")
            and not line.rstrip().endswith(("[]", "set()"))
        ],
    }
    sys.stdout.write(json.dumps(facts) + "\n")


def _decode(weight: object) -> object:
    return weight.dequantize().float()


def _step(model: object) -> object:
    import torch

    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    net = model.diffusion_model
    if type(model).__name__ == "Flux":
        return net(draw(1, 16, 8, 8), torch.tensor([0.5]), context=draw(1, 8, 4096), y=draw(1, 768),
                   guidance=torch.tensor([3.5]))  # fmt: skip
    return net(draw(1, 4, 8, 8), torch.tensor([500.0]), context=draw(1, 8, 2048), y=draw(1, 2816))


if __name__ == "__main__":
    main(*sys.argv[1:])
