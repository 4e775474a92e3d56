"""The samples of a template: seed, text, and if asked for where each word came from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from luna_tui.plain import clean, clean_lines

if TYPE_CHECKING:
    from luna_engine.wildcards import Choice, Expansion
    from luna_tui.backend.wildcards import PreviewView


class Samples(VerticalScroll, can_focus=True):
    """A scrolling list of samples."""

    def __init__(self) -> None:
        super().__init__(Static("", id="sample-text"))
        self.preview: PreviewView | None = None
        self.shows_choices = False

    def show(self, preview: PreviewView) -> None:
        """Show samples, foreign text as content, never as markup."""
        self.preview = preview
        lines: list[Content] = []
        for sample in preview.samples:
            lines += _sample_lines(sample, with_choices=self.shows_choices)
        if not lines:
            lines.append(Content.styled("nothing to show", "$text-muted"))
        self.query_one("#sample-text", Static).update(Content("\n").join(lines))

    def turn_choices(self) -> None:
        """Show or hide the choices behind each sample."""
        self.shows_choices = not self.shows_choices
        if self.preview is not None:
            self.show(self.preview)


def _sample_lines(sample: Expansion, *, with_choices: bool) -> list[Content]:
    first, *rest = clean_lines(sample.text)
    seed = str(sample.seed)
    seed = f"…{seed[-5:]}" if len(seed) > 6 else seed
    lines = [Content.assemble((f"{seed:>6} ", "$text-muted"), Content(first))]
    lines += [Content(f"       {line}") for line in rest]
    if with_choices:
        lines += [_choice_line(choice, _depth(sample, number)) for number, choice in enumerate(sample.choices)]
    return lines


def _depth(sample: Expansion, number: int) -> int:
    depth, parent = 0, sample.choices[number].parent
    while parent is not None:
        depth, parent = depth + 1, sample.choices[parent].parent
    return depth


def _choice_line(choice: Choice, depth: int) -> Content:
    value = choice.value if len(choice.value) <= 48 else f"{choice.value[:47]}…"
    place = f"  {choice.address}" if choice.address else f"  {choice.kind.value}"
    line = f" :{choice.line}" if choice.line else ""
    return Content.assemble(
        ("       " + "  " * depth + "· ", "$text-muted"),
        (clean(value), "$text-accent"),
        (clean(place), "$text-muted"),
        (f"  {choice.probability * 100:.3g} %{line}", "$text-muted"),
    )
