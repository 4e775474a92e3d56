"""Text to syntax tree, in time linear in its length. No I/O and no library: `parse` is all a caller needs."""

from __future__ import annotations

import re

from luna_engine.wildcards import scan
from luna_engine.wildcards.diagnostics import Severity
from luna_engine.wildcards.numbers import make_grid, match_range
from luna_engine.wildcards.recursion import recursion_room
from luna_engine.wildcards.syntax import (
    Argument,
    Binding,
    Braces,
    Bracket,
    Conditional,
    Finding,
    Kept,
    Multi,
    Node,
    Number,
    Option,
    Parsed,
    Profile,
    Prompt,
    Sampler,
    Tag,
    Text,
    Variable,
    Variant,
    Weight,
    Wildcard,
    Wrapper,
)

MOST_CHARACTERS = 1 << 20
MOST_NAME = 512
_MOST_FINDINGS = 100
_BLANKS = " \t\r\n"

_SPECIAL = re.compile(r"[\\{<\[$%]|__")
_BOUND = re.compile(r"([~@!]?)(?:([0-9]+)-([0-9]+)|([0-9]+)(-)|-([0-9]+)|([0-9]+))\$\$")
_WEIGHT = re.compile(r"[ \t\r\n]*(-?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+))::")
_QUANTITY = re.compile(r"([0-9]+)#(?=__)")
_IDENT = re.compile(r"[^\W\d]\w*")
_TAG = re.compile(r"<([A-Za-z][A-Za-z0-9_-]*):")
_TAG_END = re.compile(r"[\\{>\r\n]")
_BRACKET_END = re.compile(r"[\\\[\]{}\r\n]")
_ARGUMENT = re.compile(r"\s*([^\W\d]\w*)\s*=(!?)")
_ARGUMENT_MARK = re.compile(r"[\\{(,]")
_CONDITION_MARK = re.compile(r"[\\{\":]")


def parse(text: str, profile: Profile | str = Profile.NATIVE, *, comments: bool = True) -> Parsed:
    """Read a text into nodes whose spans tile it.

    Args:
        text: a template, or an item.
        profile: the dialect.
        comments: drop BOM and comment lines first (templates; items keep every line).
    """
    original, cuts, dropped = text, (), ()  # type: tuple[str, tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]
    if comments and ("#" in text or text.startswith("\ufeff")):
        text, cuts, dropped = scan.drop_comments(text)
    if len(text) > MOST_CHARACTERS:
        finding = Finding(
            "limit",
            Severity.ERROR,
            f"the text has {len(text)} characters, the limit is {MOST_CHARACTERS}; it stays as written",
            None,
            0,
            len(text),
        )
        return Parsed(text, (Text(0, len(text), text),), (finding,), cuts, original)
    reader = _Reader(text, Profile(profile))
    with recursion_room():
        nodes = reader.read(0, len(text))
    findings = [*reader.findings, *_comment_hints(original, dropped, cuts)]
    findings.sort(key=lambda finding: finding.start)
    return Parsed(text, nodes, tuple(findings), cuts, original)


def is_plain(text: str) -> bool:
    """Tell whether nothing in a text can be a construct, so that it needs no tree."""
    return _SPECIAL.search(text) is None


def read_weight(text: str) -> tuple[Weight | None, int]:
    """Read ``n::`` at the start of an option or item; returns (None, 0) if there is none, else the text's start."""
    found = _WEIGHT.match(text)
    return (make_weight(found[1]), found.end()) if found else (None, 0)


def make_weight(written: str) -> Weight:
    """Return the weight for a decimal number; at most 9 digits before and 6 behind the point."""
    negative = written.startswith("-")
    whole, _, fraction = written.lstrip("-").partition(".")
    fraction = fraction.rstrip("0")
    if negative:
        return Weight(0, f"the weight {written} is negative and counts 0")
    if len(whole.lstrip("0")) > 9 or len(fraction) > 6:
        return Weight(1_000_000, f"the weight {written[:40]} has too many digits and counts 1")
    return Weight(int((whole or "0") + fraction.ljust(6, "0")))


