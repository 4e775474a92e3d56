"""Planning an import: what each file of a pack would become in a library, and what is there already. Writes nothing."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luna_engine.errors import LunaError
from luna_engine.wildcards.files import Entry, Stamp, Walk
from luna_engine.wildcards.importing.dialects import PEERS, differing_profiles
from luna_engine.wildcards.importing.pack import PackFile, leaves_pack, read_pack
from luna_engine.wildcards.importing.reading import Ready, lists_of, make_ready, says_the_same
from luna_engine.wildcards.importing.records import (
    ABOUT,
    Differing,
    FileState,
    ImportPlan,
    NearItem,
    PlannedFile,
    SameList,
)
from luna_engine.wildcards.importing.similar import MOST_TEXTS, near_pairs
from luna_engine.wildcards.lines import Lines
from luna_engine.wildcards.lint import lint
from luna_engine.wildcards.model import NOTE_KEYS, Document, ItemList
from luna_engine.wildcards.names import joined
from luna_engine.wildcards.sameness import evened, list_digest
from luna_engine.wildcards.scan import is_name
from luna_engine.wildcards.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from luna_engine.wildcards.diagnostics import Diagnostic
    from luna_engine.wildcards.importing.pack import Pack
    from luna_engine.wildcards.library import WildcardLibrary
    from luna_engine.wildcards.syntax import Profile

CONFLICTS = ("skip", "rename")
_MOST_LISTED = 1_000
_UNNAMEABLE = re.compile(r"[^\w\-.+']+")


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What a caller may decide.

    Attributes:
        into: the folder below the root that takes the pack; None for one of the pack's name, ``""`` for the root.
        on_conflict: what happens where another file has the address: ``skip`` leaves the pack's file out, ``rename``
            writes it beside under a name of its own.
        skip_same: leave out files all of whose lists the library has under other names.
        profiles: the dialects the pack may have been written in; items that mean something else there are listed.
    """

    into: str | None = None
    on_conflict: str = "skip"
    skip_same: bool = False
    profiles: tuple[Profile, ...] = PEERS


def plan_import(
    library: WildcardLibrary, source: Path | str, options: ImportOptions | None = None, *, root: int = 0
) -> ImportPlan:
    """Plan importing a pack, a folder or a zip archive, into a root of a library.

    Raises:
        InputFileError: the pack is missing, no archive, or too large.
        LunaError: ``value-range`` for an unknown policy, ``path-escape`` for a folder outside the root.
    """
    options = options or ImportOptions()
    if options.on_conflict not in CONFLICTS:
        raise LunaError("value-range", f"on_conflict is {options.on_conflict!r}; known are {', '.join(CONFLICTS)}")
    if not library.roots:
        raise LunaError("value-range", "the library has no folder to import into", "name one with --root")
    return _Planner(library, read_pack(Path(source)), options, root).plan(str(source))


