"""What rules write into a running expansion: notes below a pick, modifiers behind it, additions behind the prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_engine.wildcards.drafts import Frame, Site
from luna_engine.wildcards.expansion import ChoiceKind
from luna_engine.wildcards.rules.links import find_links, missing_triggers
from luna_engine.wildcards.rules.plan import ADDED_LEVEL, NEGATIVE
from luna_engine.wildcards.seeds import child_key
from luna_engine.wildcards.syntax import Kept, Parsed

if TYPE_CHECKING:
    from luna_engine.wildcards.drawing import Run
    from luna_engine.wildcards.rules.effects import Addition
    from luna_engine.wildcards.rules.plan import Plan
    from luna_engine.wildcards.rules.records import Spot
    from luna_engine.wildcards.rules.search import Pick
    from luna_engine.wildcards.syntax import Node

_MOST_NOTES = 12
_JOINER = ", "


def note_pick(run: Run, plan: Plan, pick: Pick, number: int, node: Node, frame: Frame) -> None:
    """Record what rules did for a pick, as choices below it that print nothing."""
    plan.numbers[id(pick)] = number
    for breach in pick.rejected[:_MOST_NOTES]:
        note(run, breach.text, breach.spot, number, node, frame, pick.reference.site)
    for influence in pick.influences[:_MOST_NOTES]:
        rule = influence.rule.rule
        text = f"{rule.target}: weight x {float(influence.factor):g}"
        note(run, text, rule.spot, number, node, frame, pick.reference.site)


def print_modifiers(run: Run, plan: Plan, pick: Pick, number: int) -> None:
    """Print what modifiers append to a pick."""
    for addition in plan.effects.modifiers.get(id(pick), ()) if plan.effects is not None else ():
        _print(run, addition, number)


def finish_part(run: Run, plan: Plan) -> None:
    """Print what expanders append to a part, and behind it what LoRA links bring."""
    if run.is_stopped:
        return
    for addition in plan.effects.expanders.get(run.part_name, ()) if plan.effects is not None else ():
        _print(run, addition, plan.numbers.get(id(addition.pick)))
    if not plan.options.lora_links:
        return
    if run.part_name == "":
        plan.links = find_links(plan.rules, plan.options, plan.picks_of_part(""), plan.numbers)
        _print_links(run, plan)
    elif run.part_name == NEGATIVE:
        print_negative(run, plan)


def print_negative(run: Run, plan: Plan) -> None:
    """Print the negative embeddings at the end of the negative part."""
    for found in plan.links.embeddings:
        if found.is_negative:
            _append(run, found.text, found.text, found.spot, found.choice)


def _print_links(run: Run, plan: Plan) -> None:
    for lora in plan.links.loras:
        words = missing_triggers(lora, run.out.text()) if plan.options.trigger_words else []
        _append(run, _JOINER.join(words), f"lora {lora.name}", lora.spot, lora.choice)
    for found in plan.links.embeddings:
        if not found.is_negative:
            _append(run, found.text, found.text, found.spot, found.choice)


def _append(run: Run, text: str, written: str, spot: Spot, parent: int | None) -> None:
    """Print a text behind the prompt and record it; an empty one is only recorded."""
    frame = _frame(written, 0, parent)
    site = Site(written, 0, written)
    if not text:
        note(run, written, spot, parent, Kept(0, len(written)), frame, site)
        return
    if run.out.length:
        run.out.write(_JOINER)
    number = _begin(run, written, spot, parent, Kept(0, len(written)), frame, site)
    run.out.write(text)
    run.finish(number)


def _print(run: Run, addition: Addition, parent: int | None) -> None:
    """Print an addition; items of a path wait for their stage like any reference."""
    frame = _frame(addition.text, addition.key, parent)
    node = Kept(0, len(addition.text))
    site = Site(addition.text, addition.key, f"rule {addition.name}")
    if addition.pool is not None:
        _print_items(run, addition, node, frame, site, parent)
        return
    if run.out.length:
        run.out.write(addition.joiner)
    number = _begin(run, addition.text, addition.spot, parent, node, frame, site)
    if addition.is_prompt:
        parsed = run.snapshot.template(addition.text)
        key = child_key(addition.key, addition.text)
        run.nodes(parsed.nodes, Frame(parsed, key, parent=number, site=site.name, level=ADDED_LEVEL))
    else:
        run.out.write(addition.text)
    run.finish(number)


def _print_items(run: Run, addition: Addition, node: Node, frame: Frame, site: Site, parent: int | None) -> None:
    plan, pool = run.plan, addition.pool
    if plan is None or pool is None:
        return
    picks = plan.picks(run, site, frame, pool, addition.text, None, addition.count)
    for pick in picks or ():
        if run.out.length:
            run.out.write(addition.joiner)
        number = _begin(run, addition.text, addition.spot, parent, node, frame, site)
        inner = _frame(addition.text, addition.key, number)
        key = child_key(site.key, pick.item.text)
        run.item(pick.item, node, inner, site, key, pick.share, pick.size, site.name)
        run.finish(number)


def _frame(text: str, key: int, parent: int | None) -> Frame:
    return Frame(Parsed(text, (), original=text), key, parent=parent, level=ADDED_LEVEL)


def _begin(run: Run, written: str, spot: Spot, parent: int | None, node: Node, frame: Frame, site: Site) -> int:
    number = run.begin(ChoiceKind.RULE, written, node, frame, site)
    draft = run.drafts[number]
    draft.rule, draft.parent = spot, parent
    return number


def note(run: Run, text: str, spot: Spot, parent: int | None, node: Node, frame: Frame, site: Site) -> None:
    """Record something a rule did that prints nothing, below the choice ``parent``."""
    number = _begin(run, text, spot, parent, node, frame, site)
    run.drafts[number].start = None