def _comment_hints(
    original: str, dropped: tuple[tuple[int, int], ...], cuts: tuple[tuple[int, int], ...]
) -> list[Finding]:
    """Point at comment lines that may have been meant as text: ``#ff8800`` or ``#hashtag``."""
    behind = {source: offset for offset, source in cuts}
    return [
        Finding(
            "comment",
            Severity.HINT,
            f"the line {original[start : min(end, start + 24)].rstrip()!r} was taken as a comment",
            r"write \# at its start if it is text, or a blank behind # if it is a comment",
            behind[end],
            behind[end],
        )
        for start, end in dropped
        if original[start + 1 : start + 2] not in {"", " ", "\t", "\r", "\n", "#"}
    ][:_MOST_FINDINGS]


class _Reader:
    """Reads ranges of one text; all ranges share its brace map."""

    def __init__(self, text: str, profile: Profile) -> None:
        self.text = text
        self.profile = profile
        self.native = profile is Profile.NATIVE
        self.has_commands = profile is not Profile.IMPACT
        self.findings: list[Finding] = []
        braces = scan.match_braces(text)
        self.close = braces.close
        self._parentheses: dict[int, int] | None = None
        for at in braces.unclosed[:_MOST_FINDINGS]:
            self.report("syntax", "this brace is never closed", r"add }, or write \{ for a plain brace", at, at + 1)
        if braces.too_deep is not None:
            at = braces.too_deep
            self.report("limit", f"braces deeper than {scan.MOST_NESTED} are text", None, at, at + 1)

    def report(
        self,
        code: str,
        message: str,
        hint: str | None,
        start: int,
        end: int,
        severity: Severity = Severity.ERROR,
    ) -> None:
        if len(self.findings) < _MOST_FINDINGS:
            self.findings.append(Finding(code, severity, message, hint, start, end))

    def prompt(self, start: int, end: int) -> Prompt:
        return Prompt(start, end, self.read(start, end))

    def trimmed(self, start: int, end: int) -> tuple[int, int]:
        while start < end and self.text[start] in _BLANKS:
            start += 1
        while end > start and self.text[end - 1] in _BLANKS:
            end -= 1
        return start, end

    def read(self, start: int, end: int, *, in_tag: bool = False) -> tuple[Node, ...]:
        """Read ``text[start:end]``; the nodes returned tile it."""
        text = self.text
        nodes: list[Node] = []
        pieces: list[str] = []
        text_start = copied = at = start
        tags_closed_from = start
        while (found := _SPECIAL.search(text, at, end)) is not None:
            at = found.start()
            sign = found[0]
            made: tuple[Node, ...] = ()
            if sign == "\\":
                value, width = self.escape(at, end)
                pieces += (text[copied:at], value)
                at = copied = at + width
                continue
            if sign == "<":
                if not in_tag and at >= tags_closed_from:
                    made, tags_closed_from = self.tag(at, end)
            elif sign == "__":
                made = self.wildcard(at, end, in_tag=in_tag)
            elif sign == "[":
                made = self.bracket(at, end)
            elif sign == "{":
                made = self.brace(at)
            elif self.has_commands and self.close.get(at + 1, end) < end:
                made = self.variable(at) if sign == "$" else self.wrapper(at)
            if not made:
                at += 1
                continue
            pieces.append(text[copied:at])
            if at > text_start:
                nodes.append(Text(text_start, at, "".join(pieces)))
            pieces.clear()
            nodes += made
            text_start = copied = at = made[-1].end
        pieces.append(text[copied:end])
        if end > text_start:
            nodes.append(Text(text_start, end, "".join(pieces)))
        return tuple(nodes)

    def escape(self, at: int, end: int) -> tuple[str, int]:
        """Return what a backslash and its neighbour print, and how many characters they are."""
        if at + 1 >= end:
            return "\\", 1
        sign = self.text[at + 1]
        if sign in scan.ESCAPABLE:
            return sign, 2
        starts_body = self.text[at - 1 : at] == "{" or self.text[max(at - 2, 0) : at] == "__"
        if sign in scan.SAMPLER_SIGNS and starts_body:
            return sign, 2
        return self.text[at : at + 2], 2

    def tag(self, at: int, end: int) -> tuple[tuple[Node, ...], int]:
        """Read ``<word:…>``; also return from where on looking for the next tag can succeed."""
        found = _TAG.match(self.text, at, end)
        if found is None:
            return (), at
        place = found.end()
        while (mark := _TAG_END.search(self.text, place, end)) is not None:
            sign, place = mark[0], mark.end()
            if sign == ">":
                nodes = self.read(found.end(), mark.start(), in_tag=True)
                return (Tag(at, place, found[1], nodes),), place
            if sign == "\\":
                place += 1
            elif sign == "{":
                place = self.close.get(mark.start(), mark.start()) + 1
            else:
                return (), mark.start()
        return (), end

    def wildcard(self, at: int, end: int, *, in_tag: bool) -> tuple[Node, ...]:
        text = self.text
        stop = text.find("__", at + 2, end)
        if stop < 0:
            return ()
        start, sampler = at + 2, None
        if self.has_commands and text[start] in scan.SAMPLER_SIGNS:
            sampler = Sampler(text[start])
            start += 1
        arguments: tuple[Argument, ...] = ()
        opening = text.find("(", start, stop)
        name_end = stop
        if opening >= 0:
            if self._parentheses is None:
                self._parentheses = scan.match_parentheses(text, self.close)
            closing = self._parentheses.get(opening, end)
            if closing + 3 > end or not text.startswith("__", closing + 1):
                return ()
            read = self.arguments(opening + 1, closing) if scan.is_name(text[start:opening]) else None
            if read is None:
                return ()
            arguments, name_end, stop = read, opening, closing + 1
        name = text[start:name_end]
        if len(name) > MOST_NAME or not scan.is_name(name):
            return ()
        stop += 2
        if in_tag and (_joins(text[at - 1 : at]) or _joins(text[stop : stop + 1])):
            return ()
        return (Wildcard(at, stop, sampler, name.replace("\\", "/"), arguments, in_tag),)

    def arguments(self, start: int, end: int) -> tuple[Argument, ...] | None:
        found: list[Argument] = []
        place = begin = start
        while True:
            mark = _ARGUMENT_MARK.search(self.text, place, end)
            stop = mark.start() if mark else end
            if mark and mark[0] != ",":
                jump = self.close.get(stop) if mark[0] == "{" else (self._parentheses or {}).get(stop)
                place = stop + 2 if mark[0] == "\\" else (jump or stop) + 1
                continue
            head = _ARGUMENT.match(self.text, begin, stop)
            if head is None:
                return None
            found.append(Argument(head[1], bool(head[2]), self.prompt(head.end(), stop)))
            if mark is None:
                return tuple(found)
            place = begin = stop + 1

    def bracket(self, at: int, end: int) -> tuple[Node, ...]:
        mark = _BRACKET_END.search(self.text, at + 1, end)
        if mark is None or mark[0] != "]" or mark.start() == at + 1:
            return ()
        path = self.text[at + 1 : mark.start()]
        nodes = self.read(at + 1, mark.start())
        return (Bracket(at, mark.end(), path if len(path) <= MOST_NAME else "", nodes),)

    def brace(self, at: int) -> tuple[Node, ...]:
        """Decide what a brace body is by the first line of WILDCARDS 2.1 that fits."""
        close = self.close.get(at)
        if close is None:
            return ()
        bound = _BOUND.match(self.text, at + 1, close)
        if bound and (not bound[1] or self.has_commands):
            return (self.multi(at, close, bound),)
        tops = self.tops(at + 1, close)
        if tops.bars:
            return (self.variant(at, close, tops.bars),)
        if not self.native:
            inner = self.read(at + 1, close)
            return (Text(at, at + 1, ""), *inner, Text(close, close + 1, ""))
        grid = match_range(self.text[at + 1 : close]) if close - at <= 200 else None
        if grid:
            return (self.number(at, close + 1, grid),)
        return (self.reference(at, close, tops.colon),)

    def tops(self, start: int, end: int) -> scan.Tops:
        return scan.find_tops(self.text, start, end, self.close, brackets_hide=self.native)

    def number(self, start: int, end: int, written: tuple[str, str, str | None]) -> Node:
        grid = make_grid(*written)
        body = self.text[start + 1 : end - 1]
        if grid is None:
            self.report(
                "bad-range", f"the range {body[:60]} is too large", "at most 30 digits and 10^30 values", start, end
            )
        elif grid.had_bad_step:
            self.report(
                "bad-range",
                f"the step of {body} is not positive",
                "a step of 1 was used",
                start,
                end,
                Severity.WARNING,
            )
        elif grid.was_reversed:
            self.report(
                "reversed-bounds",
                f"the bounds of {body} are reversed",
                "they were swapped",
                start,
                end,
                Severity.HINT,
            )
        return Number(start, end, grid)

    def multi(self, at: int, close: int, bound: re.Match[str]) -> Node:
        start, separator = bound.end(), self.default_separator()
        dollars = self.tops(start, close).dollars
        if dollars:
            separator = scan.unescape(self.text[start : dollars[0]])
            start = dollars[0] + 2
        if start == close:
            self.report("syntax", "a multi-pick without options", "write {2$$, $$one|two|three}", at, close + 1)
            return Kept(at, close + 1)
        low, high = _bounds(bound)
        options = self.options(start, close, self.tops(start, close).bars, quantified=True)
        if low is not None and high is not None and low > high:
            low, high = high, low
            self.report(
                "reversed-bounds",
                "the bounds of the multi-pick are reversed",
                "they were swapped",
                at,
                bound.end(),
                Severity.HINT,
            )
        sampler = Sampler(bound[1]) if bound[1] else None
        return Multi(at, close + 1, sampler, low, high, separator, options)

    def default_separator(self) -> str:
        return {Profile.NATIVE: ", ", Profile.DYNAMICPROMPTS: ",", Profile.IMPACT: " "}[self.profile]

    def variant(self, at: int, close: int, bars: list[int]) -> Node:
        start, sampler = at + 1, None
        if self.has_commands and self.text[start] in scan.SAMPLER_SIGNS:
            sampler = Sampler(self.text[start])
            start += 1
        return Variant(at, close + 1, sampler, self.options(start, close, bars, quantified=False))

    def options(self, start: int, end: int, bars: list[int], *, quantified: bool) -> tuple[Option, ...]:
        made: list[Option] = []
        for stop in (*bars, end):
            made.append(self.option(start, stop, quantified=quantified))
            start = stop + 1
        return tuple(made)

    def option(self, start: int, end: int, *, quantified: bool) -> Option:
        weight, begin = Weight(), start
        found = _WEIGHT.match(self.text, start, end)
        if found:
            weight, begin = make_weight(found[1]), found.end()
            if weight.problem:
                self.report(
                    "bad-weight",
                    weight.problem,
                    "write a positive number such as 2:: or 0.5::",
                    start,
                    begin,
                    Severity.WARNING,
                )
        quantity = _QUANTITY.match(self.text, begin, end) if quantified and not found else None
        if quantity and self.profile is not Profile.DYNAMICPROMPTS:
            prompt = self.prompt(quantity.end(), end)
            if len(prompt.nodes) == 1 and isinstance(prompt.nodes[0], Wildcard):
                return Option(start, end, weight, prompt, _small(quantity[1]))
        return Option(start, end, weight, self.prompt(begin, end))

    def reference(self, at: int, close: int, colon: int | None) -> Node:
        nodes = self.read(at + 1, close)
        body_start, body_end = self.trimmed(at + 1, close)
        body = self.text[body_start:body_end] if body_end - body_start <= MOST_NAME else ""
        tail: Prompt | None = None
        head, blank = body, False
        if colon is not None:
            cut = cut_nodes(nodes, self.text, *self.trimmed(colon + 1, close))
            head_start, head_end = self.trimmed(at + 1, colon)
            if cut is not None and head_end - head_start <= MOST_NAME:
                head, tail = self.text[head_start:head_end], cut
                blank = self.text[colon + 1 : colon + 2] in set(_BLANKS)
        return Braces(at, close + 1, body, nodes, head, tail, blank)

    def variable(self, at: int) -> tuple[Node, ...]:
        """Read the commands that begin with ``${``; nothing if the body is none."""
        close = self.close[at + 1]
        if self.text.startswith("if ", at + 2):
            return (self.conditional(at, close),)
        name = _IDENT.match(self.text, at + 2, close)
        if name is None:
            return ()
        start, stop = name.end(), close + 1
        if start == close:
            return (Variable(at, stop, name[0], None),)
        for sign, unset, eager in (
            ("?=!", True, True),
            ("?=", True, False),
            ("=!", False, True),
            ("=", False, False),
        ):
            if self.text.startswith(sign, start):
                value = self.prompt(start + len(sign), close)
                return (Binding(at, stop, name[0], eager, unset, value),)
        if self.text[start] == ":":
            return (Variable(at, stop, name[0], self.prompt(start + 1, close)),)
        return ()

    def conditional(self, at: int, close: int) -> Node:
        start = at + 5
        colon = self.condition_end(start, close)
        if colon is None:
            self.report(
                "syntax",
                "a condition without a colon",
                "write ${if season=winter: fur coat | linen shirt}",
                at,
                close + 1,
            )
            return Kept(at, close + 1)
        bars = self.tops(colon + 1, close).bars
        then = self.prompt(*self.trimmed(colon + 1, bars[0] if bars else close))
        otherwise = self.prompt(*self.trimmed(bars[0] + 1, close)) if bars else None
        return Conditional(at, close + 1, self.text[start:colon].strip(), then, otherwise)

    def condition_end(self, start: int, end: int) -> int | None:
        """Return the offset of the first colon outside double quotes and braces."""
        place = start
        while (mark := _CONDITION_MARK.search(self.text, place, end)) is not None:
            sign, place = mark[0], mark.end()
            if sign == ":":
                return mark.start()
            if sign == "\\":
                place += 1
            elif sign == "{":
                place = self.close.get(mark.start(), mark.start()) + 1
            else:
                quote = self.text.find('"', place, end)
                place = quote + 1 if quote >= 0 else place
        return None

    def wrapper(self, at: int) -> tuple[Node, ...]:
        close = self.close[at + 1]
        dollars = self.tops(at + 2, close).dollars
        if not dollars:
            return ()
        outer, inner = self.prompt(at + 2, dollars[0]), self.prompt(dollars[0] + 2, close)
        return (Wrapper(at, close + 1, outer, inner),)


def _joins(neighbour: str) -> bool:
    return neighbour == "_" or neighbour.isalnum()


def _small(digits: str) -> int:
    """Return the number, or a million if it is larger: more than any pick can use."""
    return int(digits) if len(digits) <= 6 else 1_000_000


def _bounds(bound: re.Match[str]) -> tuple[int | None, int | None]:
    _, low, high, least, _, most, exact = bound.groups()
    if exact:
        return _small(exact), _small(exact)
    if most:
        return 1, _small(most)
    if least:
        return _small(least), None
    return _small(low), _small(high)


def cut_nodes(nodes: tuple[Node, ...], text: str, start: int, end: int) -> Prompt | None:
    """Return the nodes of ``text[start:end]``, cutting text nodes; None if another node straddles a border."""
    cut: list[Node] = []
    for node in nodes:
        if node.end <= start or node.start >= end:
            continue
        if node.start >= start and node.end <= end:
            cut.append(node)
        elif isinstance(node, Text):
            begin, stop = max(node.start, start), min(node.end, end)
            cut.append(Text(begin, stop, scan.unescape(text[begin:stop])))
        else:
            return None
    return Prompt(start, end, tuple(cut))
