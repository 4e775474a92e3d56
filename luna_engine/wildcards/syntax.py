"""The syntax tree of a wildcard text. Spans are offsets into `Parsed.text`; sibling spans tile their parent.

Nodes say what was written, never what it means in a library: whether ``{harbor}`` names a file is decided when it
is expanded.
"""

from __future__ import annotations

import bisect
import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luna_engine.wildcards.diagnostics import Severity
    from luna_engine.wildcards.numbers import Grid


class Profile(enum.Enum):
    """Which dialect a text is read in; only the points of WILDCARDS section 2.4 differ."""

    NATIVE = "native"
    DYNAMICPROMPTS = "dynamicprompts"
    IMPACT = "impact"

    __hash__ = object.__hash__  # Enum's own is a Python function, and every expansion looks something up by it


class Sampler(enum.Enum):
    """How a site draws over a batch."""

    RANDOM = "~"
    CYCLE = "@"
    ENUMERATE = "!"


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight in millionths. ``problem`` says why the written one could not be used as it stands."""

    micro: int = 1_000_000
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem of the text itself, by offsets; the engine turns it into a Diagnostic with a place."""

    code: str
    severity: Severity
    message: str
    hint: str | None
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Text:
    """Characters that come out as ``value``; it differs from the source only where escapes stood."""

    start: int
    end: int
    value: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text with constructs that is expanded as a frame of its own: an option, value, branch or argument."""

    start: int
    end: int
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Tag:
    """``<word:prompt>``: passes through; braces and commands inside work."""

    start: int
    end: int
    word: str
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Number:
    """``{lo-hi:step}``. ``grid`` is None if it is beyond the limits."""

    start: int
    end: int
    grid: Grid | None


@dataclass(frozen=True, slots=True)
class Option:
    """One option; ``prompt`` is its text without the weight; ``quantity`` is the n of ``n#__name__``, else 1."""

    start: int
    end: int
    weight: Weight
    prompt: Prompt
    quantity: int = 1


@dataclass(frozen=True, slots=True)
class Variant:
    """``{a|b}``."""

    start: int
    end: int
    sampler: Sampler | None
    options: tuple[Option, ...]


@dataclass(frozen=True, slots=True)
class Multi:
    """``{n-m$$separator$$a|b}``. ``low`` or ``high`` is None where the bound is open."""

    start: int
    end: int
    sampler: Sampler | None
    low: int | None
    high: int | None
    separator: str
    options: tuple[Option, ...]


@dataclass(frozen=True, slots=True)
class Braces:
    """Any other brace body: a reference if the library knows it, else kept, else plain braces round ``nodes``.

    ``head`` is the text before the first top-level colon and ``tail`` the trimmed prompt behind it, None without a
    colon. ``tail_blank`` tells whether a blank followed the colon.
    """

    start: int
    end: int
    body: str
    nodes: tuple[Node, ...]
    head: str
    tail: Prompt | None
    tail_blank: bool


@dataclass(frozen=True, slots=True)
class Bracket:
    """``[path]``: a substitution where the place allows it and the path resolves, else text round ``nodes``."""

    start: int
    end: int
    path: str
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Argument:
    """``ident=prompt`` of a wildcard, drawn at once with ``=!``."""

    name: str
    eager: bool
    value: Prompt


@dataclass(frozen=True, slots=True)
class Wildcard:
    """``__name__``, perhaps with a sampler and arguments."""

    start: int
    end: int
    sampler: Sampler | None
    name: str
    arguments: tuple[Argument, ...]
    in_tag: bool


@dataclass(frozen=True, slots=True)
class Variable:
    """``${name}`` or ``${name:default}``."""

    start: int
    end: int
    name: str
    default: Prompt | None


@dataclass(frozen=True, slots=True)
class Binding:
    """``${name=value}`` and its eager (``=!``) and only-if-unset (``?=``) forms; prints nothing."""

    start: int
    end: int
    name: str
    eager: bool
    only_if_unset: bool
    value: Prompt


@dataclass(frozen=True, slots=True)
class Conditional:
    """``${if condition: then | otherwise}``; both branches trimmed."""

    start: int
    end: int
    condition: str
    then: Prompt
    otherwise: Prompt | None


@dataclass(frozen=True, slots=True)
class Wrapper:
    """``%{outer ... outer$$inner}``."""

    start: int
    end: int
    outer: Prompt
    inner: Prompt


@dataclass(frozen=True, slots=True)
class Kept:
    """A construct that cannot be evaluated: comes out as written; its finding says why."""

    start: int
    end: int


Node = (
    Text
    | Tag
    | Number
    | Variant
    | Multi
    | Braces
    | Bracket
    | Wildcard
    | Variable
    | Binding
    | Conditional
    | Wrapper
    | Kept
)


@dataclass(frozen=True, slots=True)
class Parsed:
    """A text that was read: what is left of it after BOM and comment lines, its nodes, its problems.

    ``cuts`` holds (offset in ``text``, offset in the original) pairs where something was dropped before. ``profile``
    is the dialect that names in it are looked up by.
    """

    text: str
    nodes: tuple[Node, ...]
    findings: tuple[Finding, ...] = ()
    cuts: tuple[tuple[int, int], ...] = ()
    original: str = field(default="", repr=False)
    profile: Profile = Profile.NATIVE

    def source_offset(self, offset: int) -> int:
        """Return the offset in the original text for one in ``text``."""
        place = bisect.bisect_right(self.cuts, (offset, len(self.original) + 1)) - 1
        if place < 0:
            return offset
        at, original = self.cuts[place]
        return original + offset - at

    def line_column(self, offset: int) -> tuple[int, int]:
        """Return the 1-based line and column, in characters of the original, for an offset in ``text``."""
        before = self.original[: self.source_offset(offset)]
        before = before.replace("\r\n", "\n").replace("\r", "\n")
        return before.count("\n") + 1, len(before) - before.rfind("\n")


def children(node: Node) -> tuple[Node, ...]:
    """Return the nodes directly inside a node, in reading order (prompts opened)."""
    if isinstance(node, (Tag, Bracket, Braces)):
        return node.nodes
    if isinstance(node, (Variant, Multi)):
        return tuple(child for option in node.options for child in option.prompt.nodes)
    prompts: tuple[Prompt | None, ...] = ()
    if isinstance(node, Wildcard):
        prompts = tuple(argument.value for argument in node.arguments)
    elif isinstance(node, Variable):
        prompts = (node.default,)
    elif isinstance(node, Binding):
        prompts = (node.value,)
    elif isinstance(node, Conditional):
        prompts = (node.then, node.otherwise)
    elif isinstance(node, Wrapper):
        prompts = (node.outer, node.inner)
    return tuple(child for prompt in prompts if prompt is not None for child in prompt.nodes)
