"""One immutable state of a library: its files, their index, and caches that only ever add. Threads read it freely."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import deque
from typing import TYPE_CHECKING

from luna_engine.wildcards.compiled import Compiler
from luna_engine.wildcards.diagnostics import Diagnostic, Severity, place_order
from luna_engine.wildcards.globs import match_parts
from luna_engine.wildcards.lines import Lines
from luna_engine.wildcards.lookup import AddressIndex
from luna_engine.wildcards.model import Kind
from luna_engine.wildcards.names import Target, joined
from luna_engine.wildcards.parser import is_plain, parse
from luna_engine.wildcards.pools import Pool, pool_of_lists, target_lists
from luna_engine.wildcards.references import read_braces, read_bracket, read_name
from luna_engine.wildcards.rules.ruleset import RuleSet, compile_rules, has_demands
from luna_engine.wildcards.syntax import Braces, Bracket, Parsed, Profile, Wildcard, children

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from luna_engine.wildcards.files import Entry, Root, Walk
    from luna_engine.wildcards.model import Document, Item, ItemList
    from luna_engine.wildcards.references import Trouble
    from luna_engine.wildcards.syntax import Node

_MOST_TEMPLATES = 2_000


class Snapshot:
    """The library as it was at one moment."""

    def __init__(self, roots: tuple[Root, ...], walk: Walk, loaded: list[tuple[Entry, Document]]) -> None:
        self.roots = roots
        self.entries = {(entry.root, entry.relative): entry for entry, _ in loaded}
        self._all = {(document.root, document.path): document for _, document in loaded}
        visible, hidden, shadowed = _shadow([document for _, document in loaded])
        self.documents = visible
        self._walk_problems = (*walk.diagnostics, *shadowed)
        self.folders = [name for _, name in walk.folders]
        self.index = AddressIndex(visible, self.folders, hidden)
        self._templates: dict[tuple[str, Profile], Parsed] = {}
        self._pools: dict[tuple[object, ...], Pool] = {}
        self._globs: dict[str, Pool | None] = {}
        self._digests: dict[tuple[str, Profile, bool], str] = {}
        self._rules: tuple[RuleSet | None] | None = None
        self._demands: tuple[RuleSet | None] | None = None
        self.compiler = Compiler(self)
        self.names: dict[tuple[str, int, Profile], tuple[Target | None, tuple[Trouble, ...]]] = {}
        self.counts: dict[int, tuple[int, frozenset[str]]] = {}

    def document(self, root: int, path: str) -> Document | None:
        """Return a file by root number and path."""
        return self._all.get((root, path))

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """Every load problem of the files read so far, in place order."""
        found = list(self._walk_problems)
        for document in self._all.values():
            if document.is_read:
                found += document.content.diagnostics
        return tuple(sorted(found, key=place_order))

    def problems_of(self, touched: Iterator[tuple[int, str]]) -> list[Diagnostic]:
        """Return the load problems of the files touched."""
        found: list[Diagnostic] = []
        for root, path in touched:
            document = self._all.get((root, path))
            if document is not None:
                found += document.content.diagnostics
        return found

    def template(self, text: str, profile: Profile = Profile.NATIVE) -> Parsed:
        """Return the syntax tree of a template, parsed once per snapshot."""
        key = (text, profile)
        found = self._templates.get(key)
        if found is None:
            if len(self._templates) >= _MOST_TEMPLATES:
                self._templates.clear()
            found = self._templates[key] = parse(text, profile)
        return found

    def parse_item(self, item: Item) -> Parsed:
        """Return the syntax tree of an item, in the profile of its root."""
        if item.parsed is None:
            owner = item.owner
            profile = self.roots[owner.document.root].profile if owner is not None else Profile.NATIVE
            item.parsed = parse(item.text, profile, comments=False)
        return item.parsed

    def pool(self, target: Target, *, templates: bool = False) -> Pool:
        """Return the pool a target draws from."""
        union = tuple((id(part.document), id(part.place)) for part in target.union)
        key = (id(target.document), id(target.place), target.folder, target.stars, templates, union)
        found = self._pools.get(key)
        if found is None:
            lists = target_lists(target, self.index, templates=templates)
            found = self._pools[key] = pool_of_lists(lists, self._factor(lists), is_sorted=self._is_sorted(lists))
        return found

    def glob(self, pattern: str) -> Pool | None:
        """Return the joint pool of the lists a pattern matches, None if it matches none."""
        if pattern not in self._globs:
            lists = self.matching(pattern)
            is_sorted = self._is_sorted(lists)
            self._globs[pattern] = pool_of_lists(lists, self._factor(lists), is_sorted=is_sorted) if lists else None
        return self._globs[pattern]

    @property
    def rules(self) -> RuleSet | None:
        """The compiled rules of the visible rule files, None if there are none."""
        if self._rules is None:
            files = [document for document in self.documents if document.kind is not Kind.TXT]
            self._rules = (compile_rules([document for document in files if document.content.is_rules], self.index),)
        return self._rules[0]

    @property
    def weight_groups(self) -> RuleSet | None:
        """The rules if they hold groups of weights, which count whether rules were asked for or not."""
        rules = self.rules
        return rules if rules is not None and rules.groups else None

    def _is_sorted(self, lists: list[ItemList]) -> bool:
        """Tell whether lists come from a root that is read as dynamicprompts reads it."""
        profiles = {self.roots[found.document.root].profile for found in lists}
        return Profile.DYNAMICPROMPTS in profiles

    def _factor(self, lists: list[ItemList]) -> Callable[[Item], int] | None:
        groups = self.weight_groups
        if groups is None or not any(groups.has_grouped(found) for found in lists):
            return None
        return groups.factor

    @property
    def wanted_rules(self) -> RuleSet | None:
        """The rules for an expansion that asks for them; None if neither files nor items demand anything."""
        if self.rules is not None:
            return self.rules
        if self._demands is None:
            documents = [document for document in self.documents if document.kind is not Kind.TXT]
            self._demands = (RuleSet([]) if any(map(has_demands, documents)) else None,)
        return self._demands[0]

    def matching(self, pattern: str) -> list[ItemList]:
        """Return the lists whose address fits a glob, with or without the file's name."""
        wanted = joined(pattern).casefold().split("/")
        found: list[ItemList] = []
        for candidate in self.index.lists():
            document = candidate.document
            keys = joined("/".join(candidate.keys)).casefold()
            full = joined(document.address).casefold() + (f"/{keys}" if keys else "")
            folder = joined(document.folder).casefold()
            short = f"{folder}/{keys}" if folder else keys
            if match_parts(wanted, full.split("/")) or (keys and match_parts(wanted, short.split("/"))):
                found.append(candidate)
        return found

    def references(
        self, nodes: tuple[Node, ...], parsed: Parsed, document: Document | None
    ) -> Iterator[tuple[Node, Document | None, list[ItemList]]]:
        """Yield each reference below ``nodes`` with the file it leads to and the lists it can draw from.

        Documents follow inline templates: their brackets read the file they name.
        """
        stack: list[tuple[Node, Document | None]] = [(node, document) for node in reversed(nodes)]
        while stack:
            node, home = stack.pop()
            inner = home
            if isinstance(node, Braces):
                meaning = read_braces(node, parsed, self, home)
                if meaning.target is not None:
                    lists = _lists(meaning.target, self, templates=meaning.templates)
                    yield node, meaning.target.document, lists
                elif meaning.document is not None:
                    yield node, meaning.document, []
                inner = meaning.document if meaning.inline is not None else home
            elif isinstance(node, Wildcard):
                if "*" in node.name:
                    yield node, None, self.matching(node.name)
                else:
                    target, _ = read_name(node.name, self, home, parsed.profile)
                    if target is not None:
                        yield node, target.document, _lists(target, self, templates=False)
            elif isinstance(node, Bracket) and home is not None and home.kind is not Kind.TXT:
                target, _ = read_bracket(node.path, home)
                if target is not None:
                    yield node, target.document, _lists(target, self, templates=False)
            stack.extend((child, inner) for child in reversed(children(node)))

    def reach(self, parsed: Parsed) -> list[Document]:
        """Return every file that an expansion of a template may read, in order of discovery."""
        seen: dict[int, Document] = {}
        waiting: deque[ItemList] = deque()
        known: set[int] = set()

        def visit(nodes: tuple[Node, ...], text: Parsed, home: Document | None) -> None:
            for _, document, lists in self.references(nodes, text, home):
                if document is not None:
                    seen[id(document)] = document
                for found in lists:
                    seen[id(found.document)] = found.document
                    if id(found) not in known:
                        known.add(id(found))
                        waiting.append(found)

        visit(parsed.nodes, parsed, None)
        while waiting:
            for item in _constructs(waiting.popleft()):
                tree = self.parse_item(item)
                if item.owner is not None:
                    visit(tree.nodes, tree, item.owner.document)
        return list(seen.values())

    def fingerprint(self, text: str, profile: Profile = Profile.NATIVE, *, rules: bool = False) -> str:
        """Return a digest of a template and of the content of every file it can reach.

        With ``rules`` of every rule file too, of the files that expanders draw from, and of the names of all files,
        by which the paths of rules are found. Groups of weights always count.
        """
        key = (text, profile, rules)
        if key not in self._digests:
            digest = hashlib.blake2b(digest_size=16)
            digest.update(f"{profile.value}\0{text}".encode("utf-8", "surrogatepass"))
            reached = {(found.path, found.root): found for found in self.reach(self.template(text, profile))}
            reached.update({(found.path, found.root): found for found in self._rule_documents(rules=rules)})
            for _, document in sorted(reached.items()):
                digest.update(f"\0{document.path}\0".encode("utf-8", "surrogatepass"))
                digest.update(document.content.digest_of())
            names = "\0".join(sorted(document.path for document in self.documents))
            is_open = self._has_unknown(text, profile) or (rules and self.rules is not None)
            digest.update(names.encode("utf-8", "surrogatepass") if is_open else b"")
            self._digests[key] = digest.hexdigest()
        return self._digests[key]

    def _rule_documents(self, *, rules: bool) -> list[Document]:
        """Return the files that rules may read: those of the rules, and what expanders and modifiers draw from."""
        found = self.rules
        if found is None:
            return []
        if not rules:
            return list({id(group.document): group.document for group in found.groups}.values())
        documents = list(found.documents)
        for text in found.added_templates():
            documents += self.reach(self.template(text))
        return documents

    def _has_unknown(self, text: str, profile: Profile) -> bool:
        """Tell whether a new file could change the template: it holds a name that nothing has yet."""
        parsed = self.template(text, profile)
        found = {id(node) for node, _, _ in self.references(parsed.nodes, parsed, None)}
        stack = list(parsed.nodes)
        while stack:
            node = stack.pop()
            if isinstance(node, (Braces, Wildcard)) and id(node) not in found:
                return True
            stack.extend(children(node))
        return False


