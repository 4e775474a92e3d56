"""The weights screen on real files, real job files and real worker processes."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

import gguf
import pytest

from luna_engine.settings import Settings, WeightsSettings
from luna_engine.weights.queue import JobQueue
from luna_tui.backend.fake import FakeBackend
from luna_tui.backend.weights import LocalWeights
from luna_tui.screens.convert import ConvertDialog
from luna_tui.screens.header import HeaderDialog
from luna_tui.widgets.table import ListTable
from tests.synthetic_models import TINY_SDXL, random_values, write_holes, write_values

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DEADLINE_S = 30.0
LARGE = {**TINY_SDXL, "input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight": (500_000, 4096)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a models folder with a checkpoint, a VAE that is no source, and a broken file."""
    checkpoints = tmp_path / "models" / "checkpoints"
    write_values(checkpoints / "tiny.safetensors", random_values(TINY_SDXL, "F32"))
    vae = {"decoder.conv_in.weight": (8, 4, 3, 3), "encoder.conv_in.weight": (8, 3, 3, 3), "a": (4,), "b": (4,)}
    write_holes(checkpoints / "some_vae.safetensors", vae)
    (checkpoints / "broken.safetensors").write_bytes(b"<!DOCTYPE html>" + bytes(40))
    return tmp_path / "models"


def backend_on(*paths: Path, readonly: bool = False) -> FakeBackend:
    settings = Settings(weights=WeightsSettings(paths=tuple(str(path) for path in paths)))
    return FakeBackend(weights=LocalWeights(settings, readonly=readonly))


