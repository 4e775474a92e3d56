"""The handle on a wildcard library: loads it, expands from it, keeps it fresh. Everything public goes through here."""

from __future__ import annotations

import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna_engine.errors import LunaError
from luna_engine.wildcards import batches, files
from luna_engine.wildcards.cache import ParsedCache
from luna_engine.wildcards.chooser import Chooser, ScriptedChooser, SeededChooser
from luna_engine.wildcards.completion import Completion, complete
from luna_engine.wildcards.counting import Counter, NeedsWalkError
from luna_engine.wildcards.drawing import MOST_DRAWS, DrawOptions
from luna_engine.wildcards.expanding import expand_long, fingerprint_of, raise_if_asked
from luna_engine.wildcards.expansion import Batch, Expansion
from luna_engine.wildcards.files import Root
from luna_engine.wildcards.loading import Loader
from luna_engine.wildcards.odds import SiteOdds, probabilities
from luna_engine.wildcards.ranking import digits_or_none
from luna_engine.wildcards.recursion import recursion_room
from luna_engine.wildcards.rules.links import Links
from luna_engine.wildcards.steps import Step, steps
from luna_engine.wildcards.syntax import Profile
from luna_engine.wildcards.traces import choices_of
from luna_engine.wildcards.tree import TreeNode, make_tree
from luna_engine.wildcards.uses import Use, where_used
from luna_engine.wildcards.watching import Change, Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from luna_engine.wildcards.diagnostics import Diagnostic
    from luna_engine.wildcards.model import Item
    from luna_engine.wildcards.rules.records import RuleOptions
    from luna_engine.wildcards.snapshot import Snapshot

    PathLike = str | Path | Root

MOST_CASES = 100_000
MOST_WALK_S = 3.0
_MISSING = frozenset({"keep", "error", "drop"})


