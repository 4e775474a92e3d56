"""The native backend: text encoders and image VAEs without a ComfyUI checkout.

Families: sd15, sdxl, sd3, flux and z-image, text and VAE. Anything else is refused by name, never approximated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from luna_daemon.runtime import autoencoder, conditioning, encoder_files
from luna_daemon.runtime.backend import NamedTensor, Place
from luna_daemon.runtime.families import FAMILIES, usable_roles, wrong_roles
from luna_daemon.runtime.lora import LoraRegistry
from luna_daemon.runtime.memory import most_rows, storage_bytes
from luna_daemon.runtime.merged import MergedWeights
from luna_daemon.runtime.parts import SUPPORT_HINT, require_complete, require_floats
from luna_daemon.runtime.set_loras import LoraShelf, SetLoras
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from luna_daemon.encode_messages import Tile
    from luna_daemon.model_messages import EncoderFacts, VaeFacts
    from luna_daemon.runtime.backend import Encoded, EncodeItem, EncoderInput
    from luna_daemon.runtime.lora import LoraEntry, Recipe
    from luna_daemon.runtime.parts import Part
    from luna_daemon.runtime.set_loras import Match
    from luna_daemon.runtime.text_encoder import TextEncoder

VAE_FAMILIES: Mapping[str, autoencoder.VaeLayout] = {
    "sd15": autoencoder.SD,
    "sdxl": autoencoder.SD,
    "sd3": autoencoder.SD3,
    "flux": autoencoder.SD3,
    "z-image": autoencoder.SD3,
}
DTYPES: Mapping[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


class NativeSet:
    """A loaded set of the native backend (see `luna_daemon.runtime.backend.ModelSet`)."""

    shares_rows = True

    def __init__(
        self,
        family: str,
        encoders: Mapping[str, TextEncoder],
        vae: autoencoder.Autoencoder | None,
        device: torch.device,
        shelf: LoraShelf,
    ) -> None:
        self._family = family
        self._encoders = encoders
        self._vae = vae
        self._device = device
        self._place = Place.DEVICE if device.type == "cpu" else Place.HOST  # built on the CPU, beside what runs
        self._loras = _set_loras(encoders, shelf)

    @property
    def encoders(self) -> Mapping[str, EncoderFacts]:
        """Facts per role."""
        return {role: encoder.facts for role, encoder in self._encoders.items()}

    @property
    def vae(self) -> VaeFacts | None:
        """Facts of the VAE."""
        return None if self._vae is None else self._vae.facts

    @property
    def place(self) -> Place:
        """Where the weights are."""
        return self._place

    def encode(
        self, items: Sequence[EncodeItem], check: Callable[[], None], row_cap: int | None = None
    ) -> list[Encoded]:
        """Encode the prompts in order."""
        if not self._encoders:
            raise DaemonError(
                "component-missing", "the set has no text encoder", "load a set that has one, such as a checkpoint"
            )
        cap = most_rows(self._device) if row_cap is None else row_cap
        loras = self._loras.plan(items)
        return conditioning.encode(FAMILIES[self._family], self._encoders, items, cap, check, loras)

    def find_loras(self, item: EncodeItem) -> Recipe:
        """Find and judge a prompt's LoRAs; see the protocol for errors."""
        return self._loras.find(item)

    def match_lora(self, entry: LoraEntry) -> Match:
        """Tell what a LoRA hits in this set; see the protocol for errors."""
        return self._loras.match(entry)

    def vae_encode(self, pixels: torch.Tensor, check: Callable[[], None], tile: Tile | None = None) -> torch.Tensor:
        """Encode pixels [B, H, W, 3] whose sides are multiples of the factor."""
        return self._require_vae().encode(pixels, check, tile)

    def vae_decode(self, latent: torch.Tensor, check: Callable[[], None], tile: Tile | None = None) -> torch.Tensor:
        """Decode a latent [B, C, h, w]."""
        return self._require_vae().decode(latent, check, tile)

    def _require_vae(self) -> autoencoder.Autoencoder:
        if self._vae is None:
            raise DaemonError(
                "component-missing", "the set has no VAE", "load a set that has one, such as a checkpoint"
            )
        return self._vae

    def tokenize(self, text: str) -> dict[str, EncoderInput]:
        """Refuse: what this backend encodes is tokenized by Luna's own rules."""
        raise DaemonError("tokenizer-missing", f"{self._family} has no tokenizer here: {len(text)} characters", None)

    def names(self) -> list[NamedTensor]:
        """List the weights in ComfyUI's state-dict names and the types that they are kept in there."""
        listed = []
        for role, encoder in self._encoders.items():
            listed += encoder_files.names(role, encoder)
        if self._vae is not None:
            listed += [
                NamedTensor(f"first_stage_model.{name}", encoder_files.WIRE_NAMES[tensor.dtype], tuple(tensor.shape))
                for name, tensor in self._vae.state().items()
            ]
        return listed

    def move(self, place: Place) -> None:
        """Move the weights; on a CPU device and host are one place."""
        target = self._device if place is Place.DEVICE else torch.device("cpu")
        for encoder in self._encoders.values():
            encoder.to(target)
        if self._vae is not None:
            self._vae.to(target)
        self._place = place

    def part_bytes(self) -> Mapping[str, int]:
        """Return bytes held per role, measured from the storages."""
        held = {role: sum(storage_bytes(encoder.state().values()).values()) for role, encoder in self._encoders.items()}
        if self._vae is not None:
            held["vae"] = sum(storage_bytes(self._vae.state().values()).values())
        return held


