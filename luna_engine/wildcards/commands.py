"""Variables, conditions and wrapping: the ``${…}`` and ``%{…}`` commands."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luna_engine.wildcards.conditions import Condition, ConditionSyntaxError
from luna_engine.wildcards.diagnostics import Severity, did_you_mean, near_names
from luna_engine.wildcards.expansion import ChoiceKind
from luna_engine.wildcards.references import Trouble
from luna_engine.wildcards.seeds import child_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from luna_engine.wildcards.drafts import Draft, Frame, Site
    from luna_engine.wildcards.drawing import Run
    from luna_engine.wildcards.syntax import (
        Argument,
        Binding,
        Conditional,
        Node,
        Prompt,
        Variable,
        Wildcard,
        Wrapper,
    )


@dataclass(frozen=True, slots=True)
class Value:
    """What a variable holds: finished ``text`` (with the choice that drew it), or a prompt drawn at each use."""

    text: str | None = None
    choice: int | None = None
    prompt: Prompt | None = None
    frame: Frame | None = None


def variable(run: Run, node: Variable, frame: Frame) -> None:
    """Print ``${x}`` or ``${x:default}``."""
    value = run.variables.get(node.name)
    if value is None:
        if node.default is None:
            hint = did_you_mean(near_names(node.name, run.variables)) or f"bind it with ${{{node.name}=…}}"
            run.fail(Trouble("unknown-ref", f"the variable {node.name} is not set", hint), node, frame)
            return
        site = run.site(node, frame)
        key = child_key(site.key, frame.parsed.text[node.default.start : node.default.end])
        run.prompt(node.default, node, frame, key, site.name)
        return
    site = run.site(node, frame)
    if value.text is not None:
        inner_parent = value.choice if value.choice is not None else frame.parent
        number = run.begin(ChoiceKind.VARIABLE, value.text, node, frame, site)
        run.drafts[number].parent = inner_parent
        run.out.write(value.text)
        run.finish(number)
        return
    _deferred(run, node, frame, site, value)


def _deferred(run: Run, node: Variable, frame: Frame, site: Site, value: Value) -> None:
    if node.name in run.active_variables:
        trouble = Trouble(
            "cycle",
            f"the value of {node.name} needs itself",
            f"bind it with ${{{node.name}=!…}} to read the old value first",
        )
        run.report(frame, node, trouble)
        run.keep(node, frame)
        return
    if value.prompt is None or value.frame is None:
        return
    home = value.frame
    written = home.parsed.text[value.prompt.start : value.prompt.end]
    number = run.begin(ChoiceKind.VARIABLE, written, node, frame, site)
    run.active_variables.append(node.name)
    key = child_key(site.key, written)
    run.prompt(value.prompt, node, frame, key, site.name, parent=number, home=home)
    run.active_variables.pop()
    run.finish(number)


def binding(run: Run, node: Binding, frame: Frame) -> None:
    """Bind a variable; prints nothing."""
    site = run.site(node, frame)
    if node.only_if_unset and node.name in run.variables:
        return
    run.variables[node.name] = _bound(run, node.value, node.eager, node, frame, site)


def _bound(run: Run, value: Prompt, eager: bool, node: Node, frame: Frame, site: Site) -> Value:  # noqa: FBT001 - mirrors the node's field
    if not eager:
        return Value(prompt=value, frame=frame)
    written = frame.parsed.text[value.start : value.end]
    was_hidden, run.is_hidden = run.is_hidden, True
    outer, run.out = run.out, type(run.out)()
    number = run.begin(ChoiceKind.VARIABLE, written, node, frame, site)
    run.prompt(value, node, frame, child_key(site.key, written), site.name, parent=number)
    text = run.finish(number)
    run.out, run.is_hidden = outer, was_hidden
    return Value(text, number)


@contextlib.contextmanager
def arguments(run: Run, node: Wildcard, frame: Frame, site: Site) -> Iterator[None]:
    """Bind the arguments of ``__name(x=…)__`` inside its draw only."""
    if not node.arguments:
        yield
        return
    before = dict(run.variables)
    for argument in node.arguments:
        run.variables[argument.name] = _argument(run, argument, node, frame, site)
    yield
    names = {argument.name for argument in node.arguments}
    for name in names:
        if name in before:
            run.variables[name] = before[name]
        else:
            run.variables.pop(name, None)


def _argument(run: Run, argument: Argument, node: Wildcard, frame: Frame, site: Site) -> Value:
    return _bound(run, argument.value, argument.eager, node, frame, site)


def conditional(run: Run, node: Conditional, frame: Frame) -> None:
    """Expand the branch that the condition chooses."""
    site = run.site(node, frame)

    def value_of(name: str) -> str | None:
        return _peek(run, name, node, frame, site)

    def has_tag(tag: str) -> bool:
        wanted = tag.casefold()
        return any(
            wanted == known.casefold()
            for draft in run.drafts
            if draft.item is not None
            for known in run.tags_of(draft.item)
        )

    def unset(name: str) -> None:
        trouble = Trouble("unset-variable", f"the variable {name} is not set", "its test is false", Severity.HINT)
        run.report(frame, node, trouble)

    try:
        is_true = Condition(node.condition, value_of, has_tag, unset).evaluate()
    except ConditionSyntaxError as error:
        trouble = Trouble("syntax", f"the condition {node.condition[:60]!r} cannot be read: {error}", None)
        run.fail(trouble, node, frame)
        return
    branch = node.then if is_true else node.otherwise
    if branch is not None:
        key = child_key(site.key, frame.parsed.text[branch.start : branch.end])
        run.prompt(branch, node, frame, key, site.name)


def _peek(run: Run, name: str, node: Node, frame: Frame, site: Site) -> str | None:
    """Return a variable's text for a test; a deferred value is drawn for it, without trace."""
    value = run.variables.get(name)
    if value is None or value.text is not None:
        return value.text if value else None
    if value.prompt is None or value.frame is None or name in run.active_variables:
        return None
    drafts = len(run.drafts)
    outer, run.out = run.out, type(run.out)()
    was_peeking, run.is_peeking = run.is_peeking, True
    run.active_variables.append(name)
    key = child_key(site.key, value.frame.parsed.text[value.prompt.start : value.prompt.end])
    run.prompt(value.prompt, node, frame, key, site.name, home=value.frame)
    run.active_variables.pop()
    text = run.out.text()
    run.out, run.is_peeking = outer, was_peeking
    del run.drafts[drafts:]
    return text


