"""DaemonVAE against a real daemon."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from luna_daemon.model_messages import VaeFacts
from luna_daemon.proxy import DaemonVAE, RemoteOnlyError
from luna_engine.errors import DaemonError


class TestDaemonVAE:
    def test_a_video_vae_counts_frames_as_comfyuis_do(self, vae: DaemonVAE, monkeypatch: pytest.MonkeyPatch) -> None:
        assert (vae.downscale_ratio, vae.temporal_compression_decode()) == (8, None)
        facts = replace(vae.remote.facts, vae=VaeFacts(16, 8, "fp32", latent_dim=3, temporal=4))
        monkeypatch.setattr(vae.remote, "facts", facts)
        video = DaemonVAE(vae.remote)
        frames, *sides = video.downscale_ratio
        assert [frames(count) for count in (1, 2, 5, 6, 9)] == [1, 1, 2, 2, 3]
        back, *_ = video.upscale_ratio
        assert [back(count) for count in (0, 1, 2, 3)] == [0, 1, 5, 9]
        assert sides == [8, 8]
        assert video.upscale_index_formula == (4, 8, 8)
        assert (video.spacial_compression_encode(), video.temporal_compression_decode()) == (8, 4)

    def test_says_what_comfyui_asks_of_a_vae(self, vae: DaemonVAE) -> None:
        assert (vae.latent_channels, vae.downscale_ratio, vae.upscale_ratio, vae.latent_dim) == (4, 8, 8, 2)
        assert (vae.spacial_compression_encode(), vae.spacial_compression_decode()) == (8, 8)
        assert vae.temporal_compression_decode() is None
        assert vae.vae_dtype == torch.float32
        assert vae.memory_used_decode((1, 4, 8, 8), torch.float32) == 0
        vae.throw_exception_if_invalid()
        assert torch.equal(vae.process_output(vae.process_input(torch.tensor([0.0, 1.0]))), torch.tensor([0.0, 1.0]))

    def test_encodes_and_decodes_batches_and_crops_with_a_notice(self, vae: DaemonVAE) -> None:
        pixels = torch.rand(3, 20, 27, 4, generator=torch.Generator().manual_seed(1))
        before = pixels.clone()
        latent = vae.encode(pixels)
        assert (latent.shape, latent.dtype) == ((3, 4, 2, 3), torch.float32)
        assert torch.equal(pixels, before)
        assert vae.remote.host.notices == ["the image of 27x20 was cropped to 24x16 (a multiple of 8)"]
        image = vae.decode(latent)
        assert (image.shape, image.dtype) == ((3, 16, 24, 3), torch.float32)
        assert 0 <= float(image.min()) <= float(image.max()) <= 1

    def test_refuses_latents_of_another_kind_and_its_weights(self, vae: DaemonVAE) -> None:
        with pytest.raises(DaemonError) as caught:
            vae.decode(torch.zeros(1, 16, 2, 2))
        assert caught.value.code == "latent-mismatch"
        with pytest.raises(RemoteOnlyError):
            vae.get_sd()
        assert not hasattr(vae.first_stage_model, "per_channel_statistics")
        assert "decoder.conv_in.weight" in vae.first_stage_model.state_dict()

    def test_tiles_are_counted_and_plain_runs_show_nothing(self, vae: DaemonVAE) -> None:
        """A latent of 5x3 in tiles of 4 that share 1: four half as wide, two twice as wide, two square."""
        latent = torch.zeros(2, 4, 3, 5)
        vae.decode(latent)
        assert vae.remote.host.steps == []
        vae.decode_tiled(latent, tile_x=4, tile_y=4, overlap=1)
        steps = vae.remote.host.steps
        assert steps == sorted(steps)
        assert steps[-1] == (2 * (4 + 2 + 2),) * 2
        vae.remote.host.steps.clear()
        vae.encode_tiled(torch.zeros(1, 40, 24, 3), tile_x=32, tile_y=32, overlap=8)
        assert vae.remote.host.steps[-1][0] == vae.remote.host.steps[-1][1] > 3
