"""Panes: all in view when wide, side ones as tabs of one place when normal, one at a time when narrow."""

from __future__ import annotations

from typing import ClassVar

from textual.screen import Screen


class PanedScreen(Screen[None]):
    """A screen with panes. ``PANES`` are their ids in tab order: the main one first, then those at its side.

    Styles read the classes set here: ``-current``, ``-side`` on panes, ``-at-<pane>``, ``-zoom`` on the screen.
    """

    PANES: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        self._current_pane = self.PANES[0] if self.PANES else ""
        self._side_pane = self.PANES[1] if len(self.PANES) > 1 else ""

    def do_pane_next(self) -> None:
        """Go to the next pane."""
        self._turn(1)

    def do_pane_previous(self) -> None:
        """Go to the pane before."""
        self._turn(-1)

    def _turn(self, step: int) -> None:
        if not self.PANES:
            return
        panes = self.PANES
        self.open_pane(panes[(panes.index(self._current_pane) + step) % len(panes)])

    def open_pane(self, pane: str) -> None:
        """Make a pane the current one and give it the focus."""
        self._current_pane = pane
        self._show_pane()
        self.call_after_refresh(self._focus_pane, pane)  # a hidden pane is shown first

    def _focus_pane(self, pane: str) -> None:
        target = self.query_one(f"#{pane}")
        inner = next((child for child in (target, *target.query("*")) if child.focusable), None)
        if inner is not None:
            inner.focus()

    def _show_pane(self) -> None:
        """Mark the current pane; styles decide what that hides at each size."""
        if not self.PANES:
            return
        if self._current_pane in self.PANES[1:]:
            self._side_pane = self._current_pane
        for pane in self.PANES:
            widget = self.query_one(f"#{pane}")
            widget.set_class(pane == self._current_pane, "-current")
            widget.set_class(pane == self._side_pane, "-side")
            self.set_class(pane == self._current_pane, f"-at-{pane}")

    def do_pane_zoom(self) -> None:
        """Give the whole screen to the current pane, or back."""
        self.toggle_class("-zoom")

    def on_descendant_focus(self) -> None:
        """Make the pane of the focused widget the current one."""
        focused = self.focused
        for pane in self.PANES:
            widget = self.query_one(f"#{pane}")
            if focused is not None and (widget is focused or widget in focused.ancestors):
                self._current_pane = pane
                self._show_pane()