async def until(pilot: Any, tui: Any, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, tui.text(pilot.app)
        if hasattr(pilot.app.screen, "refresh_data"):
            pilot.app.screen.refresh_data()
        await tui.settled(pilot)


def list_of(pilot: Any, name: str) -> ListTable:
    table: ListTable = pilot.app.screen.query_one(f"#{name}", ListTable)
    return table


async def test_sources_are_shown_with_family_size_and_problems(tui: Any, folder: Path) -> None:
    async with tui.running(backend=backend_on(folder), start="weights", size=(140, 36)) as pilot:
        text = tui.text(pilot.app)
    assert "3 sources" in text
    tiny = next(line for line in text.splitlines() if "tiny.safetensors" in line)
    assert "sdxl" in tiny
    vae = next(line for line in text.splitlines() if "some_vae" in line)
    assert "component-missing" in vae
    broken = next(line for line in text.splitlines() if "broken" in line)
    assert "file-damaged" in broken


async def test_a_folder_without_models_says_what_to_do(tui: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    async with tui.running(backend=backend_on(tmp_path / "empty"), start="weights") as pilot:
        text = tui.text(pilot.app)
    assert "No checkpoints under" in text
    assert "weights.paths" in text
    assert "luna demo-models" in text


async def test_a_configured_folder_that_is_gone_is_named(tui: Any, tmp_path: Path) -> None:
    async with tui.running(backend=backend_on(tmp_path / "gone"), start="weights", size=(160, 30)) as pilot:
        assert "file-missing" in tui.text(pilot.app)


async def test_convert_shows_the_plan_then_runs_and_the_bar_ends_at_the_whole(tui: Any, folder: Path) -> None:
    backend = backend_on(folder)
    async with tui.running(backend=backend, start="weights", size=(150, 40)) as pilot:
        source = str(folder / "checkpoints" / "tiny.safetensors")
        assert list_of(pilot, "source-list").go_to(source)
        await pilot.press("c")
        await tui.settled(pilot)
        assert isinstance(pilot.app.screen, ConvertDialog)
        plan = tui.text(pilot.app)
        assert "tiny_Q8_0.gguf" in plan
        assert "stay free" in plan
        assert not (folder / "unet").exists()  # a plan writes nothing
        await pilot.press("ctrl+s")
        await tui.settled(pilot)
        await until(pilot, tui, lambda: "done" in tui.text(pilot.app))
        text = tui.text(pilot.app)
        assert "100 %" in text
        events = backend.events.recorded
        event = next(event for event in events if event.source == "you")
        await until(pilot, tui, lambda: [event.code for event in events if event.source == "weights"] == ["done"])
        assert event.command == f"luna weights convert {source} --to gguf_Q8_0"
    target = folder / "unet" / "optimized" / "tiny_Q8_0.gguf"
    assert gguf.GGUFReader(target).fields["general.architecture"].contents() == "sdxl"


async def test_a_finished_variant_appears_in_its_column_and_verifies(tui: Any, folder: Path) -> None:
    backend = backend_on(folder)
    source = folder / "checkpoints" / "tiny.safetensors"
    queue = JobQueue.open()
    queue.submit(source, "bf16")
    async with tui.running(backend=backend, start="weights", size=(150, 40)) as pilot:
        await until(pilot, tui, lambda: "✓" in tui.text(pilot.app))
        assert list_of(pilot, "source-list").go_to(str(source))
        await pilot.press("v")
        await tui.settled(pilot)
        assert "1 of 1 converted files are whole" in tui.text(pilot.app)


async def test_a_plan_that_cannot_be_is_not_confirmed(tui: Any, tmp_path: Path) -> None:
    shapes = {"clf.1.weight": (8, 8, 1, 1), "a": (4,), "b": (4,), "c": (4,)}  # a family without a GGUF loader
    write_holes(tmp_path / "checkpoints" / "odd.safetensors", shapes)
    backend = backend_on(tmp_path)
    async with tui.running(backend=backend, start="weights", size=(150, 40)) as pilot:
        await pilot.press("c")
        await tui.settled(pilot)
        text = tui.text(pilot.app)
        assert "family-unsupported" in text
        assert "convert to bf16" in text
        await pilot.press("ctrl+s")
        await tui.settled(pilot)
        assert isinstance(pilot.app.screen, ConvertDialog)
    assert backend.weights.snapshot().jobs == ()


async def test_cancel_asks_and_takes_the_part_file(tui: Any, tmp_path: Path) -> None:
    source = write_holes(tmp_path / "checkpoints" / "large.safetensors", LARGE)
    JobQueue.open().submit(source, "gguf_Q8_0")
    out = tmp_path / "unet" / "optimized"
    async with tui.running(backend=backend_on(tmp_path), start="weights", size=(150, 40)) as pilot:
        await until(pilot, tui, lambda: bool(re.search(r"█.* \d+ % .*convert \d+/", tui.text(pilot.app))))
        assert [path.suffix for path in out.iterdir() if path.suffix != ".lock"] == [".part"]
        list_of(pilot, "job-list").focus()
        await pilot.press("x")
        await tui.settled(pilot)
        assert "what it has written so far goes" in tui.text(pilot.app)
        await pilot.press("y")
        await tui.settled(pilot)
        await until(pilot, tui, lambda: "cancelled" in tui.text(pilot.app))
        await until(pilot, tui, lambda: list(out.iterdir()) == [])


async def test_a_failed_job_shows_code_and_hint_and_can_be_retried(tui: Any, folder: Path) -> None:
    source = folder / "checkpoints" / "tiny.safetensors"
    job = JobQueue.open().submit(source, "bf16")
    whole = source.read_bytes()
    source.write_bytes(whole[:-64])
    async with tui.running(backend=backend_on(folder), start="weights", size=(180, 40)) as pilot:
        await until(pilot, tui, lambda: "failed" in tui.text(pilot.app))
        assert "file-damaged" in tui.text(pilot.app)
        source.write_bytes(whole)
        list_of(pilot, "job-list").focus()
        list_of(pilot, "job-list").go_to(job.id)
        await pilot.press("r")
        await tui.settled(pilot)
        await until(pilot, tui, lambda: JobQueue.open().store.load(job.id).state.value == "done")


async def test_inspect_shows_parts_reasons_and_filterable_tensors(tui: Any, folder: Path) -> None:
    source = str(folder / "checkpoints" / "tiny.safetensors")
    async with tui.running(backend=backend_on(folder), start="weights", size=(120, 40)) as pilot:
        list_of(pilot, "source-list").go_to(source)
        await pilot.press("i")
        await tui.settled(pilot)
        assert isinstance(pilot.app.screen, HeaderDialog)
        text = tui.text(pilot.app)
        assert "sdxl diffusion model" in text
        assert "because of" in text
        assert "time_embed.0.weight" in text
        await pilot.press("slash", *"middle_block.1", "enter")
        await tui.settled(pilot)
        text = tui.text(pilot.app)
        assert "middle_block.1.proj_in.weight" in text
        assert "time_embed" not in text


async def test_a_path_given_is_shown_and_a_wrong_one_is_refused(tui: Any, folder: Path) -> None:
    backend = backend_on()
    async with tui.running(backend=backend, start="weights", size=(140, 36)) as pilot:
        await pilot.press("a", *"/no/where", "enter")
        await tui.settled(pilot)
        assert "there is no /no/where" in tui.text(pilot.app)
        await pilot.press("escape", "a")
        pilot.app.screen.query_one("#path").value = str(folder / "checkpoints" / "tiny.safetensors")
        await pilot.press("enter")
        await tui.settled(pilot)
        await until(pilot, tui, lambda: "tiny.safetensors" in tui.text(pilot.app))


async def test_read_only_starts_nothing_and_hides_the_verbs(tui: Any, folder: Path) -> None:
    queue = JobQueue.open()
    queue.submit(folder / "checkpoints" / "tiny.safetensors", "bf16")
    backend = backend_on(folder, readonly=True)
    async with tui.running(backend=backend, start="weights", readonly=True, size=(140, 36)) as pilot:
        assert "queued" in tui.text(pilot.app)
        assert "convert" not in tui.text(pilot.app).splitlines()[-1]
        await pilot.press("c")
        await tui.settled(pilot)
        assert not isinstance(pilot.app.screen, ConvertDialog)
    assert [job.state.value for job in queue.jobs()] == ["queued"]
    assert not backend.weights.convert(["x"], ["bf16"]).ok


@pytest.mark.parametrize("size", [(80, 24), (120, 36)])
async def test_why_a_job_failed_can_be_read_at_every_size(tui: Any, folder: Path, size: tuple[int, int]) -> None:
    source = folder / "checkpoints" / "tiny.safetensors"
    JobQueue.open().submit(source, "bf16")
    source.write_bytes(source.read_bytes()[:-64])
    async with tui.running(backend=backend_on(folder), start="weights", size=size) as pilot:
        if size[0] < 120:  # the queue is the other tab
            await pilot.press("tab")
        await until(pilot, tui, lambda: "failed" in tui.text(pilot.app))
        queue = tui.text(pilot.app).partition("queue ·")[2]
        assert "file-damaged: tiny.safetensors" in queue


@pytest.mark.parametrize("size", [(80, 24), (40, 12), (200, 60)])
async def test_every_size_shows_the_sources(tui: Any, folder: Path, size: tuple[int, int]) -> None:
    async with tui.running(backend=backend_on(folder), start="weights", size=size) as pilot:
        text = tui.text(pilot.app)
    assert "tiny" in text
    assert ("VARIANTS" in text) == (size[0] < 120)  # one word per variant takes the place of the columns
    assert ("Q8_0" in text) == (size[0] >= 120)
    assert ("sdxl" in text) == (size[0] >= 80)


async def test_hostile_file_names_are_shown_and_do_nothing(tui: Any, tmp_path: Path) -> None:
    write_holes(tmp_path / "checkpoints" / "[red]x[@click=app.quit]\x1b[31m.safetensors", TINY_SDXL)
    async with tui.running(backend=backend_on(tmp_path), start="weights", size=(140, 36)) as pilot:
        assert "[red]x[@click" in tui.text(pilot.app)
        await pilot.press("c")
        await tui.settled(pilot)
        assert "[red]x[@click" in tui.text(pilot.app)
        await pilot.press("escape", "i")
        await tui.settled(pilot)
        assert "[red]x[@click" in tui.text(pilot.app)
