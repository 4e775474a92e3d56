"""A backend against ComfyUI's own classes: same tokens, same conditioning, same latents, same pixels.

The native backend within 1e-5 of the largest value; the comfy backend bit for bit, where `test_comfy_backend.py` runs
this file in ComfyUI's interpreter.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from luna_daemon.encode_messages import Tile
from luna_daemon.runtime import images, tokens
from luna_daemon.runtime.clip_text import CLIP_L
from luna_daemon.runtime.embeddings import EmbeddingFiles
from luna_daemon.runtime.files import ModelFiles
from luna_daemon.runtime.parts import OpenFile
from luna_daemon.runtime.vocabulary import PackagedVocabulary, open_vocabulary
from luna_engine.weights.demo.models import MODELS
from luna_engine.weights.demo.writing import write
from tests.daemon.runtime import golden

if TYPE_CHECKING:
    from luna_daemon.runtime.backend import ModelBackend, ModelSet

pytestmark = pytest.mark.comfyui

LIMIT = 1e-5 if os.environ.get("LUNA_TEST_BACKEND", "native") == "native" else 0.0
SEPARATE = {
    "refiner": ("sdxl", "STABLE_DIFFUSION", ("g",)),
    "sd3": ("sd3", "SD3", ("l", "g")),
    "sd3 without l": ("sd3", "SD3", ("g",)),
    "sd3 without g": ("sd3", "SD3", ("l",)),
}
"""Sets of text encoders that lie in files of their own: family, ComfyUI's CLIPType, roles. T5 is too large for here."""


