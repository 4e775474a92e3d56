"""Between wire tensors and torch tensors. torch is imported when the first one is converted."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING

from luna_daemon.device_memory import DeviceTensor
from luna_daemon.frames import WireTensor

if TYPE_CHECKING:
    import torch

TORCH_NAMES = {
    "f64": "float64",
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "f8_e4m3": "float8_e4m3fn",
    "f8_e5m2": "float8_e5m2",
    "i64": "int64",
    "i32": "int32",
    "u8": "uint8",
    "bool": "bool",
}


def to_torch(tensor: WireTensor, *, is_copying: bool = False) -> torch.Tensor:
    """Return a tensor over the received bytes, on the CPU or on the card that they lie on.

    Args:
        tensor: what came over the wire. Received memory is writable; the tensor keeps it alive. Bytes in the shared
            memory of a card are copied out first, so that what is judged cannot change any more.
        is_copying: give the tensor memory of its own, for bytes that are read-only or used again.
    """
    import torch

    dtype = getattr(torch, TORCH_NAMES[tensor.dtype])
    if tensor.nbytes == 0:
        return torch.empty(tensor.shape, dtype=dtype)
    if isinstance(tensor, DeviceTensor):
        return tensor.buffer.own().tensor().view(dtype).reshape(tensor.shape)
    source = bytearray(tensor.data) if is_copying or tensor.data.readonly else tensor.data
    raw = torch.frombuffer(source, dtype=torch.uint8)
    if raw.data_ptr() % dtype.itemsize:
        raw = raw.clone()  # behind a segment of odd length
    return raw.view(dtype).reshape(tensor.shape)


def from_torch(name: str, tensor: torch.Tensor) -> WireTensor:
    """Return a wire tensor over a tensor's memory; one with gaps is copied first.

    One on a CUDA card stays there, and is copied to the host only if it has to leave another way.

    Raises:
        ValueError: a dtype that the wire does not carry, or a big-endian machine.
    """
    import torch

    if sys.byteorder != "little":
        raise ValueError("the wire is little-endian")
    names = _short_names()
    if tensor.dtype not in names:
        raise ValueError(f"{name}: {tensor.dtype} does not cross the wire")
    if tensor.is_cuda and tensor.numel():
        from luna_daemon.cuda_memory import wrap

        return wrap(name, names[tensor.dtype], tensor)
    plain = tensor.detach().to("cpu").contiguous()
    data = plain.reshape(-1).view(torch.uint8).numpy().data if plain.numel() else memoryview(b"")
    return WireTensor(name, names[tensor.dtype], tuple(plain.shape), data)


@functools.cache
def _short_names() -> dict[torch.dtype, str]:
    import torch

    return {getattr(torch, long): short for short, long in TORCH_NAMES.items()}
