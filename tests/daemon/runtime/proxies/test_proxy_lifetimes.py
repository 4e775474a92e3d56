"""Leases end with the last proxy; a restarted daemon gets the weights again while they are there."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import pytest
import torch

from luna_daemon.proxy import DaemonCLIP
from luna_daemon.remote import RemoteSet
from luna_daemon.sources import ServedSet
from luna_engine.errors import DaemonError
from tests.daemon.runtime.proxies.stand_ins_of_comfyui import (
    Host,
    LetterTokenizer,
    sent,
)

if TYPE_CHECKING:
    from luna_daemon.client import DaemonClient
    from tests.nodes.processes import DaemonHandle


def test_a_set_is_held_until_the_last_proxy_of_the_process_is_gone(
    client: DaemonClient, clip_tensors: dict[str, torch.Tensor]
) -> None:
    first = RemoteSet(lambda: client, sent(lambda: clip_tensors), Host())
    second = RemoteSet(lambda: client, ServedSet(first.set_id), Host())
    name, clone = first.set_id, DaemonCLIP(first, LetterTokenizer())

    def leases() -> int:
        return next(row.leases for row in client.status().sets if row.set == name)

    gc.collect()
    client.ping()
    assert leases() == 1
    del first, second
    gc.collect()
    assert leases() == 1
    del clone
    gc.collect()
    assert leases() == 0


def test_a_restarted_daemon_gets_the_weights_again_while_they_are_there(
    daemon: DaemonHandle, clip: DaemonCLIP, client: DaemonClient, clip_tensors: dict[str, torch.Tensor]
) -> None:
    before = clip.encode("a boat")
    held: dict[str, Any] = {"tensors": clip_tensors}
    lost = DaemonCLIP(RemoteSet(lambda: client, sent(lambda: held.get("tensors")), Host()), LetterTokenizer())
    daemon.kill()
    daemon.start()
    del held["tensors"]
    with pytest.raises(DaemonError) as caught:
        lost.encode("a boat")
    assert caught.value.code == "daemon-model-changed"
    assert torch.equal(clip.encode("a boat"), before)
    assert torch.equal(lost.encode("a boat"), before)  # the daemon has the set again, whoever sent it
