"""Prompts per second over dynamicprompts, a txt of a million lines, and save-to-samples latency on the real screen.

`python -m tests.bench.bench_wildcards [--write]`. dynamicprompts is measured if it can be imported (it is no dependency
of Luna: `pip install --target DIR dynamicprompts` and PYTHONPATH=DIR).
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import random
import statistics
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

from luna_engine.settings import Settings, WildcardSettings
from luna_engine.wildcards import WildcardLibrary
from luna_tui.app import LunaApp
from luna_tui.backend.fake import FakeBackend
from luna_tui.backend.wildcards import LocalWildcards
from luna_tui.widgets.samples import Samples
from luna_tui.widgets.tree_table import TreeTable
from tests.bench.report import publish

if TYPE_CHECKING:
    from collections.abc import Callable

FILES, LISTS, ITEMS = 10, 100, 20
SAVES = 40
WORDS = [
    "amber",
    "barge",
    "cedar",
    "dune",
    "ember",
    "fern",
    "gale",
    "heath",
    "iris",
    "jade",
    "kelp",
    "loam",
    "moss",
    "night",
    "opal",
    "pine",
    "quartz",
    "reed",
    "slate",
    "tide",
]


def write_corpus(folder: Path) -> None:
    """Corpus d of WILDCARDS 12: 10 YAML x 100 lists x 20 items, addresses six parts deep, a tenth refer onward."""
    rng = random.Random(5)
    (folder / "deep" / "set").mkdir(parents=True)
    for file in range(FILES):
        lines = [f"f{file}:", "  part:"]
        for number in range(LISTS):
            lines.append(f"    list{number}:")
            lines.append("      words:")
            for item in range(ITEMS):
                words = " ".join(rng.choice(WORDS) for _ in range(3))
                onward = f" __deep/set/f{file}/part/list{50 + number}/words__" if number < 20 else ""
                lines.append(f"        - {words} {item}{onward}")
        (folder / "deep" / "set" / f"f{file}.yaml").write_text("\n".join(lines) + "\n", "utf-8")


def _names(with_file: Callable[[int, int], str]) -> str:
    a, b, c = with_file(0, 3), with_file(1, 60), with_file(2, 70)
    return f"a picture of __{a}__, __{b}__, {{2$$ and $$__{c}__|a gate|a lamp}}, {{3::soft|hard}} light"


def measure_luna(folder: Path, prompts: int) -> tuple[float, float]:
    """Return load seconds and prompts per second, CPU time, provenance and diagnostics on."""
    started = time.process_time()
    library = WildcardLibrary.load(folder)
    load_s = time.process_time() - started
    template = _names(lambda file, number: f"deep/set/f{file}/f{file}/part/list{number}/words")
    assert "__" not in library.expand(template, 1).text
    started = time.process_time()
    for seed in range(prompts):
        library.expand(template, seed)
    return load_s, prompts / (time.process_time() - started)


def measure_dynamicprompts(folder: Path, prompts: int) -> tuple[float, float]:
    """Return the same for the peer."""
    from dynamicprompts.generators import RandomPromptGenerator  # type: ignore[import-not-found,unused-ignore]
    from dynamicprompts.wildcards import WildcardManager  # type: ignore[import-not-found,unused-ignore]

    template = _names(lambda file, number: f"f{file}/part/list{number}/words")
    started = time.process_time()
    manager = WildcardManager(folder)
    generator = RandomPromptGenerator(wildcard_manager=manager, seed=0)
    first = generator.generate(template, 1)[0]
    load_s = time.process_time() - started
    assert "__" not in first, first
    started = time.process_time()
    for seed in range(prompts):
        generator.generate(template, 1, seeds=seed)
    return load_s, prompts / (time.process_time() - started)


def write_lines(folder: Path, lines: int) -> None:
    """Corpus c of WILDCARDS 12: one txt of plain words."""
    rng = random.Random(6)
    folder.mkdir()
    words = [f"{first} {second} {third}" for first in WORDS for second in WORDS for third in WORDS]
    rows = (f"{rng.choice(words)} {number}\n" for number in range(lines))
    (folder / "lines.txt").write_text("".join(rows), "utf-8")


def luna_lines(folder: Path) -> Callable[[int], str]:
    """Return what draws a line with a seed."""
    library = WildcardLibrary.load(folder)
    return lambda seed: library.expand("a picture of __lines__", seed).text


def peer_lines(folder: Path) -> Callable[[int], str]:
    """Return the same for the peer."""
    from dynamicprompts.generators import RandomPromptGenerator  # type: ignore[import-not-found,unused-ignore]
    from dynamicprompts.wildcards import WildcardManager  # type: ignore[import-not-found,unused-ignore]

    generator = RandomPromptGenerator(wildcard_manager=WildcardManager(folder), seed=0)
    return lambda seed: str(generator.generate("a picture of __lines__", 1, seeds=seed)[0])


def lines_row(name: str, folder: Path, make: Callable[[Path], Callable[[int], str]], prompts: int) -> str:
    """Measure the first prompt from nothing, the memory it takes, and prompts per second after it."""
    firsts = []
    for _ in range(3):
        started = time.process_time()
        draw = make(folder)
        assert "__" not in draw(1)
        firsts.append(time.process_time() - started)
    started = time.process_time()
    for seed in range(prompts):
        draw(seed)
    speed = prompts / (time.process_time() - started)
    del draw
    tracemalloc.start()
    draw = make(folder)
    draw(1)
    held, peak = (size_bytes / 1e6 for size_bytes in tracemalloc.get_traced_memory())
    tracemalloc.stop()
    return f"| {name} | {statistics.median(firsts) * 1000:.1f} | {held:.1f} | {peak:.1f} | {speed:,.0f} |"


def lines_table(folder: Path) -> str:
    """Measure a txt of a million lines, and one of a hundred."""
    few, many = folder / "few", folder / "many"
    write_lines(few, 100)
    write_lines(many, 1_000_000)
    size = (many / "lines.txt").stat().st_size / 1e6
    rows = [
        f"| one txt of {size:.0f} MB, 1,000,000 lines | first prompt, ms | memory held, MB | at most, MB | prompts/s |",
        "|---|---|---|---|---|",
        lines_row("Luna", many, luna_lines, 5000),
        lines_row("Luna, 100 lines of it", few, luna_lines, 5000),
    ]
    if importlib.util.find_spec("dynamicprompts"):
        rows.append(lines_row("dynamicprompts", many, peer_lines, 2))
    return "\n".join(rows) + "\n"


async def measure_saves(folder: Path, file: Path, address: str, make: Callable[[int], str]) -> list[float]:
    """Return seconds from another editor's rename to the new samples in the pane, watcher and debounce included."""
    settings = Settings(wildcards=WildcardSettings(roots=(str(folder),), bundled=False))
    backend = FakeBackend("normal", wildcards=LocalWildcards(settings))
    app = LunaApp(backend, start="wildcards")
    times: list[float] = []
    async with app.run_test(size=(140, 40)) as pilot:
        await app.workers.wait_for_complete()
        await pilot.pause(0.5)
        tree = app.screen.query_one(TreeTable)
        tree.focus()
        tree.go_to(address)
        await pilot.pause(0.5)
        pane = app.screen.query_one(Samples)
        for number in range(SAVES):
            temporary = file.with_name(f".{file.name}.new")
            temporary.write_text(make(number), "utf-8")
            marker = f"save{number} "
            started = time.perf_counter()
            temporary.replace(file)
            while not (pane.preview and any(marker in sample.text for sample in pane.preview.samples)):
                assert time.perf_counter() - started < 10, "the save never arrived"
                await asyncio.sleep(0.001)
            times.append(time.perf_counter() - started)
            await pilot.pause(0.6)  # lint and tree of this save, so that each save is measured alone
    backend.wildcards.close()
    return times


