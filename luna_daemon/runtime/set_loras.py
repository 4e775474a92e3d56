"""The LoRAs of one set: which path a recipe takes, what it hits here, and the context of each forward pass."""

from __future__ import annotations

import itertools
import math
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luna_daemon.messages import LoraDid
from luna_daemon.runtime.lora import LoraPath, Recipe, TransientLoRAContext
from luna_daemon.runtime.merged import HotRecipes, MergedWeights, merge
from luna_daemon.runtime.patch_shapes import check_fits
from luna_daemon.runtime.side_path import SidePath
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    import torch

    from luna_daemon.runtime.backend import EncodeItem
    from luna_daemon.runtime.lora import LoraEntry, LoraRegistry
    from luna_daemon.runtime.side_path import Slot

_FP32_BYTES = 4
_MATCHES_MAX = 1024
_NOTHING = Recipe()
_owners = itertools.count()


@dataclass(slots=True)
class LoraShelf:
    """What all sets of a backend share.

    Attributes:
        registry: keeps the LoRAs.
        merged: keeps merged copies.
        new_hot: makes what tells a set's hot recipes.
    """

    registry: LoraRegistry
    merged: MergedWeights
    new_hot: Callable[[], HotRecipes] = HotRecipes


@dataclass(frozen=True, slots=True)
class Match:
    """How a LoRA fits a set: how many of its weights are there, and which are not."""

    matched: int
    unmatched: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Chosen:
    recipe: Recipe
    path: LoraPath


class SetLoras:
    """Applies LoRAs to the encoders of one set. The executor's thread alone calls `plan` and what it returns.

    Args:
        slots: role → target → where the weight is.
        extra: targets that the set names and that have no weight: patching them changes nothing.
        shelf: shared between sets.
    """

    def __init__(
        self, slots: Mapping[str, Mapping[str, Slot]], extra: Mapping[str, tuple[int, ...]], shelf: LoraShelf
    ) -> None:
        self.registry = shelf.registry
        self._merged = shelf.merged
        self._hot = shelf.new_hot()
        self._sides = {role: SidePath(inside) for role, inside in slots.items()}
        self._shapes = {
            **extra,
            **{name: tuple(slot.weight.shape) for inside in slots.values() for name, slot in inside.items()},
        }
        self._matches: dict[str, Match] = {}
        self._owner = next(_owners)
        weakref.finalize(self, self._merged.drop, self._owner)

    def match(self, entry: LoraEntry) -> Match:
        """Tell what a LoRA hits in this set.

        Raises:
            DaemonError: ``lora-invalid`` for a patch whose shape is another than its weight's.
        """
        found = self._matches.get(entry.hash)
        if found is None:
            found = self._judge(entry)
            if len(self._matches) >= _MATCHES_MAX:
                self._matches = {}
            self._matches[entry.hash] = found
        return found

    def _judge(self, entry: LoraEntry) -> Match:
        targets = dict.fromkeys(patch.target for patch in entry.patches)
        for patch in entry.patches:
            if patch.target in self._shapes:
                check_fits(patch, self._shapes[patch.target])
        unmatched = tuple(target for target in targets if target not in self._shapes)
        return Match(len(targets) - len(unmatched), unmatched)

    def find(self, item: EncodeItem) -> Recipe:
        """Find and judge the recipe of a prompt.

        Raises:
            DaemonError: ``lora-missing``, ``lora-invalid``; ``lora-no-match`` for one that hits nothing in this set.
        """
        if not item.loras:
            return _NOTHING
        recipe = self.registry.recipe(item.loras)
        for entry in recipe.entries:
            if not self.match(entry).matched:
                raise no_match(entry)
        return recipe

    def plan(self, items: Sequence[EncodeItem]) -> LoraPlan:
        """Choose how the recipe of each prompt is applied, and count its use."""
        recipes = [self.find(item) if item.recipe is None else item.recipe for item in items]
        paths: dict[tuple[Recipe, bool], LoraPath] = {}
        for item, recipe in zip(items, recipes, strict=True):
            if recipe.uses and (recipe, item.is_exact) not in paths:
                paths[recipe, item.is_exact] = self._choose(recipe, is_exact=item.is_exact)
        chosen = [
            _Chosen(recipe, paths.get((recipe, item.is_exact), LoraPath.SIDE))
            for item, recipe in zip(items, recipes, strict=True)
        ]
        return LoraPlan(self, chosen)

    def _choose(self, recipe: Recipe, *, is_exact: bool) -> LoraPath:
        if is_exact:
            return LoraPath.EXACT
        is_hot = self._hot.note(recipe)
        if recipe.can_run_beside and not (is_hot and self._copy_bytes(recipe) <= self._merged.cap_bytes()):
            return LoraPath.SIDE
        return LoraPath.MERGED

    def _copy_bytes(self, recipe: Recipe) -> int:
        return sum(math.prod(self._shapes[name]) * _FP32_BYTES for name in recipe.by_target() if name in self._shapes)

    def rows(self, role: str, chosen: Sequence[_Chosen]) -> TransientLoRAContext:
        """Return the context of one forward pass; all rows merged alike, or none merged."""
        recipes = [one.recipe for one in chosen]
        first = chosen[0]
        merged = None
        if first.recipe.uses and first.path is not LoraPath.SIDE:
            merged = self._copies(role, first)
        return TransientLoRAContext(self._sides[role], recipes, self.registry, merged)

    def _copies(self, role: str, chosen: _Chosen) -> Mapping[str, torch.Tensor]:
        is_exact = chosen.path is LoraPath.EXACT
        slots = self._sides[role].slots
        key = (self._owner, role, chosen.recipe, is_exact)
        return self._merged.get(key, lambda: merge(slots, chosen.recipe, is_exact=is_exact))

    def did(self, chosen: _Chosen) -> tuple[LoraDid, ...]:
        """Say what was done for one prompt."""
        return tuple(
            LoraDid(entry.hash, chosen.path.value, len(self.match(entry).unmatched)) for entry in chosen.recipe.entries
        )


class LoraPlan:
    """How the LoRAs of some prompts are applied, by the place of the prompt.

    Args:
        owner: of the set.
        chosen: per prompt.
    """

    def __init__(self, owner: SetLoras, chosen: Sequence[_Chosen]) -> None:
        self._owner = owner
        self._chosen = chosen

    def group(self, index: int) -> Hashable:
        """Return a key; rows of prompts with the same key may share a forward pass."""
        one = self._chosen[index]
        return None if one.path is LoraPath.SIDE else one

    def rows(self, role: str, indexes: Sequence[int]) -> TransientLoRAContext:
        """Return the context of a forward pass whose rows belong to these prompts, in order."""
        return self._owner.rows(role, [self._chosen[index] for index in indexes])

    def did(self, index: int) -> tuple[LoraDid, ...]:
        """Say what is done for one prompt."""
        return self._owner.did(self._chosen[index])


def no_match(entry: LoraEntry) -> DaemonError:
    """Return the ``lora-no-match`` error."""
    name = entry.source or f"LoRA {entry.hash[:16]}"
    first = entry.patches[0].target if entry.patches else "nothing"
    return DaemonError(
        "lora-no-match",
        f"{name} changes nothing in this set: it is for {first} and the like",
        "use a LoRA of the model's own family",
        details={"hash": entry.hash},
    )
