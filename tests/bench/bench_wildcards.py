"""Luna's wildcard engine over dynamicprompts and ComfyUI-Impact-Pack's: prompts, loads, memory, previews, saves.

`python -m tests.bench.bench_wildcards [--write]`. dynamicprompts is measured if it can be imported; Impact Pack's
engine if IMPACT_PACK_PATH names a checkout, else its recorded numbers stand in and the table says so.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
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
from tests.bench.wildcard_corpora import write_all

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.bench.wildcard_corpora import Corpus

SAVES = 40
REPEATS = 3
# Measured once on another machine (2 shared cores, Python 3.11), for where no checkout of Impact Pack is at hand.
RECORDED = {
    "a": {"load_s": 14.9, "first_ms": 29, "prompts_s": 2258},
    "b": {"load_s": 0.43, "first_ms": 14, "prompts_s": 1127},
    "c": {"load_s": 0.28, "first_ms": 710, "prompts_s": 6.4},
    "d": {"load_s": 1.72, "first_ms": 26, "prompts_s": 2097},
}
WHAT = {
    "a": "50 YAML x 200 lists x 20 items",
    "b": "2,000 txt x 500 lines",
    "c": "one txt of 1,000,000 lines",
    "c100": "one txt of 100 lines",
    "d": "10 YAML x 100 lists x 20 items, six parts deep",
}


def measure(engine: str, corpus: Corpus, seconds: float, *more: str) -> dict[str, float]:
    """Run one engine on one corpus in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.wildcard_engines", engine, str(corpus.folder), corpus.template]
    found = subprocess.run(
        [*command, str(seconds), *more], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    return dict(json.loads(found.stdout.splitlines()[-1]))


def median(engine: str, corpus: Corpus, seconds: float, repeats: int = REPEATS) -> dict[str, float]:
    """Return the median of each number over several processes."""
    runs = [measure(engine, corpus, seconds) for _ in range(repeats)]
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def row(name: str, engine: str, numbers: dict[str, float], luna: dict[str, float] | None, note: str = "") -> str:
    """Return one line of the table, with Luna's ratio to a peer."""
    over = ""
    if luna is not None:
        speed = luna["prompts_s"] / numbers["prompts_s"]
        ready = [one["load_s"] + one["first_ms"] / 1000 for one in (numbers, luna)]  # some load at the first prompt
        over = f"{speed:,.1f} x prompts/s, {ready[0] / ready[1]:,.1f} x as soon at the first prompt"
    return (
        f"| {name} | {engine}{note} | {numbers['load_s']:.3f} | {numbers['first_ms']:.1f} "
        f"| {numbers['prompts_s']:,.0f} | {over} |"
    )


def peers_table(corpora: dict[str, Corpus]) -> str:
    """Measure every engine that is at hand on every corpus."""
    rows = [
        "| corpus | engine | load, s | first prompt, ms | prompts/s | Luna over it |",
        "|---|---|---|---|---|---|",
    ]
    for name, corpus in corpora.items():
        luna = median("luna", corpus, 2.0)
        rows.append(row(f"{name}: {WHAT[name]}", "Luna", luna, None))
        if name == "c100":
            continue
        if os.environ.get("IMPACT_PACK_PATH"):
            repeats = 1 if name == "a" else REPEATS
            rows.append(row("", "Impact Pack", median("impact", corpus, 1.0, repeats), luna))
        else:
            rows.append(row("", "Impact Pack", RECORDED[name], luna, ", recorded elsewhere"))
        if importlib.util.find_spec("dynamicprompts"):
            engine = "dynamicprompts-batch" if name == "c" else "dynamicprompts"
            rows.append(row("", engine.replace("-", ", "), measure(engine, corpus, 2.0), luna))
    return "\n".join(rows) + "\n"


def luna_table(corpora: dict[str, Corpus]) -> str:
    """Measure what only Luna does: the parsed cache, memory, counts and previews."""
    rows = ["| Luna alone | measured | bar |", "|---|---|---|"]
    warm = [measure("luna", corpora["a"], 0.0, "--warm")["load_s"] * 1000 for _ in range(REPEATS)]
    rows.append(f"| warm load of a | {statistics.median(warm):.0f} ms | 100 ms |")
    for name, when, bar in (("a", "held", "35"), ("b", "loaded", "10"), ("c", "held", "50")):
        size = measure("luna", corpora[name], 0.0, "--memory")[f"{when}_mb"]
        moment = "after the first prompt" if when == "held" else "untouched"
        rows.append(f"| memory of {name} {moment} | {size:.1f} MB | {bar} MB |")
    library = WildcardLibrary.load(corpora["a"].folder)
    template = corpora["a"].template
    calls: dict[str, Callable[[], object]] = {
        "20-sample preview": lambda: library.preview(template, 20),
        "count": lambda: library.count(template),
    }
    for what, call in calls.items():
        spent = []
        for _ in range(5):
            started = time.process_time()
            call()
            spent.append((time.process_time() - started) * 1000)
        rows.append(f"| {what} of a, first and median | {spent[0]:.1f}, {statistics.median(spent):.2f} ms | 5 ms |")
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
        corpora = write_all(Path(name) / "corpora")
        table = f"{peers_table(corpora)}\n{luna_table(corpora)}"
        saves = Path(name) / "saves"
        saves.mkdir()
        table += "\n| rename by another editor to new samples on the screen | p50 ms | p95 ms | saves |\n"
        table += "|---|---|---|---|\n"
        table += "\n".join(save_rows(saves))
        load = os.getloadavg()[0]
        note = "CPU time, median of 3 processes (peers whose load takes seconds: one), a fresh seed per prompt; memory "
        note += "by tracemalloc. Loads are cold: without the parsed cache, imports done before. Saves: wall time, with "
        note += f"watcher and the 40 ms debounce. Load average of the machine at the end: {load:.1f}."
        publish("wildcards", "Wildcards", table, write=write, note=note)


if __name__ == "__main__":
    main()
