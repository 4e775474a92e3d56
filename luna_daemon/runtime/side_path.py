"""LoRAs beside the layers: y += s·(alpha/r)·(x·downᵀ)·upᵀ, row by row, so that different LoRAs share a batch.

One forward hook per linear layer, installed once and idle without a batch that has LoRAs. The loaded weights are not
touched; for merged sets the layers are given other parameters for the time of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from luna_daemon.runtime.patch_shapes import scale_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from luna_daemon.runtime.lora import Recipe


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a weight lives: a module and the name of its parameter, and the type that it counts as.

    Attributes:
        counted_as: the type that ComfyUI keeps it in; a CPU holds 16-bit weights upcast.
    """

    module: nn.Module
    name: str
    counted_as: torch.dtype

    @property
    def weight(self) -> nn.Parameter:
        """Return the parameter."""
        found: nn.Parameter = getattr(self.module, self.name)
        return found

    @property
    def is_linear(self) -> bool:
        """Tell whether a product can be added behind it."""
        return isinstance(self.module, nn.Linear) and self.name == "weight"


@dataclass(frozen=True, slots=True)
class _Term:
    """One low-rank product for the rows start..stop."""

    start: int
    stop: int
    down: torch.Tensor
    up: torch.Tensor
    factor: float


def find_slots(model: nn.Module, counted_as: torch.dtype) -> Iterator[tuple[str, Slot]]:
    """Yield every parameter of a module by its full name.

    Args:
        model: an encoder's module.
        counted_as: the encoder's type; a parameter of fewer bits is what it is.
    """
    for place, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            kept = min(parameter.dtype, counted_as, key=lambda dtype: dtype.itemsize)
            yield f"{place}.{name}" if place else name, Slot(module, name, kept)


class SidePath:
    """An encoder's layers as LoRAs reach them (see `luna_daemon.runtime.lora.PatchableEncoder`).

    Args:
        slots: target → where its weight is.
    """

    def __init__(self, slots: Mapping[str, Slot]) -> None:
        self.slots = slots
        self._work: dict[str, list[_Term]] = {}
        self._swapped: list[tuple[Slot, nn.Parameter]] = []
        for target, slot in slots.items():
            if slot.is_linear:
                slot.module.register_forward_hook(self._adder(target))

    def _adder(self, target: str) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        def add(_module: nn.Module, given: Any, output: torch.Tensor) -> None:
            for term in self._work.get(target, ()):
                x = given[0][term.start : term.stop]
                y = output[term.start : term.stop].view(-1, output.shape[-1])
                inner = x.reshape(-1, x.shape[-1]) @ term.down.to(x.dtype).T
                y.addmm_(inner, term.up.to(x.dtype).T, alpha=term.factor)

        return add

    def set_rows(self, recipes: Sequence[Recipe]) -> None:
        """Compute the low-rank products of each row's recipe beside the layers, until `clear`."""
        for start, stop, recipe in _runs(recipes):
            for use, entry in zip(recipe.uses, recipe.entries, strict=True):
                for patch in entry.patches:
                    if patch.target in self.slots and use.patch != 0.0:
                        down, up = patch.tensors["down"], patch.tensors["up"]
                        term = _Term(start, stop, down.flatten(1), up.flatten(1), use.patch * scale_of(patch))
                        self._work.setdefault(patch.target, []).append(term)

    def swap_in(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Let the layers use other weights, until `clear`."""
        for target, weight in weights.items():
            slot = self.slots[target]
            self._swapped.append((slot, slot.weight))
            setattr(slot.module, slot.name, nn.Parameter(weight, requires_grad=False))

    def clear(self) -> None:
        """Take both back."""
        self._work = {}
        while self._swapped:
            slot, own = self._swapped.pop()
            setattr(slot.module, slot.name, own)


def _runs(recipes: Sequence[Recipe]) -> Iterator[tuple[int, int, Recipe]]:
    """Yield runs of neighbouring rows with the same recipe, those without LoRAs left out."""
    start = 0
    for stop in range(1, len(recipes) + 1):
        if stop == len(recipes) or recipes[stop] != recipes[start]:
            if recipes[start].uses:
                yield start, stop, recipes[start]
            start = stop
