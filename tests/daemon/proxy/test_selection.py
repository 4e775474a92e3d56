"""Which set a request means."""

from __future__ import annotations

import pytest

from luna_daemon.model_messages import SetRow
from luna_daemon.selection import choose_set
from luna_engine.errors import DaemonError


def row(set_id: str, family: str, *parts: str, default: bool = False) -> SetRow:
    return SetRow(set_id, family, "auto", dict.fromkeys(parts, "hash"), "device", 1, default)


SD15 = row("one", "sd15", "l", "vae")
SDXL_VAE = row("two", "sdxl", "vae")
FLUX_VAE = row("three", "flux", "vae")


def code_of(*arguments: object, **more: object) -> str:
    with pytest.raises(DaemonError) as caught:
        choose_set(*arguments, **more)  # type: ignore[arg-type]  # each case has its own
    return caught.value.code


def test_auto_takes_the_only_set_that_has_the_component() -> None:
    assert choose_set([SD15, SDXL_VAE], "text") is SD15


def test_a_named_family_is_taken_even_if_another_is_the_default() -> None:
    preferred = row("zero", "sd15", "l", "vae", default=True)
    assert choose_set([preferred, SDXL_VAE], "vae", "sdxl") is SDXL_VAE


def test_a_latents_channels_decide_between_vaes() -> None:
    assert choose_set([SDXL_VAE, FLUX_VAE], "vae", channels=16) is FLUX_VAE


def test_among_several_the_default_is_taken() -> None:
    preferred = row("zero", "sd15", "l", "vae", default=True)
    assert choose_set([SDXL_VAE, preferred], "vae", channels=4) is preferred


def test_several_without_a_default_are_named() -> None:
    with pytest.raises(DaemonError) as caught:
        choose_set([SD15, SDXL_VAE], "vae", channels=4)
    assert caught.value.code == "latent-mismatch"
    assert "sd15" in caught.value.message
    assert "sdxl" in caught.value.message


def test_nothing_served_a_family_not_served_and_channels_nobody_takes() -> None:
    assert code_of([], "text") == "model-missing"
    assert code_of([SDXL_VAE], "text") == "model-missing"
    assert code_of([SD15], "text", "flux") == "wrong-type"
    assert code_of([SD15], "vae", channels=16) == "latent-mismatch"
