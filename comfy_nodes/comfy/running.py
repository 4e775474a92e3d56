"""The run that a node is part of: interrupt, progress, where results are kept, notices to the user."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger("luna")


class Running:
    """What nodes and proxies ask of ComfyUI while they work."""

    def check_interrupt(self) -> None:
        """Raise ComfyUI's interrupt exception if the user has pressed cancel."""
        import comfy.model_management as management

        management.throw_exception_if_processing_interrupted()

    def intermediate_device(self) -> Any:
        """Return the torch device on which ComfyUI keeps conditioning, latents and images."""
        import comfy.model_management as management

        return management.intermediate_device()

    def progress(self) -> Callable[[int, int], None]:
        """Return a function that moves the running node's progress bar to (done, total); ComfyUI throttles it."""
        from comfy.utils import ProgressBar

        return ProgressBar(1).update_absolute  # type: ignore[no-any-return]  # ComfyUI has no types

    def name(self) -> str:
        """Return what people call this ComfyUI: its port."""
        from comfy.cli_args import args

        return f"comfy:{args.port}"

    def notice(self, message: str) -> None:
        """Tell the user that something was done other than asked: a line in the log and a toast."""
        from server import PromptServer

        _log.warning("%s", message)
        PromptServer.instance.send_sync("luna.notice", {"message": message})
