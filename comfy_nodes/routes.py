"""Luna's routes in ComfyUI's web server: who may call them, and answering without holding up ComfyUI's loop.

A route takes JSON by POST and answers JSON. It never takes a file path from the browser. ComfyUI itself checks the
origin only on loopback and not at all with ``--enable-cors-header``, so it is checked here again.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import json
import logging
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from luna_engine.errors import LunaError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Answer = Callable[[dict[str, Any]], dict[str, Any]]

_log = logging.getLogger("luna")
MOST_BODY_BYTES = 4 * 1024 * 1024


def refusal(headers: Mapping[str, str]) -> str | None:
    """Return why a request is refused, or None if it comes from this server's own page or from no page at all.

    JSON as content type makes browsers ask first before another origin may send it; the two headers name the
    page that sends. A program on this machine sends neither of them.
    """
    if headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
        return "send application/json"
    if headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
        return "only pages of this server may ask"
    origin = headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc.lower() != headers.get("Host", "").lower():
        return "only pages of this server may ask"
    return None


@functools.cache
def _workers() -> concurrent.futures.ThreadPoolExecutor:
    """Return threads of our own: ComfyUI's loop and its default executor stay free."""
    return concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix="luna-route")


async def answer_to(headers: Mapping[str, str], body: bytes, answer: Answer) -> tuple[int, dict[str, Any]]:
    """Return status and JSON for a request; the work runs in a thread.

    Args:
        headers: of the request, names in any case.
        body: what was sent.
        answer: takes the parsed object; may raise LunaError.
    """
    reason = refusal(headers)
    if reason is not None:
        return 403, {"error": {"code": "forbidden", "message": reason}}
    try:
        payload = json.loads(body)
        if not isinstance(payload, dict):
            raise TypeError("no object")
    except (ValueError, TypeError) as error:
        return 400, {"error": {"code": "value-range", "message": f"the body is no JSON object: {error}"}}
    try:
        return 200, await asyncio.get_running_loop().run_in_executor(_workers(), answer, payload)
    except LunaError as error:
        return 422, {"error": error.as_dict()}
    except Exception:  # noqa: BLE001 - a task border: the page must be told, the log has the traceback
        _log.exception("a route of Luna failed")
        return 500, {"error": {"code": "internal", "message": "see ComfyUI's log"}}
