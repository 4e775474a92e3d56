"""A language model as a set of the daemon: loaded, counted, moved and evicted like the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import torch

from luna_daemon.model_messages import LanguageFacts
from luna_daemon.runtime.backend import NamedTensor, Place
from luna_daemon.runtime.encoder_files import WIRE_NAMES
from luna_daemon.runtime.language_files import ROLE
from luna_daemon.runtime.memory import storage_bytes
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from luna_daemon.encode_messages import Tile
    from luna_daemon.model_messages import EncoderFacts, VaeFacts
    from luna_daemon.runtime.backend import Encoded, EncodeItem, EncoderInput
    from luna_daemon.runtime.vision_language import LanguageModel


class LanguageSet:
    """See `luna_daemon.runtime.backend.ModelSet`; it has neither text encoders nor a VAE.

    Args:
        language: the model, in host memory.
        device: where it computes.
    """

    shares_rows = False

    def __init__(self, language: LanguageModel, device: torch.device) -> None:
        self.language = language
        self._device = device
        self._place = Place.DEVICE if device.type == "cpu" else Place.HOST

    @property
    def facts(self) -> LanguageFacts:
        """What a client must know of it."""
        text = self.language.text_config
        return LanguageFacts(
            layers=text.num_hidden_layers,
            width=text.hidden_size,
            vocab=text.vocab_size,
            context=text.max_position_embeddings,
            has_vision=self.language.has_vision,
        )

    @property
    def encoders(self) -> Mapping[str, EncoderFacts]:
        """None."""
        return {}

    @property
    def vae(self) -> VaeFacts | None:
        """None."""
        return None

    @property
    def place(self) -> Place:
        """Where the weights are."""
        return self._place

    def encode(
        self,
        items: Sequence[EncodeItem],  # noqa: ARG002 - the protocol
        check: Callable[[], None],  # noqa: ARG002 - likewise
        row_cap: int | None = None,  # noqa: ARG002 - likewise
    ) -> list[Encoded]:
        """Refuse."""
        self._refuse("text encoder")

    def find_loras(self, item: EncodeItem) -> NoReturn:  # noqa: ARG002 - the protocol
        """Refuse."""
        self._refuse("text encoder")

    def match_lora(self, entry: object) -> NoReturn:  # noqa: ARG002 - the protocol
        """Refuse."""
        self._refuse("text encoder")

    def tokenize(self, text: str) -> dict[str, EncoderInput]:  # noqa: ARG002 - the protocol
        """Refuse."""
        self._refuse("text encoder")

    def vae_encode(self, pixels: torch.Tensor, check: Callable[[], None], tile: Tile | None = None) -> torch.Tensor:  # noqa: ARG002 - the protocol
        """Refuse."""
        self._refuse("VAE")

    def vae_decode(self, latent: torch.Tensor, check: Callable[[], None], tile: Tile | None = None) -> torch.Tensor:  # noqa: ARG002 - the protocol
        """Refuse."""
        self._refuse("VAE")

    def _refuse(self, what: str) -> NoReturn:
        raise DaemonError("component-missing", f"{self.language.label} is a language model, it has no {what}")

    def names(self) -> list[NamedTensor]:
        """List the weights in transformers' names."""
        state = self.language.model.state_dict()
        return [NamedTensor(name, WIRE_NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in state.items()]

    def move(self, place: Place) -> None:
        """Move the weights; on a CPU device and host are one place."""
        self.language.to(self._device if place is Place.DEVICE else torch.device("cpu"))
        self._place = place

    def part_bytes(self) -> Mapping[str, int]:
        """Return bytes held, measured from the storages."""
        return {ROLE: sum(storage_bytes(self.language.model.state_dict().values()).values())}
