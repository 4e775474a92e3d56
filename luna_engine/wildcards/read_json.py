"""JSON to the same plain nodes as YAML: numbers keep their spelling, every node its place, no recursion."""

from __future__ import annotations

import bisect
import json
import re
from typing import NoReturn

from luna_engine.wildcards.diagnostics import Diagnostic, Severity
from luna_engine.wildcards.tree_events import MOST_DEPTH, Mapping, Raw, RawFile, RefusedFile, Scalar, Sequence

_TOKEN = re.compile(
    r'[ \t\r\n]*(?:([{}\[\],:])|("(?:[^"\\\x00-\x1f]|\\.)*")'
    r"|(-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null))"
)
_BLANKS = re.compile(r"[ \t\r\n]*")
_BLANK = re.compile(r"[ \t\r\n]*\Z")


def read_json(text: str, file: str) -> RawFile:
    """Read a JSON text.

    Raises:
        RefusedFile: it is no JSON (``yaml-syntax`` with the place), or nested too deep (``limit``).
    """
    if _BLANK.match(text):
        return RawFile([], [])
    return RawFile([_JsonReader(text, file).read()], [])


class _JsonReader:
    def __init__(self, text: str, file: str) -> None:
        self.text = text
        self.file = file
        self.at = 0
        self.lines = [0, *(found.end() for found in re.finditer(r"\r\n|\n|\r", text))]
        self.open: list[Sequence | Mapping] = []
        self.key: list[Scalar | None] = []

    def place(self, offset: int) -> tuple[int, int]:
        line = bisect.bisect_right(self.lines, offset) - 1
        return line, offset - self.lines[line]

    def refuse(self, message: str, code: str = "yaml-syntax", at: int | None = None) -> NoReturn:
        """Stop at an offset, or at the first character that is no blank behind what was read."""
        blank = _BLANKS.match(self.text, self.at)
        offset = at if at is not None else blank.end() if blank else self.at
        line, column = self.place(offset)
        hint = None if code == "limit" else "JSON needs double quotes, commas between entries and none at the end"
        raise RefusedFile(Diagnostic(code, Severity.ERROR, message, hint, self.file, line + 1, column + 1))

    def read(self) -> Raw:
        while True:
            done = self.value()
            while done is not None:
                if not self.open:
                    if not _BLANK.match(self.text, self.at):
                        self.refuse("text behind the end of the JSON value")
                    return done
                done = self.after(done)

    def value(self) -> Raw | None:
        """Read one value; None if it opened a collection that has entries."""
        sign, scalar = self.token()
        if scalar is not None:
            return scalar
        if sign not in {"{", "["}:
            self.refuse("expected a value", at=self.at - 1)
        start = self.at - 1
        line, column = self.place(start)
        if len(self.open) >= MOST_DEPTH:
            self.refuse(f"nested deeper than {MOST_DEPTH}", "limit", start)
        kind = Mapping if sign == "{" else Sequence
        made = kind(line, column, start, is_flow=True)
        found = _TOKEN.match(self.text, self.at)
        if found and found[1] == {"{": "}", "[": "]"}[sign]:
            self.at = made.end = found.end()
            return made
        self.open.append(made)
        self.key.append(None)
        if isinstance(made, Mapping):
            self.read_key()
        return None

    def after(self, done: Raw) -> Raw | None:
        """Put a finished value into its parent; return the parent if it ends there."""
        parent = self.open[-1]
        if isinstance(parent, Mapping):
            key = self.key[-1]
            if key is not None:
                parent.entries.append((key, done))
        else:
            parent.entries.append(done)
        sign, _ = self.token()
        if sign == ("}" if isinstance(parent, Mapping) else "]"):
            parent.end = self.at
            self.open.pop()
            self.key.pop()
            return parent
        if sign != ",":
            self.refuse("expected a comma or the end of the list", at=self.at - 1)
        if isinstance(parent, Mapping):
            self.read_key()
        return None

    def read_key(self) -> None:
        _, scalar = self.token()
        if scalar is None or not scalar.style:
            self.refuse("expected a key in double quotes")
        self.key[-1] = scalar
        if self.token()[0] != ":":
            self.refuse("expected a colon behind the key")

    def token(self) -> tuple[str, Scalar | None]:
        found = _TOKEN.match(self.text, self.at)
        if found is None:
            self.refuse("this is no JSON")
        self.at = found.end()
        if found[1]:
            return found[1], None
        group = 2 if found[2] else 3
        line, column = self.place(found.start(group))
        value = found[group]
        if group == 2:
            try:
                value = json.loads(value).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            except ValueError:
                self.at = found.start(group)
                self.refuse("an escape in this text is no JSON")
        style = '"' if group == 2 else ""
        return "", Scalar(value, line, column, line, found.start(group), found.end(group), style)
