"""LoRAs by content: the registry that keeps them, and the context in which one batch runs with them.

A loaded weight is never written to. A batch either adds low-rank products beside the layers, row by row (side path),
or runs with pointers swapped to merged copies; leaving the context undoes both, whatever happened inside.
"""

from __future__ import annotations

import enum
import threading
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from luna_daemon.status_messages import CacheStatus
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import torch
    from typing_extensions import Self

    from luna_daemon.encode_messages import LoraUse
    from luna_daemon.patches import Patch

CAP_BYTES = 2 * 1024**3


class LoraPath(enum.Enum):
    """How a recipe was applied."""

    SIDE = "side"
    MERGED = "merged"
    EXACT = "exact"


def is_low_rank(patch: Patch) -> bool:
    """Tell whether a patch is a plain product of two factors, which can run beside the layer."""
    return patch.kind == "lora" and patch.part is None and "dora_scale" not in patch.tensors


@dataclass(frozen=True, slots=True)
class LoraEntry:
    """One LoRA's text-encoder part, on the device.

    Attributes:
        hash: of its content.
        patches: what it does to which weight.
        source: the file id it was read from, None for one that was sent.
    """

    hash: str
    patches: tuple[Patch, ...]
    source: str | None = None

    @property
    def nbytes(self) -> int:
        """Return the bytes of its tensors."""
        return sum(patch.nbytes for patch in self.patches)

    @property
    def form(self) -> str:
        """Return ``low_rank`` if all of it can run beside the layers, ``merged`` if nothing can, else ``mixed``."""
        low_rank = sum(map(is_low_rank, self.patches))
        if low_rank == len(self.patches):
            return "low_rank"
        return "mixed" if low_rank else "merged"


@dataclass(frozen=True, slots=True)
class Recipe:
    """The LoRAs of one prompt in order, found: what was asked for and the entry for each."""

    uses: tuple[LoraUse, ...] = ()
    entries: tuple[LoraEntry, ...] = field(default=(), compare=False, repr=False)

    @property
    def can_run_beside(self) -> bool:
        """Tell whether the side path can compute all of it."""
        return all(use.model == 1.0 for use in self.uses) and all(entry.form == "low_rank" for entry in self.entries)

    def by_target(self) -> dict[str, list[tuple[Patch, float, float]]]:
        """Return what is done to each weight, in order: (patch, strength, strength of the weight itself)."""
        found: dict[str, list[tuple[Patch, float, float]]] = {}
        for use, entry in zip(self.uses, self.entries, strict=True):
            for patch in entry.patches:
                found.setdefault(patch.target, []).append((patch, use.patch, use.model))
        return found


