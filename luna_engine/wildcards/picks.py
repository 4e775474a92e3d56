"""Variants and multi-picks: drawing among options, with and without replacement."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luna_engine.wildcards.diagnostics import Severity
from luna_engine.wildcards.expansion import ChoiceKind
from luna_engine.wildcards.pools import Pool, running_sums
from luna_engine.wildcards.references import Trouble, pool_of_reference, target_of_reference
from luna_engine.wildcards.seeds import child_key
from luna_engine.wildcards.syntax import Multi, Option, Sampler, Text, Variable, Variant, Wildcard

if TYPE_CHECKING:
    from luna_engine.wildcards.drafts import Frame, Site
    from luna_engine.wildcards.drawing import Run
    from luna_engine.wildcards.model import Item
    from luna_engine.wildcards.rules.plan import Plan
    from luna_engine.wildcards.syntax import Node

_MICRO = 1_000_000
_MOST_CANDIDATES = 100_000


@dataclass(frozen=True, slots=True)
class Candidates:
    """What a pick chooses from: options, or the items a lone option lends."""

    entries: list[Option | Item]
    weights: list[int]


def variant(run: Run, node: Variant, frame: Frame) -> None:
    """Draw one option of ``{a|b}``."""
    site = run.site(node, frame)
    options = [option for option in node.options if option.weight.micro > 0]
    if not options:
        run.fail(Trouble("bad-weight", "no option has a positive weight", "give one a weight above 0"), node, frame)
        return
    if not run.spend(node, frame):
        return
    micro = [option.weight.micro for option in options]
    sums, total = running_sums(micro)
    pinned = run.options.pins.get(site.name) if run.options.pins else None
    text = frame.parsed.text
    if pinned is not None:
        written = [text[option.prompt.start : option.prompt.end] for option in options]
        if pinned not in written:
            number = run.begin(ChoiceKind.OPTION, pinned, node, frame, site)
            run.out.write(pinned)
            run.finish(number)
            return
        at = written.index(pinned)
    elif node.sampler is Sampler.CYCLE and not run.chooser.walks:
        at = run.index % len(options)
    elif node.sampler is Sampler.ENUMERATE and not run.chooser.walks:
        at = run.odometer.take(len(options))
    else:
        ticket = run.chooser.ticket(site.key, total, 0)
        if ticket is not None:
            at = ticket if sums is None else bisect.bisect_right(sums, ticket)
        else:
            taken = run.chooser.several(site.key, micro, 1, 1)
            at = taken[0] if taken else run.chooser.number(site.key, len(options), 0, node.sampler)
    share = micro[at] / sum(micro)
    _option(run, options[at], node, frame, site, 0, share, len(options), site.name)


def _option(
    run: Run,
    option: Option,
    node: Node,
    frame: Frame,
    site: Site,
    occurrence: int,
    share: float,
    size: int,
    name: str,
) -> None:
    prompt = option.prompt
    written = frame.parsed.text[prompt.start : prompt.end]
    number = run.begin(
        ChoiceKind.OPTION,
        written,
        node,
        frame,
        site,
        weight=option.weight.micro / _MICRO,
        share=share,
        size=size,
    )
    key = child_key(site.key, written, occurrence)
    run.prompt(prompt, node, frame, key, name, parent=number)
    run.finish(number)


def multi(run: Run, node: Multi, frame: Frame) -> None:
    """Draw several options of ``{2$$, $$a|b|c}``, each at most once, in the order drawn."""
    site = run.site(node, frame)
    lent = _lent_pool(run, node, frame)
    if lent is not None:
        candidates = distinct(lent.without(run.active))
        if not candidates.entries:
            run.report_empty(lent, node, frame, "the list of this multi-pick")
            return
    else:
        options = [
            option
            for option in node.options
            if option.weight.micro > 0
            for _ in range(min(option.quantity, _MOST_CANDIDATES))
        ][:_MOST_CANDIDATES]
        candidates = Candidates(list(options), [option.weight.micro for option in options])
        if not options:
            run.fail(Trouble("bad-weight", "no option has a positive weight", None), node, frame)
            return
    low, high = _clipped(run, node, frame, len(candidates.entries))
    if not run.spend(node, frame):
        return
    is_fixed = False
    if node.sampler is Sampler.CYCLE and not run.chooser.walks:
        count = low
        order = [(run.index * count + at) % len(candidates.entries) for at in range(count)]
        is_fixed = True  # no rule changes what a sampler mark gives
    elif node.sampler is Sampler.ENUMERATE and not run.chooser.walks:
        count = low + run.odometer.take(high - low + 1)
        left = list(range(len(candidates.entries)))
        order = [left.pop(run.odometer.take(len(left))) for _ in range(count)]
        is_fixed = True
    else:
        taken = run.chooser.several(site.key, candidates.weights, low, high)
        count = low + run.chooser.number(site.key, high - low + 1, 0, None) if taken is None else len(taken)
        order = _order(run, site, candidates, count) if taken is None else taken
    shares: list[float] = []
    if run.plan is not None and lent is not None and not run.is_peeking:
        planned = _planned(run, run.plan, lent, candidates, frame, site, count, order if is_fixed else None)
        if planned is None:
            return
        order, shares = planned
    _print_picks(run, node, frame, site, candidates, order, shares)


def _planned(
    run: Run,
    plan: Plan,
    lent: Pool,
    candidates: Candidates,
    frame: Frame,
    site: Site,
    count: int,
    fixed: list[int] | None,
) -> tuple[list[int], list[float]] | None:
    """Return the picks of a multi-pick drawn under rules and their shares, None while its stage is to come."""
    items = [entry for entry in candidates.entries if not isinstance(entry, Option)]
    pool = Pool(items, *running_sums(candidates.weights), lent.lists, lent.held)
    address = ",".join(plan.rules.addresses(lent))
    picks = plan.picks(run, site, frame, pool, address, fixed, count)
    if picks is None:
        return None
    left, shares = (picks[0].total if picks else 0), []
    for pick in picks:
        shares.append(pick.weight / left)
        left -= pick.weight
    return [pick.at for pick in picks], shares


def _clipped(run: Run, node: Multi, frame: Frame, size: int) -> tuple[int, int]:
    low = size if node.low is None else node.low
    high = size if node.high is None else node.high
    if low > size or high > size:
        message = f"more was asked for than the {size} there are"
        run.report(frame, node, Trouble("clipped", message, None, Severity.HINT))
    low, high = min(low, size), min(high, size)
    return (low, high) if low <= high else (high, low)


def _order(run: Run, site: Site, candidates: Candidates, count: int) -> list[int]:
    """Draw ``count`` candidates without replacement; pick j uses position j of the site's stream."""
    weights = candidates.weights
    sums, total = running_sums(weights)
    if sums is None:
        sums = list(range(1, len(weights) + 1))
    removed: list[int] = []
    order: list[int] = []
    for position in range(1, count + 1):
        ticket = run.chooser.ticket(site.key, total, position)
        if ticket is None:
            at = run.chooser.number(site.key, len(weights) - len(removed), position, None)
            for gone in removed:
                at += gone <= at
        else:
            for gone in removed:
                before = sums[gone - 1] if gone else 0
                if ticket < before:
                    break
                ticket += sums[gone] - before
            at = bisect.bisect_right(sums, ticket)
        order.append(at)
        bisect.insort(removed, at)
        total -= sums[at] - (sums[at - 1] if at else 0)
    return order


