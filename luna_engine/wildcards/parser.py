"""Text to syntax tree, in time linear in its length. No I/O and no library: `parse` is all a caller needs."""

from __future__ import annotations

import re

from luna_engine.wildcards import parse_commands, parse_picks, scan
from luna_engine.wildcards.diagnostics import Severity
from luna_engine.wildcards.numbers import match_range
from luna_engine.wildcards.recursion import recursion_room
from luna_engine.wildcards.syntax import (
    Argument,
    Braces,
    Bracket,
    Finding,
    Node,
    Parsed,
    Profile,
    Prompt,
    Sampler,
    Tag,
    Text,
    Wildcard,
)

MOST_CHARACTERS = 1 << 20
MOST_NAME = 512
_MOST_FINDINGS = 100
_BLANKS = " \t\r\n"

_SPECIAL = re.compile(r"[\\{<\[$%]|__")
_SIGN = re.compile(r"[\\{<\[$%_]")  # looked for in half the time; most texts hold none
_BOUND = re.compile(r"([~@!]?)(?:([0-9]+)-([0-9]+)|([0-9]+)(-)|-([0-9]+)|([0-9]+))\$\$")
_TAG = re.compile(r"<([A-Za-z][A-Za-z0-9_-]*):")
_TAG_END = re.compile(r"[\\{>\r\n]")
_BRACKET_END = re.compile(r"[\\\[\]{}\r\n]")
_ARGUMENT = re.compile(r"\s*([^\W\d]\w*)\s*=(!?)")
_ARGUMENT_MARK = re.compile(r"[\\{(,]")


def parse(text: str, profile: Profile | str = Profile.NATIVE, *, comments: bool = True) -> Parsed:
    """Read a text into nodes whose spans tile it.

    Args:
        text: a template, or an item.
        profile: the dialect.
        comments: drop BOM and comment lines first (templates; items keep every line).
    """
    original, cuts, dropped = text, (), ()  # type: tuple[str, tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]
    is_peer = Profile(profile) is Profile.DYNAMICPROMPTS
    if comments and ("#" in text or text.startswith("\ufeff") or (is_peer and "/" in text)):
        text, cuts, dropped = scan.drop_comments(text, is_dynamicprompts=is_peer)
    if len(text) > MOST_CHARACTERS:
        finding = Finding(
            "limit",
            Severity.ERROR,
            f"the text has {len(text)} characters, the limit is {MOST_CHARACTERS}; it stays as written",
            None,
            0,
            len(text),
        )
        return Parsed(text, (Text(0, len(text), text),), (finding,), cuts, original, Profile(profile))
    reader = Reader(text, Profile(profile))
    with recursion_room():
        nodes = reader.read(0, len(text))
    findings = [*reader.findings, *_comment_hints(original, dropped, cuts)]
    findings.sort(key=lambda finding: finding.start)
    return Parsed(text, nodes, tuple(findings), cuts, original, reader.profile)


# A name beyond doubt (letters, digits, single underscores) in a text that holds nothing else of meaning.
_TEXT = r"[^\\{<\[$%_]*(?:_(?!_)[^\\{<\[$%_]*)*"
_NAME = r"[A-Za-z0-9][A-Za-z0-9./\- ]*(?:_(?!_)[A-Za-z0-9./\- ]*)*(?<![ _])"
match_lone_name = re.compile(rf"({_TEXT})__({_NAME})__((?!_){_TEXT})").fullmatch


def is_plain(text: str) -> bool:
    """Tell whether nothing in a text can be a construct, so that it needs no tree."""
    return _SIGN.search(text) is None or _SPECIAL.search(text) is None


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


class Reader:
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
        """Note a problem of the text."""
        if len(self.findings) < _MOST_FINDINGS:
            self.findings.append(Finding(code, severity, message, hint, start, end))

    def prompt(self, start: int, end: int) -> Prompt:
        """Read a range as a prompt."""
        return Prompt(start, end, self.read(start, end))

    def trimmed(self, start: int, end: int) -> tuple[int, int]:
        """Return the range without the blanks at its ends."""
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
                made = self.bracket(at, end) if self.native else ()
            elif sign == "{":
                made = self.brace(at)
            elif self.has_commands and self.close.get(at + 1, end) < end:
                made = parse_commands.variable(self, at) if sign == "$" else parse_commands.wrapper(self, at)
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
        """Read ``__name__``; nothing if no name stands there."""
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
        """Read ``name=value, …`` between parentheses; None if it is no such thing."""
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
        """Read ``[path]``; nothing if a brace, bracket, escape or line break comes before its end."""
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
            return (parse_picks.multi(self, at, close, bound),)
        tops = self.tops(at + 1, close)
        if tops.bars:
            return (parse_picks.variant(self, at, close, tops.bars),)
        if not self.native:
            inner = self.read(at + 1, close)
            return (Text(at, at + 1, ""), *inner, Text(close, close + 1, ""))
        grid = match_range(self.text[at + 1 : close]) if close - at <= 200 else None
        if grid:
            return (parse_picks.number(self, at, close + 1, grid),)
        return (self.reference(at, close, tops.colon),)

    def tops(self, start: int, end: int) -> scan.Tops:
        """Return the bars, colon and ``$$`` that count in a body."""
        return scan.find_tops(self.text, start, end, self.close, brackets_hide=self.native)

    def reference(self, at: int, close: int, colon: int | None) -> Node:
        """Read a body that is a name, a path or plain text; the library decides when it is expanded."""
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


def _joins(neighbour: str) -> bool:
    return neighbour == "_" or neighbour.isalnum()


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