class _Planner:
    def __init__(self, library: WildcardLibrary, pack: Pack, options: ImportOptions, root: int) -> None:
        self.library = library
        self.pack = pack
        self.options = options
        self.root = root
        self.folder = library.roots[root].path
        self.into = _checked_folder(self.folder, pack.name if options.into is None else options.into, options.into)
        self.before = library.snapshot
        self.known: dict[str, Document] = {}
        for at, path in self.before.entries:
            document = self.before.document(at, path)
            if at == root and document is not None:
                self.known[_key(document.path)] = document
        self.taken = set(self.known)
        self.digests = self._digests()
        self.stems = self._stems()

    def plan(self, source: str) -> ImportPlan:
        made = [self.notice(file) if file.is_notice else self.file(file) for file in self._unwrapped()]
        files = [file for file, _ in made]
        imported = [ready for file, ready in made if ready is not None and file.state.is_written]
        documents = [ready.document for ready in imported if ready.document is not None]
        near, notes = self.near(documents)
        problems = [found for _, one in made if one is not None and one.document is None for found in one.problems]
        new = self.new_problems(imported)
        notes += self._better_place(source, new)
        return ImportPlan(
            source,
            self.pack.name,
            self.pack.digest,
            self.folder,
            self.into,
            tuple(files),
            tuple(near[:_MOST_LISTED]),
            (*self.pack.diagnostics, *problems, *new),
            notes,
        )

    def _better_place(self, source: str, problems: tuple[Diagnostic, ...]) -> tuple[str, ...]:
        """Say so if references of the pack need it to stand at the root: names of peers begin there."""
        broken = sum(found.code == "unknown-ref" for found in problems)
        if not broken or not self.into or self.options.into is not None:
            return ()
        at_root = _Planner(self.library, self.pack, dataclasses.replace(self.options, into=""), self.root).plan(source)
        left = sum(found.code == "unknown-ref" for found in at_root.diagnostics)
        return (f"--into . would mend {broken - left} of {broken} unknown references",) if left < broken else ()

    def _unwrapped(self) -> list[PackFile]:
        """Return the pack's files without the one folder round all of them, where that has the target's name."""
        files = self.pack.files
        wrapper = self.into.rpartition("/")[2]
        if wrapper and all(file.path.startswith(f"{wrapper}/") for file in files):
            return [PackFile(file.path.partition("/")[2], file.data, file.is_notice) for file in files]
        return files

    # -- one file

    def notice(self, file: PackFile) -> tuple[PlannedFile, Ready | None]:
        target = self._free(f"{self._below(ABOUT)}/{file.path.replace('/', '-')}")
        path = self.folder / target
        if path.is_file() and path.read_bytes() == file.data:
            return PlannedFile(file.path, target, FileState.KNOWN), None
        if path.exists():
            target = self._free(target, is_taken=True)
        self.taken.add(target.casefold())
        return PlannedFile(file.path, target, FileState.NOTICE, file.data), None

    def file(self, file: PackFile) -> tuple[PlannedFile, Ready | None]:
        target, state = self._below(file.path), FileState.NEW
        ready = make_ready(file, target, self.root, self.pack.name)
        if ready.document is None:
            return PlannedFile(file.path, target, FileState.BROKEN, notes=ready.notes), ready
        if _key(target) in self.taken or (self.folder / target).exists():
            there = self.known.get(_key(target))
            if there is not None and says_the_same(there, ready.document):
                return PlannedFile(file.path, target, FileState.KNOWN, notes=(f"{there.path} says the same",)), ready
            if self.options.on_conflict == "skip":
                what = there.path if there is not None else target
                return PlannedFile(file.path, target, FileState.EXISTS, notes=(f"{what} is there already",)), ready
            target, state = self._free(target, is_taken=True), FileState.RENAMED
            ready = make_ready(file, target, self.root, self.pack.name)
        return self._described(file, target, state, ready), ready

    def _described(self, file: PackFile, target: str, state: FileState, ready: Ready) -> PlannedFile:
        document = ready.document
        lists = [found for found in lists_of(document) if NOTE_KEYS.isdisjoint(found.keys)] if document else []
        same = tuple(self._same(lists))
        if same and self.options.skip_same and len(same) == len(lists):
            return PlannedFile(file.path, target, FileState.KNOWN, notes=("all its lists are there already",))
        self.taken.add(_key(target))
        for found in lists:
            digest = list_digest(found)
            if digest is not None:
                self.digests.setdefault(digest, found.address)
        stem = document.stem.casefold() if document is not None else ""
        return PlannedFile(
            file.path,
            target,
            state,
            ready.data,
            len(lists),
            sum(len(found.items) for found in lists),
            ready.repeats,
            same,
            tuple(self._differing(lists)),
            tuple(self.stems.get(stem, ())),
            ready.notes,
        )

    def _same(self, lists: Iterable[ItemList]) -> Iterator[SameList]:
        for found in lists:
            digest = list_digest(found)
            other = self.digests.get(digest) if digest is not None else None
            if other is not None and other != found.address:
                yield SameList(found.address, other)

    def _differing(self, lists: Iterable[ItemList]) -> Iterator[Differing]:
        number = 0
        for found in lists:
            items = found.items
            is_long = isinstance(items, Lines) and len(items) > _MOST_LISTED * 50
            for item in items.constructs() if is_long and isinstance(items, Lines) else items:
                profiles = differing_profiles(item, found.document, self.options.profiles)
                if profiles and number < _MOST_LISTED:
                    number += 1
                    yield Differing(item.text, item.line, tuple(profile.value for profile in profiles))

    # -- names

    def _below(self, path: str) -> str:
        return f"{self.into}/{path}" if self.into else path

    def _free(self, target: str, *, is_taken: bool = False) -> str:
        """Return a target that nothing has: its name, or that with a number behind it."""
        stem, dot, suffix = target.rpartition(".")
        stem, suffix = (stem, dot + suffix) if "/" not in suffix and stem else (target, "")
        number = 1
        while is_taken or _key(target) in self.taken or target.casefold() in self.taken:
            number += 1
            target = f"{stem}-{number}{suffix}"
            is_taken = (self.folder / target).exists()
        return target

    def _digests(self) -> dict[bytes, str]:
        """Return the address of each list that the library has, by what it says."""
        found: dict[bytes, str] = {}
        for one in self.before.index.lists():
            digest = list_digest(one)
            if digest is not None:
                found.setdefault(digest, one.address)
        return found

    def _stems(self) -> dict[str, list[str]]:
        """Return the addresses of the library by their last part: what a bare name means."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for document in self.before.documents:
            found[document.stem.casefold()].append(document.address)
        for one in self.before.index.lists():
            if one.keys and len(found[one.keys[-1].casefold()]) < 8:
                found[one.keys[-1].casefold()].append(one.address)
        return found

    # -- the library with the pack in it

    def new_problems(self, imported: list[Ready]) -> tuple[Diagnostic, ...]:
        """Return what lint finds once the files are there and does not find now, hints left out."""
        if not imported:
            return ()
        before = self.before
        loaded = [(entry, found) for at, entry in before.entries.items() if (found := before.document(*at)) is not None]
        folders = [*before.folders]
        for ready in imported:
            document = ready.document
            if document is None:
                continue
            path = self.folder / document.path
            loaded.append((Entry(path, document.path, self.root, document.kind, Stamp(0, 0, 0, 0)), document))
            folders += _folders_of(document.path)
        walk = Walk(folders=[(self.root, name) for name in dict.fromkeys(folders)])
        after = Snapshot(self.library.roots, walk, loaded)
        known = set(lint(before))
        return tuple(found for found in lint(after) if found not in known and found.severity.rank < 2)

    def near(self, documents: list[Document]) -> tuple[list[NearItem], tuple[str, ...]]:
        """Return the pairs of nearly equal items of which at least one is the pack's."""
        places: dict[str, tuple[str, str]] = {}
        wanted: list[bool] = []
        for is_new, found in (
            *((True, one) for document in documents for one in lists_of(document)),
            *((False, one) for one in self.before.index.lists()),
        ):
            if len(places) + len(found.items) > MOST_TEXTS:
                return [], (f"more than {MOST_TEXTS} items: near duplicates were not looked for",)
            for item in found.items if NOTE_KEYS.isdisjoint(found.keys) else ():
                key = evened(item.text)
                if key and key not in places:
                    places[key] = (item.text, f"{found.document.path}:{item.line}")
                    wanted.append(is_new)
        texts = list(places)
        near = [
            NearItem(*places[texts[pair.first]], *places[texts[pair.second]], round(pair.similarity, 3))
            for pair in near_pairs(texts, wanted)
        ]
        more = len(near) - _MOST_LISTED
        return near, (f"{more} more pairs of near duplicates are not listed",) if more > 0 else ()


