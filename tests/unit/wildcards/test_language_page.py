"""docs/wildcards.md says what the engine does: its files are loaded and its examples run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from luna_engine import paths
from luna_engine.wildcards import RuleOptions, WildcardLibrary

PAGE = Path(__file__).resolve().parents[3] / "docs" / "wildcards.md"
_FILES = re.compile(r"^```(?:yaml|text) (\S+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_BLOCKS = re.compile(r"^```(expand|rules)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_LINE = re.compile(r"(-?\d+)\s+(.*?)\s+=> ?(.*)")
_NOTE = re.compile(r"(?:  \([a-z-]+\))+$")


def examples() -> list[tuple[str, str]]:
    found = _BLOCKS.findall(PAGE.read_text("utf-8"))
    return [(kind, line) for kind, block in found for line in block.splitlines() if line]


@pytest.fixture
def page_library(tmp_path: Path) -> WildcardLibrary:
    for name, text in _FILES.findall(PAGE.read_text("utf-8")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    return WildcardLibrary.load(tmp_path)


@pytest.mark.parametrize(("kind", "line"), examples())
def test_the_page_tells_the_truth(page_library: WildcardLibrary, kind: str, line: str) -> None:
    found = _LINE.fullmatch(line)
    assert found is not None, "an example is: seed template => text (codes)"
    seed, template, shown = found.groups()
    note = _NOTE.search(shown)
    text = shown[: note.start()] if note else shown
    result = page_library.expand(template, int(seed), rules=RuleOptions() if kind == "rules" else None)
    assert result.text == text
    codes = re.findall(r"\(([a-z-]+)\)", note[0]) if note else []
    assert [problem.code for problem in result.diagnostics if problem.severity.value != "hint"] == codes


def test_there_are_examples() -> None:
    assert len(examples()) > 30
    assert sum(kind == "rules" for kind, _ in examples()) >= 5


def test_the_pages_files_are_clean(page_library: WildcardLibrary) -> None:
    assert page_library.diagnostics == ()


def test_the_page_names_every_file_of_the_bundled_library() -> None:
    named = set(re.findall(r"`([a-z_]+)`", PAGE.read_text("utf-8").partition("## The bundled library")[2]))
    files = {path.stem for path in paths.bundled("wildcards").iterdir()}
    assert files - named == set()
