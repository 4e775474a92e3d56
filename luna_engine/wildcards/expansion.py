"""What an expansion gives: the text and where every word of it came from."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from luna_engine.wildcards.linking import LinkKey

if TYPE_CHECKING:
    from luna_engine.wildcards.diagnostics import Diagnostic
    from luna_engine.wildcards.rules.links import Links


class ChoiceKind(enum.Enum):
    """What was chosen."""

    ITEM = "item"
    TEMPLATE = "template"
    OPTION = "option"
    NUMBER = "number"
    VARIABLE = "variable"
    RULE = "rule"


@dataclass(frozen=True, slots=True)
class Choice:
    """One draw. ``span`` is [start, end) in the output of ``part``, None if it printed nothing there."""

    kind: ChoiceKind
    value: str
    written: str
    part: str = ""
    file: str | None = None
    line: int | None = None
    column: int | None = None
    address: str | None = None
    item_id: str | None = None
    tags: tuple[str, ...] = ()
    payload: Any = None
    extra: Mapping[str, Any] | None = None
    weight: float = 1.0
    probability: float = 1.0
    pool_size: int = 1
    parent: int | None = None
    span: tuple[int, int] | None = None
    site_span: tuple[int, int] = (0, 0)
    site_text: str = ""
    site: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the record of the nodes' ``choices`` output."""
        return {
            "kind": self.kind.value,
            "reference": self.site_text,
            "path": self.address,
            "file": self.file,
            "line": self.line,
            "column": self.column,
            "text": self.value,
            "written": self.written,
            "weight": self.weight,
            "probability": self.probability,
            "tags": list(self.tags),
            "id": self.item_id,
            "parent": self.parent,
            "part": self.part,
            "span": list(self.span) if self.span else None,
        }


@dataclass(frozen=True, slots=True)
class LoraTag:
    """A ``<lora:…>`` tag of the finished text. Strengths are None where the tag does not give a number."""

    name: str
    model_weight: float | None
    clip_weight: float | None
    extra: tuple[tuple[str, str], ...]
    part: str
    span: tuple[int, int]
    choice: int | None


@dataclass(frozen=True, slots=True)
class EmbeddingRef:
    """An ``embedding:name`` of the finished text."""

    name: str
    weight: float | None
    part: str
    span: tuple[int, int]
    choice: int | None


_LORA = re.compile(r"<(?:lora|lyco):([^<>:\r\n]+)((?::[^<>:\r\n]*)*)>", re.IGNORECASE)
_EMBEDDING = re.compile(r"(?<![\w])embedding:([\w\-./\\]*\w)(?::([0-9]+(?:\.[0-9]+)?))?")
_STRENGTH = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")


