"""One expansion: walks the tree of a template, draws at each site, and records every draw. One use per object."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luna_engine.wildcards import commands, picks
from luna_engine.wildcards.diagnostics import Diagnostic, Severity
from luna_engine.wildcards.expansion import Choice, ChoiceKind
from luna_engine.wildcards.model import TEMPLATES, Document, Kind
from luna_engine.wildcards.parser import is_plain
from luna_engine.wildcards.references import Meaning, Trouble, read_braces, read_bracket, read_name
from luna_engine.wildcards.seeds import child_key, frame_key, reroll_key, site_key
from luna_engine.wildcards.syntax import (
    Binding,
    Braces,
    Bracket,
    Conditional,
    Kept,
    Multi,
    Node,
    Number,
    Parsed,
    Prompt,
    Sampler,
    Tag,
    Text,
    Variable,
    Variant,
    Wildcard,
    Wrapper,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from luna_engine.wildcards.chooser import Chooser, Odometer
    from luna_engine.wildcards.lookup import Target
    from luna_engine.wildcards.model import Item
    from luna_engine.wildcards.pools import Pool
    from luna_engine.wildcards.snapshot import Snapshot

MOST_FRAMES = 200
MOST_DRAWS = 100_000
MOST_OUTPUT = 1_000_000
MOST_SECONDS = 2.0
_MOST_DIAGNOSTICS = 200
_DROPPABLE = frozenset({"unknown-ref", "empty", "path-escape"})


@dataclass(slots=True)
class Frame:
    """One text being expanded. ``document`` is the file whose keys it sees, ``item`` where its places are."""

    parsed: Parsed
    key: int
    document: Document | None = None
    item: Item | None = None
    parent: int | None = None
    site: str = ""
    seen: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Site:
    """A construct in a frame."""

    text: str
    key: int
    name: str


@dataclass(slots=True)
class Draft:
    """A choice being made."""

    kind: ChoiceKind
    written: str
    part: str
    parent: int | None
    start: int | None
    first_piece: int
    site_span: tuple[int, int]
    site: Site
    weight: float
    probability: float
    pool_size: int
    item: Item | None = None
    value: str = ""
    end: int = 0

    def freeze(self) -> Choice:
        """Return the finished choice."""
        item = self.item
        owner = item.owner if item is not None else None
        facts: dict[str, Any] = {}
        if item is not None and owner is not None:
            facts = {
                "file": owner.document.path,
                "line": item.line,
                "column": item.column,
                "address": owner.address,
                "item_id": item.item_id,
                "tags": item.tags,
                "payload": item.payload,
                "extra": item.extra,
            }
        return Choice(
            self.kind,
            self.value,
            self.written,
            self.part,
            weight=self.weight,
            probability=self.probability,
            pool_size=self.pool_size,
            parent=self.parent,
            span=None if self.start is None else (self.start, self.end),
            site_span=self.site_span,
            site_text=self.site.text,
            site=self.site.name,
            **facts,
        )


class Pieces:
    """Text being put together; knows its length."""

    __slots__ = ("length", "pieces")

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.length = 0

    def write(self, text: str) -> None:
        """Add text."""
        self.pieces.append(text)
        self.length += len(text)

    def text(self, first: int = 0) -> str:
        """Return the text, or what came from piece ``first`` on."""
        return "".join(self.pieces[first:])


@dataclass(frozen=True, slots=True)
class DrawOptions:
    """What a caller may change about an expansion."""

    missing: str = "keep"
    pins: Mapping[str, str] = field(default_factory=dict)
    reroll: Mapping[str, int] = field(default_factory=dict)
    seconds: float = MOST_SECONDS


class Run:
    """The state of one expansion; `part` expands one part after the other with shared variables."""

    def __init__(
        self,
        snapshot: Snapshot,
        seed: int,
        index: int,
        chooser: Chooser,
        options: DrawOptions,
        variables: Mapping[str, str],
        odometer: Odometer,
    ) -> None:
        self.snapshot = snapshot
        self.seed = seed
        self.index = index
        self.chooser = chooser
        self.odometer = odometer
        self.options = options
        self.variables: dict[str, commands.Value] = {name: commands.Value(text) for name, text in variables.items()}
        self.out = Pieces()
        self.drafts: list[Draft] = []
        self.diagnostics: dict[tuple[object, ...], Diagnostic] = {}
        self.touched: dict[tuple[int, str], None] = {}
        self.active: list[Item] = []
        self.active_variables: list[str] = []
        self.part_name = ""
        self.in_tag = 0
        self.is_hidden = False
        self.is_stopped = False
        self.depth = 0
        self.draws = 0
        self.deadline = time.monotonic() + options.seconds

    def part(self, name: str, parsed: Parsed) -> str:
        """Expand one part of the prompt and return its text."""
        self.part_name = name
        self.out = Pieces()
        frame = Frame(parsed, frame_key(name, self.seed), site=name and f"{name}:")
        self.report_findings(frame)
        self.nodes(parsed.nodes, frame)
        return self.out.text()

    def nodes(self, nodes: tuple[Node, ...], frame: Frame) -> None:
        """Expand nodes one after the other into the output."""
        for node in nodes:
            if type(node) is Text:
                self.out.write(node.value)
            elif self.is_stopped:
                self.keep(node, frame)
            else:
                _HANDLERS[type(node)](self, node, frame)

    def keep(self, node: Node, frame: Frame) -> None:
        """Print a construct as written."""
        self.out.write(frame.parsed.text[node.start : node.end])

    def site(self, node: Node, frame: Frame) -> Site:
        """Return the site of a construct: its text, key and stable name."""
        text = frame.parsed.text[node.start : node.end]
        if "\r" in text:
            text = text.replace("\r\n", "\n")
        occurrence = frame.seen.get(text, 0)
        frame.seen[text] = occurrence + 1
        name = f"{text} #{occurrence + 1}" if occurrence else text
        if frame.site:
            name = f"{frame.site} {name}"
        key = site_key(frame.key, text, occurrence)
        times = self.options.reroll.get(name, 0) if self.options.reroll else 0
        return Site(text, reroll_key(key, times), name)

    def spend(self, node: Node, frame: Frame) -> bool:
        """Count a draw; False (and the construct kept) if a limit is reached."""
        self.draws += 1
        limit = None
        if self.draws > MOST_DRAWS:
            limit = f"more than {MOST_DRAWS} draws"
        elif self.out.length > MOST_OUTPUT:
            limit = f"more than {MOST_OUTPUT} characters"
        elif not self.draws % 64 and time.monotonic() > self.deadline:
            limit = f"more than {self.options.seconds:g} s"
        if limit is None:
            return True
        self.is_stopped = True
        self.report(frame, node, Trouble("limit", f"{limit}; the rest stays as written", None))
        self.keep(node, frame)
        return False

    def enter(self, node: Node, frame: Frame) -> bool:
        """Open a frame; False (and the construct kept) if too many are open."""
        if self.depth >= MOST_FRAMES:
            message = f"texts nested deeper than {MOST_FRAMES}; this stays as written"
            self.report(frame, node, Trouble("limit", message, self.chain()))
            self.keep(node, frame)
            return False
        self.depth += 1
        return True

    def begin(
        self,
        kind: ChoiceKind,
        written: str,
        node: Node,
        frame: Frame,
        site: Site,
        *,
        weight: float = 1.0,
        share: float = 1.0,
        size: int = 1,
        item: Item | None = None,
    ) -> int:
        """Record a choice before what it holds; returns its number."""
        self.drafts.append(
            Draft(
                kind,
                written,
                self.part_name,
                frame.parent,
                None if self.is_hidden else self.out.length,
                len(self.out.pieces),
                (node.start, node.end),
                site,
                weight,
                share,
                size,
                item,
            )
        )
        return len(self.drafts) - 1

    def finish(self, number: int) -> str:
        """Close a choice; returns its text."""
        draft = self.drafts[number]
        draft.value = self.out.text(draft.first_piece)
        draft.end = self.out.length
        return draft.value

    def prompt(
        self,
        prompt: Prompt,
        node: Node,
        frame: Frame,
        key: int,
        site: str,
        *,
        parent: int | None = None,
        document: Document | None = None,
        home: Frame | None = None,
    ) -> None:
        """Expand a prompt as a frame of its own.

        Args:
            prompt: what to expand.
            node: the construct that asked for it, in ``frame``.
            frame: the frame the construct stands in.
            key: F of the new frame.
            site: the name of the site.
            parent: the choice that holds it; None for that of ``frame``.
            document: whose keys it sees; None for that of ``home``.
            home: the frame whose text holds the prompt, if that is not ``frame``.
        """
        if not self.enter(node, frame):
            return
        home = home or frame
        inner = Frame(
            home.parsed,
            key,
            document or home.document,
            home.item,
            frame.parent if parent is None else parent,
            site,
        )
        self.nodes(prompt.nodes, inner)
        self.depth -= 1

    def draw(
        self, pool: Pool, node: Node, frame: Frame, site: Site, sampler: Sampler | None = None, what: str = ""
    ) -> None:
        """Draw one item of a pool and expand it."""
        candidates = pool.without(self.active) if self.active else pool
        if not candidates.items:
            self.report_empty(pool, node, frame, what)
            return
        if not self.spend(node, frame):
            return
        size = len(candidates.items)
        pinned = self.options.pins.get(site.name) if self.options.pins else None
        if pinned is not None:
            at = next((at for at, item in enumerate(candidates.items) if item.text == pinned), None)
            if at is None:
                number = self.begin(ChoiceKind.OPTION, pinned, node, frame, site)
                self.out.write(pinned)
                self.finish(number)
                return
        elif sampler is Sampler.CYCLE and not self.chooser.walks:
            at = self.index % size
        elif sampler is Sampler.ENUMERATE and not self.chooser.walks:
            at = self.odometer.take(size)
        else:
            ticket = self.chooser.ticket(site.key, candidates.total, 0)
            at = candidates.at(ticket) if ticket is not None else self.chooser.number(site.key, size, 0, sampler)
        item = candidates.items[at]
        share = candidates.weight(at) / candidates.total
        self.item(item, node, frame, site, child_key(site.key, item.text), share, size, site.name)

    def item(
        self, item: Item, node: Node, frame: Frame, site: Site, key: int, share: float, size: int, name: str
    ) -> None:
        """Expand a drawn item."""
        if not self.enter(node, frame):
            return
        owner = item.owner
        document = owner.document if owner is not None else None
        is_template = owner is not None and owner.keys[:1] == (TEMPLATES,)
        kind = ChoiceKind.TEMPLATE if is_template else ChoiceKind.ITEM
        number = self.begin(
            kind,
            item.text,
            node,
            frame,
            site,
            weight=item.weight.micro / 1_000_000,
            share=share,
            size=size,
            item=item,
        )
        if item.parsed is None and is_plain(item.text):
            self.out.write(item.text)
        else:
            parsed = item.parsed or self.snapshot.parse_item(item)
            inner = Frame(parsed, key, document, item, number, name)
            self.report_findings(inner)
            self.active.append(item)
            self.nodes(parsed.nodes, inner)
            self.active.pop()
        self.finish(number)
        self.depth -= 1

    def draw_target(
        self,
        target: Target,
        node: Node,
        frame: Frame,
        site: Site,
        sampler: Sampler | None = None,
        *,
        templates: bool = False,
    ) -> None:
        """Draw from what a name stands for."""
        if target.document is not None:
            self.touch(target.document)
        if target.item is not None:
            if any(item is target.item for item in self.active):
                self.report(frame, node, Trouble("cycle", "this item needs itself", self.chain()))
                self.keep(node, frame)
            elif self.spend(node, frame):
                key = child_key(site.key, target.item.text)
                self.item(target.item, node, frame, site, key, 1.0, 1, site.name)
            return
        if target.folder is not None:
            for document in self.snapshot.index.below_folder(target.folder):
                if document.is_read and document.content.diagnostics:
                    self.touch(document)
        pool = self.snapshot.pool(target, templates=templates)
        self.draw(pool, node, frame, site, sampler, target.address)

    def touch(self, document: Document) -> None:
        """Remember a file whose load problems travel with the result."""
        self.touched[(document.root, document.path)] = None

    def report_empty(self, pool: Pool, node: Node, frame: Frame, what: str) -> None:
        """Report a pool without candidates, and keep the construct."""
        if pool.items:
            trouble = Trouble("cycle", "every candidate is already being expanded", self.chain())
        elif pool.held:
            trouble = Trouble("bad-weight", f"{what} has no item of positive weight", "give one a weight above 0")
        elif self.is_broken():
            trouble = None
        else:
            trouble = Trouble("empty", f"{what} holds nothing to draw", "add an item")
        self.fail(trouble, node, frame)

    def is_broken(self) -> bool:
        """Tell whether the file touched last could not be read, which explains an empty pool."""
        if not self.touched:
            return False
        document = self.snapshot.document(*next(reversed(self.touched)))
        return document is not None and any(
            problem.severity is Severity.ERROR for problem in document.content.diagnostics
        )

    def fail(self, trouble: Trouble | None, node: Node, frame: Frame) -> None:
        """Report, then keep the construct, or drop it if the caller asked for that."""
        if trouble is not None:
            self.report(frame, node, trouble)
        if self.options.missing != "drop" or (trouble is not None and trouble.code not in _DROPPABLE):
            self.keep(node, frame)

    def chain(self) -> str | None:
        """Return the items being expanded, link by link, each with its file and line."""
        links = [f"{item.owner.document.path}:{item.line}" for item in self.active[-12:] if item.owner is not None]
        return f"through {' -> '.join(links)}" if links else None

    def report(self, frame: Frame, node: Node, trouble: Trouble) -> None:
        """Report a problem at a construct; inside a tag an unknown name is a hint."""
        severity = trouble.severity
        if self.in_tag and trouble.code == "unknown-ref":
            severity = Severity.HINT
        self.add(frame, trouble.code, severity, trouble.message, trouble.hint, node.start, node.end)

    def report_findings(self, frame: Frame) -> None:
        """Report the problems of the frame's own text."""
        for finding in frame.parsed.findings:
            self.add(
                frame,
                finding.code,
                finding.severity,
                finding.message,
                finding.hint,
                finding.start,
                finding.end,
            )

    def add(
        self,
        frame: Frame,
        code: str,
        severity: Severity,
        message: str,
        hint: str | None,
        start: int,
        end: int,
    ) -> None:
        """Add a diagnostic, once, with its place."""
        if len(self.diagnostics) >= _MOST_DIAGNOSTICS:
            return
        file, (line, column), (end_line, end_column) = place_of(frame.parsed, frame.item, start, end)
        key = (code, file, line, column, message)
        if key not in self.diagnostics:
            self.diagnostics[key] = Diagnostic(code, severity, message, hint, file, line, column, end_line, end_column)

    def note_limit(self, message: str) -> None:
        """Report a limit that has no single place."""
        self.diagnostics["limit", message] = Diagnostic("limit", Severity.WARNING, message)

    def choices(self) -> tuple[Choice, ...]:
        """Return the choices made, a parent before what it holds."""
        return tuple(draft.freeze() for draft in self.drafts)


def place_of(
    parsed: Parsed, item: Item | None, start: int, end: int
) -> tuple[str | None, tuple[int, int], tuple[int, int]]:
    """Return file, start and end (line, column) of a span: exact in templates and one-line items."""
    if item is None:
        return None, parsed.line_column(start), parsed.line_column(end)
    file = item.owner.document.path if item.owner is not None else None
    if item.text_column is None:
        return file, (item.line, item.column), (item.line, item.column)
    return file, (item.line, item.text_column + start), (item.line, item.text_column + end)


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
        if run.options.missing != "drop" or codes.isdisjoint(_DROPPABLE):
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
    target, troubles = read_name(node.name, run.snapshot, frame.document)
    for trouble in troubles:
        if target is not None:
            run.report(frame, node, trouble)
        else:
            run.fail(trouble, node, frame)
    if target is not None:
        site = run.site(node, frame)
        with commands.arguments(run, node, frame, site):
            run.draw_target(target, node, frame, site, node.sampler)


def _kept(run: Run, node: Kept, frame: Frame) -> None:
    run.keep(node, frame)


_HANDLERS: dict[type[Any], Callable[[Run, Any, Frame], None]] = {
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