class LoraRegistry:
    """The LoRAs used last, up to a number of bytes. Any thread may ask.

    Args:
        cap_bytes: an entry larger than this is refused.
    """

    def __init__(self, cap_bytes: int = CAP_BYTES) -> None:
        self.cap_bytes = cap_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, LoraEntry] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self._pins: Counter[str] = Counter()
        self._uses: Counter[str] = Counter()
        self._hits = self._misses = self._evictions = 0

    def put(self, entry: LoraEntry) -> None:
        """Keep an entry; those used longest ago go, unless a batch runs with them.

        Raises:
            DaemonError: ``lora-too-large``.
        """
        size = entry.nbytes
        with self._lock:
            if entry.hash in self._kept:
                self._kept.move_to_end(entry.hash)
                return
            pinned = sum(self._sizes[name] for name in self._kept if self._pins[name])
            if size + pinned > self.cap_bytes:
                raise DaemonError(
                    "lora-too-large",
                    f"the LoRA needs {size:,} bytes, {self.cap_bytes - pinned:,} of {self.cap_bytes:,} can be had",
                    "raise lora_cache_bytes in the daemon's settings",
                )
            for name in [name for name in self._kept if not self._pins[name]]:
                if self._held() + size <= self.cap_bytes:
                    break
                self._forget(name)
                self._evictions += 1
            self._kept[entry.hash], self._sizes[entry.hash] = entry, size

    def _held(self) -> int:
        return sum(self._sizes.values())

    def _forget(self, name: str) -> int:
        del self._kept[name]
        self._uses.pop(name, None)
        return self._sizes.pop(name)

    def recipe(self, uses: Sequence[LoraUse]) -> Recipe:
        """Find the entries of a recipe; they are then the last to go.

        Raises:
            DaemonError: ``lora-missing`` with all hashes that are not here.
        """
        with self._lock:
            missing = [use.hash for use in uses if use.hash not in self._kept]
            self._hits += len(uses) - len(missing)
            self._misses += len(missing)
            if missing:
                raise missing_error(missing)
            for use in uses:
                self._kept.move_to_end(use.hash)
            return Recipe(tuple(uses), tuple(self._kept[use.hash] for use in uses))

    def get(self, name: str) -> LoraEntry:
        """Return an entry.

        Raises:
            DaemonError: ``lora-missing``.
        """
        with self._lock:
            if name not in self._kept:
                raise missing_error([name])
            return self._kept[name]

    def present(self, names: Iterable[str]) -> set[str]:
        """Return those of the hashes that are here."""
        with self._lock:
            return set(names) & self._kept.keys()

    def rows(self) -> list[tuple[LoraEntry, int, int, bool]]:
        """Return every entry with its bytes, its uses and whether it is pinned, the longest unused first."""
        with self._lock:
            return [
                (entry, self._sizes[name], self._uses[name], bool(self._pins[name]))
                for name, entry in self._kept.items()
            ]

    def pin(self, recipes: Iterable[Recipe]) -> None:
        """Keep what a batch runs with, and count the use."""
        with self._lock:
            for recipe in recipes:
                for use in recipe.uses:
                    self._pins[use.hash] += 1
                    self._uses[use.hash] += 1

    def unpin(self, recipes: Iterable[Recipe]) -> None:
        """Let go what `pin` kept."""
        with self._lock:
            for recipe in recipes:
                self._pins.subtract(use.hash for use in recipe.uses)
            self._pins = +self._pins

    def drop(self, names: Iterable[str] | None = None) -> tuple[int, tuple[str, ...]]:
        """Forget entries, or all; return the freed bytes and the hashes that stayed because a batch runs with them."""
        with self._lock:
            chosen = [name for name in (list(self._kept) if names is None else names) if name in self._kept]
            in_use = tuple(name for name in chosen if self._pins[name])
            return sum(self._forget(name) for name in chosen if name not in in_use), in_use

    def status(self) -> CacheStatus:
        """Return what the daemon's status says of it."""
        with self._lock:
            return CacheStatus(self._held(), self.cap_bytes, len(self._kept), self._hits, self._misses, self._evictions)


def missing_error(names: Sequence[str]) -> DaemonError:
    """Return the ``lora-missing`` error; its details name the hashes."""
    return DaemonError(
        "lora-missing",
        f"{len(names)} LoRA(s) of the recipe are not here, the first is {names[0]}",
        "send them with lora_put and repeat",
        details={"hashes": list(names[:100])},
    )


class PatchableEncoder(Protocol):
    """A text encoder that can run a batch with LoRAs; see `luna_daemon.runtime.side_path`."""

    def set_rows(self, recipes: Sequence[Recipe]) -> None:
        """Compute the low-rank products of each row's recipe beside the layers, until `clear`."""

    def swap_in(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Let the layers use other weights, until `clear`."""

    def clear(self) -> None:
        """Take both back; never raises."""


class TransientLoRAContext:
    """One batch on one encoder with LoRAs; nothing of them is left behind it. On the executor's thread only.

    Args:
        model: the encoder.
        recipes: of each row of the batch, in order; an empty one leaves its row untouched.
        registry: keeps the entries while the batch runs.
        merged: weights to run with instead of the rows' products: then all rows have the same recipe.
    """

    def __init__(
        self,
        model: PatchableEncoder,
        recipes: Sequence[Recipe],
        registry: LoraRegistry,
        merged: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self._model = model
        self._recipes = recipes
        self._registry = registry
        self._merged = merged
        self._pinned: tuple[Recipe, ...] = ()

    def __enter__(self) -> Self:
        distinct = tuple(dict.fromkeys(recipe for recipe in self._recipes if recipe.uses))
        try:
            self._registry.pin(distinct)
            self._pinned = distinct
            if self._merged is not None:
                self._model.swap_in(self._merged)
            elif distinct:
                self._model.set_rows(self._recipes)
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._leave()

    def _leave(self) -> None:
        self._model.clear()
        self._registry.unpin(self._pinned)
        self._pinned = ()
