"""Many expansions of one template: derived seeds, distinct texts, and the honest answer when there are no more."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from luna_engine.errors import LunaError
from luna_engine.wildcards.choosers import BagChooser, CycleChooser
from luna_engine.wildcards.diagnostics import Diagnostic, Severity
from luna_engine.wildcards.expansion import Batch
from luna_engine.wildcards.seeds import batch_seed, below, decimal, mix, text_key

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from luna_engine.wildcards.expansion import Expansion
    from luna_engine.wildcards.library import WildcardLibrary

    OnDraw = Callable[[int], None]

MODES = ("random", "enumerate", "cycle", "bag")
MOST_REPLAYED = 100_000
_WALKABLE = 100_000
_REPEATS_BEFORE_WALK = 16

seed_of = batch_seed


def digest(parts: object, digests: Sequence[str], seed: int, index: int, *options: object) -> str:
    """Return the fingerprint of one expansion."""
    state = hashlib.blake2b(digest_size=16)
    for piece in (repr(parts), *digests, decimal(seed), decimal(index), *(repr(option) for option in options)):
        state.update(piece.encode("utf-8", "surrogatepass"))
        state.update(b"\0")
    return state.hexdigest()


def expand_many(
    library: WildcardLibrary,
    template: str | Mapping[str, str],
    count: int,
    seed: int,
    *,
    unique: bool,
    mode: str,
    start: int,
    on_draw: OnDraw | None = None,
    **options: Any,
) -> Batch:
    """See `WildcardLibrary.expand_many`."""
    if mode not in MODES:
        raise LunaError("value-range", f"the mode is {mode!r}; known are {', '.join(MODES)}")
    if count < 0 or start < 0:
        raise LunaError("value-range", "count and start must not be negative")
    parts = {"": template} if isinstance(template, str) else dict(template)
    if options.get("rules") is not None and mode != "random":
        raise LunaError("value-range", f"rules draw by weight; the mode {mode} cannot", "use mode random")
    if mode == "enumerate":
        return _enumerated(library, parts, count, start, unique=unique, options={**options, "on_draw": on_draw})
    batch = _Drawer(library, parts, seed, mode, options, on_draw)
    if mode == "bag":
        batch.replay(start)
    if not unique:
        return Batch(tuple(batch.draw(start + at) for at in range(count)))
    return batch.distinct(count, start)


def _enumerated(
    library: WildcardLibrary,
    parts: dict[str, str],
    count: int,
    start: int,
    *,
    unique: bool,
    options: dict[str, Any],
) -> Batch:
    if set(parts) != {""}:
        raise LunaError("value-range", "enumerate walks one text; leave the negative part out")
    results = tuple(library.enumerate(parts[""], count, start=start, unique=unique, **options))
    if len(results) == count:
        return Batch(results)
    total = len(results)
    return Batch(results, (_exhausted(total, "combinations from there on"),), total if not start else None)


class _Drawer:
    def __init__(
        self,
        library: WildcardLibrary,
        parts: dict[str, str],
        seed: int,
        mode: str,
        options: dict[str, Any],
        on_draw: OnDraw | None,
    ) -> None:
        self.library = library
        self.snapshot = library.snapshot
        self.parts = parts
        self.seed = seed
        self.mode = mode
        self.options = options
        self.on_draw = on_draw
        self.drawn = 0
        self.bags = BagChooser()

    def draw(self, index: int) -> Expansion:
        self.drawn += 1
        if self.on_draw is not None:
            self.on_draw(self.drawn)
        chooser = CycleChooser(index) if self.mode == "cycle" else self.bags if self.mode == "bag" else None
        return self.library.expand_parts(
            self.parts,
            self.seed if self.mode == "bag" else batch_seed(self.seed, index),
            index=index,
            snapshot=self.snapshot,
            chooser=chooser,
            **self.options,
        )

    def replay(self, start: int) -> None:
        """Draw what comes before the first prompt, since a bag holds what was not drawn yet."""
        if start > MOST_REPLAYED:
            raise LunaError("value-range", f"a bag can begin at {MOST_REPLAYED} at most", "use a smaller start")
        for index in range(start):
            self.draw(index)
        self.drawn = 0

    def distinct(self, count: int, start: int) -> Batch:
        """Draw until ``count`` distinct texts exist, or all there are."""
        found: dict[tuple[str, ...], Expansion] = {}
        index, fruitless, repeats = start, 0, 0
        patience = 20 * count + 200
        walkable: bool | None = None
        while len(found) < count:
            result = self.draw(index)
            index += 1
            if found.setdefault(tuple(result.parts.values()), result) is result:
                fruitless = repeats = 0
                continue
            fruitless, repeats = fruitless + 1, repeats + 1
            if repeats >= _REPEATS_BEFORE_WALK and walkable is None:
                walkable = self.can_walk()
                if walkable:
                    return self.walk(found, count)
            if fruitless > patience:
                message = f"{fruitless} draws in a row gave nothing new; stopped at {len(found)} of {count} texts"
                return Batch(tuple(found.values()), (Diagnostic("space-exhausted", Severity.WARNING, message),))
        return Batch(tuple(found.values()))

    def can_walk(self) -> bool:
        if set(self.parts) != {""} or self.mode in {"cycle", "bag"} or self.options.get("rules") is not None:
            return False
        profile = self.options.get("profile", "native")
        try:
            return self.library.count(self.parts[""], profile=profile) <= _WALKABLE
        except LunaError:
            return False

    def walk(self, found: dict[tuple[str, ...], Expansion], count: int) -> Batch:
        """Add the combinations not seen yet, in an order shuffled by the seed."""
        left: dict[tuple[str, ...], Expansion] = {}
        for result in self.library.enumerate(self.parts[""], _WALKABLE, on_draw=self.on_draw, **self.options):
            key = tuple(result.parts.values())
            if key not in found:
                left.setdefault(key, result)
        total = len(found) + len(left)
        keys = list(left)
        shuffle = mix(text_key(f"seed:{decimal(self.seed)}") ^ text_key("walk"))
        for at in range(len(keys) - 1, 0, -1):
            other = below(shuffle, at + 1, at)
            keys[at], keys[other] = keys[other], keys[at]
        for key in keys[: max(count - len(found), 0)]:
            found[key] = left[key]
        problems = () if len(found) >= count else (_exhausted(total, "distinct texts"),)
        return Batch(tuple(found.values()), problems, total)


def _exhausted(total: int, what: str) -> Diagnostic:
    return Diagnostic("space-exhausted", Severity.WARNING, f"there are only {total} {what}", "ask for fewer")
