"""Folders of the diffusers library are sources: the diffusion model is found, named and converted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from luna_engine.errors import InputFileError
from luna_engine.settings import Settings
from luna_engine.weights import convert, inspect, plan, verify
from luna_engine.weights.naming import destination_of
from luna_engine.weights.pipelines import source_stem, weight_file
from luna_engine.weights.precisions import find_precision
from tests.synthetic_layouts import AURA, FLUX
from tests.synthetic_models import random_values, write_holes, write_values

if TYPE_CHECKING:
    from pathlib import Path

PLAIN = "diffusion_pytorch_model.safetensors"
VAE = {"decoder.conv_in.weight": (8, 4, 3, 3), "encoder.conv_in.weight": (8, 3, 3, 3)}
CLIP = {"text_model.encoder.layers.0.mlp.fc1.weight": (8, 768)}


def pipeline(folder: Path, part: str, name: str = "FluxPipeline", **parts: str) -> Path:
    """Write what diffusers writes beside the weights: the index and a config for each part."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": name, **parts}), "utf-8")
    for entry in (part, "vae", "text_encoder", "scheduler"):
        (folder / entry).mkdir(exist_ok=True)
        kind = "scheduler_config.json" if entry == "scheduler" else "config.json"
        (folder / entry / kind).write_text("{}", "utf-8")
    write_holes(folder / "vae" / PLAIN, VAE)
    write_holes(folder / "text_encoder" / "model.safetensors", CLIP)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = pipeline(tmp_path / "diffusion_models" / "My.Flux-1", "transformer")
    write_values(made / "transformer" / PLAIN, random_values(FLUX))
    return made


def test_a_pipeline_is_inspected_with_all_its_parts(folder: Path) -> None:
    found = inspect(folder)
    assert (found.family, found.variant, found.kind.value) == ("flux", "diffusers layout", "checkpoint")
    assert [part.name for part in found.components] == ["diffusion", "text_encoder", "vae"]
    assert "model_index.json says FluxPipeline" in found.evidence
    assert found.path == folder / "transformer" / PLAIN


def test_a_pipeline_converts_under_its_own_name(folder: Path, tmp_path: Path) -> None:
    target = destination_of(folder, find_precision("gguf_Q8_0"), None, Settings())
    assert target.name == "My.Flux-1_Q8_0.gguf"
    assert target.parent == tmp_path / "unet" / "optimized" / "My.Flux-1" / "transformer"
    assert destination_of(folder / "transformer", find_precision("bf16"), tmp_path, Settings()).name == (
        "My.Flux-1_bf16_unet.safetensors"
    )
    assert convert(folder, target, "gguf_Q8_0").state == "done"
    assert verify(target, folder).checked[-1] == "values"
    assert convert(folder / "transformer" / PLAIN, target, "gguf_Q8_0").state == "reused"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([PLAIN, "diffusion_pytorch_model.fp16.safetensors"], PLAIN),
        (["diffusion_pytorch_model.fp16.safetensors"], "diffusion_pytorch_model.fp16.safetensors"),
        (["lora.safetensors", PLAIN], PLAIN),
        (["model.safetensors"], "model.safetensors"),
        (["own-name.safetensors"], "own-name.safetensors"),
    ],
)
def test_the_plain_weights_are_taken_before_variants(folder: Path, files: list[str], expected: str) -> None:
    (folder / "transformer" / PLAIN).unlink()
    for name in files:
        write_holes(folder / "transformer" / name, FLUX)
    assert weight_file(folder).name == expected


def test_sharded_weights_of_a_part_are_found_through_index_and_without(folder: Path, tmp_path: Path) -> None:
    (folder / "transformer" / PLAIN).unlink()
    names = list(FLUX)
    places: dict[str, str] = {}
    for number in (1, 2):
        part = {name: FLUX[name] for name in names[number - 1 :: 2]}
        file = f"diffusion_pytorch_model-{number:05}-of-00002.safetensors"
        write_values(folder / "transformer" / file, random_values(part, seed=number))
        places |= dict.fromkeys(part, file)
    assert convert(folder, tmp_path / "a.gguf", "gguf_Q8_0").state == "done"
    index = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}), "utf-8")
    assert inspect(folder).path.name.endswith("-00001-of-00002.safetensors")
    assert source_stem(weight_file(folder)) == "My.Flux-1"
    (folder / "transformer" / "diffusion_pytorch_model-00001-of-00002.safetensors").unlink()
    with pytest.raises(InputFileError) as caught:
        plan(folder, "bf16")
    assert caught.value.code == "file-missing"


def test_two_diffusion_models_must_be_told_apart(folder: Path) -> None:
    second = folder / "transformer_2"
    second.mkdir()
    (second / "config.json").write_text("{}")
    write_holes(second / PLAIN, FLUX)
    with pytest.raises(InputFileError) as caught:
        inspect(folder)
    assert caught.value.code == "wrong-type"
    assert "transformer, transformer_2" in caught.value.message
    assert source_stem(weight_file(second)) == "My.Flux-1_transformer_2"
    assert inspect(second).family == "flux"


def test_what_is_no_model_folder_is_said_to_be_so(folder: Path, tmp_path: Path) -> None:
    def refused(path: Path) -> tuple[str, str]:
        with pytest.raises(InputFileError) as caught:
            inspect(path)
        return caught.value.code, caught.value.message

    assert refused(tmp_path)[0] == "wrong-type"
    (folder / "transformer" / PLAIN).rename(folder / "transformer" / "diffusion_pytorch_model.bin")
    assert refused(folder)[0] == "pickle-refused"
    (folder / "transformer" / "diffusion_pytorch_model.bin").unlink()
    assert refused(folder) == ("file-missing", f"{folder / 'transformer'} holds no weights")
    (folder / "transformer" / "config.json").unlink()
    assert refused(folder)[0] == "component-missing"


def test_aura_comes_out_as_it_was_before_diffusers_renamed_it(tmp_path: Path) -> None:
    """The library's own way from the reference names is the oracle of our way back."""
    single_file = pytest.importorskip("diffusers.loaders.single_file_utils")
    generator = torch.Generator().manual_seed(3)
    values = {name: torch.randn(shape, generator=generator).half() for name, shape in AURA.items()}
    made = pipeline(tmp_path / "AuraFlow", "transformer", "AuraFlowPipeline")
    theirs = single_file.convert_auraflow_transformer_checkpoint_to_diffusers(dict(values))
    save_file({name: value.contiguous() for name, value in theirs.items()}, made / "transformer" / PLAIN)
    assert (inspect(made).family, inspect(made).variant) == ("aura", "diffusers layout")
    convert(made, tmp_path / "out.safetensors", "fp16")
    found = load_file(tmp_path / "out.safetensors")
    assert found.keys() == values.keys()
    assert all(torch.equal(found[name], value) for name, value in values.items())
    assert inspect(tmp_path / "out.safetensors").family == "aura"
    assert plan(made, "gguf_Q4_K_M").count("quantised") > 20
