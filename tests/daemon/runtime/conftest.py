"""Real model files in the real formats with seeded weights, and an engine that has loaded them."""

from __future__ import annotations

import os
import shutil
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from luna_daemon.engine_seam import EngineOptions
from luna_engine.weights.demo import text_encoders, vaes
from luna_engine.weights.demo.models import MODELS
from luna_engine.weights.demo.parts import under
from luna_engine.weights.demo.writing import write

if TYPE_CHECKING:
    from collections.abc import Iterator

    from luna_daemon.runtime.backend import ModelBackend
    from luna_daemon.runtime.engine import Engine

BACKEND = os.environ.get("LUNA_TEST_BACKEND", "native")
"""Which backend the contract and parity tests run; comfy only in ComfyUI's own interpreter (test_comfy_backend.py)."""
EMBEDDING_VECTORS = 2


@pytest.fixture(scope="session", autouse=True)
def single_thread() -> None:
    """Keep torch to one thread: beside other work, two wait for each other at every layer."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A models folder: a checkpoint without UNet, CLIP-L and VAE alone with the same weights, embeddings, a LoRA."""
    import torch
    from safetensors.torch import save_file

    root = tmp_path_factory.mktemp("models")
    clip, vae = list(text_encoders.clip_l()), list(vaes.vae(4, with_quant_convs=True))
    prefixed = chain(under("cond_stage_model.transformer.", clip), under("first_stage_model.", vae))
    write(root / "checkpoints/parts.safetensors", "parts", list(prefixed), {}, _silent)
    _extract(root / "checkpoints/parts.safetensors", "cond_stage_model.transformer.", root / "clip/l.safetensors")
    _extract(root / "checkpoints/parts.safetensors", "first_stage_model.", root / "vae/vae.safetensors")
    (root / "embeddings/sub").mkdir(parents=True)
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(EMBEDDING_VECTORS, 768, generator=generator) * 0.02
    save_file({"emb_params": vectors}, root / "embeddings/luna_two.safetensors")
    wide = torch.randn(3, 1024, generator=generator) * 0.02
    save_file({"emb_params": wide}, root / "embeddings/sub/luna_wide.safetensors")
    lora = MODELS["lora_sd15"]
    write(root / "loras/lora.safetensors", "lora", list(lora.build()), dict(lora.metadata), _silent)
    yield root
    shutil.rmtree(root)  # pytest would keep 0.8 GB of the last three runs


def _silent(_done: int, _total: int) -> None:
    """Report nothing."""


def _extract(source: Path, prefix: str, destination: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    destination.parent.mkdir(parents=True, exist_ok=True)
    with safe_open(source, framework="pt") as file:
        names = [name for name in sorted(file.keys()) if name.startswith(prefix)]
        save_file({name.removeprefix(prefix): file.get_tensor(name) for name in names}, destination)


@pytest.fixture(scope="session")
def roots(model_root: Path) -> dict[str, Path]:
    """The model roots by name."""
    return {folder.name: folder for folder in sorted(model_root.iterdir())}


@pytest.fixture(scope="session")
def engine(roots: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """An engine on the CPU that has loaded the checkpoint."""
    from luna_daemon.runtime.engine import Engine

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUNA_HOME", str(tmp_path_factory.mktemp("engine-home")))
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        made = Engine(EngineOptions(device="cpu", preload=("checkpoints/parts.safetensors",), roots=roots, threads=1))
        made.start(lambda phase, done: None)
    return made


@pytest.fixture(scope="session")
def backend() -> ModelBackend:
    """The backend under test, on the CPU."""
    import torch

    from luna_daemon.runtime.choice import choose_backend

    checkout = Path(os.environ["COMFYUI_PATH"]) if BACKEND == "comfy" else None
    return choose_backend(BACKEND, checkout, torch.device("cpu"))[0]


@pytest.fixture(scope="session")
def demo_sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole demo SD1.5 checkpoint, which ComfyUI recognises; LUNA_DEMO_MODELS saves writing it."""
    given = os.environ.get("LUNA_DEMO_MODELS")
    model = MODELS["sd15"]
    if given and (Path(given) / model.path).is_file():
        return Path(given) / model.path
    path = tmp_path_factory.mktemp("demo") / "demo-sd15.safetensors"
    write(path, model.name, list(model.build()), dict(model.metadata), _silent)
    return path
