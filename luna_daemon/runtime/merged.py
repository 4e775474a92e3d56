"""Merged copies of the weights that a recipe touches: for hot recipes, for kinds without a low-rank form, for exact.

The copies of a hot recipe are fp32, so that becoming hot changes nothing beyond 1e-5; exact ones are rounded to the
type that ComfyUI keeps the weight in. Least recently used first out, within a quarter of the free memory.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

import torch

from luna_daemon.runtime.memory import free_bytes
from luna_daemon.runtime.patch_weights import patched
from luna_daemon.status_messages import CacheStatus
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from luna_daemon.runtime.lora import Recipe
    from luna_daemon.runtime.side_path import Slot

    Key = tuple[int, str, Recipe, bool]
    Weights = Mapping[str, torch.Tensor]

CAP_BYTES = 4 * 1024**3
HOT_USES = 3
HOT_WITHIN_S = 600.0
_WATCHED_MAX = 1024


def merge(slots: Mapping[str, Slot], recipe: Recipe, *, is_exact: bool) -> dict[str, torch.Tensor]:
    """Return target → patched copy of every weight that a recipe changes.

    Args:
        slots: the encoder's weights.
        recipe: found.
        is_exact: compute and round as ComfyUI does.

    Raises:
        DaemonError: ``model-unsupported`` for an exact copy of an 8-bit weight, which ComfyUI rounds at random.
    """
    made = {}
    for target, applications in recipe.by_target().items():
        slot = slots.get(target)
        if slot is None:
            continue
        weight = slot.weight.detach()
        if not is_exact:
            made[target] = patched(weight, applications, torch.float32)
            continue
        if slot.counted_as.itemsize < torch.float16.itemsize:
            raise DaemonError(
                "model-unsupported",
                f"exact LoRAs are computed on weights of 16 bits and more, {target} has {slot.counted_as}",
                "leave exact out, or load the encoder in fp16",
            )
        # ComfyUI computes patches in fp16 on a card and in fp32 on a CPU.
        dtype = torch.float16 if weight.device.type == "cuda" else torch.float32
        rounded = patched(weight.to(slot.counted_as), applications, dtype).to(slot.counted_as)
        made[target] = rounded.to(weight.dtype)
    return made


class HotRecipes:
    """Counts uses, to tell which recipes are worth a merged copy.

    Args:
        clock: seconds.
        uses: this many within `HOT_WITHIN_S` make one hot; None never does.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, uses: int | None = HOT_USES) -> None:
        self._clock = clock
        self._enough = uses
        self._times: OrderedDict[Recipe, deque[float]] = OrderedDict()

    def note(self, recipe: Recipe) -> bool:
        """Count a use; return whether the recipe is hot with it."""
        if self._enough is None:
            return False
        now = self._clock()
        times = self._times.setdefault(recipe, deque(maxlen=self._enough))
        self._times.move_to_end(recipe)
        times.append(now)
        if len(self._times) > _WATCHED_MAX:
            self._times.popitem(last=False)
        return len(times) == self._enough and now - times[0] <= HOT_WITHIN_S


class MergedWeights:
    """The merged copies that are kept, of all sets.

    Args:
        device: whose free memory bounds them.
        cap_bytes: None is a quarter of the free memory, 4 GiB at most.
    """

    def __init__(self, device: torch.device, cap_bytes: int | None = None) -> None:
        self._device = device
        self._fixed_cap = cap_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[Key, Weights] = OrderedDict()
        self._bytes = 0
        self._hits = self._misses = self._evictions = 0

    def get(self, key: Key, make: Callable[[], Weights]) -> Weights:
        """Return the copies under a key, made now if they are not kept; too large ones are made and not kept.

        Args:
            key: (owner, role, recipe, is_exact).
            make: computes them.
        """
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._hits += 1
                self._kept.move_to_end(key)
                return found
            self._misses += 1
        made = make()
        size, cap = _size(made), self.cap_bytes()
        with self._lock:
            while self._kept and self._bytes + size > cap >= size:
                self._bytes -= _size(self._kept.popitem(last=False)[1])
                self._evictions += 1
            if size <= cap:
                self._kept[key] = made
                self._bytes += size
        return made

    def cap_bytes(self) -> int:
        """Return what all may hold together now."""
        if self._fixed_cap is not None:
            return self._fixed_cap
        return min(CAP_BYTES, (free_bytes(self._device) + self._bytes) // 4)

    def drop(self, owner: int | None = None) -> int:
        """Forget the copies of one owner, or all; return their bytes."""
        with self._lock:
            gone = [self._kept.pop(key) for key in list(self._kept) if owner is None or key[0] == owner]
            freed = sum(map(_size, gone))
            self._bytes -= freed
            return freed

    def status(self) -> CacheStatus:
        """Return what the daemon's status says of them."""
        cap = self.cap_bytes()
        with self._lock:
            return CacheStatus(self._bytes, cap, len(self._kept), self._hits, self._misses, self._evictions)


def _size(weights: Weights) -> int:
    return sum(weight.nbytes for weight in weights.values())
