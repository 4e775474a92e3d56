"""Requests whose tensors are large enough for the memory beside the socket."""

from __future__ import annotations

from typing import Any

from luna_daemon import protocol as p
from luna_daemon.frames import WireTensor


def latent(nbytes: int, seed: int = 1) -> WireTensor:
    data = bytes((seed + index) % 251 for index in range(4096)) * (nbytes // 4096 + 1)
    return WireTensor("latent", "f32", (1, 1, 1, nbytes // 4), memoryview(data)[:nbytes])


def decode(client: Any, tensor: WireTensor, set_id: str = "s") -> Any:
    return client.call("vae_decode", p.VaeDecode(set_id), [tensor])
