"""What the daemon nodes do when nothing answers: typed errors with the command, or a pass through that says so."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from comfy_nodes import comfy
from comfy_nodes.daemon import LunaDaemonStatus
from comfy_nodes.daemon_loaders import LunaDaemonVAELoader, LunaUNetTunnel
from comfy_nodes.models import LunaCheckpointTunnel
from comfy_nodes.shared_vae import (
    LunaSharedVAEDecode,
    LunaSharedVAEDecodeTiled,
    LunaSharedVAEEncode,
    LunaSharedVAEEncodeTiled,
)
from comfy_nodes.text_encoding import LunaSharedCLIPEncode, LunaSharedCLIPEncodeDual, LunaSharedCLIPEncodeSDXL
from luna_engine.errors import DaemonUnreachableError, LunaError


class QuietHost(comfy.ComfyHost):
    """ComfyUI as far as these nodes ask for it when they get nowhere."""

    def __init__(self) -> None:
        self.notices: list[str] = []

    def check_interrupt(self) -> None:
        """Nobody cancels."""

    def intermediate_device(self) -> Any:
        return torch.device("cpu")

    def progress(self) -> Any:
        return lambda done, total: None

    def notice(self, message: str) -> None:
        self.notices.append(message)


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> QuietHost:
    quiet = QuietHost()
    monkeypatch.setattr(comfy, "current_host", lambda: quiet)
    monkeypatch.setenv("LUNA_DAEMON_PORT", str(closed_port()))
    monkeypatch.setenv("LUNA_DAEMON_VAE_PORT", str(closed_port()))
    return quiet


def checkpoint(latent_format: str = "SD15") -> tuple[Any, Any, Any]:
    """Objects with as much of MODEL, CLIP and VAE as the tunnel looks at before it connects."""
    kind = type(latent_format, (), {})
    model = SimpleNamespace(model=SimpleNamespace(latent_format=kind()))
    module = torch.nn.Module()
    module.add_module("clip_l", torch.nn.Linear(2, 2))
    patcher = SimpleNamespace(patches={}, model=module, backup={}, forced_hooks=None)
    patcher.model.__dict__["patcher"] = patcher  # keeps the weakly referenced patcher alive
    clip = SimpleNamespace(cond_stage_model=module, patcher=_Referable(patcher), layer_idx=None)
    vae = SimpleNamespace(patcher=_Referable(patcher))
    return model, clip, vae


class _Referable:
    """SimpleNamespace cannot be weakly referenced."""

    def __init__(self, inner: Any) -> None:
        self.__dict__.update(inner.__dict__)


def test_status_is_false_with_the_start_command_and_no_error(host: QuietHost) -> None:
    answer = LunaDaemonStatus().report()
    text, is_running = answer["result"]
    assert is_running is False
    assert "text encoder: not running" in text
    assert "VAE: not running" in text
    assert "luna_daemon/server.py --service-type" in text
    assert answer["ui"]["text"] == [text]


def test_shared_nodes_raise_unreachable_with_the_start_command(host: QuietHost) -> None:
    calls = (
        lambda: LunaSharedCLIPEncode().encode("a boat"),
        lambda: LunaSharedCLIPEncodeDual().encode("a boat", ""),
        lambda: LunaSharedCLIPEncodeSDXL().encode("a boat", "", 1024, 1024),
        lambda: LunaSharedVAEEncode().encode(torch.zeros(1, 8, 8, 3)),
        lambda: LunaSharedVAEDecode().decode({"samples": torch.zeros(1, 4, 1, 1)}),
        lambda: LunaSharedVAEEncodeTiled().encode(torch.zeros(1, 8, 8, 3), 512, 64),
        lambda: LunaSharedVAEDecodeTiled().decode({"samples": torch.zeros(1, 4, 1, 1)}, 64, 16),
        lambda: LunaDaemonVAELoader().load("daemon default"),
        lambda: LunaUNetTunnel().tunnel(checkpoint()[0], luna_linked="0,1"),
    )
    for call in calls:
        with pytest.raises(DaemonUnreachableError) as caught:
            call()
        assert caught.value.code == "daemon-unreachable"
        assert "luna_daemon/server.py" in (caught.value.hint or "")


@pytest.mark.parametrize(("tile_size", "overlap", "is_fine"), [(64, 32, False), (64, 28, True), (32, 64, False)])
def test_an_overlap_of_half_a_tile_is_refused_before_anybody_is_asked(
    host: QuietHost,
    tile_size: int,
    overlap: int,
    is_fine: bool,  # noqa: FBT001 - a parameter
) -> None:
    calls = (
        lambda: LunaSharedVAEEncodeTiled().encode(torch.zeros(1, 8, 8, 3), tile_size * 8, overlap * 8),
        lambda: LunaSharedVAEDecodeTiled().decode({"samples": torch.zeros(1, 4, 1, 1)}, tile_size, overlap),
    )
    for call in calls:
        with pytest.raises(LunaError) as caught:
            call()
        assert caught.value.code == ("daemon-unreachable" if is_fine else "value-range")


def test_the_unet_tunnel_asks_nobody_for_what_is_wired_or_not_linked(host: QuietHost) -> None:
    model, clip, vae = checkpoint()
    found = LunaUNetTunnel().tunnel(model, clip=clip, vae=vae)
    assert found[:3] == (model, clip, vae)
    assert found[3] == "[sd15] CLIP wired | VAE wired"
    assert LunaUNetTunnel().tunnel(model, luna_linked="0,3") == (
        model,
        None,
        None,
        "[sd15] CLIP not linked | VAE not linked",
    )
    unknown, *_ = checkpoint("SomethingNew")
    with pytest.raises(LunaError) as caught:
        LunaUNetTunnel().tunnel(unknown)
    assert caught.value.code == "wrong-type"


def test_fingerprints_neither_raise_nor_change_while_nothing_answers(host: QuietHost) -> None:
    assert LunaSharedCLIPEncode.IS_CHANGED(family="auto") == LunaSharedCLIPEncode.IS_CHANGED(family="auto")
    assert LunaCheckpointTunnel.IS_CHANGED() == LunaCheckpointTunnel.IS_CHANGED()


def test_the_tunnel_passes_everything_through_and_warns(host: QuietHost) -> None:
    model, clip, vae = checkpoint()
    passed_model, passed_clip, passed_vae, status = LunaCheckpointTunnel().tunnel(model, clip, vae)
    assert passed_model is model
    assert passed_clip is clip
    assert passed_vae is vae
    first, *rest = status.splitlines()
    assert first.startswith("[sd15] CLIP local: no daemon | VAE local: no daemon")
    assert rest
    assert all(line.startswith("warning: ") for line in rest)
    assert host.notices


def test_an_unknown_model_stays_local_with_the_reason(host: QuietHost) -> None:
    model, clip, vae = checkpoint("SomethingNew")
    *_, status = LunaCheckpointTunnel().tunnel(model, clip, vae)
    assert "CLIP local: unknown family" in status


def test_a_patched_clip_stays_local_before_anything_is_asked(host: QuietHost) -> None:
    model, clip, vae = checkpoint()
    clip.patcher.patches = {"weight": ["a LoRA"]}
    _, passed, _, status = LunaCheckpointTunnel().tunnel(model, clip, vae)
    assert passed is clip
    assert "CLIP local: patched" in status
