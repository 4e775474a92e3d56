"""Running an expansion under rules: again and again until the plan has nothing left to draw."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

from luna_engine.wildcards.chooser import Odometer
from luna_engine.wildcards.drawing import MOST_DRAWS, DrawOptions, Run
from luna_engine.wildcards.rules.plan import NEGATIVE, Plan
from luna_engine.wildcards.rules.printing import print_negative
from luna_engine.wildcards.syntax import Parsed

if TYPE_CHECKING:
    from collections.abc import Callable

    from luna_engine.wildcards.rules.records import RuleOptions
    from luna_engine.wildcards.rules.ruleset import RuleSet

    DrawOnce = Callable[[Odometer, DrawOptions, Plan | None], tuple[Run, dict[str, str]]]


def draw_ruled(
    rules: RuleSet, wanted: RuleOptions, odometer: Odometer, options: DrawOptions, draw_once: DrawOnce
) -> tuple[Run, dict[str, str]]:
    """Return the finished run of an expansion under rules, and its texts.

    Each run comes one frame depth further than the one before, so their number is bounded by the depth that texts may
    be nested. A bound on draws (stepping through) holds for the last run alone: what is drawn does not depend on it.
    """
    plan = Plan(rules, wanted, time.monotonic() + options.seconds)
    unbounded = dataclasses.replace(options, draws=MOST_DRAWS)
    while True:
        run, texts = _run(plan, odometer, unbounded, draw_once)
        if not plan.advance(run):
            break
    if options.draws != MOST_DRAWS:
        run, texts = _run(plan, odometer, options, draw_once)
    if NEGATIVE not in texts and any(found.is_negative for found in plan.links.embeddings):
        run.begin_part(NEGATIVE, Parsed("", ()))
        print_negative(run, plan)
        texts[NEGATIVE] = run.out.text()
    return run, texts


def _run(plan: Plan, odometer: Odometer, options: DrawOptions, draw_once: DrawOnce) -> tuple[Run, dict[str, str]]:
    plan.begin()
    run, texts = draw_once(Odometer(list(odometer.digits)), options, plan)
    for document in plan.rules.documents:
        run.touch(document)
    return run, texts
