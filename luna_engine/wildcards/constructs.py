"""How each construct of a template is expanded: one handler for each kind of node, `HANDLERS` finds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luna_engine.wildcards import commands, picks
from luna_engine.wildcards.expansion import ChoiceKind
from luna_engine.wildcards.model import Kind
from luna_engine.wildcards.references import Meaning, Trouble, read_braces, read_bracket, read_name
from luna_engine.wildcards.reports import DROPPABLE
from luna_engine.wildcards.seeds import child_key
from luna_engine.wildcards.syntax import (
    Binding,
    Braces,
    Bracket,
    Conditional,
    Kept,
    Multi,
    Number,
    Tag,
    Variable,
    Variant,
    Wildcard,
    Wrapper,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from luna_engine.wildcards.drafts import Frame
    from luna_engine.wildcards.drawing import Run


def _tag(run: Run, node: Tag, frame: Frame) -> None:
    text = frame.parsed.text
    run.out.write(text[node.start : node.start + len(node.word) + 2])
    run.in_tag += 1
    run.nodes(node.nodes, frame)
    run.in_tag -= 1
    run.out.write(">")


def _number(run: Run, node: Number, frame: Frame) -> None:
    site = run.site(node, frame)
    if node.grid is None:
        run.keep(node, frame)
    elif run.spend(node, frame):
        points = node.grid.points
        number = run.begin(ChoiceKind.NUMBER, site.text, node, frame, site, share=1 / points, size=points)
        pinned = run.options.pins.get(site.name) if run.options.pins else None
        run.out.write(node.grid.text(run.chooser.number(site.key, points, 0, None)) if pinned is None else pinned)
        run.finish(number)


def _braces(run: Run, node: Braces, frame: Frame) -> None:
    meaning = read_braces(node, frame.parsed, run.snapshot, frame.document)
    for trouble in meaning.trouble:
        run.report(frame, node, trouble)
    if meaning.document is not None:
        run.touch(meaning.document)
    if meaning.target is None and meaning.inline is None:
        _unresolved(run, node, frame, meaning)
        return
    site = run.site(node, frame)
    if meaning.target is not None:
        run.draw_target(meaning.target, node, frame, site, templates=meaning.templates)
    elif meaning.inline is not None:
        inline = meaning.inline
        key = child_key(site.key, frame.parsed.text[inline.start : inline.end])
        run.prompt(inline, node, frame, key, site.name, document=meaning.document)


def _unresolved(run: Run, node: Braces, frame: Frame, meaning: Meaning) -> None:
    """Keep a reference that names nothing, or print plain braces round their contents."""
    if meaning.is_kept:
        codes = {trouble.code for trouble in meaning.trouble}
        if run.options.missing != "drop" or codes.isdisjoint(DROPPABLE):
            run.keep(node, frame)
        return
    if run.enter(node, frame):
        run.out.write("{")
        run.nodes(node.nodes, frame)
        run.out.write("}")
        run.depth -= 1


def _bracket(run: Run, node: Bracket, frame: Frame) -> None:
    document = frame.document
    if document is not None and document.kind is not Kind.TXT and node.path:
        target, troubles = read_bracket(node.path, document)
        for trouble in troubles:
            run.report(frame, node, trouble)
        if target is not None:
            run.draw_target(target, node, frame, run.site(node, frame))
            return
    run.out.write("[")
    run.nodes(node.nodes, frame)
    run.out.write("]")


def _wildcard(run: Run, node: Wildcard, frame: Frame) -> None:
    if "*" in node.name:
        site = run.site(node, frame)
        pool = run.snapshot.glob(node.name)
        if pool is None:
            what = Trouble("unknown-ref", f"no list matches {node.name!r}", "the pattern is anchored at the root")
            run.fail(what, node, frame)
            return
        with commands.arguments(run, node, frame, site):
            run.draw(pool, node, frame, site, node.sampler, node.name)
        return
    target, troubles = read_name(node.name, run.snapshot, frame.document, frame.parsed.profile)
    for trouble in troubles:
        if target is not None:
            run.report(frame, node, trouble)
        else:
            run.fail(trouble, node, frame)
    if target is not None:
        site = run.site(node, frame)
        if not node.arguments:
            run.draw_target(target, node, frame, site, node.sampler)
            return
        with commands.arguments(run, node, frame, site):
            run.draw_target(target, node, frame, site, node.sampler)


def _kept(run: Run, node: Kept, frame: Frame) -> None:
    run.keep(node, frame)


HANDLERS: dict[type[Any], Callable[[Run, Any, Frame], None]] = {
    Tag: _tag,
    Number: _number,
    Variant: picks.variant,
    Multi: picks.multi,
    Braces: _braces,
    Bracket: _bracket,
    Wildcard: _wildcard,
    Variable: commands.variable,
    Binding: commands.binding,
    Conditional: commands.conditional,
    Wrapper: commands.wrapper,
    Kept: _kept,
}
