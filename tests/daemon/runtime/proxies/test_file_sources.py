"""Files behind a proxy: named where the daemon sees the same file, sent by content where it does not."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from safetensors.torch import load_file, save_file

from luna_daemon.file_sources import FileParts
from luna_daemon.proxy import DaemonVAE
from luna_daemon.remote import RemoteSet
from luna_engine.errors import DaemonError
from tests.daemon.runtime.proxies.stand_ins_of_comfyui import Host, sent

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from luna_daemon.client import DaemonClient

VAE = "vae/vae.safetensors"


def remote_of(client: DaemonClient, family: str, files: dict[str, Path]) -> tuple[RemoteSet, FileParts]:
    source = FileParts(family, files, lambda: None)
    return RemoteSet(lambda: client, source, Host()), source


def uploads(client: DaemonClient) -> int:
    return client.status().caches["uploads"].entries


def test_a_file_below_the_daemons_folders_is_named_and_not_sent(client: DaemonClient, model_root: Path) -> None:
    before = uploads(client)
    remote, source = remote_of(client, "sd15", {"vae": model_root / VAE})
    assert not source.was_sent
    assert uploads(client) == before
    assert DaemonVAE(remote).latent_channels == 4


def test_a_file_that_the_daemon_cannot_see_is_sent_once(client: DaemonClient, model_root: Path, tmp_path: Path) -> None:
    tensors = {name: tensor + 1 for name, tensor in load_file(model_root / VAE).items()}
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        save_file(tensors, tmp_path / folder / "elsewhere.safetensors")
    first, one = remote_of(client, "auto", {"vae": tmp_path / "one/elsewhere.safetensors"})
    second, two = remote_of(client, "auto", {"vae": tmp_path / "two/elsewhere.safetensors"})
    assert first.set_id == second.set_id
    assert (one.was_sent, two.was_sent) == (True, False)


def test_another_file_of_the_same_name_and_size_is_not_taken_for_it(
    client: DaemonClient, model_root: Path, tmp_path: Path
) -> None:
    ours, _ = remote_of(client, "sd15", {"vae": model_root / VAE})
    tensors = {name: tensor * 2 for name, tensor in load_file(model_root / VAE).items()}
    save_file(tensors, tmp_path / "vae.safetensors")
    assert (tmp_path / "vae.safetensors").stat().st_size == (model_root / VAE).stat().st_size
    other, source = remote_of(client, "sd15", {"vae": tmp_path / "vae.safetensors"})
    assert source.was_sent
    assert other.set_id != ours.set_id


def test_a_copy_of_the_same_content_elsewhere_is_the_same_set(
    client: DaemonClient, model_root: Path, tmp_path: Path
) -> None:
    ours, _ = remote_of(client, "sd15", {"vae": model_root / VAE})
    shutil.copyfile(model_root / VAE, tmp_path / "renamed.safetensors")
    other, source = remote_of(client, "sd15", {"vae": tmp_path / "renamed.safetensors"})
    assert not source.was_sent
    assert other.set_id == ours.set_id


def test_a_part_that_one_family_brought_is_not_sent_again_for_another(
    client: DaemonClient, clip_tensors: dict[str, torch.Tensor]
) -> None:
    """SD3 without its other encoders: the same CLIP-L as SD1.5's, in a set of its own."""
    changed = {name: tensor * 0.5 for name, tensor in clip_tensors.items()}
    first, second = sent(lambda: changed), sent(lambda: {**changed}, family="sd3")
    one = RemoteSet(lambda: client, first, Host())
    other = RemoteSet(lambda: client, second, Host())
    assert (first.was_sent, second.was_sent) == (True, False)
    assert one.set_id != other.set_id
    assert (one.facts.family, other.facts.family) == ("sd15", "sd3")


def test_a_file_that_is_gone_or_holds_something_else_is_named(
    client: DaemonClient, model_root: Path, tmp_path: Path
) -> None:
    with pytest.raises(DaemonError, match=r"nowhere\.safetensors cannot be opened") as caught:
        remote_of(client, "auto", {"vae": tmp_path / "nowhere.safetensors"})
    assert caught.value.code == "model-missing"
    shutil.copyfile(model_root / "clip/l.safetensors", tmp_path / "text.safetensors")
    with pytest.raises(DaemonError, match=r"text\.safetensors holds no image VAE") as caught:
        remote_of(client, "sd15", {"vae": tmp_path / "text.safetensors"})
    assert caught.value.code == "wrong-type"