def save_rows(folder: Path) -> list[str]:
    """Measure a 137 kB YAML and a 500-line txt."""
    yaml_file, txt_file = folder / "big.yaml", folder / "short.txt"

    def make_yaml(number: int) -> str:
        rows = ["big:"]
        for part in range(211):
            rows.append(f"  list{part}:")
            rows += [f"    - save{number} item {part} {row} of a list" for row in range(20)]
        return "\n".join(rows) + "\n"

    def make_txt(number: int) -> str:
        return "".join(f"save{number} line {row}\n" for row in range(500))

    yaml_file.write_text(make_yaml(-1), "utf-8")
    txt_file.write_text(make_txt(-1), "utf-8")
    rows = []
    for file, key, make in (
        (yaml_file, "0:big.yaml:big", make_yaml),
        (txt_file, "0:short.txt:short", make_txt),
    ):
        times = sorted(asyncio.run(measure_saves(folder, file, key, make)))
        p50 = statistics.median(times) * 1000
        p95 = times[int(len(times) * 0.95) - 1] * 1000
        size = file.stat().st_size / 1000
        rows.append(f"| save of {file.suffix[1:]}, {size:.0f} kB | {p50:.0f} | {p95:.0f} | {len(times)} |")
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    with tempfile.TemporaryDirectory() as name:
        os.environ["LUNA_HOME"] = f"{name}/home"
        corpus = Path(name) / "corpus"
        corpus.mkdir()
        write_corpus(corpus)
        luna = [measure_luna(corpus, 3000) for _ in range(3)]
        load_s, speed = (statistics.median(column) for column in zip(*luna, strict=True))
        table = "| 10 YAML x 100 lists x 20 items | load and first prompt, s | prompts/s | Luna over it |\n"
        table += "|---|---|---|---|\n"
        table += f"| Luna, with provenance and diagnostics | {load_s:.3f} | {speed:,.0f} | |\n"
        if importlib.util.find_spec("dynamicprompts"):
            peer = [measure_dynamicprompts(corpus, 30) for _ in range(3)]
            peer_load_s, peer_speed = (statistics.median(column) for column in zip(*peer, strict=True))
            ratio = f"{speed / peer_speed:,.0f} x prompts/s, {peer_load_s / load_s:,.0f} x load"
            table += f"| dynamicprompts | {peer_load_s:.3f} | {peer_speed:,.1f} | {ratio} |\n"
        else:
            table += "| dynamicprompts | not installed here | | |\n"
        long = Path(name) / "long"
        long.mkdir()
        table += f"\n{lines_table(long)}"
        saves = Path(name) / "saves"
        saves.mkdir()
        table += "\n| rename by another editor to new samples on the screen | p50 ms | p95 ms | saves |\n"
        table += "|---|---|---|---|\n"
        table += "\n".join(save_rows(saves))
        note = "CPU time, median of 3, a fresh seed per prompt; memory by tracemalloc. "
        note += "Saves: wall time, with watcher and the 40 ms debounce."
        publish("wildcards", "Wildcards", table, write=write, note=note)


if __name__ == "__main__":
    main()
