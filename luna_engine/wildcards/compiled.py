"""The quick way through an expansion: common constructs compiled to closures, draws noted in a trace.

A program covers text, tags, variants, multi-picks, numbers, references and inline templates whose meaning is clear.
Anything else (commands, samplers, diagnostics, cycles, limits) raises `Uncompiled`, and `drawing.Run`, the reference
that every program must agree with to the last character and choice, does the work instead.
"""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING, Any

from luna_engine.wildcards.expansion import ChoiceKind
from luna_engine.wildcards.lines import Lines
from luna_engine.wildcards.model import Kind
from luna_engine.wildcards.parser import is_plain, match_lone_name
from luna_engine.wildcards.picks import distinct, lone_part
from luna_engine.wildcards.pools import running_sums
from luna_engine.wildcards.recursion import recursion_room
from luna_engine.wildcards.references import (
    leaves_library,
    pool_of_reference,
    read_braces,
    read_bracket,
    read_name,
)
from luna_engine.wildcards.seeds import GOLDEN, MASK, below, frame_key, text_key
from luna_engine.wildcards.syntax import Braces, Bracket, Multi, Number, Option, Profile, Tag, Text, Variant, Wildcard
from luna_engine.wildcards.traces import Site, Source, Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from luna_engine.wildcards.lookup import Target
    from luna_engine.wildcards.model import Document, Item
    from luna_engine.wildcards.pools import Pool
    from luna_engine.wildcards.snapshot import Snapshot
    from luna_engine.wildcards.syntax import Node, Parsed, Prompt

    Program = tuple["str | Site", ...]
    Entry = tuple[str, int, "Program | None"]  # a candidate's text, its h, and its program if it is more than text
    Entries = Callable[[int], Entry]

MOST_OPEN = 40
MOST_TRACE = 5_000
MOST_ITEM = 10_000
MOST_TEXT = 1_000_000
_MOST_WEIGHT = 1 << 32
_A, _B = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


class Uncompiled(Exception):  # noqa: N818 - a control-flow signal inside this package, not an error of the API
    """This text, or this draw, needs the long way."""


