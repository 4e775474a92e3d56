"""Drawing with rules: the expansion is run stage by stage until every reference has its pick, then once more for good.

A stage is the references of one frame depth. A run records the references whose turn has come and leaves them blank;
the plan draws them together; the next run prints them and comes to the next depth. As picks are kept by site key, a
run never changes what an earlier one drew.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from luna_engine.wildcards.diagnostics import Diagnostic, Severity
from luna_engine.wildcards.rules.effects import Effects, find_expanders, find_modifiers
from luna_engine.wildcards.rules.links import Links
from luna_engine.wildcards.rules.search import Pick, Reference, all_breaches, draw_stage, ordinary_picks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luna_engine.wildcards.drafts import Frame, Site
    from luna_engine.wildcards.drawing import Run
    from luna_engine.wildcards.model import Item
    from luna_engine.wildcards.pools import Pool
    from luna_engine.wildcards.rules.records import RuleOptions
    from luna_engine.wildcards.rules.ruleset import RuleSet

ADDED_LEVEL = 1_000
"""Frames of what rules add: deeper than any frame of the prompt, so that they are drawn last."""
NEGATIVE = "negative"


@dataclass(slots=True)
class Plan:
    """The picks of one expansion, and what the rules make of them. All its runs share one ``deadline`` (monotonic)."""

    rules: RuleSet
    options: RuleOptions
    deadline: float
    drawn: dict[int, list[Pick]] = field(default_factory=dict)
    pending: dict[int, Reference] = field(default_factory=dict)
    visited: list[Pick] = field(default_factory=list)
    numbers: dict[int, int] = field(default_factory=dict)
    effects: Effects | None = None
    links: Links = field(default_factory=Links)
    is_closed: bool = False

    def begin(self) -> None:
        """Forget the run before; its picks stay."""
        self.pending.clear()
        self.visited.clear()
        self.numbers.clear()

    def picks(
        self,
        run: Run,
        site: Site,
        frame: Frame,
        pool: Pool,
        address: str,
        fixed: Sequence[int] | None,
        count: int | None = None,
    ) -> list[Pick] | None:
        """Return the picks of a reference, None if its stage has not been drawn yet.

        Args:
            run: the run that asks.
            site: the reference.
            frame: where it stands.
            pool: its candidates.
            address: the address it names.
            fixed: picks that no rule may change: pinned, cyclical, enumerated.
            count: how many a multi-pick takes, None for a single reference.
        """
        found = self.drawn.get(site.key)
        if found is None:
            taken = None if fixed is None else tuple(fixed)
            is_multi, many = count is not None, 1 if count is None else count
            reference = Reference(site, run.part_name, frame.level, address, pool, many, is_multi, taken)
            if not self.is_closed and self.options.constraints:
                self.pending[site.key] = reference
                return None
            found = self.drawn[site.key] = ordinary_picks(self.rules, reference)
        self.visited += found
        return found

    def pick_of(self, site: Site, item: Item) -> Pick | None:
        """Return the pick of an item at a site."""
        return next((pick for pick in self.drawn.get(site.key, ()) if pick.item is item), None)

    def advance(self, run: Run) -> bool:
        """Take up what a run has found; tell whether another run is needed."""
        if run.is_stopped:
            was_open, self.is_closed = not self.is_closed, True
            return was_open and bool(self.pending)
        if self.pending:
            self._draw_stage()
            return True
        if self.effects is None:
            self.effects = self._find_effects(run)
            return bool(self.effects)
        return False

    def _draw_stage(self) -> None:
        """Draw the references of the least depth; parts are drawn apart, a negative prompt binds no prompt."""
        level = min(reference.level for reference in self.pending.values())
        stage = [reference for reference in self.pending.values() if reference.level == level]
        for part in dict.fromkeys(reference.part for reference in stage):
            before = self.picks_of_part(part)
            references = [reference for reference in stage if reference.part == part]
            picks = draw_stage(self.rules, before, references)
            for reference in references:
                self.drawn[reference.site.key] = [pick for pick in picks if pick.reference is reference]

    def _find_effects(self, run: Run) -> Effects:
        effects = Effects()
        for part in dict.fromkeys(pick.reference.part for pick in self.visited):
            picks = self.picks_of_part(part)
            if self.options.modifiers:
                find_modifiers(self.rules, picks, effects)
            if self.options.expanders:
                find_expanders(self.rules, run.snapshot, picks, effects)
        return effects

    def picks_of_part(self, part: str) -> list[Pick]:
        """Return the picks that the last run printed in a part, in an order that is not the template's."""
        return sorted((pick for pick in self.visited if pick.reference.part == part), key=canonical)

    def relaxations(self) -> list[Diagnostic]:
        """Return a diagnostic for every rule that the finished draw breaks."""
        if not self.options.constraints:
            return []
        found: dict[Diagnostic, None] = {}
        for part in dict.fromkeys(pick.reference.part for pick in self.visited):
            for breach, pick in all_breaches(self.picks_of_part(part)):
                message = f"{breach.text}; relaxed for {pick.item.text[:60]!r} of {pick.reference.site.name}"
                hint = "no draw of these references keeps every rule; widen a list or the rule"
                spot = breach.spot
                found[
                    Diagnostic("rule-relaxed", Severity.WARNING, message, hint, spot.file, spot.line, spot.column)
                ] = None
        return list(found)


def canonical(pick: Pick) -> tuple[object, ...]:
    """Sort key of picks: depth, then the order of their stage, then the place in a multi-pick."""
    return (pick.reference.level, *pick.reference.order(), pick.place)
