"""What ComfyUI's own classes gave, read from the file that comfy_golden.py writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from luna_daemon.runtime.backend import EncodeItem, EncoderInput, Row

if TYPE_CHECKING:
    import torch

SCRIPT = Path(__file__).with_name("comfy_golden.py")
TIMEOUT_S = 900


@dataclass(frozen=True, slots=True)
class Case:
    """One prompt: its text, the item that ComfyUI's tokens make, and ComfyUI's conditioning."""

    name: str
    text: str
    item: EncodeItem
    cond: torch.Tensor
    pooled: torch.Tensor


@dataclass(frozen=True, slots=True)
class VaeCase:
    """One image batch and one latent batch with ComfyUI's results."""

    name: str
    pixels: torch.Tensor
    encoded: torch.Tensor
    latent: torch.Tensor
    decoded: torch.Tensor
    encoded_tiled: torch.Tensor | None = None
    decoded_tiled: torch.Tensor | None = None


def compute(checkpoint: Path, embeddings: Path, out: Path, *flags: str) -> None:
    """Run ComfyUI's classes on a checkpoint."""
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    command = [python, str(SCRIPT), os.environ["COMFYUI_PATH"], str(checkpoint), str(embeddings), str(out), *flags]
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S, env=environ)
    if done.returncode:
        raise RuntimeError(f"ComfyUI's classes did not run:\n{done.stderr[-4000:]}")


def text_cases(path: Path) -> list[Case]:
    """Read the prompts."""
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["cases"])
        names = set(file.keys())
        return [_text_case(file, names, key, fact) for key, fact in facts.items()]


def _text_case(file: Any, names: set[str], key: str, fact: dict[str, Any]) -> Case:
    inputs = {}
    for role, lengths in fact["roles"].items():
        ids, weights = file.get_tensor(f"{key}.{role}.ids").tolist(), file.get_tensor(f"{key}.{role}.weights").tolist()
        starts = [sum(lengths[:index]) for index in range(len(lengths))]
        rows = tuple(
            Row(tuple(ids[start : start + length]), tuple(weights[start : start + length]))
            for start, length in zip(starts, lengths, strict=True)
        )
        vectors = f"{key}.{role}.vectors"
        inputs[role] = EncoderInput(rows, (file.get_tensor(vectors),) if vectors in names else ())
    layer = fact["layer"]
    item = EncodeItem(inputs, {} if layer is None else dict.fromkeys(inputs, layer), projected=fact["projected"])
    return Case(key, fact["text"], item, file.get_tensor(f"{key}.cond"), file.get_tensor(f"{key}.pooled"))


def vae_cases(path: Path) -> list[VaeCase]:
    """Read the images."""
    with safe_open(path, framework="pt") as file:
        cases: dict[str, dict[str, torch.Tensor]] = {}
        for name in sorted(file.keys()):
            key, _, part = name.rpartition(".")
            if key.startswith("vae@"):
                cases.setdefault(key, {})[part] = file.get_tensor(name)
        return [VaeCase(key, **tensors) for key, tensors in cases.items()]
