"""The classes of tensors that errors are summed up by."""

from __future__ import annotations

from dataclasses import dataclass

_VALUE = ("attn_v.", ".to_v.", ".v.weight", ".w1v.", ".w2v.", "v_proj.")
_FUSED = ("attn_qkv.", "attn.qkv.", "attention.qkv.", "linear1.")
_FEED_FORWARD = (".ff.", "mlp", "ffn", "feed_forward", "experts", "linear2.")


def tensor_class(name: str, rank: int) -> str:
    """Return the class of a tensor by its name without prefix."""
    if "norm" in name:
        return "norm"
    if rank >= 4:
        return "convolution"
    if any(part in name for part in _VALUE):
        return "attention v"
    if any(part in name for part in _FUSED):
        return "attention qkv"
    if "attn" in name or "attention" in name:
        return "attention other"
    if any(part in name for part in _FEED_FORWARD):
        return "feed forward"
    return "embedder" if "emb" in name or name.endswith("_in.weight") else "other"


@dataclass(slots=True)
class ErrorSum:
    """Squares summed over checked values; adds up over tensors.

    ``values``, ``low`` and ``clipped`` are counted over all values that become plain fp8: those stored below its
    normal range (zeros are not), and those beyond its greatest value.
    """

    tensors: int = 0
    error: float = 0.0
    signal: float = 0.0
    greatest: float = 0.0
    values: int = 0
    low: int = 0
    clipped: int = 0

    def add(self, error: float, signal: float, greatest: float) -> None:
        """Take in one more look at values."""
        self.error += error
        self.signal += signal
        self.greatest = max(self.greatest, greatest)

    def merge(self, other: ErrorSum) -> None:
        """Take in another sum."""
        self.tensors += other.tensors
        self.values += other.values
        self.low += other.low
        self.clipped += other.clipped
        self.add(other.error, other.signal, other.greatest)

    @property
    def relative_rmse(self) -> float:
        """Return the root of error over signal; 0 for a signal of zeros."""
        return float((self.error / self.signal) ** 0.5) if self.signal else 0.0