def _key(path: str) -> str:
    """Return a path as addresses collide: without suffix, NFC, case evened."""
    return joined(unicodedata.normalize("NFC", path.rpartition(".")[0])).casefold()


def _folders_of(path: str) -> Iterator[str]:
    folder = path.rpartition("/")[0]
    while folder:
        yield folder
        folder = folder.rpartition("/")[0]


def _checked_folder(root: Path, name: str, asked: str | None) -> str:
    """Return the folder below a root that takes a pack.

    Raises:
        LunaError: ``path-escape`` if it is not below the root, or ``value-range`` if names could not reach it.
    """
    if asked is None:
        name = _UNNAMEABLE.sub("-", name).strip("-. ") or "pack"
    into = "/".join(part for part in name.replace("\\", "/").split("/") if part not in {"", "."})
    if name.startswith(("/", "\\")) or leaves_pack(into):
        raise LunaError("path-escape", "the folder for the pack would leave the library", "give a name below the root")
    parts = into.split("/") if into else []
    if any(part.startswith((".", "_!")) or not is_name(part) for part in parts):
        raise LunaError(
            "value-range", f"{into!r} is no name that references can use", "use letters, digits and - . + '"
        )
    real = root.resolve()
    if not (root / into).resolve().is_relative_to(real):
        raise LunaError("path-escape", "the folder for the pack would leave the library", "give a name below the root")
    return into
