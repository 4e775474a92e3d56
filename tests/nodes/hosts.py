"""Stand-ins for the few things that nodes ask of ComfyUI, over real folders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_nodes import comfy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class FolderHost(comfy.ComfyHost):
    """ComfyUI with one wildcards folder, on loopback unless told otherwise; progress and notices are written down."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.roots: tuple[Path, ...] | None = None
        self.models: dict[str, tuple[str, ...]] = {}
        self.notices: list[str] = []
        self.steps: list[tuple[int, int]] = []
        self.is_cancelled = False

    def wildcard_folders(self) -> tuple[Path, ...]:
        return (self.folder,)

    def is_on_loopback(self) -> bool:
        return self.roots is None

    def own_roots(self) -> tuple[Path, ...]:
        return (self.folder.resolve(),) if self.roots is None else self.roots

    def lora_files(self) -> list[str]:
        return list(self.models.get("loras", ()))

    def embedding_files(self) -> list[str]:
        return list(self.models.get("embeddings", ()))

    def notice(self, message: str) -> None:
        self.notices.append(message)

    def progress(self) -> Callable[[int, int], None]:
        return lambda done, total: self.steps.append((done, total))

    def check_interrupt(self) -> None:
        if self.is_cancelled:
            raise KeyboardInterrupt
