"""The comfy backend: whatever the user's ComfyUI checkout can load, computed by its own classes.

Every prompt goes through ComfyUI's own encode; what its encoders compute for several is run together where that is
known (`comfy_rows.py`). Its memory management is asked for whole loads and detaches only; where a set is decides
`residency.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from luna_daemon.runtime import comfy_loading, encoder_files
from luna_daemon.runtime.backend import NamedTensor, Place
from luna_daemon.runtime.comfy_text import TextEncoders
from luna_daemon.runtime.comfy_vae import VAE_NAMES, VAE_TYPES, ComfyVae
from luna_daemon.runtime.families import FAMILIES, usable_roles, wrong_roles
from luna_daemon.runtime.lora import LoraRegistry
from luna_daemon.runtime.memory import storage_bytes
from luna_daemon.runtime.merged import MergedWeights
from luna_daemon.runtime.set_loras import LoraShelf
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from luna_daemon.encode_messages import Tile
    from luna_daemon.model_messages import EncoderFacts, VaeFacts
    from luna_daemon.runtime.backend import Encoded, EncodeItem, EncoderInput
    from luna_daemon.runtime.checkout import Comfy
    from luna_daemon.runtime.lora import LoraEntry, Recipe
    from luna_daemon.runtime.parts import Part
    from luna_daemon.runtime.set_loras import Match

    Check = Callable[[], None]


class ComfySet:
    """A loaded set of the comfy backend (see `luna_daemon.runtime.backend.ModelSet`)."""

    def __init__(self, family: str, text: TextEncoders | None, vae: ComfyVae | None, device: torch.device) -> None:
        self._is_partial = family in FAMILIES and FAMILIES[family].is_partial
        self._text = text
        self._vae = vae
        self._place = Place.DEVICE if device.type == "cpu" else Place.HOST  # built on the CPU, beside what runs

    @property
    def encoders(self) -> Mapping[str, EncoderFacts]:
        """Facts per role."""
        return {} if self._text is None else self._text.facts

    @property
    def vae(self) -> VaeFacts | None:
        """Facts of the VAE."""
        return None if self._vae is None else self._vae.facts

    @property
    def place(self) -> Place:
        """Where the weights are."""
        return self._place

    @property
    def shares_rows(self) -> bool:
        """Whether its encoders are of ComfyUI's common class."""
        return self._text is not None and self._text.shares_rows

    def encode(self, items: Sequence[EncodeItem], check: Check, row_cap: int | None = None) -> list[Encoded]:
        """Encode the prompts in order."""
        return self._require_text().encode(items, check, row_cap, is_partial=self._is_partial)

    def find_loras(self, item: EncodeItem) -> Recipe:
        """Find and judge a prompt's LoRAs; see the protocol for errors."""
        return self._require_text().loras.find(item)

    def match_lora(self, entry: LoraEntry) -> Match:
        """Tell what a LoRA hits in this set; see the protocol for errors."""
        return self._require_text().loras.match(entry)

    def tokenize(self, text: str) -> dict[str, EncoderInput]:
        """Tokenize with ComfyUI's own tokenizer."""
        return self._require_text().tokenize(text)

    def vae_encode(self, pixels: torch.Tensor, check: Check, tile: Tile | None = None) -> torch.Tensor:
        """Encode pixels whose sides are multiples of the factor."""
        return self._require_vae().encode(pixels, check, tile)

    def vae_decode(self, latent: torch.Tensor, check: Check, tile: Tile | None = None) -> torch.Tensor:
        """Decode a latent."""
        return self._require_vae().decode(latent, check, tile)

    def _require_text(self) -> TextEncoders:
        if self._text is None:
            raise DaemonError(
                "component-missing", "the set has no text encoder", "load a set that has one, such as a checkpoint"
            )
        return self._text

    def _require_vae(self) -> ComfyVae:
        if self._vae is None:
            raise DaemonError(
                "component-missing", "the set has no VAE", "load a set that has one, such as a checkpoint"
            )
        return self._vae

    def names(self) -> list[NamedTensor]:
        """List the weights under ComfyUI's own names."""
        named: dict[str, torch.Tensor] = {}
        if self._text is not None:
            named |= self._text.model.state_dict()
        if self._vae is not None:
            named |= {f"first_stage_model.{name}": tensor for name, tensor in self._vae.model.state_dict().items()}
        return [
            NamedTensor(name, encoder_files.WIRE_NAMES.get(tensor.dtype, "u8"), tuple(tensor.shape))
            for name, tensor in named.items()
        ]

    def move(self, place: Place) -> None:
        """Load whole or detach whole."""
        for held in (self._text, self._vae):
            if held is not None and place is Place.DEVICE:
                held.load()
            elif held is not None:
                held.unload()
        self._place = place

    def part_bytes(self) -> Mapping[str, int]:
        """Return bytes held per role, measured from the storages."""
        modules = {} if self._text is None else dict(self._text.modules)
        if self._vae is not None:
            modules["vae"] = self._vae.model
        return {role: sum(storage_bytes(module.state_dict().values()).values()) for role, module in modules.items()}


