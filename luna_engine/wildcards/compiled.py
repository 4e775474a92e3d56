"""The quick way through an expansion: common constructs compiled to programs that note their draws in a trace.

A program covers text, tags, variants, multi-picks, numbers, references and inline templates whose meaning is clear.
Anything else (commands, samplers, diagnostics, cycles, limits) is left to `drawing.Run`, the reference that every
program must agree with to the last character and choice.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from luna_engine.wildcards.line_table import MOST_LINE, LineShelf
from luna_engine.wildcards.lines import Lines
from luna_engine.wildcards.model import Kind
from luna_engine.wildcards.parser import is_plain, match_lone_name
from luna_engine.wildcards.picks import distinct, lone_part
from luna_engine.wildcards.programs import (
    MOST_DRAWS,
    Source,
    Table,
    Uncompiled,
    inline_source,
    multi_source,
    number_source,
    pool_source,
    run,
    variant_source,
)
from luna_engine.wildcards.recursion import recursion_room
from luna_engine.wildcards.references import (
    leaves_library,
    pool_of_reference,
    read_braces,
    read_bracket,
    read_name,
)
from luna_engine.wildcards.seeds import MASK, frame_key, text_key
from luna_engine.wildcards.syntax import Braces, Bracket, Multi, Number, Option, Profile, Tag, Text, Variant, Wildcard

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from luna_engine.wildcards.line_table import LineTable
    from luna_engine.wildcards.model import Document, Item
    from luna_engine.wildcards.names import Target
    from luna_engine.wildcards.pools import Pool
    from luna_engine.wildcards.programs import Entry, Program, Site
    from luna_engine.wildcards.snapshot import Snapshot
    from luna_engine.wildcards.syntax import Node, Parsed, Prompt
    from luna_engine.wildcards.traces import Trace

MOST_TEXT = 1_000_000


class Compiler:
    """Compiles texts over one snapshot; programs and the candidates of each pool are kept and shared."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._templates: dict[tuple[str, object], Program | None] = {}
        self._pools: dict[int, Source] = {}
        self._shelf = LineShelf()

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
            draws: list[int] = []
            try:
                run(program, frame_key(name, seed), out, draws, [])
            except (Uncompiled, RecursionError):
                return None
            texts[name] = text = "".join(out)
            if len(draws) > MOST_DRAWS or len(text) > MOST_TEXT:
                return None
            traces.append((name, program, draws))
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
        if parsed.findings or parsed.profile is not Profile.NATIVE:
            raise Uncompiled  # names of peers are looked up the long way
        return _Frame(self, self._snapshot, parsed, document).program(parsed.nodes)

    def entry(self, items: Sequence[Item], at: int) -> Entry:
        """Return a candidate of a list; of a file's own lines no item is made unless it needs a tree."""
        if isinstance(items, Lines):
            text, document = items.text(at), items.document  # type: str, Document | None
        else:
            item = items[at]
            text, document = item.text, item.owner.document if item.owner is not None else None
        if len(text) > MOST_LINE:
            raise Uncompiled
        if is_plain(text):
            return text, 0, None
        program = self._lone_reference(text, document)
        return _entry(text, program or self._text(self._snapshot.parse_item(items[at]), document))

    def _lone_reference(self, text: str, document: Document | None) -> Program | None:
        """Compile ``words __name__ words``, which most items with a reference are, without a tree."""
        found = match_lone_name(text)
        if found is None or document is None or not self._is_native(document):
            return None
        before, name, behind = found.groups()
        start, end = found.start(2) - 2, found.end(2) + 2
        written = text[start:end]
        site = (before, text_key(written), self.named(name, document), (start, end, written, written))
        return (site,), behind

    def _is_native(self, document: Document) -> bool:
        return self._snapshot.roots[document.root].profile is Profile.NATIVE

    def named(self, name: str, document: Document) -> Source:
        """Return what ``__name__`` in a file draws from."""
        resolved = self._snapshot.index.resolve(name, document)
        if resolved is None or resolved.others or leaves_library(name):
            raise Uncompiled
        return self.source(resolved.target, templates=False)

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
            found = self._pools[id(pool)] = pool_source(pool, self.table(pool.items))
        return found

    def table(self, items: Sequence[Item]) -> Table | LineTable:
        """Return the candidates of a list, to be compiled one by one."""
        if not isinstance(items, Lines) or not items.is_long:
            return Table(partial(self.entry, items))
        document = items.document
        near = self._snapshot.index.names_near(document) if self._is_native(document) else None
        return self._shelf.table(self, items, near)


