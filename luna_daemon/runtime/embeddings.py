"""Textual inversions as vectors: safetensors files of the roots named ``embeddings``, one file for several encoders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_daemon.runtime.parts import OpenFile
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from luna_daemon.runtime.files import ModelFiles

_KEYS = {"l": "clip_l", "g": "clip_g", "t5xxl": "t5xxl", "qwen3_4b": "qwen3_4b"}


class EmbeddingFiles:
    """Finds vectors by the name a prompt gives."""

    def __init__(self, files: ModelFiles) -> None:
        self._files = files

    def finder(self, role: str) -> Callable[[str], torch.Tensor | None]:
        """Return a function from name to vectors [n, width] for an encoder, or None where there is no such file.

        The function raises ``embedding-missing`` for a file that is there and cannot be read.
        """
        key = _KEYS[role]

        def find(name: str) -> torch.Tensor | None:
            path = self._files.embedding(name)
            if path is None:
                return None
            try:
                with OpenFile(path, f"embedding {name}") as file:
                    return _vectors(file, key)
            except DaemonError as error:
                raise DaemonError("embedding-missing", error.message, error.hint) from error

        return find


def _vectors(file: OpenFile, key: str) -> torch.Tensor | None:
    """Return the tensor of an encoder's key, or the only one of an old file."""
    names = [key] if key in file.entries else list(file.entries)[:1]
    return file.read(names[0]).float() if names else None