class NativeBackend:
    """Builds native sets on one device (see `luna_daemon.runtime.backend.ModelBackend`).

    Args:
        device: of all sets.
        loras: shared by all sets; None makes them.
    """

    name = "native"
    reads_any = False

    def __init__(self, device: torch.device, loras: LoraShelf | None = None) -> None:
        self._device = device
        self.loras = loras or LoraShelf(LoraRegistry(), MergedWeights(device))

    def needed_bytes(self, parts: Mapping[str, Part], precision: str) -> int:
        """Return the bytes that the weights of a set will hold."""
        for part in parts.values():
            require_floats(part)
        return sum(
            part.elements * DTYPES[precision].itemsize
            if role == "vae"
            else encoder_files.held_bytes(role, part, self._device)
            for role, part in parts.items()
        )

    def load(self, family: str, parts: Mapping[str, Part], precision: str, check: Callable[[], None]) -> NativeSet:
        """Build a set; see the protocol for arguments and errors."""
        text_roles = [role for role in parts if role != "vae"]
        self._require_family(family, text_roles)
        encoders = {role: encoder_files.load(role, parts[role], self._device, check) for role in text_roles}
        vae = self._autoencoder(family, parts["vae"], DTYPES[precision], check) if "vae" in parts else None
        return NativeSet(family, encoders, vae, self._device, self.loras)

    def usable_roles(self, family: str, roles: Sequence[str]) -> list[str]:
        """Return the roles that make a set of the family."""
        return usable_roles(family, roles, VAE_FAMILIES)

    def resolve_precision(self, asked: str, *, has_vae: bool) -> str:
        """Resolve ``auto``: bf16 for a VAE where the card has it, else fp32. CLIP is always kept in fp16.

        Raises:
            DaemonError: ``precision-unsupported``.
        """
        if asked not in {"auto", *DTYPES}:
            raise DaemonError(
                "precision-unsupported", f"no precision {asked!r}", f"use auto or one of {', '.join(DTYPES)}"
            )
        if not has_vae:
            return "fp16"
        if asked == "auto":
            is_bf16 = self._device.type == "cuda" and torch.cuda.is_bf16_supported()
            return "bf16" if is_bf16 else "fp32"
        if asked == "fp16" and self._device.type == "cpu":
            raise DaemonError("precision-unsupported", "a CPU does not compute a VAE in fp16", "use fp32 or bf16")
        return asked

    def _require_family(self, family: str, text_roles: Sequence[str]) -> None:
        known = FAMILIES if text_roles else VAE_FAMILIES
        if family not in known:
            raise DaemonError(
                "model-unsupported",
                f"the native backend has no {family} {'text encoding' if text_roles else 'VAE'}; "
                f"it has {', '.join(known)}",
                SUPPORT_HINT,
            )
        if text_roles:
            wrong = wrong_roles(family, text_roles)
            if wrong:
                raise DaemonError(
                    "component-missing",
                    f"{family} text encoding takes the parts {', '.join(FAMILIES[family].shapes)}; "
                    f"given {', '.join(text_roles)}",
                    "name every encoder of the family once",
                )

    def _autoencoder(
        self, family: str, part: Part, dtype: torch.dtype, check: Callable[[], None]
    ) -> autoencoder.Autoencoder:
        layout = VAE_FAMILIES[family]
        if part.latent_channels != layout.channels:
            raise DaemonError(
                "wrong-type",
                f"{part.source} has a VAE of {part.latent_channels} channels; {family} takes one of {layout.channels}",
                "give a file of the family that was asked for",
            )
        require_complete(part, autoencoder.expected_shapes(layout))
        return autoencoder.Autoencoder(layout, part.read_all(check), dtype, self._device)


def _set_loras(encoders: Mapping[str, TextEncoder], shelf: LoraShelf) -> SetLoras:
    slots = {
        role: {encoder_files.prefix(role) + name: slot for name, slot in encoder.slots().items()}
        for role, encoder in encoders.items()
    }
    named = {one.name: one.shape for role, encoder in encoders.items() for one in encoder_files.names(role, encoder)}
    return SetLoras(slots, named, shelf)
