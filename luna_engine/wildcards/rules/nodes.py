"""Reading the plain nodes of a rule file: entries, numbers and maps, each fault reported where it stands."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from luna_engine.wildcards.diagnostics import Diagnostic, Severity, did_you_mean, near_names
from luna_engine.wildcards.rules.records import Entry, Spot
from luna_engine.wildcards.tree_events import Mapping, Raw, Scalar, Sequence
from luna_engine.wildcards.weights import make_weight, read_weight

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_DECIMAL = re.compile(r"-?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)")
_RANGE = re.compile(r"([0-9]{1,4})(?:\s*-\s*([0-9]{1,4}))?")
_MOST_PROBLEMS = 200


@dataclass(slots=True)
class Problems:
    """The faults of one rule file."""

    file: str
    found: list[Diagnostic] = field(default_factory=list)

    def spot(self, node: Raw) -> Spot:
        """Return where a node stands."""
        return Spot(self.file, node.line + 1, node.column + 1)

    def report(self, node: Raw, message: str, hint: str | None = None, code: str = "rule-shape") -> None:
        """Report a part of the file that no rule uses."""
        if len(self.found) < _MOST_PROBLEMS:
            self.found.append(
                Diagnostic(code, Severity.WARNING, message, hint, self.file, node.line + 1, node.column + 1)
            )

    def unknown_key(self, key: Scalar, known: Iterable[str], what: str) -> None:
        """Report a key that means nothing here."""
        names = list(known)
        hint = did_you_mean(near_names(key.value, names)) or f"known here are {', '.join(names)}"
        self.report(key, f"{key.value}: is no part of {what}; it was left out", hint)

    def entries(self, node: Raw) -> tuple[Entry, ...]:
        """Return the texts of a list, or of one text split at commas, each with its weight."""
        made: list[Entry] = []
        for scalar in self.scalars(node):
            weight, start = read_weight(scalar.value) if "::" in scalar.value else (None, 0)
            if weight is not None and weight.problem:
                self.report(scalar, weight.problem, "write a positive number", "bad-weight")
            text = scalar.value[start:].strip()
            if text:
                made.append(Entry(text, None if weight is None else weight.micro, self.spot(scalar)))
        return tuple(made)

    def scalars(self, node: Raw) -> Iterator[Scalar]:
        """Yield the scalars of a list; a single text counts as a list split at commas."""
        if isinstance(node, Scalar):
            for part in node.value.split(","):
                if part.strip():
                    yield replace(node, value=part.strip())
        elif isinstance(node, Sequence):
            for entry in node.entries:
                if isinstance(entry, Scalar):
                    if not entry.is_absent:
                        yield entry
                else:
                    yield from self.scalars(entry)
        else:
            self.report(node, "a list of texts should stand here", "write [one, two]")

    def text(self, node: Raw, default: str = "") -> str:
        """Return a single text."""
        if isinstance(node, Scalar):
            return node.value.strip()
        self.report(node, "a single text should stand here")
        return default

    def decimal(self, node: Raw, default: float) -> float:
        """Return a number, signed."""
        if isinstance(node, Scalar) and _DECIMAL.fullmatch(node.value.strip()):
            return float(node.value)
        self.report(node, f"a number should stand here; {default:g} was taken", None, "bad-weight")
        return default

    def micro(self, node: Raw, default: int = 1_000_000) -> int:
        """Return a number of at least 0 in millionths, exactly."""
        if isinstance(node, Scalar) and _DECIMAL.fullmatch(node.value.strip()):
            weight = make_weight(node.value.strip())
            if weight.problem:
                self.report(node, weight.problem, "write a positive number", "bad-weight")
            return weight.micro
        self.report(node, f"a number should stand here; {default / 1_000_000:g} was taken", None, "bad-weight")
        return default

    def bounds(self, node: Raw) -> tuple[int, int]:
        """Return the bounds of a count: ``2``, ``1-2`` or ``[1, 2]``."""
        texts = [scalar.value for scalar in self.scalars(node)]
        found = _RANGE.fullmatch("-".join(texts)) if len(texts) <= 2 else None
        if found is None:
            self.report(node, "a count is a number or a pair such as [1, 2]; 1 was taken", None, "bad-range")
            return 1, 1
        low = int(found[1])
        high = int(found[2] or low)
        return min(low, high), max(low, high)

    def pairs(self, node: Mapping) -> list[tuple[Scalar, Raw]]:
        """Return the entries of a map, those merged with ``<<`` behind its own."""
        own = [(key, value) for key, value in node.entries if key.value != "<<" or key.style]
        names = {key.value for key, _ in own}
        for key, value in node.entries:
            if key.value == "<<" and not key.style and isinstance(value, Mapping):
                own += [pair for pair in self.pairs(value) if pair[0].value not in names]
        return own

    def fields(self, node: Mapping, known: Iterable[str], what: str) -> dict[str, Raw]:
        """Return the known keys of a map; others are reported, and of equal ones lists join."""
        made: dict[str, Raw] = {}
        names = tuple(known)
        for key, value in self.pairs(node):
            if key.value not in names:
                self.unknown_key(key, names, what)
            elif key.value in made:
                self.report(key, f"{key.value}: stands twice in this map", "join the two", "duplicate-key")
                made[key.value] = _joined(made[key.value], value)
            else:
                made[key.value] = value
        return made


def _joined(first: Raw, second: Raw) -> Raw:
    if isinstance(first, Sequence) and isinstance(second, Sequence):
        return replace(first, entries=[*first.entries, *second.entries])
    return second
