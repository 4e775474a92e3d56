"""The VAE against diffusers' own conversion of the original key layout, and the shape rules of images and latents."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

from luna_daemon.model_messages import VaeFacts
from luna_daemon.runtime import images
from luna_daemon.runtime.autoencoder import SD, SD3, Autoencoder, VaeLayout, expected_shapes
from luna_engine.errors import DaemonError
from luna_engine.weights.demo import vaes

FACTS = VaeFacts(latent_channels=4, spatial=8, dtype="fp32")


@pytest.fixture(scope="module", params=[SD, SD3], ids=["4-channels", "16-channels"])
def layout(request: pytest.FixtureRequest) -> VaeLayout:
    found: VaeLayout = request.param
    return found


@pytest.fixture(scope="module")
def weights(layout: VaeLayout) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        tensor.name: torch.randn(tensor.shape, generator=generator) * tensor.spread + tensor.mean
        for tensor in vaes.vae(layout.channels, with_quant_convs=layout.has_quant_convs)
    }


@pytest.fixture(scope="module")
def vae(layout: VaeLayout, weights: dict[str, torch.Tensor]) -> Autoencoder:
    return Autoencoder(layout, weights, torch.float32, torch.device("cpu"))


@pytest.fixture(scope="module")
def reference(layout: VaeLayout, weights: dict[str, torch.Tensor]) -> AutoencoderKL:
    """Fill diffusers' model through its own key conversion."""
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=layout.channels,
        use_quant_conv=layout.has_quant_convs,
        use_post_quant_conv=layout.has_quant_convs,
    ).eval()
    prefixed = {f"first_stage_model.{name}": tensor for name, tensor in weights.items()}
    model.load_state_dict(convert_ldm_vae_checkpoint(prefixed, dict(model.config)))
    return model


def test_the_expected_names_are_those_of_the_original_layout(
    layout: VaeLayout, weights: dict[str, torch.Tensor]
) -> None:
    expected = expected_shapes(layout)
    assert set(expected) == set(weights)
    for name, shape in expected.items():
        assert weights[name].numel() == torch.Size(shape).numel(), name


def test_encoding_is_the_mean_of_diffusers_posterior_without_scaling(
    vae: Autoencoder, reference: AutoencoderKL
) -> None:
    pixels = torch.rand(1, 64, 40, 3, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = vae.encode(pixels, lambda: None)
        expected = reference.encode(pixels.movedim(-1, 1) * 2 - 1).latent_dist.mean
    assert found.shape == (1, vae.layout.channels, 8, 5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_decoding_is_diffusers_decode_brought_to_0_and_1(vae: Autoencoder, reference: AutoencoderKL) -> None:
    latent = torch.randn(1, vae.layout.channels, 6, 9, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        found = vae.decode(latent, lambda: None)
        expected = ((reference.decode(latent).sample + 1) / 2).clamp(0, 1).movedim(1, -1)
    assert found.shape == (1, 48, 72, 3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert 0 < float(found.std()) < 1


def test_a_batch_is_its_images_in_order(vae: Autoencoder) -> None:
    latent = torch.randn(3, vae.layout.channels, 4, 4, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        together = vae.decode(latent, lambda: None)
        for index in range(3):
            assert torch.equal(together[index], vae.decode(latent[index : index + 1], lambda: None)[0])


def test_cancel_is_looked_at_between_images(vae: Autoencoder) -> None:
    seen = 0

    def check() -> None:
        nonlocal seen
        seen += 1
        if seen == 2:
            raise DaemonError("cancelled", "given up")

    with pytest.raises(DaemonError, match="given up"), torch.inference_mode():
        vae.decode(torch.zeros(4, vae.layout.channels, 2, 2), check)
    assert seen == 2


@pytest.mark.parametrize(
    ("shape", "kept", "crop"),
    [
        ((1, 64, 64, 3), (64, 64), None),
        ((2, 70, 93, 3), (64, 88), (64, 88)),
        ((1, 71, 64, 4), (64, 64), (64, 64)),
        ((1, 1, 64, 64, 3), (64, 64), None),
    ],
)
def test_sides_are_cropped_at_the_centre_and_alpha_is_dropped(
    shape: tuple[int, ...], kept: tuple[int, int], crop: tuple[int, int] | None
) -> None:
    pixels = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)
    found = images.prepare_pixels(pixels, FACTS)
    flat = pixels[:, 0] if len(shape) == 5 else pixels
    top, left = (flat.shape[1] - kept[0]) // 2, (flat.shape[2] - kept[1]) // 2
    assert found.crop == crop
    assert torch.equal(found.tensor, flat[:, top : top + kept[0], left : left + kept[1], :3])


@pytest.mark.parametrize("shape", [(1, 7, 64, 3), (1, 64, 64, 1), (0, 64, 64, 3), (1, 2, 64, 64, 3), (64, 64, 3)])
def test_pixels_that_are_no_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DaemonError) as caught:
        images.prepare_pixels(torch.zeros(shape), FACTS)
    assert caught.value.code == "image-shape"


@pytest.mark.parametrize("shape", [(1, 16, 8, 8), (1, 4, 8), (1, 4, 2, 8, 8), (1, 4, 0, 8)])
def test_latents_of_another_model_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DaemonError) as caught:
        images.prepare_latent(torch.zeros(shape), FACTS)
    assert caught.value.code == "latent-mismatch"


def test_a_latent_with_one_moment_is_an_image() -> None:
    assert images.prepare_latent(torch.zeros(2, 4, 1, 8, 8), FACTS).shape == (2, 4, 8, 8)


# DAEMON S9
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_refused(value: float) -> None:
    tensor = torch.zeros(1, 4, 2, 2)
    tensor[0, 1, 1, 1] = value
    with pytest.raises(DaemonError) as caught:
        images.require_finite(tensor, "latent")
    assert caught.value.code == "value-range"
