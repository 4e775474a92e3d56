"""A small library, the one that the language page uses for its examples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from luna_engine.wildcards import WildcardLibrary
from tests.unit.wildcards.rule_library import FILES, made

if TYPE_CHECKING:
    from pathlib import Path

HARBOR = """\
templates:
  view: ["[boats.small] near the [piers], {weather:sky.calm}", "__mood__ harbor at dawn"]
boats:
  small: [skiff, dinghy]
  tall:
    - 3::schooner
    - {value: brig, weight: 0.5, tags: [sail, old], id: brig-1}
piers: [stone pier, 12, no, 07:45]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A library folder with the files of WILDCARDS section 3."""
    coast = tmp_path / "library" / "coast"
    coast.mkdir(parents=True)
    (coast / "harbor.yaml").write_text(HARBOR, "utf-8")
    (coast / "weather.yaml").write_text("sky:\n  calm: [clear, hazy]\n", "utf-8")
    (coast / "mood.txt").write_bytes(b"calm\r\n# a comment\r\n\r\n2::grim\r\nsoft")
    return coast.parent


@pytest.fixture
def library(folder: Path) -> WildcardLibrary:
    """The library of `folder`."""
    return WildcardLibrary.load(folder)


@pytest.fixture
def coast(tmp_path: Path) -> WildcardLibrary:
    """A library with every kind of rule."""
    return made(tmp_path, FILES)
