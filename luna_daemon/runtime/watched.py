"""A check between the modules of a model that is not ours, so that a long run stops in its middle."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    Check = Callable[[], None]


class Watched:
    """Calls a check between the modules of a model, so that a long run stops in its middle."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._check: Check | None = None
        for module in model.modules():
            if not any(True for _ in module.children()):
                module.register_forward_pre_hook(self._look)

    def _look(self, _module: torch.nn.Module, _given: Any) -> None:
        if self._check is not None:
            self._check()

    @contextlib.contextmanager
    def by(self, check: Check) -> Iterator[None]:
        """Call ``check`` while the context lasts; what it raises leaves the model's run."""
        check()
        # In its middle nobody else may run: ComfyUI would move this model to make room for another.
        self._check = getattr(check, "quiet", check)
        try:
            yield
        finally:
            self._check = None
