"""The family of a MODEL, which decides what its CLIP is to a daemon."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from comfy_nodes import comfy


def model(latent_format: str, config: str) -> SimpleNamespace:
    """Stand for a ModelPatcher: only the names of two classes count."""
    return SimpleNamespace(
        model=SimpleNamespace(latent_format=type(latent_format, (), {})(), model_config=type(config, (), {})())
    )


@pytest.mark.parametrize(
    ("latent_format", "config", "family"),
    [
        ("SD15", "SD15", "sd15"),
        ("SDXL", "SDXL", "sdxl"),
        ("SD3", "SD3", "sd3"),
        ("Flux", "Flux", "flux"),
        ("Flux", "ZImage", "z-image"),
        ("Wan21", "WAN21_T2V", None),
    ],
)
def test_latent_format_and_configuration_tell_the_family(latent_format: str, config: str, family: str | None) -> None:
    assert comfy.current_host().model_family(model(latent_format, config)) == family
