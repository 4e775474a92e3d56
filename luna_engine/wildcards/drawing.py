"""One expansion: walks the tree of a template, draws at each site, and records every draw. One use per object."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from luna_engine.wildcards import commands
from luna_engine.wildcards.constructs import HANDLERS
from luna_engine.wildcards.diagnostics import Severity
from luna_engine.wildcards.drafts import Draft, Frame, Pieces, Site
from luna_engine.wildcards.expansion import Choice, ChoiceKind
from luna_engine.wildcards.model import TEMPLATES, Document
from luna_engine.wildcards.parser import is_plain
from luna_engine.wildcards.pools import pool_of_item
from luna_engine.wildcards.references import Trouble
from luna_engine.wildcards.reports import DROPPABLE, Reports
from luna_engine.wildcards.rules import printing
from luna_engine.wildcards.seeds import below, child_key, frame_key, reroll_key, site_key
from luna_engine.wildcards.syntax import (
    Node,
    Parsed,
    Prompt,
    Sampler,
    Text,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from luna_engine.wildcards.chooser import Chooser, Odometer
    from luna_engine.wildcards.model import Item
    from luna_engine.wildcards.names import Target
    from luna_engine.wildcards.pools import Pool
    from luna_engine.wildcards.rules.plan import Plan
    from luna_engine.wildcards.rules.ruleset import RuleSet
    from luna_engine.wildcards.snapshot import Snapshot

MOST_FRAMES = 200
MOST_DRAWS = 100_000
MOST_OUTPUT = 1_000_000
MOST_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class DrawOptions:
    """What a caller may change about an expansion."""

    missing: str = "keep"
    pins: Mapping[str, str] = field(default_factory=dict)
    reroll: Mapping[str, int] = field(default_factory=dict)
    seconds: float = MOST_SECONDS
    draws: int = MOST_DRAWS


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
        plan: Plan | None = None,
    ) -> None:
        self.snapshot = snapshot
        self.seed = seed
        self.index = index
        self.chooser = chooser
        self.odometer = odometer
        self.plan = plan
        self.groups = snapshot.weight_groups
        self.options = options
        self.variables: dict[str, commands.Value] = {name: commands.Value(text) for name, text in variables.items()}
        self.out = Pieces()
        self.drafts: list[Draft] = []
        self.reports = Reports()
        self.touched: dict[tuple[int, str], None] = {}
        self.active: list[Item] = []
        self.active_variables: list[str] = []
        self.part_name = ""
        self.in_tag = 0
        self.is_hidden = False
        self.is_peeking = False
        self.is_stopped = False
        self.depth = 0
        self.draws = 0
        self.deadline = time.monotonic() + options.seconds if plan is None else plan.deadline

    def part(self, name: str, parsed: Parsed) -> str:
        """Expand one part of the prompt and return its text."""
        frame = self.begin_part(name, parsed)
        self.reports.add_findings(frame)
        self.nodes(parsed.nodes, frame)
        if self.plan is not None:
            printing.finish_part(self, self.plan)
        return self.out.text()

    def begin_part(self, name: str, parsed: Parsed) -> Frame:
        """Begin a part with an empty output; returns its frame."""
        self.part_name = name
        self.out = Pieces()
        return Frame(parsed, frame_key(name, self.seed), site=name and f"{name}:")

    def nodes(self, nodes: tuple[Node, ...], frame: Frame) -> None:
        """Expand nodes one after the other into the output."""
        for node in nodes:
            if type(node) is Text:
                self.out.write(node.value)
            elif self.is_stopped:
                self.keep(node, frame)
            else:
                HANDLERS[type(node)](self, node, frame)

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
        return Site(text, reroll_key(key, times), name, occurrence)

    def spend(self, node: Node, frame: Frame) -> bool:
        """Count a draw; False (and the construct kept) if a limit is reached."""
        self.draws += 1
        limit = None
        if self.draws > self.options.draws:
            limit = f"more than {self.options.draws} draws"
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
        if len(prompt.nodes) == 1 and type(prompt.nodes[0]) is Text:
            self.out.write(prompt.nodes[0].value)
            self.depth -= 1
            return
        home = home or frame
        inner = Frame(
            home.parsed,
            key,
            document or home.document,
            home.item,
            frame.parent if parent is None else parent,
            site,
            level=frame.level + 1,
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
        elif self.plan is None:
            at = self.single(site.key, candidates, sampler)
        else:
            at = None
        if self.plan is not None and not self.is_peeking:
            self.ruled(self.plan, candidates, at, node, frame, site, what)
            return
        if at is None:
            at = candidates.at(below(site.key, candidates.total))
        item = candidates.items[at]
        share = candidates.weight(at) / candidates.total
        self.item(item, node, frame, site, child_key(site.key, item.text), share, size, site.name)

    def single(self, key: int, pool: Pool, sampler: Sampler | None) -> int:
        """Let the chooser take one candidate of a pool."""
        ticket = self.chooser.ticket(key, pool.total, 0)
        if ticket is not None:
            return pool.at(ticket)
        taken = self.chooser.several(key, pool.weights(), 1, 1)
        return taken[0] if taken else self.chooser.number(key, len(pool.items), 0, sampler)

    def ruled(self, plan: Plan, pool: Pool, at: int | None, node: Node, frame: Frame, site: Site, address: str) -> None:
        """Expand the pick of a plan; nothing while its stage has not been drawn. ``at`` is a pick no rule changes."""
        for pick in plan.picks(self, site, frame, pool, address, None if at is None else (at,)) or ():
            key = child_key(site.key, pick.item.text)
            self.item(pick.item, node, frame, site, key, pick.share, pick.size, site.name)

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
        if self.groups is not None:
            self.note_group(self.groups, item, number, node, frame, site)
        pick = self.plan.pick_of(site, item) if self.plan is not None else None
        if self.plan is not None and pick is not None:
            printing.note_pick(self, self.plan, pick, number, node, frame)
        if item.parsed is None and is_plain(item.text):
            self.out.write(item.text)
        else:
            parsed = item.parsed or self.snapshot.parse_item(item)
            inner = Frame(parsed, key, document, item, number, name, level=frame.level + 1)
            self.reports.add_findings(inner)
            self.active.append(item)
            self.nodes(parsed.nodes, inner)
            self.active.pop()
        self.finish(number)
        if self.plan is not None and pick is not None:
            printing.print_modifiers(self, self.plan, pick, number)
        self.depth -= 1

    def note_group(self, groups: RuleSet, item: Item, number: int, node: Node, frame: Frame, site: Site) -> None:
        """Record that a group of weights had a say in a pick."""
        found = groups.group_of(item)
        if found is not None:
            rule = found.rule
            text = f"{rule.name}: weight x {rule.micro / 1_000_000:g}"
            printing.note(self, text, rule.spot, number, node, frame, site)

    def tags_of(self, item: Item) -> tuple[str, ...]:
        """Return the tags of a pick; with rules also those of its category file and of tags files."""
        return item.tags if self.plan is None else self.plan.rules.facts(item).tags

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
        for part in (target, *target.union):
            if part.document is not None:
                self.touch(part.document)
        if target.item is not None:
            if any(item is target.item for item in self.active):
                self.report(frame, node, Trouble("cycle", "this item needs itself", self.chain()))
                self.keep(node, frame)
            elif self.spend(node, frame):
                key = child_key(site.key, target.item.text)
                if self.plan is not None and not self.is_peeking:
                    self.ruled(self.plan, pool_of_item(target.item), 0, node, frame, site, target.address)
                else:
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
        if self.options.missing != "drop" or (trouble is not None and trouble.code not in DROPPABLE):
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
        self.reports.add(frame, trouble.code, severity, trouble.message, trouble.hint, node.start, node.end)

    def choices(self) -> tuple[Choice, ...]:
        """Return the choices made, a parent before what it holds."""
        made = tuple(draft.freeze() for draft in self.drafts)
        if self.plan is None:
            return made
        tagged = zip(self.drafts, made, strict=True)
        return tuple(
            choice if draft.item is None else dataclasses.replace(choice, tags=self.tags_of(draft.item))
            for draft, choice in tagged
        )
