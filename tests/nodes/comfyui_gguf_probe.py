"""Runs under ComfyUI's Python: loads a GGUF file with Luna's loader and its decoded twin with the stock loader.

`python comfyui_gguf_probe.py COMFYUI GGUF DECODED`; prints one JSON object. DECODED is written: the same model with
every weight decoded by the gguf package, which the stock loader then runs for comparison, with and without a LoRA.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main(root: str, path: str, decoded: str) -> None:
    """Load both and compare one step: plain, with a LoRA, with it taken off again, and from a clone."""
    sys.argv = ["probe", "--cpu"]
    sys.path.insert(0, root)
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.model_management
    import comfy.sd
    import gguf
    import safetensors.torch
    import torch

    sys.path.append(str(ROOT))
    from comfy_nodes.comfy import current_host

    shapes = {}
    reader = gguf.GGUFReader(path)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        field = reader.fields.get(f"comfy.gguf.orig_shape.{tensor.name}")
        shape = field.contents() if field else tensor.shape.tolist()[::-1]
        shapes[tensor.name] = torch.from_numpy(values.copy()).reshape(shape)
    safetensors.torch.save_file(shapes, decoded)
    with torch.inference_mode():
        ours = current_host().load_gguf(Path(path))
        stock = comfy.sd.load_diffusion_model(decoded, model_options={"dtype": torch.float32})
        packed = _packed(ours)
        lora = _lora(ours, packed)
        facts = {
            "config": type(ours.model.model_config).__name__,
            "stock_config": type(stock.model.model_config).__name__,
            "packed": len(packed),
            "packed_bytes": _bytes(ours, packed),
            "stock_bytes": _bytes(stock, packed),
            "patcher": type(ours).__mro__[1].__name__,
        }
        plain = [_run(patcher) for patcher in (ours, stock)]
        patched = [_run(comfy.sd.load_lora_for_models(patcher, None, lora, 0.7, 0.0)[0]) for patcher in (ours, stock)]
        after = _run(ours)
        comfy.model_management.unload_all_models()
        again = _run(ours.clone())
    facts |= {
        "difference": float((plain[0] - plain[1]).abs().max()),
        "lora_difference": float((patched[0] - patched[1]).abs().max()),
        "lora_effect": float((patched[1] - plain[1]).abs().max()),
        "after_lora": float((after - plain[0]).abs().max()),
        "after_reload": float((again - plain[0]).abs().max()),
        "spread": float(plain[1].std()),
        "still_packed": len(_packed(ours)),
    }
    sys.stdout.write(json.dumps(facts) + "\n")


def _packed(patcher: object) -> list[str]:
    from comfy_nodes.packed import PackedTensor

    weights = patcher.model.diffusion_model.state_dict()
    return [name for name, value in weights.items() if isinstance(value, PackedTensor)]


def _bytes(patcher: object, names: list[str]) -> int:
    weights = patcher.model.diffusion_model.state_dict()
    return sum(weights[name].nbytes for name in names)


def _lora(patcher: object, packed: list[str]) -> dict[str, object]:
    """Return a LoRA on the first packed weights of two dimensions."""
    import torch

    weights = patcher.model.diffusion_model.state_dict()
    chosen = [name for name in packed if weights[name].ndim == 2][:6]
    generator = torch.Generator().manual_seed(4)
    found = {}
    for name in chosen:
        rows, columns = weights[name].shape
        stem = f"diffusion_model.{name.removesuffix('.weight')}"
        found[f"{stem}.lora_up.weight"] = torch.randn(rows, 4, generator=generator) * 0.2
        found[f"{stem}.lora_down.weight"] = torch.randn(4, columns, generator=generator) * 0.2
        found[f"{stem}.alpha"] = torch.tensor(4.0)
    return found


def _run(patcher: object) -> object:
    import comfy.model_management

    comfy.model_management.load_models_gpu([patcher])
    return _step(patcher.model)


def _step(model: object) -> object:
    import torch

    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    net, kind = model.diffusion_model, type(model).__name__
    if kind == "Flux":
        return net(draw(1, 16, 8, 8), torch.tensor([0.5]), context=draw(1, 8, 4096), y=draw(1, 768),
                   guidance=torch.tensor([3.5]))  # fmt: skip
    if kind == "SD3":
        return net(draw(1, 16, 8, 8), torch.tensor([0.5]), context=draw(1, 8, 4096), y=draw(1, 2048))
    if kind == "Lumina2":
        return net(draw(1, 16, 8, 8), torch.tensor([0.5]), context=draw(1, 8, 2560), num_tokens=8,
                   attention_mask=torch.ones(1, 8))  # fmt: skip
    width = net.input_blocks[4][1].transformer_blocks[0].attn2.to_k.weight.shape[1]
    labels = {"y": draw(1, 2816)} if width == 2048 else {}
    return net(draw(1, 4, 8, 8), torch.tensor([500.0]), context=draw(1, 8, width), **labels)


if __name__ == "__main__":
    main(*sys.argv[1:])