@pytest.fixture(scope="module")
def computed(demo_sd15: Path, model_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that ComfyUI computes, once."""
    out = tmp_path_factory.mktemp("golden") / "golden.safetensors"
    golden.compute(demo_sd15, model_root / "embeddings", out)
    return out


@pytest.fixture(scope="module")
def sd15(backend: ModelBackend, demo_sd15: Path) -> ModelSet:
    """The demo checkpoint."""
    return load(backend, "sd15", {"l": demo_sd15, "vae": demo_sd15})


def load(backend: ModelBackend, family: str, files: dict[str, Path]) -> ModelSet:
    with contextlib.ExitStack() as stack, torch.inference_mode():
        parts = {role: stack.enter_context(OpenFile(path, "demo")).find(role) for role, path in files.items()}
        found = {role: part for role, part in parts.items() if part is not None}
        assert found.keys() == files.keys()
        return backend.load(family, found, "fp32" if "vae" in found else "fp16", lambda: None)


def demo(name: str) -> Path:
    """Return a demo model that is too large to be written for a test."""
    path = Path(os.environ.get("LUNA_DEMO_MODELS", "")) / MODELS[name].path
    if not path.is_file():
        pytest.skip(f"LUNA_DEMO_MODELS holds no {MODELS[name].path} (luna demo-models DIR --only {name})")
    return path


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference, as a part of the largest value."""
    assert one.shape == other.shape
    return float((one - other).abs().max() / other.abs().max())


def require_same_conditioning(path: Path, model: ModelSet, at_least: int) -> None:
    worst: dict[str, tuple[float, float]] = {}
    with torch.inference_mode():
        for case in golden.text_cases(path):
            (found,) = model.encode([case.item], lambda: None)
            assert found.pooled is not None
            worst[case.name] = (difference(found.cond, case.cond), difference(found.pooled, case.pooled))
    assert len(worst) >= at_least
    assert {name: values for name, values in worst.items() if max(values) > LIMIT} == {}


def test_conditioning_equals_comfyuis(computed: Path, sd15: ModelSet) -> None:
    """Weights, chunks, inversions of the right and of a wrong width, and clip skip beyond the layers as well."""
    require_same_conditioning(computed, sd15, 30)


def test_sdxl_conditioning_equals_comfyuis(backend: ModelBackend, model_root: Path, tmp_path: Path) -> None:
    """Two encoders, their joined states, the projected pooled state, two texts of different length."""
    given = demo("sdxl")
    golden.compute(given, model_root / "embeddings", tmp_path / "golden.safetensors", "--brief")
    require_same_conditioning(tmp_path / "golden.safetensors", load(backend, "sdxl", {"l": given, "g": given}), 13)


@pytest.mark.parametrize("name", SEPARATE)
def test_conditioning_of_separate_encoders_equals_comfyuis(
    backend: ModelBackend, model_root: Path, tmp_path: Path, name: str
) -> None:
    family, kind, roles = SEPARATE[name]
    files = {role: demo(f"clip_{role}") for role in roles}
    given = Path(os.pathsep.join(map(str, files.values())))
    golden.compute(given, model_root / "embeddings", tmp_path / "golden.safetensors", f"--type={kind}")
    require_same_conditioning(tmp_path / "golden.safetensors", load(backend, family, files), 7)


def test_every_prompt_in_one_batch_equals_comfyuis_one_by_one(computed: Path, sd15: ModelSet) -> None:
    cases = golden.text_cases(computed)
    with torch.inference_mode():
        together = sd15.encode([case.item for case in cases], lambda: None)
    for case, found in zip(cases, together, strict=True):
        assert difference(found.cond, case.cond) <= LIMIT, case.name


def require_same_images(path: Path, vae: ModelSet) -> None:
    cases = golden.vae_cases(path)
    assert len(cases) >= 4
    with torch.inference_mode():
        for case in cases:
            assert vae.vae is not None
            pixels = images.prepare_pixels(case.pixels, vae.vae)
            assert difference(vae.vae_encode(pixels.tensor, lambda: None), case.encoded) <= LIMIT, case.name
            assert difference(vae.vae_decode(case.latent, lambda: None), case.decoded) <= LIMIT, case.name


def require_same_tiled_images(path: Path, vae: ModelSet) -> None:
    (case,) = [case for case in golden.vae_cases(path) if case.encoded_tiled is not None]
    assert case.decoded_tiled is not None
    with torch.inference_mode():
        encoded = vae.vae_encode(case.pixels, lambda: None, Tile(48, 64, 16))
        decoded = vae.vae_decode(case.latent, lambda: None, Tile(6, 8, 2))
    assert difference(encoded, case.encoded) > 1e-2
    assert difference(encoded, case.encoded_tiled) <= LIMIT
    assert difference(decoded, case.decoded_tiled) <= LIMIT


def test_images_and_latents_equal_comfyuis(computed: Path, sd15: ModelSet) -> None:
    require_same_images(computed, sd15)


def test_tiled_images_and_latents_equal_comfyuis(computed: Path, sd15: ModelSet) -> None:
    require_same_tiled_images(computed, sd15)


@pytest.fixture(scope="module")
def demo_ae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The VAE of 16 channels; LUNA_DEMO_MODELS saves writing it."""
    model = MODELS["ae"]
    given = Path(os.environ.get("LUNA_DEMO_MODELS", "")) / model.path
    if given.is_file():
        return given
    path = tmp_path_factory.mktemp("demo-ae") / "demo-ae.safetensors"
    write(path, model.name, list(model.build()), dict(model.metadata), lambda _done, _total: None)
    return path


def test_images_and_latents_of_16_channels_equal_comfyuis(
    backend: ModelBackend, demo_ae: Path, model_root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "golden.safetensors"
    golden.compute(demo_ae, model_root / "embeddings", out, "--vae")
    vae = load(backend, "flux", {"vae": demo_ae})
    require_same_images(out, vae)
    require_same_tiled_images(out, vae)


@pytest.mark.parametrize("source", ["checkout", "package"])
def test_text_becomes_comfyuis_tokens(computed: Path, model_root: Path, source: str) -> None:
    """Odd Unicode apart: what transformers 4 does to ideographs and joiners is said in vocabulary.py."""
    checkout = Path(os.environ["COMFYUI_PATH"])
    vocabulary = open_vocabulary(checkout) if source == "checkout" else PackagedVocabulary()
    find = EmbeddingFiles(ModelFiles({"embeddings": model_root / "embeddings"})).finder("l")
    for case in golden.text_cases(computed):
        if case.name.startswith("emoji_cjk"):
            continue
        made = tokens.tokenize(case.text, CLIP_L, vocabulary, find).input
        expected = case.item.encoders["l"]
        assert made.rows == expected.rows, case.name
        assert len(made.vectors) == len(expected.vectors)
        for block, other in zip(made.vectors, expected.vectors, strict=True):
            assert torch.equal(block, other)


def test_the_package_has_the_vocabulary_of_the_checkout() -> None:
    vocabulary, packaged = open_vocabulary(Path(os.environ["COMFYUI_PATH"])), PackagedVocabulary()
    generator = torch.Generator().manual_seed(4)
    for _ in range(2000):
        length = int(torch.randint(1, 12, (1,), generator=generator))
        text = "".join(map(chr, torch.randint(32, 0x250, (length,), generator=generator).tolist()))
        assert packaged.encode(text) == vocabulary.encode(text), repr(text)
