"""A recorded application at any size, its screen as text, and goldens that a person reads in the diff."""

from __future__ import annotations

import html
import re
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from luna_tui.app import LunaApp
from luna_tui.backend import scenes
from luna_tui.backend.fake import FakeBackend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from textual.pilot import Pilot

GOLDEN = Path(__file__).parent / "golden"
_TEXT = re.compile(
    r'<text class="[^"]*" x="([\d.]+)" y="[\d.]+"[^>]*clip-path="url\(#[^"]*-line-(\d+)\)">([^<]*)</text>'
)
_CELL = 12.2  # width of a cell in Textual's SVG


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/tui/golden from what is drawn now")


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times on the screens are local; goldens need one place on earth."""
    monkeypatch.setenv("TZ", "UTC")
    for name in ("NO_COLOR", "COLORTERM", "COMFYUI_PATH"):
        monkeypatch.delenv(name, raising=False)
    time.tzset()


def screen_text(app: LunaApp) -> str:
    """Return what is on the screen: the text runs of the SVG laid back on the cell grid."""
    rows: dict[int, dict[int, str]] = {}
    for x, line, text in _TEXT.findall(app.export_screenshot()):
        plain = html.unescape(text).replace("\xa0", " ")
        rows.setdefault(int(line), {})[round(float(x) / _CELL)] = plain
    lines = []
    for number in range(app.size.height):
        line = ""
        for column, text in sorted(rows.get(number, {}).items()):
            line = line.ljust(column)[:column] + text
        lines.append(line.rstrip())
    return "\n".join(lines) + "\n"


async def settled(pilot: Pilot[None]) -> None:
    """Wait until nothing is being read or drawn."""
    for _ in range(3):
        await pilot.app.workers.wait_for_complete()
        await pilot.pause()


@asynccontextmanager
async def running(
    scene: str = "normal", *, size: tuple[int, int] = (120, 36), backend: FakeBackend | None = None, **options: object
) -> AsyncIterator[Pilot[None]]:
    """Run the application on recorded data."""
    app = LunaApp(backend or FakeBackend(scene), clock=lambda: scenes.NOW, **options)  # type: ignore[arg-type]
    async with app.run_test(size=size, notifications=True) as pilot:
        await settled(pilot)
        yield pilot


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with its golden file, or rewrite that with --update-golden."""

    def compare(name: str, text: str) -> None:
        file = GOLDEN / f"{name}.txt"
        if request.config.getoption("--update-golden", default=False):
            file.parent.mkdir(exist_ok=True)
            file.write_text(text, "utf-8")
        assert file.exists(), f"no golden {name}: run pytest tests/tui --update-golden and read the diff"
        assert text == file.read_text("utf-8")

    return compare


class Tui:
    """The tools above, for tests: ``--import-mode=importlib`` lets no test import this file."""

    running = staticmethod(running)
    text = staticmethod(screen_text)
    settled = staticmethod(settled)


@pytest.fixture
def tui() -> type[Tui]:
    return Tui
