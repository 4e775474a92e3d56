"""The command `free`: memory given back because somebody asks, not because it ran out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_daemon.memory_messages import Freed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from luna_daemon.engine_seam import Answer, Check, OnDevice
    from luna_daemon.frames import WireTensor
    from luna_daemon.memory_messages import Free
    from luna_daemon.runtime.models import ModelStore
    from luna_daemon.runtime.results import ResultCache


class Freeing:
    """Answers `free`.

    Args:
        store: of the sets, and of the LoRAs of its backend.
        results: kept prompts.
        on_device: runs what touches models.
    """

    def __init__(self, store: ModelStore, results: ResultCache, on_device: OnDevice) -> None:
        self._store = store
        self._results = results
        self._on_device = on_device

    def free(self, body: Free, segments: Mapping[str, WireTensor], check: Check) -> Answer:  # noqa: ARG002 - the seam
        """Give back what is asked for, class after class, until it is enough."""
        loras = self._store.backend.loras
        moved: list[str] = []

        def idle_models(nbytes: int | None) -> int:
            freed, names = self._on_device(lambda: self._store.demote_idle(nbytes))
            moved.extend(names)
            return int(freed)

        pools: dict[str, Callable[[int | None], int]] = {
            "results": self._results.free,
            "merged": lambda _: int(self._on_device(loras.merged.drop)),
            "loras": lambda _: int(self._on_device(loras.registry.drop)[0]),
            "idle_models": idle_models,
        }
        freed: dict[str, int] = {}
        for name, give in pools.items():
            left = None if body.bytes is None else body.bytes - sum(freed.values())
            if body.what in {name, "all"} and (left is None or left > 0):
                freed[name] = give(left)
        return Freed(freed, tuple(moved)), []
