"""Names and shapes of a model's tensors, with the questions that recognition asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Keys:
    """A read-only view of tensor shapes by name, behind a prefix."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = shapes

    def behind(self, prefix: str) -> Keys:
        """Return the names that start with ``prefix``, without it."""
        if not prefix:
            return self
        cut = len(prefix)
        return Keys({name[cut:]: shape for name, shape in self._shapes.items() if name.startswith(prefix)})

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def __len__(self) -> int:
        return len(self._shapes)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, () if it is absent."""
        return self._shapes.get(name, ())

    def rows(self, name: str) -> int:
        """Return the first dimension, 0 if there is none."""
        return next(iter(self.shape(name)), 0)

    def columns(self, name: str) -> int:
        """Return the second dimension, 0 if there is none."""
        shape = self.shape(name)
        return shape[1] if len(shape) > 1 else 0

    def last(self, name: str) -> int:
        """Return the last dimension, 0 if there is none."""
        shape = self.shape(name)
        return shape[-1] if shape else 0

    def has_prefix(self, prefix: str) -> bool:
        """Tell whether any name starts with ``prefix``."""
        return any(name.startswith(prefix) for name in self._shapes)

    def first(self, part: str) -> str | None:
        """Return the first name that contains ``part``."""
        return next((name for name in self._shapes if part in name), None)

    def blocks(self, prefix: str) -> frozenset[int]:
        """Return the numbers N for which a name starts with ``prefix`` + N + "."."""
        found: set[int] = set()
        for name in self._shapes:
            if name.startswith(prefix):
                number, dot, _ = name[len(prefix) :].partition(".")
                if dot and number.isdigit() and len(number) <= 4:
                    found.add(int(number))
        return frozenset(found)