class WildcardLibrary:
    """A live set of wildcard folders; earlier roots shadow later ones."""

    def __init__(
        self, roots: tuple[Root, ...], *, follow_outside: bool = False, cache: ParsedCache | None = None
    ) -> None:
        self.roots = roots
        self._lock = threading.RLock()
        self._watch: Watch | None = None
        self._loader = Loader(roots, follow_outside=follow_outside, cache=cache)
        self.snapshot = self._loader.build(None)

    @classmethod
    def load(
        cls,
        paths: PathLike | Sequence[PathLike] = (),
        *,
        watch: bool = False,
        cache: bool = True,
        follow_outside: bool = False,
    ) -> WildcardLibrary:
        """Read one or several folders.

        Args:
            paths: a folder, a `Root`, or several; none is an empty library.
            watch: keep it fresh in the background.
            cache: keep what was parsed in the cache folder, and take from there what is known.
            follow_outside: follow links that leave the roots.

        Raises:
            InputFileError: ``file-missing`` if a root is no folder. A bad file never raises.
        """
        if isinstance(paths, (str, Path, Root)):
            paths = (paths,)
        roots = tuple(path if isinstance(path, Root) else Root(Path(path)) for path in paths)
        files.check_roots(roots)
        kept = ParsedCache() if cache else None
        library = cls(roots, follow_outside=follow_outside, cache=kept)
        if kept is not None:
            kept.prune()
        if watch:
            library.watch(lambda _: None)
        return library

    # -- keeping fresh

    def refresh(self) -> bool:
        """Look at the disk now; tell whether anything changed."""
        return bool(self.refresh_changes())

    def refresh_changes(self) -> tuple[str, ...]:
        """Look at the disk now; return the paths (relative to their root) that changed, appeared or went away."""
        with self._lock:
            changed = self._loader.look(self.snapshot)
            if changed:
                self.snapshot = self._loader.build(self.snapshot)
            return changed

    def overlay(self, path: Path | str, text: str | None) -> None:
        """Lay an editor's unsaved text over a file, or take it away (None); the disk is not touched."""
        with self._lock:
            if self._loader.overlay(Path(path), text):
                # The disk is not looked at: a change there must be told by refresh, never swallowed here.
                self.snapshot = self._loader.build(self.snapshot)

    def overlays(self) -> tuple[Path, ...]:
        """Return the files that unsaved text lies over."""
        return tuple(self._loader.overlays)

    def watch(self, on_event: Callable[[Change], None]) -> Watch:
        """Call ``on_event`` from a background thread after each change on disk, the new snapshot being in place."""
        watch = Watch(self, on_event)
        self._watch = watch
        return watch

    def close(self) -> None:
        """Stop watching."""
        if self._watch is not None:
            self._watch.stop()
            self._watch = None

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """The load problems of the files read so far."""
        return self.snapshot.diagnostics

    # -- expanding

    def expand(
        self,
        template: str,
        seed: int = 0,
        *,
        index: int | None = None,
        profile: Profile | str = Profile.NATIVE,
        missing: str = "keep",
        strict: bool = False,
        variables: Mapping[str, str] | None = None,
        pins: Mapping[str, str] | None = None,
        reroll: Mapping[str, int] | None = None,
        rules: RuleOptions | None = None,
    ) -> Expansion:
        """Expand a template once.

        Args:
            template: the text.
            seed: any integer; 0 is a seed like any other.
            index: what cyclical sites count with; the seed if None.
            profile: the dialect of the template.
            missing: ``keep``, ``error`` or ``drop`` references that name nothing.
            strict: raise if any diagnostic is an error.
            variables: finished texts for ``${name}``.
            pins: site id to text.
            reroll: site id to the number of rerolls.
            rules: draw by the library's rules; None leaves all but groups of weights aside.

        Raises:
            WildcardError: with ``strict`` or ``missing="error"``.
        """
        return self.expand_parts(
            {"": template},
            seed,
            index=index,
            profile=profile,
            missing=missing,
            strict=strict,
            variables=variables,
            pins=pins,
            reroll=reroll,
            rules=rules,
        )

    def expand_parts(
        self,
        parts: Mapping[str, str],
        seed: int = 0,
        *,
        index: int | None = None,
        profile: Profile | str = Profile.NATIVE,
        missing: str = "keep",
        strict: bool = False,
        variables: Mapping[str, str] | None = None,
        pins: Mapping[str, str] | None = None,
        reroll: Mapping[str, int] | None = None,
        chooser: Chooser | None = None,
        snapshot: Snapshot | None = None,
        most_draws: int = MOST_DRAWS,
        rules: RuleOptions | None = None,
    ) -> Expansion:
        """Expand several parts in one draw: shared variables, a frame key of its own per part.

        Raises:
            LunaError: ``value-range``, also for rules together with a chooser: rules draw by weight.
            WildcardError: see `expand`.
        """
        if missing not in _MISSING:
            raise LunaError("value-range", f"missing is {missing!r}; known are keep, error and drop")
        if rules is not None and chooser is not None:
            raise LunaError("value-range", "rules draw by weight; they cannot walk or cycle", "use mode random")
        snapshot = snapshot or self.snapshot
        index = seed if index is None else index
        fingerprint = partial(
            fingerprint_of, snapshot, parts, seed, index, profile, missing, variables, pins, reroll, rules
        )
        ruleset = None if rules is None else snapshot.wanted_rules
        if chooser is None and not pins and not reroll and most_draws == MOST_DRAWS and ruleset is None:
            quick = snapshot.compiler.expand(parts, seed, profile)
            if quick is not None:
                texts, traces = quick
                values = dict(variables) if variables else {}
                links = None if rules is None else Links()
                choices = partial(choices_of, traces)
                return Expansion(texts.get("", ""), texts, seed, index, choices, (), values, fingerprint, links)
        options = DrawOptions(missing, pins or {}, reroll or {}, draws=most_draws)
        result = expand_long(
            snapshot,
            parts,
            seed,
            index,
            profile,
            chooser or SeededChooser(),
            options,
            variables or {},
            rules,
            fingerprint,
        )
        raise_if_asked(result, strict=strict, missing=missing)
        return result

    def expand_many(
        self,
        template: str | Mapping[str, str],
        count: int,
        seed: int = 0,
        unique: bool = True,  # noqa: FBT001, FBT002 - the signature is fixed by HOUSE
        *,
        mode: str = "random",
        start: int = 0,
        on_draw: Callable[[int], None] | None = None,
        **options: Any,
    ) -> Batch:
        """Expand a template ``count`` times: result i equals ``expand(template, seeds[i], index=start + i)``.

        With ``unique`` the texts are distinct; if fewer exist than asked for, ``space-exhausted`` names their number.
        ``on_draw`` is called with the number of draws so far, for progress; what it raises ends the batch.
        """
        return batches.expand_many(
            self, template, count, seed, unique=unique, mode=mode, start=start, on_draw=on_draw, **options
        )

    def preview(self, template: str, count: int = 10, seed: int = 0, **options: Any) -> tuple[Expansion, ...]:
        """Return ``count`` samples over one snapshot, repeats included."""
        snapshot = self.snapshot
        return tuple(
            self.expand_parts({"": template}, batches.seed_of(seed, at), index=at, snapshot=snapshot, **options)
            for at in range(count)
        )

    # -- counting

    def count(self, template: str, *, profile: Profile | str = Profile.NATIVE) -> int:
        """Return the exact number of ways to expand a template.

        Raises:
            LunaError: ``limit`` if it depends on earlier draws and more than 100,000 cases would have to be walked.
        """
        snapshot = self.snapshot
        parsed = snapshot.template(template, Profile(profile))
        with recursion_room():
            try:
                return Counter(snapshot).template(parsed)
            except NeedsWalkError:
                factor, rest = Counter(snapshot).factor_out(parsed)
        return factor * self._walk(rest, Profile(profile))

    def count_quickly(self, template: str, *, profile: Profile | str = Profile.NATIVE) -> int | None:
        """Return the exact number of ways if sums and products alone give it, else None."""
        snapshot = self.snapshot
        with recursion_room():
            try:
                return Counter(snapshot).template(snapshot.template(template, Profile(profile)))
            except NeedsWalkError:
                return None

    def _walk(self, template: str, profile: Profile) -> int:
        """Count the cases of a text one by one."""
        chooser = ScriptedChooser()
        total, snapshot = 0, self.snapshot
        deadline = time.monotonic() + MOST_WALK_S
        while total <= MOST_CASES and time.monotonic() < deadline:
            self.expand_parts({"": template}, profile=profile, chooser=chooser, snapshot=snapshot)
            total += 1
            # Every other value of a draw is at least one more case, so one path already bounds the number.
            if 1 + sum(size - 1 for size in chooser.sizes) > MOST_CASES:
                break
            if not chooser.advance():
                return total
        raise LunaError(
            "limit",
            f"the number of combinations depends on earlier draws and passes {MOST_CASES} cases or {MOST_WALK_S:g} s",
            "count its parts instead",
        )

    def enumerate(
        self,
        template: str,
        limit: int | None = None,
        *,
        start: int = 0,
        unique: bool = False,
        profile: Profile | str = Profile.NATIVE,
        on_draw: Callable[[int], None] | None = None,
        **options: Any,
    ) -> Iterator[Expansion]:
        """Yield every combination from number ``start`` on in odometer order, the last site fastest.

        ``start`` costs nothing where sums and products give the number of combinations; otherwise the ones before it
        are walked. ``on_draw`` as in `expand_many`.
        """
        snapshot = self.snapshot
        script: list[int] = []
        if start:
            with recursion_room():
                found = digits_or_none(snapshot, snapshot.template(template, Profile(profile)), start)
            if found is None:
                return
            script = found
        chooser = ScriptedChooser(script)
        seen: set[str] = set()
        at, given = (start, 0) if script else (0, 0)
        while limit is None or given < limit:
            result = self.expand_parts(
                {"": template}, 0, index=at, profile=profile, chooser=chooser, snapshot=snapshot, **options
            )
            if at >= start and not (unique and result.text in seen):
                seen.add(result.text)
                given += 1
                yield result
            at += 1
            if on_draw is not None:
                on_draw(at)
            if not chooser.advance():
                return

    # -- looking

    def tree(self, *, combinations: bool = False) -> tuple[TreeNode, ...]:
        """Return roots' folders, files and addresses with item counts, and combination counts if asked."""
        return make_tree(self.snapshot, combinations=combinations)

    def items(self, address: str) -> tuple[Item, ...]:
        """Return the items an address draws from, empty if nothing has it."""
        found = self.snapshot.index.resolve(address)
        if found is None:
            return ()
        if found.target.item is not None:
            return (found.target.item,)
        return tuple(self.snapshot.pool(found.target).items)

    def probabilities(
        self,
        template: str,
        top: int = 50,
        *,
        profile: Profile | str = Profile.NATIVE,
        variables: Mapping[str, str] | None = None,
    ) -> tuple[SiteOdds, ...]:
        """Return the exact odds of each site, nested draws multiplied out, what is beyond ``top`` summed."""
        snapshot = self.snapshot
        return probabilities(snapshot, snapshot.template(template, Profile(profile)), top, variables)

    def steps(self, template: str | Mapping[str, str], seed: int = 0, **options: Any) -> Iterator[Step]:
        """Yield one draw after the other, with the text so far; takes the options of `expand`."""
        return steps(self, {"": template} if isinstance(template, str) else template, seed, **options)

    def complete(self, text: str, cursor: int, *, file: Path | str | None = None) -> tuple[Completion, ...]:
        """Return what can stand at the cursor of an editor.

        Args:
            text: what is being edited.
            cursor: an offset in it.
            file: the file it stands in, if it is no plain prompt.
        """
        snapshot = self.snapshot
        document = next(
            (snapshot.document(*key) for key, entry in snapshot.entries.items() if entry.path == file), None
        )
        return complete(snapshot, text, cursor, document)

    def where_used(self, address: str, templates: Sequence[str] = ()) -> tuple[Use, ...]:
        """Return every reference, in the library and in ``templates``, that can draw from an address."""
        return where_used(self.snapshot, address, templates)

    def fingerprint(self, template: str, *, profile: Profile | str = Profile.NATIVE, rules: bool = False) -> str:
        """Return a digest of a template and the content of every file it reaches, with ``rules`` of rule files too."""
        return self.snapshot.fingerprint(template, Profile(profile), rules=rules)

    def lint(self, templates: Sequence[str] = ()) -> list[Diagnostic]:
        """Read the whole library, follow every reference, and return what is wrong, in place order."""
        from luna_engine.wildcards.lint import lint

        return lint(self.snapshot, templates)