def wrapper(run: Run, node: Wrapper, frame: Frame) -> None:
    """Put the second part in place of the first ``...`` of the first."""
    site = run.site(node, frame)
    text, first = frame.parsed.text, len(run.drafts)
    outer_text = _aside(
        run, node.outer, node, frame, child_key(site.key, text[node.outer.start : node.outer.end]), site
    )
    at = outer_text.find("...")
    if at < 0:
        del run.drafts[first:]
        run.fail(Trouble("syntax", "the wrapper has no ...", "write ... where the text goes"), node, frame)
        return
    middle = len(run.drafts)
    inner_text = _aside(
        run, node.inner, node, frame, child_key(site.key, text[node.inner.start : node.inner.end]), site
    )
    whole = outer_text[:at] + inner_text + outer_text[at + 3 :]
    base = run.out.length
    for draft in run.drafts[first:middle]:
        _stretch(draft, at, len(inner_text), whole, base)
    for draft in run.drafts[middle:]:
        if draft.start is not None:
            draft.start, draft.end = draft.start + base + at, draft.end + base + at
    run.out.write(whole)


def _aside(run: Run, prompt: Prompt, node: Node, frame: Frame, key: int, site: Site) -> str:
    outer, run.out = run.out, type(run.out)()
    run.prompt(prompt, node, frame, key, site.name)
    text = run.out.text()
    run.out = outer
    return text


def _stretch(draft: Draft, at: int, width: int, whole: str, base: int) -> None:
    """Move the span of a choice of the outer part round the text put in at ``at``."""
    if draft.start is None:
        return
    start = draft.start if draft.start <= at else max(draft.start + width - 3, at)
    end = draft.end if draft.end <= at else max(draft.end, at + 3) + width - 3
    draft.value = whole[start:end]
    draft.start, draft.end = start + base, end + base
