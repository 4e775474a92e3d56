"""Shared by the weights tests: no worker outlives its test."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from luna_engine.weights import queue
from tests.small_shelf import Shelf
from tests.synthetic_models import PREFIX, TINY_SDXL, V_PRED, random_values, under, write_values

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from luna_engine.weights.catalog import Catalog


@pytest.fixture(autouse=True)
def no_worker_is_left() -> Iterator[None]:
    """Wait for detached workers that this process started."""
    yield
    for worker in queue._STARTED:
        worker.terminate()
        worker.wait(30)
    queue._STARTED.clear()


VAE = {
    "first_stage_model.decoder.conv_in.weight": (8, 4, 3, 3),
    "first_stage_model.encoder.conv_in.weight": (8, 3, 3, 3),
}
CLIP = {"conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight": (8, 8)}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Write a small SDXL checkpoint with a VAE, a text encoder and v-prediction markers."""
    values = random_values({**under(PREFIX, TINY_SDXL), **VAE, **CLIP})
    return write_values(tmp_path / "checkpoints" / "tiny.safetensors", {**values, **V_PRED})


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    """Make folders for sources and converted files."""
    return Shelf(tmp_path)


@pytest.fixture
def catalog(shelf: Shelf) -> Iterator[Catalog]:
    """Open a catalogue over the shelf."""
    with contextlib.closing(shelf.catalog()) as found:
        yield found
