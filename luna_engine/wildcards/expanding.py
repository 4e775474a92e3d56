"""The long way through an expansion, and what surrounds both ways: fingerprints, sites marked ``!``, strictness."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_engine.errors import WildcardError
from luna_engine.wildcards import batches
from luna_engine.wildcards.chooser import Chooser, Odometer, digits_of
from luna_engine.wildcards.diagnostics import Severity
from luna_engine.wildcards.drawing import DrawOptions, Run
from luna_engine.wildcards.expansion import Expansion
from luna_engine.wildcards.recursion import recursion_room
from luna_engine.wildcards.rules.links import Links
from luna_engine.wildcards.rules.staging import draw_ruled
from luna_engine.wildcards.syntax import Profile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from luna_engine.wildcards.rules.plan import Plan
    from luna_engine.wildcards.rules.records import RuleOptions
    from luna_engine.wildcards.snapshot import Snapshot

MOST_STEPS = 2_000
_FATAL_IF_MISSING = frozenset({"unknown-ref", "empty", "path-escape"})


def fingerprint_of(
    snapshot: Snapshot,
    parts: Mapping[str, str],
    seed: int,
    index: int,
    profile: Profile | str,
    missing: str,
    variables: Mapping[str, str] | None,
    pins: Mapping[str, str] | None,
    reroll: Mapping[str, int] | None,
    rules: RuleOptions | None,
) -> str:
    """Return the digest of a template, what was given with it, and every file it can reach."""
    given = (missing, variables or {}, pins or {}, reroll or {})
    fixed = tuple(sorted(parts.items()))
    digests = [snapshot.fingerprint(text, Profile(profile), rules=rules is not None) for _, text in fixed]
    return batches.digest(fixed, digests, seed, index, *given, *((rules,) if rules else ()))


def expand_long(
    snapshot: Snapshot,
    parts: Mapping[str, str],
    seed: int,
    index: int,
    profile: Profile | str,
    chooser: Chooser,
    options: DrawOptions,
    variables: Mapping[str, str],
    rules: RuleOptions | None,
    fingerprint: Callable[[], str],
) -> Expansion:
    """Expand by walking the syntax trees: every construct, every chooser, every report."""
    parsed = {name: snapshot.template(text, Profile(profile)) for name, text in parts.items()}
    ruleset = None if rules is None else snapshot.wanted_rules

    def draw_once(odometer: Odometer, options: DrawOptions, plan: Plan | None) -> tuple[Run, dict[str, str]]:
        made = Run(snapshot, seed, index, chooser, options, variables, odometer, plan)
        return made, {name: made.part(name, tree) for name, tree in parsed.items()}

    def draw(odometer: Odometer) -> tuple[Run, dict[str, str]]:
        if rules is None or ruleset is None:
            return draw_once(odometer, options, None)
        return draw_ruled(ruleset, rules, odometer, options, draw_once)

    with recursion_room():
        run, texts = _turned(draw, index)
    diagnostics = dict.fromkeys([*run.reports.all(), *snapshot.problems_of(iter(run.touched))])
    if run.plan is not None:
        diagnostics.update(dict.fromkeys(run.plan.relaxations()))
    values = {name: value.text for name, value in run.variables.items() if value.text is not None}
    links = None if rules is None else Links() if run.plan is None else run.plan.links
    return Expansion(
        texts.get("", ""), texts, seed, index, run.choices(), tuple(diagnostics), values, fingerprint, links
    )


def _turned(draw: Callable[[Odometer], tuple[Run, dict[str, str]]], index: int) -> tuple[Run, dict[str, str]]:
    """Draw with the sites marked ``!`` at their ``index``-th combination, the last in reading order fastest.

    The first draw tells how many candidates each site has. Where that depends on the digits themselves (sites
    inside drawn options), the combinations are stepped through.
    """
    run, texts = draw(Odometer())
    sizes = run.odometer.sizes
    if not sizes:
        return run, texts
    run, texts = draw(Odometer(digits_of(index, sizes)))
    if run.odometer.sizes == sizes:
        return run, texts
    seen: list[list[int]] = []
    digits: list[int] | None = []
    while digits is not None and len(seen) <= (index if index >= 0 else MOST_STEPS) and len(seen) < MOST_STEPS:
        seen.append(digits)
        digits = draw(Odometer(digits))[0].odometer.following()
    run, texts = draw(Odometer(seen[index % len(seen)]))
    if digits is not None and len(seen) >= MOST_STEPS:
        run.reports.note_limit(f"only the first {MOST_STEPS} combinations of the sites marked ! can be stepped through")
    return run, texts


def raise_if_asked(result: Expansion, *, strict: bool, missing: str) -> None:
    """Raise the errors of an expansion if the caller wants to hear of them that way.

    Raises:
        WildcardError: ``strict`` and an error, or ``missing`` is ``error`` and a reference names nothing.
    """
    errors = [found for found in result.diagnostics if found.severity is Severity.ERROR]
    if missing == "error" and not strict:
        errors = [found for found in errors if found.code in _FATAL_IF_MISSING]
    if not errors or not (strict or missing == "error"):
        return
    first = errors[0]
    raise WildcardError(
        first.code,
        first.message if len(errors) == 1 else f"{first.message} (and {len(errors) - 1} more)",
        first.hint,
        file=first.file,
        line=first.line,
        column=first.column,
        details={"diagnostics": [found.as_dict() for found in result.diagnostics]},
    )
