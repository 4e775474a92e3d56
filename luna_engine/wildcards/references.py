"""What a reference means in a library: the decisions of WILDCARDS 2.1 (lines 4-7), 3.3 and 3.4, without drawing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luna_engine.wildcards.diagnostics import Severity, did_you_mean, near_names
from luna_engine.wildcards.model import Document, Kind
from luna_engine.wildcards.path_index import path_index
from luna_engine.wildcards.syntax import Braces, Bracket, Profile, Text, Wildcard, children

if TYPE_CHECKING:
    from luna_engine.wildcards.model import Item
    from luna_engine.wildcards.names import Found, Target
    from luna_engine.wildcards.pools import Pool
    from luna_engine.wildcards.snapshot import Snapshot
    from luna_engine.wildcards.syntax import Node, Parsed, Prompt

_NAME_SHAPE = re.compile(r"[^\W\d][\w\-./]*")
_ESCAPE_START = re.compile(r"/|~/|[A-Za-z]:[/\\]")
_MOST_LISTED = 8
_MOST_REMEMBERED = 50_000


@dataclass(frozen=True, slots=True)
class Trouble:
    """A problem met while resolving, without its place."""

    code: str
    message: str
    hint: str | None
    severity: Severity = Severity.ERROR


@dataclass(frozen=True, slots=True)
class Meaning:
    """What to do with a reference.

    Draw from ``target``; or expand ``inline`` with the paths of ``document``; or, if ``is_kept``, print it as
    written; or else print its braces round its contents.
    """

    target: Target | None = None
    inline: Prompt | None = None
    document: Document | None = None
    templates: bool = False
    is_kept: bool = False
    trouble: tuple[Trouble, ...] = ()


def leaves_library(name: str) -> bool:
    """Tell whether a name tries to be a path outside: ``..`` segments, an absolute start, a drive letter."""
    return bool(_ESCAPE_START.match(name)) or (".." in name and ".." in re.split(r"[/\\:]", name))


def read_braces(node: Braces, parsed: Parsed, snapshot: Snapshot, document: Document | None) -> Meaning:
    """Return what a brace body that is neither multi-pick, variant nor range means."""
    index = snapshot.index
    if node.tail is not None and node.head:
        found = index.resolve_file(node.head, document)
        if found is not None:
            return _read_tail(node, node.tail, parsed, snapshot, found, document)
    if node.body:
        found = index.resolve_file(node.body, document)
        if found is not None:
            return Meaning(
                found.target, document=found.target.document, templates=True, trouble=ambiguity(node.body, found)
            )
        if document is not None and document.kind is not Kind.TXT:
            target = path_index(document).find(node.body, bare_items=False)
            if target is not None:
                return Meaning(target, document=document)
    return _read_unknown(node, snapshot)


def _read_unknown(node: Braces, snapshot: Snapshot) -> Meaning:
    for name in dict.fromkeys((node.head, node.body)):
        if name and leaves_library(name):
            return Meaning(is_kept=True, trouble=(escape_trouble(),))
    for name in dict.fromkeys((node.head, node.body)):
        if name and _NAME_SHAPE.fullmatch(name):
            near = near_names(name, snapshot.index.file_names())
            hint = did_you_mean(near) or r"write \{ \} if the braces are text"
            return Meaning(
                is_kept=True, trouble=(Trouble("unknown-ref", f"no wildcard file is called {name!r}", hint),)
            )
    if node.body.startswith("$"):
        hint = f"write ${{{node.body[1:]}}} for the variable"
        return Meaning(trouble=(Trouble("plain-braces", "these braces are text", hint, Severity.HINT),))
    hint = r"write \{ \} to say so"
    return Meaning(trouble=(Trouble("plain-braces", "these braces are text", hint, Severity.HINT),))


def _read_tail(
    node: Braces, tail: Prompt, parsed: Parsed, snapshot: Snapshot, found: Found, asking: Document | None
) -> Meaning:
    """Decide what stands behind the colon: a path if it exists, else an inline template, else unknown."""
    trouble = ambiguity(node.head, found)
    written = parsed.text[tail.start : tail.end]
    document = found.target.document
    if not written:
        what = Trouble("syntax", f"nothing stands behind {node.head}:", f"write {{{node.head}}} or a path")
        return Meaning(is_kept=True, document=document, trouble=(*trouble, what))
    if len(written) <= 512 and leaves_library(written):
        return Meaning(is_kept=True, document=document, trouble=(*trouble, escape_trouble()))
    if document is None:
        inside = snapshot.index.resolve_in_folder(found.target.address, written) if len(written) <= 512 else None
        if inside is not None:
            return Meaning(inside.target, document=inside.target.document, trouble=trouble)
        what = Trouble("unknown-ref", f"the folder {found.target.address} has no {written[:60]!r}", None)
        return Meaning(is_kept=True, trouble=(*trouble, what))
    own = snapshot.index.own_versions(document, asking)
    for version in (document, *own) if len(written) <= 512 else ():
        target = path_index(version).find(written)
        if target is not None:
            return Meaning(target, document=version, trouble=trouble)
    if _holds_bracket(tail.nodes) or node.tail_blank:
        document = max((document, *own), key=lambda version: _paths_held(tail.nodes, version))
        mistyped = _looks_mistyped(written, document)
        return Meaning(inline=tail, document=document, trouble=(*trouble, *mistyped))
    if any(not isinstance(part, Text) for part in tail.nodes):
        what = Trouble(
            "dynamic-path",
            "paths are never computed; this was read as an inline template",
            f"write a blank behind {node.head}: to say so",
            Severity.HINT,
        )
        return Meaning(inline=tail, document=document, trouble=(*trouble, what))
    return Meaning(is_kept=True, document=document, trouble=(*trouble, unknown_path(written, document)))


def _looks_mistyped(written: str, document: Document) -> tuple[Trouble, ...]:
    first, dot, _ = written.partition(".")
    if not dot or " " in written or path_index(document).place(first) is None:
        return ()
    what = unknown_path(written, document)
    return (Trouble("unknown-ref", what.message, what.hint, Severity.WARNING),)


def _paths_held(nodes: tuple[Node, ...], document: Document) -> int:
    """Count the ``[path]`` of an inline template that a file has."""
    held = sum(_paths_held(children(node), document) for node in nodes)
    brackets = [node for node in nodes if isinstance(node, Bracket)]
    return held + sum(path_index(document).find(node.path, bare_items=False) is not None for node in brackets)


def _holds_bracket(nodes: tuple[Node, ...]) -> bool:
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if isinstance(node, Bracket):
            return True
        stack.extend(children(node))
    return False


def unknown_path(path: str, document: Document) -> Trouble:
    """Return the report on a path that a file does not have, with near names or the keys that do exist there."""
    names = path_index(document).names()
    near = near_names(path, names)
    prefix = path.rpartition(".")[0]
    there = [name for name in names if name.rpartition(".")[0] == prefix][:_MOST_LISTED]
    listing = f"{prefix or document.path} has {', '.join(there)}" if there else None
    return Trouble("unknown-ref", f"{document.path} has no {path[:60]!r}", did_you_mean(near) or listing)


def read_name(
    name: str, snapshot: Snapshot, document: Document | None, profile: Profile = Profile.NATIVE
) -> tuple[Target | None, tuple[Trouble, ...]]:
    """Return what ``__name__`` means, or None and why not; answered once per snapshot, asking file and profile."""
    key = (name, id(document), profile)
    known = snapshot.names.get(key)
    if known is None:
        if len(snapshot.names) > _MOST_REMEMBERED:
            snapshot.names.clear()
        known = snapshot.names[key] = _read_name(name, snapshot, document, profile)
    return known


def _read_name(
    name: str, snapshot: Snapshot, document: Document | None, profile: Profile
) -> tuple[Target | None, tuple[Trouble, ...]]:
    if leaves_library(name):
        return None, (escape_trouble(),)
    found = snapshot.index.resolve(name, document, profile)
    if found is None:
        near = near_names(name, snapshot.index.names())
        hint = did_you_mean(near) or "check the name, or add the file"
        return None, (Trouble("unknown-ref", f"nothing in the library is called {name!r}", hint),)
    return found.target, ambiguity(name, found)


def read_bracket(path: str, document: Document) -> tuple[Target | None, tuple[Trouble, ...]]:
    """Return what ``[path]`` means in a file; a path that does not resolve is text."""
    target = path_index(document).find(path, bare_items=False)
    if target is not None:
        return target, ()
    first, dot, rest = path.partition(".")
    if dot and rest and " " not in path and path_index(document).place(first.strip()) is not None:
        return None, (unknown_path(path, document),)
    return None, ()


def target_of_reference(
    node: Node, parsed: Parsed, snapshot: Snapshot, document: Document | None
) -> tuple[Target | None, bool]:
    """Return what a reference names (no glob), and whether a whole file stands for its templates."""
    if isinstance(node, Wildcard):
        return (None if "*" in node.name else read_name(node.name, snapshot, document, parsed.profile)[0]), False
    if isinstance(node, Braces):
        meaning = read_braces(node, parsed, snapshot, document)
        return meaning.target, meaning.templates
    if isinstance(node, Bracket) and node.path and document is not None and document.kind is not Kind.TXT:
        return read_bracket(node.path, document)[0], False
    return None, False


def pool_of_reference(node: Node, parsed: Parsed, snapshot: Snapshot, document: Document | None) -> Pool | None:
    """Return the pool a reference or glob draws from, None if it names a single item or nothing."""
    if isinstance(node, Wildcard) and "*" in node.name:
        return snapshot.glob(node.name)
    target, templates = target_of_reference(node, parsed, snapshot, document)
    if target is None or target.item is not None:
        return None
    return snapshot.pool(target, templates=templates)


def item_of_reference(node: Node, parsed: Parsed, snapshot: Snapshot, document: Document | None) -> Item | None:
    """Return the one item a reference names, if it names one."""
    target, _ = target_of_reference(node, parsed, snapshot, document)
    return target.item if target is not None else None


def ambiguity(name: str, found: Found) -> tuple[Trouble, ...]:
    """Return the warning on a name that fits several places at one level."""
    if not found.others:
        return ()
    places = ", ".join(found.others[:_MOST_LISTED])
    return (
        Trouble(
            "ambiguous-ref",
            f"{name!r} fits {places}; {found.others[0]} was taken",
            "write a longer address",
            Severity.WARNING,
        ),
    )


def escape_trouble() -> Trouble:
    """Return the report on a reference that leaves the library; it never quotes what is there."""
    return Trouble("path-escape", "this reference would leave the library", "references are names, never paths on disk")
