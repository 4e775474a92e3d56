"""What a backend takes and gives: the seam between the engine and whatever computes.

Tensors here are torch tensors; nothing in this module imports torch at run time, so the types can be named anywhere.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

    from luna_daemon.encode_messages import LoraUse, Tile
    from luna_daemon.messages import LoraDid
    from luna_daemon.model_messages import EncoderFacts, VaeFacts
    from luna_daemon.runtime.lora import LoraEntry, Recipe
    from luna_daemon.runtime.parts import Part
    from luna_daemon.runtime.set_loras import LoraShelf, Match


class Place(enum.Enum):
    """Where a set's weights are."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of tokens: a chunk with its start, end and padding.

    Attributes:
        ids: token ids; a negative one, -1-k, stands for row k of the item's vectors.
        weights: prompt weight of each token, 1.0 = unweighted.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class EncoderInput:
    """What one encoder of a set reads.

    Attributes:
        rows: the chunks of the prompt.
        vectors: textual inversions, blocks [n, width]; their rows are counted through.
    """

    rows: tuple[Row, ...]
    vectors: tuple[torch.Tensor, ...] = ()


@dataclass(frozen=True, slots=True)
class EncodeItem:
    """One prompt.

    Attributes:
        encoders: role (``l``, ``g``, …) → its input. A role the set has no encoder for is an error, a missing one
            is encoded as no rows.
        layers: role → the asked-for layer (-1 the last block); a role not named uses the family's default.
        projected: False asks for the pooled state before text_projection where the family projects it.
        loras: what is applied to the encoders for this prompt alone, in order. Prompts with other LoRAs, or none,
            may be encoded in the same call.
        recipe: those LoRAs, found; whoever holds the item keeps them, even if the registry drops them meanwhile.
        is_exact: compute the LoRAs as ComfyUI does, rounding included.
    """

    encoders: Mapping[str, EncoderInput]
    layers: Mapping[str, int] = field(default_factory=dict)
    projected: bool = True
    loras: tuple[LoraUse, ...] = ()
    recipe: Recipe | None = None
    is_exact: bool = False


@dataclass(frozen=True, slots=True)
class Encoded:
    """One prompt's conditioning, fp32 on the CPU.

    Attributes:
        cond: [1, tokens, width].
        pooled: [1, width], or None for families without one.
        extras: further tensors that the family's conditioning carries, by ComfyUI's name.
        dropped_vectors: how many vectors had another width than the encoder and were left out.
        loras: how each LoRA of the prompt was applied.
    """

    cond: torch.Tensor
    pooled: torch.Tensor | None
    extras: Mapping[str, torch.Tensor]
    dropped_vectors: int = 0
    loras: tuple[LoraDid, ...] = ()


@dataclass(frozen=True, slots=True)
class NamedTensor:
    """Name, dtype (wire spelling) and shape of one weight, in ComfyUI's state-dict naming."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class ModelSet(Protocol):
    """A loaded set. Only the executor thread calls its methods; ``check`` raises on cancel or deadline."""

    @property
    def encoders(self) -> Mapping[str, EncoderFacts]:
        """Facts per role; empty for a set without text encoders."""

    @property
    def vae(self) -> VaeFacts | None:
        """Facts of the VAE, or None for a set without one."""

    @property
    def place(self) -> Place:
        """Where the weights are now."""

    @property
    def shares_rows(self) -> bool:
        """Whether prompts of several requests gain anything from being encoded in one call."""

    def encode(
        self, items: Sequence[EncodeItem], check: Callable[[], None], row_cap: int | None = None
    ) -> list[Encoded]:
        """Encode the prompts in order, each with its own LoRAs; at most ``row_cap`` rows of tokens in one pass."""

    def find_loras(self, item: EncodeItem) -> Recipe:
        """Find and judge a prompt's LoRAs, so that no other request in its batch is harmed by them.

        Raises:
            DaemonError: ``lora-missing``, ``lora-invalid``, ``lora-no-match``.
        """

    def match_lora(self, entry: LoraEntry) -> Match:
        """Tell what a LoRA hits in this set.

        Raises:
            DaemonError: ``lora-invalid`` for a patch that does not fit its weight.
        """

    def vae_encode(self, pixels: torch.Tensor, check: Callable[[], None], tile: Tile | None = None) -> torch.Tensor:
        """Encode pixels [B, H, W, 3] in 0..1, sides multiples of the factor, to a latent [B, C, h, w] fp32."""

    def vae_decode(self, latent: torch.Tensor, check: Callable[[], None], tile: Tile | None = None) -> torch.Tensor:
        """Decode a latent [B, C, h, w] to pixels [B, H, W, 3] fp32 in 0..1."""

    def tokenize(self, text: str) -> dict[str, EncoderInput]:
        """Turn a text into token rows, for a family whose rules Luna does not know.

        Raises:
            DaemonError: ``tokenizer-missing`` if this backend has no tokenizer of its own.
        """

    def names(self) -> list[NamedTensor]:
        """List the weights in ComfyUI's state-dict names."""

    def move(self, place: Place) -> None:
        """Move the weights between device and host."""

    def part_bytes(self) -> Mapping[str, int]:
        """Return bytes held per role, measured from the storages."""


class ModelBackend(Protocol):
    """Builds sets from parts on one device."""

    @property
    def name(self) -> str:
        """``native`` or ``comfy``."""

    @property
    def loras(self) -> LoraShelf:
        """The LoRAs and merged copies of all its sets."""

    @property
    def reads_any(self) -> bool:
        """Whether it takes files of architectures that Luna does not know, whole."""

    def usable_roles(self, family: str, roles: Sequence[str]) -> list[str]:
        """Return those of a file's roles that make a set of the family: all text encoders or none."""

    def resolve_precision(self, asked: str, *, has_vae: bool) -> str:
        """Return the precision that a set computes in: that of its VAE, or fp16 storage for text encoders alone.

        Raises:
            DaemonError: ``precision-unsupported``.
        """

    def needed_bytes(self, parts: Mapping[str, Part], precision: str) -> int:
        """Return the bytes that the weights of a set will hold, from its files' headers."""

    def load(self, family: str, parts: Mapping[str, Part], precision: str, check: Callable[[], None]) -> ModelSet:
        """Build the set, beside what runs on the device; where there is a card, in host memory.

        Args:
            family: ``sd15``, ``sdxl``, …
            parts: role (``l``, ``g``, ``vae``) → opened part.
            precision: as resolved.
            check: raises on cancel or deadline; called between tensors.

        Raises:
            DaemonError: ``model-unsupported``, ``component-missing``, ``precision-unsupported``, ``file-damaged``,
                ``out-of-memory``.
        """
