"""Textual inversions as vectors: safetensors files of the roots named ``embeddings``, one file for several encoders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_daemon.runtime.parts import OpenFile

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from luna_daemon.runtime.files import ModelFiles

_KEYS = {"l": "clip_l", "g": "clip_g"}


class EmbeddingFiles:
    """Finds vectors by the name a prompt gives."""

    def __init__(self, files: ModelFiles) -> None:
        self._files = files

    def finder(self, role: str) -> Callable[[str], torch.Tensor | None]:
        """Return a function from name to vectors [n, width] for an encoder, or None where there is no such file."""
        key = _KEYS[role]

        def find(name: str) -> torch.Tensor | None:
            path = self._files.embedding(name)
            if path is None:
                return None
            with OpenFile(path, f"embedding {name}") as file:
                names = [key] if key in file.entries else list(file.entries)[:1]
                return file.read(names[0]).float() if names else None

        return find
