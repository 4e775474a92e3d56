"""Keys of the weights screen reach the port: files are pruned, brought back and pinned, jobs held and reordered."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from luna_engine.settings import Settings, WeightsSettings
from luna_engine.weights.queue import JobQueue, in_order
from luna_tui.backend.fake import FakeBackend
from luna_tui.backend.fake_weights import FakeWeights
from luna_tui.backend.weights import LocalWeights
from luna_tui.backend.weights_views import PruneRow, WeightsView
from luna_tui.screens.convert import ConvertDialog
from luna_tui.screens.prune import PruneDialog
from luna_tui.widgets.table import ListTable
from tests.small_shelf import Shelf
from tests.synthetic_models import TINY_SDXL, write_holes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

DEADLINE_S = 30.0
ROOT, HOME = "/models/checkpoints", "/models/unet/optimized"
PONY = f"{ROOT}/ponyDiffusionV6XL.safetensors"
PONY_Q8 = f"{HOME}/ponyDiffusionV6XL_Q8_0.gguf"
GONE = f"{HOME}/gone_Q8_0.gguf"
WIDE = (140, 40)
# keys after going to the row, the row, the list it is in, the call that comes of it, its command line
CALLS = {
    "pin": (["l", "j", "P"], PONY, "source-list", ("weights.pin", PONY_Q8), f"luna weights unpin {PONY_Q8}"),
    "verify": (["v"], PONY, "source-list", ("weights.verify", PONY), None),
    "verify one": (["l", "j", "v"], PONY, "source-list", ("weights.verify", PONY_Q8), f"luna weights verify {PONY_Q8}"),
    "prune": (["d", "enter"], PONY, "source-list", ("weights.prune", GONE), f"luna weights prune {GONE} --apply"),
    "undo": (["u"], PONY, "source-list", ("weights.undo",), "luna weights undo"),
    "empty": (["E", *"trash", "enter"], PONY, "source-list", ("weights.empty_trash",), None),
    "pause": (["p"], "j12", "job-list", ("weights.pause", "j12"), "luna weights jobs j12 --pause"),
    "resume": (["p"], "j14", "job-list", ("weights.pause", "j14"), "luna weights jobs j14 --resume"),
    "later": (["shift+down"], "j13", "job-list", ("weights.move", "j13", "1"), "luna weights jobs j13 --move 2"),
    "earlier": (["shift+up"], "j14", "job-list", ("weights.move", "j14", "-1"), "luna weights jobs j14 --move 1"),
    "cancel": (["x", "y"], "j12", "job-list", ("weights.cancel", "j12"), "luna weights jobs j12 --cancel"),
    "retry": (["r"], "j11", "job-list", ("weights.retry", "j11"), "luna weights jobs j11 --retry"),
}


def list_of(pilot: Any, name: str) -> ListTable:
    table: ListTable = pilot.app.screen.query_one(f"#{name}", ListTable)
    return table


async def press(tui: Any, pilot: Any, *keys: str) -> None:
    for key in keys:
        await pilot.press(key)
        await tui.settled(pilot)


@pytest.mark.parametrize("name", CALLS)
async def test_a_key_reaches_the_port_and_leaves_its_command_line(tui: Any, name: str) -> None:
    keys, row, table, call, command = CALLS[name]
    backend = FakeBackend("normal")
    async with tui.running(backend=backend, start="weights", size=WIDE) as pilot:
        list_of(pilot, table).focus()
        assert list_of(pilot, table).go_to(row)
        await press(tui, pilot, *keys)
        assert backend.calls == [call]
        if command is not None:
            assert backend.events.recorded[-1].command == command


@pytest.mark.parametrize("name", [name for name in CALLS if not name.startswith("verify")])
async def test_read_only_reaches_no_port(tui: Any, name: str) -> None:
    keys, row, table, _, _ = CALLS[name]
    backend = FakeBackend("normal")
    async with tui.running(backend=backend, start="weights", size=WIDE, readonly=True) as pilot:
        list_of(pilot, table).focus()
        list_of(pilot, table).go_to(row)
        await press(tui, pilot, *keys)
    assert backend.calls == []


@pytest.mark.parametrize(
    ("row", "table", "absent"),
    [("j11", "job-list", "pause"), ("j12", "job-list", "retry"), (f"{ROOT}/broken.safetensors", "source-list", "pin")],
)
async def test_a_key_that_cannot_work_now_is_not_shown(tui: Any, row: str, table: str, absent: str) -> None:
    async with tui.running(start="weights", size=WIDE) as pilot:
        list_of(pilot, table).focus()
        list_of(pilot, table).go_to(row)
        await tui.settled(pilot)
        assert absent not in tui.text(pilot.app).splitlines()[-1].split()


async def test_enter_unfolds_files_and_shows_the_header_of_a_source_without(tui: Any) -> None:
    async with tui.running(start="weights", size=WIDE) as pilot:
        list_of(pilot, "source-list").go_to(PONY)
        await press(tui, pilot, "enter")
        assert "├ ponyDiffusionV6XL_Q8_0" in tui.text(pilot.app)
        await press(tui, pilot, "j")
        assert "pinned · luna 0.1.0 · source e3b0c442" in tui.text(pilot.app)  # whole, below the list
        await press(tui, pilot, "h")
        assert "├" not in tui.text(pilot.app)
        assert list_of(pilot, "source-list").current.key == PONY


async def test_files_stay_below_their_source_however_it_is_sorted(tui: Any) -> None:
    async with tui.running(start="weights", size=WIDE) as pilot:
        table = list_of(pilot, "source-list")
        table.go_to(PONY)
        await press(tui, pilot, "l")
        for column in ("size", "size", "arch", "saved", "gguf_Q8_0", "source", "source"):
            table.sort_by(column)
            keys = [row.key for row in table.shown]
            assert keys[keys.index(PONY) + 1] == PONY_Q8, column


async def test_why_a_precision_is_impossible_stands_below_the_list(tui: Any) -> None:
    async with tui.running(start="weights", size=WIDE) as pilot:
        list_of(pilot, "source-list").go_to(f"{ROOT}/small_fp8.safetensors")
        await tui.settled(pilot)
        assert "finer than its own F16" in tui.text(pilot.app)


async def test_marked_sources_are_converted_together(tui: Any) -> None:
    backend = FakeBackend("normal")
    sources = [f"{ROOT}/{name}.safetensors" for name in ("dreamshaper_8", "illustriousXL_v2")]
    async with tui.running(backend=backend, start="weights", size=WIDE) as pilot:
        list_of(pilot, "source-list").go_to(sources[0])
        await press(tui, pilot, "space", "space", "c")
        assert isinstance(pilot.app.screen, ConvertDialog)
        text = tui.text(pilot.app)
        assert "about 1:01" in text
        assert "165 MiB of memory" in text
        await press(tui, pilot, "ctrl+s")
    assert backend.calls == [("weights.convert", *sources, "gguf_Q8_0")]


async def test_the_prune_dialog_keeps_what_is_unticked_or_refused(tui: Any) -> None:
    backend = FakeBackend("normal")
    async with tui.running(backend=backend, start="weights", size=WIDE) as pilot:
        await press(tui, pilot, "d")
        assert isinstance(pilot.app.screen, PruneDialog)
        assert "stays: pinned" in tui.text(pilot.app)
        await press(tui, pilot, "space", "enter")  # the only one that could go is unticked
        assert isinstance(pilot.app.screen, PruneDialog)
        assert "0 files, 0 B leave" in tui.text(pilot.app)
        await press(tui, pilot, "j", "space")  # the pinned one cannot be ticked
        assert "0 files, 0 B leave" in tui.text(pilot.app)
        await press(tui, pilot, "escape")
    assert backend.calls == []


class Many(FakeWeights):
    """A shelf on which twelve files can go."""

    def prune_plan(self, paths: Sequence[str], rules: Sequence[str], unused_days: int) -> tuple[PruneRow, ...]:
        del paths, rules, unused_days
        return tuple(PruneRow(f"{HOME}/{number}.gguf", 1, "stale: x") for number in range(12))


async def test_more_than_ten_files_want_their_number_typed(tui: Any) -> None:
    backend = FakeBackend("normal")
    backend.weights = Many("normal", backend.calls)
    async with tui.running(backend=backend, start="weights", size=WIDE) as pilot:
        await press(tui, pilot, "d", "enter")
        assert "Type 12 to go on" in tui.text(pilot.app)
        await press(tui, pilot, "enter")
        assert backend.calls == []
        await press(tui, pilot, "1", "2", "enter")
    assert [call[0] for call in backend.calls] == ["weights.prune"]
    assert len(backend.calls[0]) == 13


# -- on real files ------------------------------------------------------------------------------------------------


def local(tmp_path: Path) -> FakeBackend:
    settings = Settings(weights=WeightsSettings(paths=(str(tmp_path),)))
    return FakeBackend(weights=LocalWeights(settings))


async def until(pilot: Any, tui: Any, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, tui.text(pilot.app)
        if hasattr(pilot.app.screen, "refresh_data"):
            pilot.app.screen.refresh_data()
        await tui.settled(pilot)


async def test_a_stale_file_goes_into_the_trash_and_u_brings_it_back(tui: Any, tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    source = shelf.source()
    made = shelf.variant(source, "tiny_bf16_unet.safetensors")
    write_holes(source, {**TINY_SDXL, "out.0.bias": (32,)})
    data = made.read_bytes()
    async with tui.running(backend=local(tmp_path), start="weights", size=WIDE) as pilot:
        await until(pilot, tui, lambda: "bf16 is stale" in tui.text(pilot.app))
        await press(tui, pilot, "d")
        await press(tui, pilot, "enter")
        assert not made.exists()
        await until(pilot, tui, lambda: "0 converted files" in tui.text(pilot.app))
        await press(tui, pilot, "u")
        assert made.read_bytes() == data
        await until(pilot, tui, lambda: "1 converted file," in tui.text(pilot.app))
        list_of(pilot, "source-list").go_to(str(source))
        await press(tui, pilot, "P")
        await until(pilot, tui, lambda: pilot.app.screen.view.sources[0].variants[0].is_pinned)
        await press(tui, pilot, "d")
        assert "stays: pinned" in tui.text(pilot.app)


async def test_waiting_jobs_are_reordered_and_held(tui: Any, tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    source = shelf.source()
    queue = JobQueue.open()
    first, second = queue.submit(source, "bf16"), queue.submit(source, "gguf_F16")
    for job in (first, second):
        queue.pause(job.id)  # nothing starts while the test looks
    async with tui.running(backend=local(tmp_path), start="weights", size=WIDE) as pilot:
        list_of(pilot, "job-list").focus()
        assert list_of(pilot, "job-list").go_to(second.id)
        await press(tui, pilot, "shift+up")
        assert [job.id for job in in_order(queue.jobs())] == [second.id, first.id]
        await press(tui, pilot, "p")
        await until(pilot, tui, lambda: queue.store.load(second.id).state.is_over)
        assert queue.is_paused(first.id)


async def test_a_shelf_that_is_still_being_read_is_shown_as_far_as_it_is(tui: Any, tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    shelf.source()
    backend = local(tmp_path)
    weights = backend.weights
    catalog = weights._shelf.catalog
    steps = catalog.refresh()
    next(steps)  # the folders were walked, no header was read
    listing = catalog.listing()
    weights._shelf.listing = lambda: listing
    async with tui.running(backend=backend, start="weights", size=WIDE) as pilot:
        assert "1 still to be read" in tui.text(pilot.app)
        assert "reading …" in tui.text(pilot.app)
    steps.close()


def test_the_recorded_shelf_is_the_ports_own_form() -> None:
    assert isinstance(FakeBackend("normal").weights.snapshot(), WeightsView)