def _print_picks(
    run: Run,
    node: Multi,
    frame: Frame,
    site: Site,
    candidates: Candidates,
    order: list[int],
    shares: list[float],
) -> None:
    left = sum(candidates.weights)
    chosen: dict[str, int] = {}
    has_text = False
    for place, at in enumerate(order):
        entry, weight = candidates.entries[at], candidates.weights[at]
        out, pieces, length, drafts = run.out, len(run.out.pieces), run.out.length, len(run.drafts)
        if has_text:
            out.write(node.separator)
        start = out.length
        size = len(candidates.entries) - place
        name = f"{site.name} [{place + 1}]"
        share = shares[place] if shares else weight / left
        if isinstance(entry, Option):
            written = frame.parsed.text[entry.prompt.start : entry.prompt.end]
            occurrence = chosen.get(written, 0)
            _option(run, entry, node, frame, site, occurrence, share, size, name)
        else:
            written = entry.text
            occurrence = chosen.get(written, 0)
            key = child_key(site.key, written, occurrence)
            run.item(entry, node, frame, site, key, share, size, name)
        chosen[written] = occurrence + 1
        left -= weight
        if out.length > start:
            has_text = True
        else:
            del out.pieces[pieces:]
            out.length = length
            for draft in run.drafts[drafts:]:
                if draft.start is not None:
                    draft.start = draft.end = length


def lone_part(node: Multi) -> Node | None:
    """Return the one construct of a lone option that is nothing else, blanks aside."""
    if len(node.options) != 1 or node.options[0].quantity != 1:
        return None
    parts = [
        part
        for part in node.options[0].prompt.nodes
        if not (isinstance(part, Text) and not part.value.strip(" \t\r\n"))
    ]
    return parts[0] if len(parts) == 1 else None


def _lent_pool(run: Run, node: Multi, frame: Frame) -> Pool | None:
    """Return the pool of a lone option that is nothing but one drawing construct."""
    part = lone_part(node)
    return pool_of_node(run, part, frame) if part is not None else None


def pool_of_node(run: Run, node: Node, frame: Frame) -> Pool | None:
    """Return the pool a construct draws from, None if it is not a single draw from a list."""
    if isinstance(node, Variable):
        value = run.variables.get(node.name)
        if value is None or value.prompt is None or value.frame is None or len(value.prompt.nodes) != 1:
            return None
        return pool_of_node(run, value.prompt.nodes[0], value.frame)
    if isinstance(node, Wildcard) and node.arguments:
        return None
    target, _ = target_of_reference(node, frame.parsed, run.snapshot, frame.document)
    pool = pool_of_reference(node, frame.parsed, run.snapshot, frame.document)
    if pool is not None and target is not None and target.document is not None:
        run.touch(target.document)
    return pool


def distinct(pool: Pool) -> Candidates:
    """Return the items of a pool distinct by text, weights of equal ones added."""
    places: dict[str, int] = {}
    entries: list[Option | Item] = []
    weights: list[int] = []
    for number, item in enumerate(pool.items):
        at = places.setdefault(item.text, len(entries))
        if at == len(entries):
            entries.append(item)
            weights.append(pool.weight(number))
        else:
            weights[at] += pool.weight(number)
    return Candidates(entries, weights)
