"""YAML and JSON text to plain nodes with places. No object is constructed and no tag executed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import yaml

from luna_engine.wildcards.diagnostics import Diagnostic, Severity, TextFix

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_DEPTH = 100
_CORE_TAG = re.compile(r"tag:yaml\.org,2002:(str|int|float|bool|null|seq|map|merge)\Z|!\Z")


@dataclass(slots=True, eq=False)
class Scalar:
    """A scalar's source text. ``style`` is ``""`` for plain, a quote, ``|`` or ``>``. Places are 0-based here."""

    value: str
    line: int
    column: int
    end_line: int
    start: int
    end: int
    style: str = ""

    @property
    def is_absent(self) -> bool:
        """Nothing was written: a bare ``-`` or a key without value."""
        return not self.value and not self.style


@dataclass(slots=True, eq=False)
class Sequence:
    """A sequence; ``is_flow`` if it was written in brackets."""

    line: int
    column: int
    start: int
    is_flow: bool
    entries: list[Raw] = field(default_factory=list)
    end: int = 0


@dataclass(slots=True, eq=False)
class Mapping:
    """A map with its keys in order, duplicates included."""

    line: int
    column: int
    start: int
    is_flow: bool
    entries: list[tuple[Scalar, Raw]] = field(default_factory=list)
    end: int = 0


Raw = Scalar | Sequence | Mapping


class RefusedFile(Exception):  # noqa: N818 - a control-flow signal inside this package, not an error of the API
    """The file cannot be read; holds the diagnostic that says why and where."""

    def __init__(self, diagnostic: Diagnostic) -> None:
        super().__init__(diagnostic.message)
        self.diagnostic = diagnostic


@dataclass(slots=True)
class RawFile:
    """The documents of a file (several in one file count as one) and problems that did not stop the reader."""

    documents: list[Raw]
    diagnostics: list[Diagnostic]


def loader_class(*, pure: bool = False) -> Any:
    """Return libyaml's event loader, or the pure one where the wheel lacks libyaml (equal results, slower)."""
    return yaml.SafeLoader if pure or not yaml.__with_libyaml__ else yaml.CSafeLoader


def read_yaml(text: str, file: str, *, pure: bool = False) -> RawFile:
    """Read YAML events into nodes.

    Raises:
        RefusedFile: the parser stopped, or a limit was passed.
    """
    builder = _Builder(file, text)
    try:
        for event in _events(text, loader_class(pure=pure)):
            builder.take(event)
    except yaml.YAMLError as error:
        raise RefusedFile(_explain(error, text, file)) from error
    return RawFile(builder.documents, builder.diagnostics)


def _events(text: str, loader: Any) -> Iterator[Any]:
    """Yield the events of a stream, like yaml.parse but asking once for each instead of twice."""
    made = loader(text)
    try:
        event = None
        while type(event) is not yaml.StreamEndEvent:
            event = made.get_event()
            yield event
    finally:
        made.dispose()


class _Builder:
    """Puts events together; a stack of open collections instead of recursion."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.text = text
        self.documents: list[Raw] = []
        self.diagnostics: list[Diagnostic] = []
        self.anchors: dict[str, Raw] = {}
        self.open: list[tuple[Sequence | Mapping, bool]] = []
        self.keys: list[Scalar | None] = []

    def take(self, event: Any) -> None:
        if type(event) is yaml.ScalarEvent:
            self.add(self.scalar(event), event, dropped=event.tag is not None and self.is_foreign(event))
        elif isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            self.start(event)
        elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            self.finish(event)
        elif isinstance(event, yaml.AliasEvent):
            self.alias(event)
        elif isinstance(event, yaml.DocumentStartEvent):
            self.anchors.clear()

    def scalar(self, event: Any) -> Scalar:
        start, end = event.start_mark, event.end_mark
        style = event.style if event.style in {"'", '"', "|", ">"} else ""
        value = event.value
        if style in {"|", ">"} and value.endswith("\n"):
            value = value[:-1]
        return Scalar(value, start.line, start.column, end.line, start.index, end.index, style)

    def start(self, event: Any) -> None:
        mark = event.start_mark
        if len(self.open) >= MOST_DEPTH:
            self.refuse("limit", f"nested deeper than {MOST_DEPTH}", mark.line, mark.column)
        kind = Sequence if isinstance(event, yaml.SequenceStartEvent) else Mapping
        made = kind(mark.line, mark.column, mark.index, bool(event.flow_style))
        if event.anchor:
            self.anchors[event.anchor] = made
        self.open.append((made, self.is_foreign(event)))
        self.keys.append(None)

    def finish(self, event: Any) -> None:
        made, dropped = self.open.pop()
        self.keys.pop()
        made.end = event.end_mark.index
        self.add(made, None, dropped=dropped)

    def alias(self, event: Any) -> None:
        mark = event.start_mark
        found = self.anchors.get(event.anchor)
        if found is None:
            self.refuse("yaml-syntax", f"the alias *{event.anchor} names no anchor", mark.line, mark.column)
        if any(found is made for made, _ in self.open):
            self.refuse("yaml-syntax", f"the alias *{event.anchor} holds itself", mark.line, mark.column)
        self.add(found, None, dropped=False)

    def add(self, made: Raw, event: Any, *, dropped: bool) -> None:
        if event is not None and event.anchor:
            self.anchors[event.anchor] = made
        if not self.open:
            if not dropped:
                self.documents.append(made)
            return
        parent = self.open[-1][0]
        if isinstance(parent, Sequence):
            if not dropped:
                parent.entries.append(made)
            return
        key = self.keys[-1]
        if key is None:
            self.keys[-1] = self.as_key(made)
            return
        self.keys[-1] = None
        if not dropped and key.style != "complex":
            parent.entries.append((key, made))

    def as_key(self, made: Raw) -> Scalar:
        if isinstance(made, Scalar):
            return made
        self.report("yaml-syntax", "a key must be a single text", made.line, made.column)
        return Scalar("", made.line, made.column, made.line, made.start, made.end, "complex")

    def is_foreign(self, event: Any) -> bool:
        """Report an explicit tag outside YAML's core set; its node is dropped."""
        if event.tag is None or _CORE_TAG.match(event.tag):
            return False
        mark = event.start_mark
        self.report(
            "yaml-syntax",
            f"the tag {event.tag} is not understood; what it marks was left out",
            mark.line,
            mark.column,
            "put the item in quotes if it should begin with !",
        )
        return True

    def report(self, code: str, message: str, line: int, column: int, hint: str | None = None) -> None:
        if len(self.diagnostics) < 100:
            self.diagnostics.append(Diagnostic(code, Severity.ERROR, message, hint, self.file, line + 1, column + 1))

    def refuse(self, code: str, message: str, line: int, column: int) -> NoReturn:
        raise RefusedFile(Diagnostic(code, Severity.ERROR, message, None, self.file, line + 1, column + 1))