def _entry(text: str, program: Program) -> Entry:
    """Return a candidate as it is drawn; one without sites is the text its program prints."""
    sites, behind = program
    return (text, text_key(text), program) if sites else (behind, 0, None)


class _Frame:
    """Compiles the nodes of one text; sites of equal text are numbered as they stand."""

    def __init__(self, compiler: Compiler, snapshot: Snapshot, parsed: Parsed, document: Document | None) -> None:
        self.compiler = compiler
        self.snapshot = snapshot
        self.parsed = parsed
        self.document = document
        self.seen: dict[str, int] = {}

    def program(self, nodes: tuple[Node, ...]) -> Program:
        sites: list[Site] = []
        pieces: list[str] = []
        self.add(nodes, sites, pieces)
        return tuple(sites), "".join(pieces)

    def add(self, nodes: tuple[Node, ...], sites: list[Site], pieces: list[str]) -> None:
        """Add nodes to the sites of a program, ``pieces`` being the text behind the last."""
        for node in nodes:
            if isinstance(node, Text):
                pieces.append(node.value)
            elif isinstance(node, Tag):
                pieces.append(f"<{node.word}:")
                self.add(node.nodes, sites, pieces)
                pieces.append(">")
            elif isinstance(node, Bracket) and not self.is_drawn(node):
                pieces.append("[")
                self.add(node.nodes, sites, pieces)
                pieces.append("]")
            else:
                sites.append(self.site(node, "".join(pieces)))
                pieces.clear()

    def is_drawn(self, node: Bracket) -> bool:
        """Tell whether ``[path]`` draws; a doubtful one needs the long way."""
        if self.document is None or self.document.kind is Kind.TXT or not node.path:
            return False
        target, trouble = read_bracket(node.path, self.document)
        if trouble:
            raise Uncompiled
        return target is not None

    def site(self, node: Node, before: str) -> Site:
        source = self.source(node)
        text = self.parsed.text[node.start : node.end]
        if "\r" in text:
            text = text.replace("\r\n", "\n")
        occurrence = self.seen.get(text, 0)
        self.seen[text] = occurrence + 1
        name = f"{text} #{occurrence + 1}" if occurrence else text
        key = (text_key(text) + occurrence) & MASK
        return before, key, source, (node.start, node.end, text, name)

    def source(self, node: Node) -> Source:
        """Return what a construct draws from."""
        if isinstance(node, Variant) and node.sampler is None:
            return variant_source(*self.options(node.options))
        if isinstance(node, Multi) and node.sampler is None:
            return self.multi(node)
        if isinstance(node, Number) and node.grid is not None:
            return number_source(node.grid.points, node.grid.text)
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
        return _entry(written, program)

    def multi(self, node: Multi) -> Source:
        part = lone_part(node)
        if isinstance(part, (Braces, Bracket, Wildcard)):
            source = self.lent(part)
        elif part is None or isinstance(part, (Variant, Multi, Number)):
            entries, records, weights = self.options(node.options)
            source = Source(options=records, weights=weights, table=entries)
        else:
            raise Uncompiled
        size = len(source.weights)
        low = size if node.low is None else node.low
        high = size if node.high is None else node.high
        if max(low, high) > size or low > high:
            raise Uncompiled
        return multi_source(source, low, high - low + 1, node.separator)

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
        return Source(items=items, weights=candidates.weights, table=self.compiler.table(items), lists=pool.lists)

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
        return inline_source(program, text_key(self.parsed.text[inline.start : inline.end]))
