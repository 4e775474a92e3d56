"""Luna's ComfyUI nodes: thin adapters from ComfyUI's types to the engine or a daemon, and back.

One module per family. Only what works is registered. ComfyUI itself is touched in `comfy` alone.
"""

from __future__ import annotations

import functools
from typing import Any

from . import (
    comfy,
    daemon,
    daemon_loaders,
    linked,
    loaders,
    lora_randomizer,
    models,
    promptcraft,
    shared_vae,
    text_encoding,
    wildcard_builder,
    wildcard_explorer,
    wildcard_routes,
    wildcards,
)

_NODES: tuple[type[Any], ...] = (
    *wildcards.NODES,
    *wildcard_builder.NODES,
    *lora_randomizer.NODES,
    *wildcard_explorer.NODES,
    *promptcraft.NODES,
    *daemon.NODES,
    *daemon_loaders.NODES,
    *shared_vae.NODES,
    *text_encoding.NODES,
    *models.NODES,
    *loaders.NODES,
)

NODE_CLASS_MAPPINGS: dict[str, type[Any]] = {node.__name__: node for node in _NODES}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {node.__name__: node.DISPLAY_NAME for node in _NODES}
WEB_DIRECTORY = "./comfy_nodes/web"  # seen from the clone's root, as ComfyUI joins it to the folder it loaded


@functools.cache
def _with_lazy_outputs() -> frozenset[str]:
    return frozenset(node.__name__ for node in _NODES if linked.INPUT in node.INPUT_TYPES().get("hidden", {}))


comfy.register(lambda posted: linked.write_linked_outputs(posted, _with_lazy_outputs()))
comfy.add_routes(wildcard_routes.ROUTES)