_SPECIAL_START = frozenset("{[@%*&!`\"'|>")
_PLAIN_WORDS = (
    ("found unexpected end of stream", "the quote opened here is never closed"),
    ("mapping values are not allowed", "a second colon makes this line a map inside a map"),
    ("could not find expected ':'", "a key without a colon"),
    ("did not find expected key", "a line does not fit the indentation or quoting above it"),
    ("did not find expected '-' indicator", "a line does not fit the list above it"),
    ("found undefined alias", "* at the start makes this an alias, and nothing has that name"),
    ("found character that cannot start any token", "this character cannot begin an unquoted item"),
)


def _explain(error: yaml.YAMLError, text: str, file: str) -> Diagnostic:
    """Turn the parser's complaint into plain words at its problem mark, with the likely cause and a fix."""
    mark = getattr(error, "problem_mark", None)
    context = getattr(error, "context_mark", None)
    problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or error)
    if "unexpected end of stream" in problem and context is not None:
        mark = context
    if mark is None:
        return Diagnostic("yaml-syntax", Severity.ERROR, *_of_reader(error, text, file))
    words = next((plain for part, plain in _PLAIN_WORDS if part in problem), problem)
    lines = re.split(r"\r\n|\n|\r", text)
    line = lines[mark.line] if mark.line < len(lines) else ""
    if line[mark.column : mark.column + 1] == "\t" or "\t" in line[: len(line) - len(line.lstrip())]:
        words = "a tab stands where YAML needs blanks"
    hint, fix = _likely_cause(lines, mark.line, words)
    column = min(mark.column, len(line))
    return Diagnostic("yaml-syntax", Severity.ERROR, words, hint, file, mark.line + 1, column + 1, fix=fix)


def _of_reader(
    error: yaml.YAMLError, text: str, file: str
) -> tuple[str, str | None, str | None, int | None, int | None]:
    position = getattr(error, "position", None)
    before = text[:position] if isinstance(position, int) else ""
    before = before.replace("\r\n", "\n").replace("\r", "\n")
    message = f"a character that YAML forbids: {getattr(error, 'reason', error)}"
    return message, "remove it", file, before.count("\n") + 1, len(before) - before.rfind("\n")


def _likely_cause(lines: list[str], at: int, words: str) -> tuple[str | None, TextFix | None]:
    """Look at the line of the problem and the one before it for what usually goes wrong."""
    for number in (at, at - 1):
        line = lines[number] if 0 <= number < len(lines) else ""
        indent = line[: len(line) - len(line.lstrip())]
        if "\t" in indent or "tab" in words:
            tabs = line.expandtabs(2)
            column = line.find("\t") + 1
            if not column:
                continue
            return "use blanks instead of the tab", TextFix(number + 1, 1, len(line) + 1, tabs)
        entry = re.match(r"(\s*-\s+)(\S.*?)\s*$", line)
        if entry and entry[2][0] in _SPECIAL_START and not _is_quoted(entry[2]):
            if entry[2][0] in "\"'" and entry[2].count(entry[2][0]) == 1:
                return f"add {entry[2][0]} at the end", TextFix(
                    number + 1, len(line.rstrip()) + 1, len(line.rstrip()) + 1, entry[2][0]
                )
            quoted = "'" + entry[2].replace("'", "''") + "'"
            return "put the item in quotes", TextFix(
                number + 1, len(entry[1]) + 1, len(entry[1]) + len(entry[2]) + 1, quoted
            )
    return "check the indentation and the quotes of this line and the one before it", None


def _is_quoted(text: str) -> bool:
    return len(text) > 1 and text[0] in "\"'" and text[-1] == text[0]