class Expansion:
    """A finished text, not to be changed. ``parts`` holds the text of every part, ``""`` being the main one.

    No frozen dataclass: setting its fields would take a tenth of the time of a whole expansion. ``choices`` may be
    given as a function that tells them; it is called when somebody looks. ``links`` are the LoRAs and embeddings
    that rules call for, None where no rules were asked for.
    """

    __slots__ = (
        "_choices",
        "diagnostics",
        "index",
        "links",
        "make_fingerprint",
        "parts",
        "seed",
        "text",
        "variables",
    )

    def __init__(
        self,
        text: str,
        parts: Mapping[str, str],
        seed: int,
        index: int,
        choices: tuple[Choice, ...] | Callable[[], tuple[Choice, ...]],
        diagnostics: tuple[Diagnostic, ...],
        variables: Mapping[str, str],
        make_fingerprint: Callable[[], str],
        links: Links | None = None,
    ) -> None:
        self.text = text
        self.parts = parts
        self.seed = seed
        self.index = index
        self._choices = choices
        self.diagnostics = diagnostics
        self.variables = variables
        self.make_fingerprint = make_fingerprint
        self.links = links

    def __repr__(self) -> str:
        return f"Expansion({self.text!r}, seed={self.seed}, index={self.index}, {len(self.choices)} choices)"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Expansion):
            return NotImplemented
        mine = (self.seed, self.index, self.parts, self.diagnostics, self.variables, self.links, self.choices)
        return mine == (
            other.seed,
            other.index,
            other.parts,
            other.diagnostics,
            other.variables,
            other.links,
            other.choices,
        )

    __hash__ = None  # type: ignore[assignment]  # it holds dicts, as before

    @property
    def choices(self) -> tuple[Choice, ...]:
        """Every draw in reading order, a parent before what it holds."""
        if not isinstance(self._choices, tuple):
            self._choices = self._choices()
        return self._choices

    @property
    def fingerprint(self) -> str:
        """Digest of template, seed, options and every file reachable from the template."""
        return self.make_fingerprint()

    @property
    def loras(self) -> tuple[LoraTag, ...]:
        """The ``<lora:…>`` tags of the text, in reading order; they stay in the text."""
        return tuple(self._lora(part, found) for part, text in self.parts.items() for found in _LORA.finditer(text))

    @property
    def embeddings(self) -> tuple[EmbeddingRef, ...]:
        """The ``embedding:name`` references of the text, in reading order."""
        return tuple(
            EmbeddingRef(
                found[1],
                float(found[2]) if found[2] else None,
                part,
                found.span(),
                self._owner(part, found.span()),
            )
            for part, text in self.parts.items()
            for found in _EMBEDDING.finditer(text)
        )

    def _lora(self, part: str, found: re.Match[str]) -> LoraTag:
        strengths: list[float] = []
        extra: list[tuple[str, str]] = []
        for field_text in found[2].split(":")[1:]:
            if _STRENGTH.fullmatch(field_text.strip()) and len(strengths) < 2:
                strengths.append(float(field_text))
            else:
                name, _, value = field_text.partition("=")
                extra.append((name, value))
        model = strengths[0] if strengths else None
        clip = strengths[1] if len(strengths) > 1 else model
        return LoraTag(found[1], model, clip, tuple(extra), part, found.span(), self._owner(part, found.span()))

    def _owner(self, part: str, span: tuple[int, int]) -> int | None:
        """Return the innermost choice whose span overlaps."""
        owner: int | None = None
        for number, choice in enumerate(self.choices):
            if choice.part == part and choice.span and choice.span[0] < span[1] and span[0] < choice.span[1]:
                inside = choice.span[0] <= span[0] and span[1] <= choice.span[1]
                if inside or owner is None:
                    owner = number
        return owner

    def link_keys(self) -> tuple[LinkKey, ...]:
        """Return one record per item drawn, nested ones included."""
        return tuple(
            LinkKey(choice.address, choice.item_id, choice.value, choice.tags, number, choice.written)
            for number, choice in enumerate(self.choices)
            if choice.address is not None
        )

    def choices_json(self) -> list[dict[str, Any]]:
        """Return the nodes' ``choices`` output."""
        return [choice.as_dict() for choice in self.choices]

    def as_dict(self) -> dict[str, Any]:
        """Return the record of ``luna wildcards expand --json``; ``links`` only where rules were asked for."""
        links = {} if self.links is None else {"links": self.links.as_dict()}
        return {
            **links,
            "text": self.text,
            "parts": dict(self.parts),
            "seed": self.seed,
            "index": self.index,
            "choices": self.choices_json(),
            "loras": [
                {
                    "name": lora.name,
                    "model_weight": lora.model_weight,
                    "clip_weight": lora.clip_weight,
                    "extra": dict(lora.extra),
                    "part": lora.part,
                    "span": list(lora.span),
                    "choice": lora.choice,
                }
                for lora in self.loras
            ],
            "embeddings": [
                {
                    "name": found.name,
                    "weight": found.weight,
                    "part": found.part,
                    "span": list(found.span),
                    "choice": found.choice,
                }
                for found in self.embeddings
            ],
            "diagnostics": [diagnostic.as_dict() for diagnostic in self.diagnostics],
        }


@dataclass(frozen=True, slots=True)
class Batch(Sequence[Expansion]):
    """The results of a batch. ``distinct_total`` is the number of distinct texts if it became known."""

    results: tuple[Expansion, ...]
    diagnostics: tuple[Diagnostic, ...] = ()
    distinct_total: int | None = None

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each result: ``expand(template, seed, index=…)`` gives it again."""
        return tuple(result.seed for result in self.results)

    def __len__(self) -> int:
        return len(self.results)

    @overload
    def __getitem__(self, index: int) -> Expansion: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Expansion, ...]: ...
    def __getitem__(self, index: int | slice) -> Expansion | tuple[Expansion, ...]:
        return self.results[index]

    def __iter__(self) -> Iterator[Expansion]:
        return iter(self.results)
