"""Where sources are looked for and what converted files are called, so that no two sources want one name."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from luna_engine.settings import Settings, WeightsSettings
from luna_engine.weights import convert, provenance
from luna_engine.weights.headers import read_header
from luna_engine.weights.jobs import JobStore
from luna_engine.weights.naming import default_folder, destination_of, extra_roots, source_roots, variant_folders
from luna_engine.weights.plans import ConversionOptions
from luna_engine.weights.precisions import find_precision
from luna_engine.weights.queue import JobQueue
from tests.synthetic_models import TINY_SDXL, random_values, write_holes, write_values

if TYPE_CHECKING:
    from pathlib import Path

    from tests.small_shelf import Shelf

BF16 = find_precision("bf16")
NAME = "tiny_bf16_unet.safetensors"


def converted(source: Path, target: Path, root: Path) -> Path:
    return convert(source, target, "bf16", options=ConversionOptions(roots=(root,))).destination


def test_a_source_of_the_same_stem_elsewhere_gets_a_marked_name(tmp_path: Path) -> None:
    roots = [tmp_path / name / "checkpoints" for name in ("a", "b")]
    settings = Settings(
        weights=WeightsSettings(paths=tuple(map(str, roots)), optimized_dir=str(tmp_path / "optimized"))
    )
    first, second = (write_values(root / "tiny.safetensors", random_values(TINY_SDXL)) for root in roots)
    target = destination_of(first, BF16, None, settings)
    assert target == tmp_path / "optimized" / NAME
    converted(first, target, roots[0])
    assert destination_of(first, BF16, None, settings) == target  # its own name stays its own
    other = destination_of(second, BF16, None, settings)
    assert other.name.startswith("tiny~")
    assert other.name.endswith("_bf16_unet.safetensors")
    made = provenance.read(read_header(converted(second, other, roots[1])).metadata)
    assert made is not None
    assert made.stamp.path == "tiny.safetensors"
    assert destination_of(second, BF16, None, settings) == other


def test_names_that_differ_in_case_only_are_one_name(shelf: Shelf) -> None:
    settings = Settings(weights=WeightsSettings(paths=(str(shelf.root),)))
    shelf.variant(shelf.source("Tiny.safetensors"), "Tiny_bf16_unet.safetensors")
    lower = shelf.source("tiny.safetensors")
    assert destination_of(lower, BF16, None, settings).name.startswith("tiny~")


def test_a_name_that_a_waiting_job_will_write_is_taken(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LUNA_MODELS", str(tmp_path))
    first, second = shelf.source("tiny.safetensors"), shelf.source("tiny.sft")
    queue = JobQueue(JobStore.open())
    jobs = [queue.submit(source, "bf16") for source in (first, second, first)]
    assert jobs[0].destination == jobs[2].destination == str(shelf.home / NAME)
    assert jobs[1].destination != jobs[0].destination


def test_a_long_name_is_cut_and_stays_unique(shelf: Shelf) -> None:
    settings = Settings(weights=WeightsSettings(paths=(str(shelf.root),)))
    names = [f"{'ä' * 100}{end}.safetensors" for end in ("one", "two")]
    targets = [destination_of(write_holes(shelf.root / name, TINY_SDXL), BF16, None, settings) for name in names]
    assert all(len(os.fsencode(target.name)) <= 180 for target in targets)
    assert len({target.name for target in targets}) == 2


def test_a_foreign_file_under_the_name_is_left_to_the_conversion_to_refuse(shelf: Shelf) -> None:
    settings = Settings(weights=WeightsSettings(paths=(str(shelf.root),)))
    source = shelf.source()
    write_holes(shelf.home / NAME, TINY_SDXL)
    assert destination_of(source, BF16, None, settings) == shelf.home / NAME


def test_a_source_that_was_only_touched_is_not_converted_again(shelf: Shelf) -> None:
    source = shelf.source()
    options = ConversionOptions(roots=(shelf.root,))
    made = shelf.variant(source, NAME)
    before = made.stat()
    shelf.age(source, 1)
    assert convert(source, made, "bf16", options=options).state == "reused"
    assert made.stat() == before
    shelf.source(seed=2)
    assert convert(source, made, "bf16", options=options).state == "done"


EXTRA = """
other:
  base_path: {base}
  checkpoints: |
    sd
    more/sd
  unet: diffusion
  loras: loras
first:
  is_default: true
  checkpoints: beside
  clip:
"""


@pytest.fixture
def comfyui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "ComfyUI"
    (folder / "models" / "checkpoints").mkdir(parents=True)
    monkeypatch.setenv("COMFYUI_PATH", str(folder))
    return folder


def test_the_folders_of_extra_model_paths_are_roots(
    comfyui: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISK", str(tmp_path / "disk"))
    (comfyui / "extra_model_paths.yaml").write_text(EXTRA.format(base="$DISK/models"))
    base = tmp_path / "disk" / "models"
    for folder in (base / "sd", base / "more" / "sd", comfyui / "beside"):
        folder.mkdir(parents=True)
    assert extra_roots().folders == (comfyui / "beside", base / "sd", base / "more" / "sd", base / "diffusion")
    assert source_roots(Settings()) == (
        comfyui / "models" / "checkpoints", comfyui / "beside", base / "sd", base / "more" / "sd",
    )  # fmt: skip
    source = write_holes(base / "sd" / "a.safetensors", TINY_SDXL)
    optimized = comfyui / "models" / "unet" / "optimized"
    assert default_folder(source, Settings()) == optimized
    optimized.mkdir(parents=True)
    assert optimized in variant_folders(source_roots(Settings()), Settings())


@pytest.mark.parametrize("text", ["a: [unclosed", "just text", "- a\n- b", "a: !!python/object/apply:os.system ['x']"])
def test_a_bad_file_is_a_notice_and_not_the_end(comfyui: Path, text: str) -> None:
    (comfyui / "extra_model_paths.yaml").write_text(text)
    found = extra_roots()
    assert found.folders == ()
    assert found.problem is not None
    assert found.problem.code == "settings-invalid"
    assert source_roots(Settings()) == (comfyui / "models" / "checkpoints",)


def test_an_empty_file_names_nothing(comfyui: Path) -> None:
    (comfyui / "extra_model_paths.yaml").write_text("# nothing yet\n")
    assert extra_roots() == type(extra_roots())()
