"""The seeded corpora of the wildcard benchmarks (a, b, c, d), and the one template each engine expands over them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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
    "umber",
    "vale",
    "willow",
    "yarrow",
    "birch",
    "clay",
    "dusk",
    "echo",
    "flint",
    "grove",
    "harbor",
    "ivory",
    "juniper",
    "lantern",
    "meadow",
    "nettle",
    "orchard",
]
OTHER_SCRIPTS = ("夜明けの港", "старый маяк", "λιμάνι", "ميناء قديم", "항구의 밤")
SEPARATE = "a view of __{top}__, __{mid}__, {{2$$ and $$a gate|a lamp|a bell}}, {{3::soft|hard}} light"


@dataclass(frozen=True, slots=True)
class Corpus:
    """A folder of files and the template to expand over them."""

    name: str
    folder: Path
    template: str


def leaf(rng: random.Random, number: int) -> str:
    """Return one leaf item: mostly plain words, some of ComfyUI's own syntax, some in other scripts."""
    words = " ".join(rng.choices(WORDS, k=4))
    kind = rng.random()
    if kind < 0.02:
        return f"({words}:1.2) {number}"
    if kind < 0.03:
        return f"[{words}:{rng.choice(WORDS)}:0.4] {number}"
    if kind < 0.04:
        return f"{words} <lora:{rng.choice(WORDS)}_{number}:0.8>"
    if kind < 0.06:
        return f"{rng.choice(OTHER_SCRIPTS)} {number}"
    return f"{words} {number}"


def lists(rng: random.Random, names: list[str], items: int) -> Iterator[tuple[str, list[str]]]:
    """Yield each list: the first 5 % refer to the next 15 %, these to the rest, the rest are leaves."""
    top, mid = len(names) // 20, len(names) // 5
    number = 0
    for at, name in enumerate(names):
        rows: list[str] = []
        for _ in range(items):
            number += 1
            if at < mid:
                onward = rng.choice(names[top:mid] if at < top else names[mid:])
                rows.append(f"{' '.join(rng.choices(WORDS, k=3))} __{onward}__")
            else:
                rows.append(leaf(rng, number))
        yield name, rows


def quoted(text: str) -> str:
    """Return an item as YAML: in quotes where it would mean something else."""
    return f"'{text}'" if text[0] in "[{" or ": " in text else text


def write_yaml(name: str, folder: Path, files: int, per_file: int, keys: tuple[str, ...]) -> Corpus:
    """Write YAML files whose root key repeats the stem, so that names without the file name fit every engine."""
    folder.mkdir(parents=True)
    middle = "/".join(keys)
    prefix = f"{middle}/" if middle else ""
    names = [f"f{file}/{prefix}list{at}" for at in range(per_file) for file in range(files)]
    filled: dict[int, list[str]] = {file: [] for file in range(files)}
    for address, rows in lists(random.Random(7), names, 20):
        file = int(address[1 : address.index("/")])
        lines = filled[file]
        if not lines:
            lines.append(f"f{file}:")
            lines += (f"{'  ' * (depth + 1)}{key}:" for depth, key in enumerate(keys))
        indent = "  " * (len(keys) + 1)
        lines.append(f"{indent}{address.rpartition('/')[2]}:")
        lines += (f"{indent}  - {quoted(row)}" for row in rows)
    for file, lines in filled.items():
        (folder / f"f{file}.yaml").write_text("\n".join(lines) + "\n", "utf-8")
    template = SEPARATE.format(top=names[1], mid=names[len(names) // 10])
    return Corpus(name, folder, template)


def write_txt(name: str, folder: Path, files: int, lines: int) -> Corpus:
    """Write txt files in folders three deep."""
    names = [f"d{at % 10}/e{at // 10 % 10}/g{at // 100 % 5}/list{at}" for at in range(files)]
    for address, rows in lists(random.Random(8), names, lines):
        path = folder / f"{address}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(rows) + "\n", "utf-8")
    template = SEPARATE.format(top=names[1], mid=names[files // 10])
    return Corpus(name, folder, template)


def write_long(name: str, folder: Path, lines: int) -> Corpus:
    """Write one long txt of leaves."""
    folder.mkdir(parents=True)
    rng = random.Random(9)
    rows = [f"{leaf(rng, number)}\n" for number in range(lines)]
    (folder / "lines.txt").write_text("".join(rows), "utf-8")
    return Corpus(name, folder, "a picture of __lines__")


def write_all(folder: Path) -> dict[str, Corpus]:
    """Write the four corpora, and the first hundred lines of c as ``c100``."""
    return {
        "a": write_yaml("a", folder / "a", 50, 200, ()),
        "b": write_txt("b", folder / "b", 2000, 500),
        "c": write_long("c", folder / "c", 1_000_000),
        "c100": write_long("c100", folder / "c100", 100),
        "d": write_yaml("d", folder / "d", 10, 100, ("p1", "p2", "p3", "p4")),
    }