class ComfyBackend:
    """Builds sets with the user's ComfyUI (see `luna_daemon.runtime.backend.ModelBackend`)."""

    name = "comfy"
    reads_any = True

    def __init__(self, comfy: Comfy, device: torch.device) -> None:
        self._comfy = comfy
        self._device = device
        self.loras = LoraShelf(LoraRegistry(), MergedWeights(device))

    def usable_roles(self, family: str, roles: Sequence[str]) -> list[str]:
        """Return the roles that make a set of the family; a VAE does in any."""
        return usable_roles(family, roles, (family,))

    def resolve_precision(self, asked: str, *, has_vae: bool) -> str:
        """Resolve ``auto`` as ComfyUI does for this device. Text encoders keep fp16, or what their file has.

        Raises:
            DaemonError: ``precision-unsupported``.
        """
        if asked not in {"auto", *VAE_TYPES}:
            raise DaemonError(
                "precision-unsupported", f"no precision {asked!r}", f"use auto or one of {', '.join(VAE_TYPES)}"
            )
        if not has_vae:
            return "fp16"
        if asked == "auto":
            working = [torch.bfloat16, torch.float32]
            return VAE_NAMES[self._comfy.management.vae_dtype(self._device, working)]
        if asked == "fp16" and self._device.type == "cpu":
            raise DaemonError("precision-unsupported", "a CPU does not compute a VAE in fp16", "use fp32 or bf16")
        return asked

    def needed_bytes(self, parts: Mapping[str, Part], precision: str) -> int:
        """Return the bytes that the weights of a set will hold."""
        return sum(
            part.elements * VAE_TYPES[precision].itemsize if role == "vae" else comfy_loading.text_bytes(part)
            for role, part in parts.items()
        )

    def load(self, family: str, parts: Mapping[str, Part], precision: str, check: Check) -> ComfySet:
        """Build a set; see the protocol for arguments and errors."""
        text = {role: part for role, part in parts.items() if role != "vae"}
        if text and family in FAMILIES and wrong_roles(family, list(text)):
            raise DaemonError(
                "component-missing",
                f"{family} text encoding takes the parts {', '.join(FAMILIES[family].shapes)}; given {', '.join(text)}",
                "name every encoder of the family once",
            )
        encoders = comfy_loading.load_text(self._comfy, family, text, self._device, check) if text else None
        dtype = VAE_TYPES[precision]
        vae = comfy_loading.load_vae(self._comfy, parts["vae"], dtype, self._device, check) if "vae" in parts else None
        return ComfySet(
            family,
            None if encoders is None else TextEncoders(encoders, self._comfy, self.loras),
            None if vae is None else ComfyVae(vae, self._comfy),
            self._device,
        )