class Compiler:
    """Compiles texts over one snapshot; programs and the candidates of each pool are kept and shared."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._templates: dict[tuple[str, object], Program | None] = {}
        self._pools: dict[int, Source] = {}

    def expand(
        self, parts: Mapping[str, str], seed: int, profile: Any
    ) -> tuple[dict[str, str], tuple[Trace, ...]] | None:
        """Return the text and the trace of each part, None if the expansion needs the long way."""
        texts: dict[str, str] = {}
        traces: list[Trace] = []
        for name, source in parts.items():
            try:
                program = self._templates[source, profile]
            except KeyError:
                program = self._template(source, profile)
            if program is None:
                return None
            out: list[str] = []
            entries: list[Any] = []
            try:
                _run(program, frame_key(name, seed), out, entries, -1, [])
            except (Uncompiled, RecursionError):
                return None
            texts[name] = text = "".join(out)
            if len(entries) > MOST_TRACE or len(text) > MOST_TEXT:
                return None
            traces.append(Trace(name, out, entries))
        return texts, tuple(traces)

    def _template(self, text: str, profile: Any) -> Program | None:
        try:
            if self._snapshot.weight_groups is not None:
                raise Uncompiled  # a group's say in a pick is a choice of its own
            with recursion_room():
                found: Program | None = self._text(self._snapshot.template(text, Profile(profile)), None)
        except Uncompiled:
            found = None
        if len(self._templates) > 2_000:
            self._templates.clear()
        self._templates[text, profile] = found
        return found

    def _text(self, parsed: Parsed, document: Document | None) -> Program:
        if parsed.findings:
            raise Uncompiled
        return _Frame(self, self._snapshot, parsed, document).program(parsed.nodes)

    def entry(self, items: Sequence[Item], at: int) -> Entry:
        """Return a candidate of a list; of a txt file no item is made for it."""
        if isinstance(items, Lines):
            text, document = items.text(at), items.document  # type: str, Document | None
        else:
            item = items[at]
            text, document = item.text, item.owner.document if item.owner is not None else None
        if len(text) > MOST_ITEM:
            raise Uncompiled
        if is_plain(text):
            return text, 0, None
        program = self._lone_reference(text, document)
        if program is None:
            program = self._text(self._snapshot.parse_item(items[at]), document)
        if len(program) == 1 and isinstance(program[0], str):
            return program[0], 0, None
        return text, text_key(text), program

    def _lone_reference(self, text: str, document: Document | None) -> Program | None:
        """Compile ``words __name__ words``, which most items with a reference are, without a tree."""
        found = match_lone_name(text)
        if found is None or document is None:
            return None
        if self._snapshot.roots[document.root].profile is not Profile.NATIVE:
            return None
        before, name, behind = found.groups()
        resolved = self._snapshot.index.resolve(name, document)
        if resolved is None or resolved.others or leaves_library(name):
            raise Uncompiled
        start, end = found.start(2) - 2, found.end(2) + 2
        source = self.source(resolved.target, templates=False)
        written = text[start:end]
        return before, (source.draw, text_key(written), source, start, end, written, written), behind

    def source(self, target: Target | None, *, templates: bool) -> Source:
        """Return what draws from a target, if nothing is to be reported with it."""
        if target is None or target.item is not None or not self.is_clean(target):
            raise Uncompiled
        return self.pool_source(self._snapshot.pool(target, templates=templates))

    def is_clean(self, target: Target) -> bool:
        """Tell whether no load problem would travel with a draw from a target."""
        if target.folder is not None:
            below_it = self._snapshot.index.below_folder(target.folder)
            return not any(document.is_read and document.content.diagnostics for document in below_it)
        return target.document is None or not target.document.content.diagnostics

    def pool_source(self, pool: Pool) -> Source:
        """Return what draws single items of a pool, made once."""
        found = self._pools.get(id(pool))
        if found is None:
            found = self._pools[id(pool)] = _pool_source(pool, self.entry)
        return found


class _Frame:
    """Compiles the nodes of one text; sites of equal text are numbered as they stand."""

    def __init__(self, compiler: Compiler, snapshot: Snapshot, parsed: Parsed, document: Document | None) -> None:
        self.compiler = compiler
        self.snapshot = snapshot
        self.parsed = parsed
        self.document = document
        self.seen: dict[str, int] = {}

    def program(self, nodes: tuple[Node, ...]) -> Program:
        parts: list[str | Site] = []
        self.add(nodes, parts)
        merged: list[str | Site] = []
        for part in parts:
            if isinstance(part, str) and merged and isinstance(merged[-1], str):
                merged[-1] += part
            elif part != "":
                merged.append(part)
        return tuple(merged)

    def add(self, nodes: tuple[Node, ...], parts: list[str | Site]) -> None:
        for node in nodes:
            if isinstance(node, Text):
                parts.append(node.value)
            elif isinstance(node, Tag):
                parts.append(f"<{node.word}:")
                self.add(node.nodes, parts)
                parts.append(">")
            elif isinstance(node, Bracket) and not self.is_drawn(node):
                parts.append("[")
                self.add(node.nodes, parts)
                parts.append("]")
            else:
                parts.append(self.site(node, self.source(node)))

    def is_drawn(self, node: Bracket) -> bool:
        """Tell whether ``[path]`` draws; a doubtful one needs the long way."""
        if self.document is None or self.document.kind is Kind.TXT or not node.path:
            return False
        target, trouble = read_bracket(node.path, self.document)
        if trouble:
            raise Uncompiled
        return target is not None

    def site(self, node: Node, source: Source) -> Site:
        text = self.parsed.text[node.start : node.end]
        if "\r" in text:
            text = text.replace("\r\n", "\n")
        occurrence = self.seen.get(text, 0)
        self.seen[text] = occurrence + 1
        name = f"{text} #{occurrence + 1}" if occurrence else text
        key = (text_key(text) + occurrence) & MASK
        return source.draw, key, source, node.start, node.end, text, name

    def source(self, node: Node) -> Source:
        """Return what a construct draws from."""
        if isinstance(node, Variant) and node.sampler is None:
            return _variant_source(*self.options(node.options))
        if isinstance(node, Multi) and node.sampler is None:
            return self.multi(node)
        if isinstance(node, Number) and node.grid is not None:
            return _number_source(node.grid.points, node.grid.text)
        if isinstance(node, Wildcard) and node.sampler is None and not node.arguments:
            return self.wildcard(node)
        if isinstance(node, Bracket) and self.document is not None:
            return self.compiler.source(read_bracket(node.path, self.document)[0], templates=False)
        if isinstance(node, Braces):
            return self.braces(node)
        raise Uncompiled

    def options(self, options: tuple[Option, ...]) -> tuple[list[Entry], list[tuple[str, float]], list[int]]:
        """Return the options that can be drawn, what is recorded of each, and their weights in millionths."""
        able = [option for option in options if option.weight.micro > 0]
        if any(option.quantity != 1 for option in able):
            raise Uncompiled
        text = self.parsed.text
        written = [text[option.prompt.start : option.prompt.end] for option in able]
        entries = [self.option(option.prompt, own) for option, own in zip(able, written, strict=True)]
        records = [(own, option.weight.micro / 1_000_000) for option, own in zip(able, written, strict=True)]
        return entries, records, [option.weight.micro for option in able]

    def option(self, prompt: Prompt, written: str) -> Entry:
        program = _Frame(self.compiler, self.snapshot, self.parsed, self.document).program(prompt.nodes)
        if not program:
            return "", 0, None
        if len(program) == 1 and isinstance(program[0], str):
            return program[0], 0, None
        return written, text_key(written), program

    def multi(self, node: Multi) -> Source:
        part = lone_part(node)
        if isinstance(part, (Braces, Bracket, Wildcard)):
            source = self.lent(part)
            entries = _kept(source.items, self.compiler.entry)
        elif part is None or isinstance(part, (Variant, Multi, Number)):
            found, records, weights = self.options(node.options)
            source, entries = Source(options=records, weights=weights, total=sum(weights)), found.__getitem__
        else:
            raise Uncompiled
        size = len(source.weights)
        low = size if node.low is None else node.low
        high = size if node.high is None else node.high
        if not size or max(low, high) > size or low > high:
            raise Uncompiled
        source.is_multi = True
        source.draw = _multi_draw(source, entries, low, high - low + 1, node.separator)
        return source

    def lent(self, part: Braces | Bracket | Wildcard) -> Source:
        """Return the candidates of a pick whose lone option lends its list."""
        if isinstance(part, Wildcard) and (part.arguments or part.sampler is not None):
            raise Uncompiled
        target, trouble = None, ()  # type: tuple[Target | None, tuple[Any, ...]]
        if isinstance(part, Wildcard):
            if "*" not in part.name:
                target, trouble = read_name(part.name, self.snapshot, self.document)
        elif isinstance(part, Braces):
            meaning = read_braces(part, self.parsed, self.snapshot, self.document)
            target, trouble = meaning.target, meaning.trouble
        elif self.document is not None and self.is_drawn(part):
            target, trouble = read_bracket(part.path, self.document)
        pool = pool_of_reference(part, self.parsed, self.snapshot, self.document)
        if pool is None or trouble or (target is not None and not self.compiler.is_clean(target)):
            raise Uncompiled
        candidates = distinct(pool)
        items = [entry for entry in candidates.entries if not isinstance(entry, Option)]
        return Source(items=items, weights=candidates.weights, total=sum(candidates.weights), lists=pool.lists)

    def wildcard(self, node: Wildcard) -> Source:
        if "*" in node.name:
            pool = self.snapshot.glob(node.name)
            if pool is None:
                raise Uncompiled
            return self.compiler.pool_source(pool)
        target, trouble = read_name(node.name, self.snapshot, self.document)
        if trouble:
            raise Uncompiled
        return self.compiler.source(target, templates=False)

    def braces(self, node: Braces) -> Source:
        meaning = read_braces(node, self.parsed, self.snapshot, self.document)
        if meaning.trouble or (meaning.document is not None and meaning.document.content.diagnostics):
            raise Uncompiled
        if meaning.target is not None:
            return self.compiler.source(meaning.target, templates=meaning.templates)
        if meaning.inline is None:
            raise Uncompiled
        inline = meaning.inline
        program = _Frame(self.compiler, self.snapshot, self.parsed, meaning.document).program(inline.nodes)
        return _inline_source(program, text_key(self.parsed.text[inline.start : inline.end]))


# Each draw gets K of its site, the site, the pieces of the output, the trace, its parent's place in the trace, and
# the ids of the lists whose items are being expanded.


def _number_source(points: int, text_of: Callable[[int], str]) -> Source:
    def draw(key: int, site: Site, out: list[str], trace: list[Any], parent: int, active: list[int]) -> None:
        del active
        first = len(out)
        out.append(text_of(below(key, points)))
        trace.append((site, 0, first, first + 1, parent))

    return Source(draw, ChoiceKind.NUMBER, size=points)


def _variant_source(entries: list[Entry], records: list[tuple[str, float]], weights: list[int]) -> Source:
    sums, total = running_sums(weights)
    if not entries or total > _MOST_WEIGHT:
        raise Uncompiled
    bisect_right = bisect.bisect_right

    def draw(key: int, site: Site, out: list[str], trace: list[Any], parent: int, active: list[int]) -> None:
        at = (key * total) >> 64
        if sums is not None:
            at = bisect_right(sums, at)
        text, own_key, program = entries[at]
        first = len(out)
        if program is None:
            out.append(text)
            trace.append((site, at, first, first + 1, parent))
            return
        number = len(trace)
        trace.append(None)
        _run(program, (key + own_key) & MASK, out, trace, number, active)
        trace[number] = (site, at, first, len(out), parent)

    return Source(draw, options=records, weights=weights, total=sum(weights))


def _inline_source(program: Program, own_key: int) -> Source:
    def draw(key: int, site: Site, out: list[str], trace: list[Any], parent: int, active: list[int]) -> None:
        number = len(trace)
        trace.append((site, 0, 0, 0, parent))
        _run(program, (key + own_key) & MASK, out, trace, number, active)

    return Source(draw, is_frame=True)


def _pool_source(pool: Pool, entry_of: Callable[[Sequence[Item], int], Entry]) -> Source:
    total, sums, items, lists = pool.total, pool.sums, pool.items, pool.lists
    if not items or total > _MOST_WEIGHT:
        raise Uncompiled
    owner = next(iter(lists)) if len(lists) == 1 else None
    table: dict[int, Entry] = {}
    keeps = not (isinstance(items, Lines) and items.is_long)
    bisect_right = bisect.bisect_right

    def draw(key: int, site: Site, out: list[str], trace: list[Any], parent: int, active: list[int]) -> None:
        if active and not lists.isdisjoint(active):
            raise Uncompiled
        at = (key * total) >> 64
        if sums is not None:
            at = bisect_right(sums, at)
        found = table.get(at)
        if found is None:
            found = entry_of(items, at)
            if keeps or found[2] is not None:
                table[at] = found
        text, own_key, program = found
        first = len(out)
        if program is None:
            out.append(text)
            trace.append((site, at, first, first + 1, parent))
            return
        number = len(trace)
        trace.append(None)
        home = id(items[at].owner) if owner is None else owner
        _run_item(program, (key + own_key) & MASK, out, trace, number, active, home)
        trace[number] = (site, at, first, len(out), parent)

    return Source(draw, pool=pool)


def _kept(items: Sequence[Item], entry_of: Callable[[Sequence[Item], int], Entry]) -> Entries:
    table: dict[int, Entry] = {}

    def entry(at: int) -> Entry:
        found = table.get(at)
        if found is None:
            found = table[at] = entry_of(items, at)
        return found

    return entry


def _multi_draw(source: Source, entries: Entries, low: int, span: int, separator: str) -> Any:
    sums, total = running_sums(source.weights)
    if total > _MOST_WEIGHT:
        raise Uncompiled
    running = sums or list(range(1, len(source.weights) + 1))
    lists = source.lists

    def draw(key: int, site: Site, out: list[str], trace: list[Any], parent: int, active: list[int]) -> None:
        if active and not lists.isdisjoint(active):
            raise Uncompiled
        has_text = False
        chosen: dict[str, int] = {}
        for at in _order(key, low + ((key * span) >> 64), running, total):
            gap = len(out)
            if has_text:
                out.append("")
            first = len(out)
            text, own_key, program = entries(at)
            if program is None:
                out.append(text)
                trace.append((site, at, first, first + 1, parent))
                is_text = bool(text)
            else:
                occurrence = chosen.get(text, 0)
                chosen[text] = occurrence + 1
                number = len(trace)
                trace.append(None)
                frame = (key + own_key + occurrence) & MASK
                _run_item(program, frame, out, trace, number, active, source.owner_of(at))
                trace[number] = (site, at, first, len(out), parent)
                is_text = any(out[first:])
            if is_text:
                if has_text:
                    out[gap] = separator
                has_text = True

    return draw


def _run(program: Program, frame: int, out: list[str], trace: list[Any], parent: int, active: list[int]) -> None:
    """Run a program in a frame; K of each site is computed here."""
    for part in program:
        if part.__class__ is str:
            out.append(part)  # told by its class, which is quicker than isinstance
            continue
        x = ((frame ^ part[1]) + GOLDEN) & MASK  # type: ignore[operator]  # a site
        x = ((x ^ (x >> 30)) * _A) & MASK
        x = ((x ^ (x >> 27)) * _B) & MASK
        part[0](x ^ (x >> 31), part, out, trace, parent, active)  # type: ignore[operator]  # a site


def _run_item(
    program: Program, frame: int, out: list[str], trace: list[Any], parent: int, active: list[int], owner: int
) -> None:
    """Run an item's program with its list among those being expanded."""
    if len(active) > MOST_OPEN or parent > MOST_TRACE:
        raise Uncompiled
    active.append(owner)
    _run(program, frame, out, trace, parent, active)
    active.pop()


def _order(key: int, count: int, sums: list[int], total: int) -> list[int]:
    """Draw ``count`` candidates without replacement, as `picks` does; pick j uses position j of the site's stream."""
    removed: list[int] = []
    order: list[int] = []
    state = key + GOLDEN
    for _ in range(count):
        state += GOLDEN
        x = state & MASK
        x = ((x ^ (x >> 30)) * _A) & MASK
        x = ((x ^ (x >> 27)) * _B) & MASK
        ticket = ((x ^ (x >> 31)) * total) >> 64
        for gone in removed:
            before = sums[gone - 1] if gone else 0
            if ticket < before:
                break
            ticket += sums[gone] - before
        at = bisect.bisect_right(sums, ticket)
        order.append(at)
        bisect.insort(removed, at)
        total -= sums[at] - (sums[at - 1] if at else 0)
    return order
