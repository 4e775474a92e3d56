"""What Luna hangs into ComfyUI's server at import: the wildcards folder, a look at every prompt, its own routes."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..routes import Answer

WILDCARD_SUFFIXES = frozenset({".txt", ".yaml", ".yml", ".json"})


def register(on_prompt: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Make ComfyUI know the ``wildcards`` folder and call ``on_prompt``; does nothing where no ComfyUI runs.

    Args:
        on_prompt: gets every posted prompt before it is queued, and returns it.
    """
    server = sys.modules.get("server")
    if server is not None and getattr(server.PromptServer, "instance", None) is not None:
        server.PromptServer.instance.add_on_prompt_handler(on_prompt)
    folder_paths = sys.modules.get("folder_paths")
    if folder_paths is None:
        return
    folder_paths.add_model_folder_path("wildcards", str(Path(folder_paths.models_dir) / "wildcards"))
    folders, suffixes = folder_paths.folder_names_and_paths["wildcards"]
    folder_paths.folder_names_and_paths["wildcards"] = (folders, set(suffixes) | WILDCARD_SUFFIXES)


def add_routes(answers: Mapping[str, Answer]) -> None:
    """Let ComfyUI's server answer JSON requests; does nothing where no server runs (another front end, tests)."""
    server = sys.modules.get("server")
    instance = getattr(getattr(server, "PromptServer", None), "instance", None)
    if instance is None:
        return
    web: Any = importlib.import_module("aiohttp.web")  # ComfyUI's, no dependency of Luna's own

    from ..routes import MOST_BODY_BYTES, answer_to

    def handler(answer: Answer) -> Any:
        async def handle(request: Any) -> Any:
            if (request.content_length or MOST_BODY_BYTES + 1) > MOST_BODY_BYTES:
                return web.json_response({"error": {"code": "limit", "message": "the body is too large"}}, status=413)
            status, found = await answer_to(request.headers, await request.read(), answer)
            return web.json_response(found, status=status)

        return handle

    for path, answer in answers.items():
        instance.routes.post(path)(handler(answer))