def _constructs(found: ItemList) -> Iterator[Item]:
    """Yield the items that may hold a construct."""
    if isinstance(found.items, Lines):
        return found.items.constructs()
    return (item for item in found.items if not is_plain(item.text))


def _lists(target: Target, snapshot: Snapshot, *, templates: bool) -> list[ItemList]:
    if target.item is not None:
        return [target.item.owner] if target.item.owner is not None else []
    return target_lists(target, snapshot.index, templates=templates)


def _shadow(documents: list[Document]) -> tuple[list[Document], list[Document], list[Diagnostic]]:
    """Hide files of later roots behind files of the same address in earlier ones, whatever their kinds.

    Files of one root never hide each other: between them the order of kinds decides at each lookup.

    Returns:
        The visible files, the hidden ones, and a hint for each hidden one.
    """
    kept: list[Document] = []
    hidden: list[Document] = []
    owners: dict[str, Document] = {}
    hints: list[Diagnostic] = []
    for document in sorted(documents, key=lambda found: found.root):
        first = owners.setdefault(unicodedata.normalize("NFC", document.address), document)
        if first.root == document.root:
            kept.append(document)
            continue
        hidden.append(document)
        hints.append(
            Diagnostic(
                "shadowed",
                Severity.HINT,
                f"{first.path} of an earlier root hides {document.path} of a later one",
                "rename one of them to have both; files of that later root still find what only theirs offers",
                document.path,
            )
        )
    return kept, hidden, hints
