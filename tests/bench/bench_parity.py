"""The native backend's numbers beside those of ComfyUI's own classes, on the demo SD1.5 checkpoint.

`COMFYUI_PATH=… [COMFYUI_PYTHON=…] python -m tests.bench.bench_parity [--write] [--model FILE]`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from luna_daemon.runtime import images
from luna_daemon.runtime.backend_native import NativeBackend
from luna_daemon.runtime.parts import OpenFile
from luna_engine.weights.demo.models import MODELS
from luna_engine.weights.demo.writing import write
from tests.bench.report import publish
from tests.daemon.runtime import golden

if TYPE_CHECKING:
    from luna_daemon.runtime.backend_native import NativeSet

LIMIT = 1e-5
"""Of the largest value."""


def prepare(folder: Path, model: Path | None) -> tuple[Path, Path]:
    """Return the checkpoint and ComfyUI's results on it."""
    from safetensors.torch import save_file

    if model is None:
        demo = MODELS["sd15"]
        model = folder / "sd15.safetensors"
        write(model, demo.name, list(demo.build()), dict(demo.metadata), lambda done, total: None)
    embeddings = folder / "embeddings"
    embeddings.mkdir()
    generator = torch.Generator().manual_seed(1)
    for name, count, width in (("luna_two", 2, 768), ("luna_wide", 3, 1024)):
        vectors = torch.randn(count, width, generator=generator) * 0.02
        save_file({"emb_params": vectors}, embeddings / f"{name}.safetensors")
    golden.compute(model, embeddings, folder / "golden.safetensors")
    return model, folder / "golden.safetensors"


def load(model: Path) -> NativeSet:
    """Load the checkpoint natively."""
    with OpenFile(model, "the checkpoint") as file:
        parts = {role: part for role in ("l", "vae") if (part := file.find(role)) is not None}
        return NativeBackend(torch.device("cpu")).load("sd15", parts, "fp32", lambda: None)


def line(what: str, values: list[torch.Tensor], references: list[torch.Tensor]) -> str:
    """Return a line of the table: the worst difference of all cases, as a part of the case's largest value."""
    pairs = list(zip(values, references, strict=True))
    worst = max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)
    size = max(float(other.abs().max()) for other in references)
    equal = sum(torch.equal(one, other) for one, other in pairs)
    return f"| {what} | {len(values)} | {size:.2f} | {worst:.1e} | {LIMIT:.0e} | {worst / LIMIT:.2f} | {equal} |"


def table(native: NativeSet, results: Path) -> str:
    """Compare everything."""
    texts, pictures = golden.text_cases(results), golden.vae_cases(results)
    with torch.inference_mode():
        encoded = [native.encode([case.item], lambda: None)[0] for case in texts]
        facts = native.vae
        if facts is None:
            raise RuntimeError("the checkpoint has no VAE")
        latents = [
            native.vae_encode(images.prepare_pixels(case.pixels, facts).tensor, lambda: None) for case in pictures
        ]
        decoded = [native.vae_decode(case.latent, lambda: None) for case in pictures]
    lines = [
        "| native against ComfyUI, fp32, CPU | cases | largest value | difference | bar | ratio | bit-equal |",
        "|---|---|---|---|---|---|---|",
        line("CLIP-L conditioning", [one.cond for one in encoded], [case.cond for case in texts]),
        line(
            "CLIP-L pooled",
            [one.pooled for one in encoded if one.pooled is not None],
            [case.pooled for case in texts],
        ),
        line("VAE encode", latents, [case.encoded for case in pictures]),
        line("VAE decode", decoded, [case.decoded for case in pictures]),
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and print, or publish."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--model", type=Path, help="an SD1.5 checkpoint (default: the demo model, written anew)")
    given = parser.parse_args()
    if not os.environ.get("COMFYUI_PATH"):
        sys.exit("set COMFYUI_PATH to a ComfyUI checkout, and COMFYUI_PYTHON to its interpreter")
    with tempfile.TemporaryDirectory() as place:
        model, results = prepare(Path(place), given.model)
        text = table(load(model), results)
    note = (
        "Prompts: plain, weighted, nested, escaped and stray parentheses, over 77 tokens, over three chunks, empty, "
        "emoji and CJK, inversions at the start, in the middle, weighted, missing and of the wrong width, clip skip, "
        "unprojected; the difference is the largest of all cases, as a part of that case's largest value. "
        "Images: sides that are no multiple of 8, batches. Random weights in the real shapes."
    )
    publish("parity", "The same numbers as ComfyUI", text, write=given.write, note=note)


if __name__ == "__main__":
    main()
