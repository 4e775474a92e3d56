"""What a random tensor is, and the layers that all architectures are made of."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass(frozen=True, slots=True)
class RandomTensor:
    """A tensor to be drawn from a normal distribution.

    ``spread`` 0 gives a constant; ``mean`` 0 as well gives zeros, which cost no disk space (a hole in the file).
    """

    name: str
    shape: tuple[int, ...]
    spread: float
    mean: float = 0.0
    dtype: str = "F16"


def under(prefix: str, tensors: Iterable[RandomTensor]) -> Iterator[RandomTensor]:
    """Put a prefix before every name."""
    for tensor in tensors:
        yield dataclasses.replace(tensor, name=prefix + tensor.name)


def zeroed(tensors: Iterable[RandomTensor]) -> Iterator[RandomTensor]:
    """Make all tensors zero: in a residual network such a layer passes its input on unchanged."""
    for tensor in tensors:
        yield dataclasses.replace(tensor, spread=0.0, mean=0.0)


def typed(dtype: str, tensors: Iterable[RandomTensor]) -> Iterator[RandomTensor]:
    """Store all tensors as ``dtype``."""
    for tensor in tensors:
        yield dataclasses.replace(tensor, dtype=dtype)


def weight(name: str, shape: tuple[int, ...], gain: float = 1.0) -> RandomTensor:
    """Draw a weight so that its output has about ``gain`` times the spread of its input (1/sqrt of fan-in)."""
    return RandomTensor(name, shape, gain / math.sqrt(math.prod(shape[1:])))


def linear(name: str, rows: int, columns: int, *, bias: bool = True, gain: float = 1.0) -> Iterator[RandomTensor]:
    """Yield a dense layer of ``rows`` outputs and ``columns`` inputs."""
    yield weight(f"{name}.weight", (rows, columns), gain)
    if bias:
        yield RandomTensor(f"{name}.bias", (rows,), 0.02)


def conv(
    name: str, rows: int, columns: int, kernel: int, *, bias: bool = True, gain: float = 1.0
) -> Iterator[RandomTensor]:
    """Yield a square two-dimensional convolution."""
    yield weight(f"{name}.weight", (rows, columns, kernel, kernel), gain)
    if bias:
        yield RandomTensor(f"{name}.bias", (rows,), 0.02)


def norm(name: str, width: int, *, bias: bool = True) -> Iterator[RandomTensor]:
    """Yield a layer, group or (without bias) root-mean-square norm whose scale lies round 1."""
    yield RandomTensor(f"{name}.weight", (width,), 0.1, 1.0)
    if bias:
        yield RandomTensor(f"{name}.bias", (width,), 0.05)
