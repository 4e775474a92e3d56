"""Answers as the records that go over the wire: the header of a reply and its times."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from luna_daemon.fields import plain
from luna_daemon.frames import WireTensor
from luna_daemon.protocol import Lane

if TYPE_CHECKING:
    from luna_daemon.protocol import Command
    from luna_daemon.runtime.queue import Job


def reply_frame(
    command: Command, request: int, reply: Any, tensors: list[WireTensor]
) -> tuple[dict[str, Any], list[WireTensor]]:
    """Return the header of a reply and the tensors that go with it."""
    body = plain(reply)
    header: dict[str, Any] = {"id": request, "ok": True, "body": body}
    did = body.pop("did", None)
    if did is not None:
        header["did"] = did
    if command.reply_as_json:
        header["body"] = {}
        raw = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        return header, [*tensors, WireTensor.of_bytes("json", raw)]
    return header, tensors


def timing(job: Job) -> dict[str, float]:
    """Return where a request's time went, in milliseconds."""
    now = time.monotonic()
    started = now if job.started is None else job.started
    is_load = job.command.lane is Lane.LOAD
    load_s = now - started if is_load else job.load_s
    spent_s = {
        "queue": started - job.received,
        "window": job.window_s,
        "load": load_s,
        "run": max(0.0, now - started - job.window_s - load_s),
    }
    return {name: round(seconds * 1000, 3) for name, seconds in spent_s.items()}
