"""How a model gets to a daemon: sent once, known by content afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file

from luna_daemon.model_messages import Part
from luna_daemon.remote import RemoteSet
from luna_daemon.sources import SentParts
from luna_engine.errors import DaemonError
from tests.daemon.runtime.proxies.stand_ins_of_comfyui import (
    Host,
    sent,
)

if TYPE_CHECKING:
    from pathlib import Path

    from luna_daemon.client import DaemonClient


class TestSending:
    def test_weights_are_sent_once_and_known_by_content_afterwards(
        self, client: DaemonClient, clip_tensors: dict[str, torch.Tensor]
    ) -> None:
        client.unload_model(all=True, force=True)
        first, second = sent(lambda: clip_tensors), sent(lambda: {**clip_tensors})
        assert RemoteSet(lambda: client, first, Host()).set_id == RemoteSet(lambda: client, second, Host()).set_id
        assert first.was_sent
        assert not second.was_sent

    def test_a_part_that_a_larger_set_holds_is_shared_from_there(self, client: DaemonClient, model_root: Path) -> None:
        vae_tensors = load_file(model_root / "vae/vae.safetensors")
        file = "checkpoints/parts.safetensors"
        whole = client.load_model([Part("l", id=file), Part("vae", id=file)], family="sd15")
        source = sent(lambda: vae_tensors, "vae")
        assert RemoteSet(lambda: client, source, Host()).set_id == whole.set
        assert not source.was_sent
        client.unload_model(whole.set)

    def test_tensors_that_are_no_such_part_are_refused(self, client: DaemonClient) -> None:
        with pytest.raises(DaemonError) as caught:
            RemoteSet(lambda: client, sent(lambda: {"something": torch.zeros(2)}), Host())
        assert caught.value.code == "wrong-type"

    def test_a_part_nobody_can_send_yet_is_unsupported(self, client: DaemonClient) -> None:
        with pytest.raises(DaemonError) as caught:
            RemoteSet(lambda: client, sent(dict, "gemma2_2b"), Host())
        assert caught.value.code == "model-unsupported"

    def test_an_interrupt_in_the_upload_leaves_nothing_behind(
        self, client: DaemonClient, clip_tensors: dict[str, torch.Tensor]
    ) -> None:
        before = client.status().caches["uploads"].entries
        changed = {name: tensor + 1 for name, tensor in clip_tensors.items()}
        calls = iter(range(10**6))
        total = 3 * len(changed) // 2  # past the hashing, into the sending

        def check() -> None:
            if next(calls) > total:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            RemoteSet(lambda: client, SentParts("sd15", ("l",), lambda: changed, check), Host())
        assert client.status().caches["uploads"].entries == before
