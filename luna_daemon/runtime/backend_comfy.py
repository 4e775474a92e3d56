"""The comfy backend: whatever the user's ComfyUI checkout can load, computed by its own classes.

Requests run one prompt at a time through ComfyUI's own encode, so the numbers are those of that ComfyUI, bit for bit.
Its memory management is asked for whole loads and detaches only; where a set is decides `memory.py`.
"""

from __future__ import annotations

import collections
import contextlib
from typing import TYPE_CHECKING, Any

import torch

from luna_daemon.model_messages import EncoderFacts, VaeFacts
from luna_daemon.runtime import comfy_loading, encoder_files
from luna_daemon.runtime.backend import Encoded, EncoderInput, NamedTensor, Place, Row
from luna_daemon.runtime.families import FAMILIES, usable_roles, wrong_roles
from luna_daemon.runtime.lora import LoraRegistry
from luna_daemon.runtime.memory import storage_bytes
from luna_daemon.runtime.merged import MergedWeights
from luna_daemon.runtime.set_loras import LoraShelf, SetLoras
from luna_daemon.runtime.side_path import find_slots
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from luna_daemon.encode_messages import Tile
    from luna_daemon.runtime.backend import EncodeItem
    from luna_daemon.runtime.checkout import Comfy
    from luna_daemon.runtime.lora import LoraEntry, Recipe
    from luna_daemon.runtime.parts import Part
    from luna_daemon.runtime.set_loras import LoraPlan, Match
    from luna_daemon.runtime.side_path import Slot

    Check = Callable[[], None]

_ROW_MAX = 8192
"""Some tokenizers name no limit; a longer row would not fit beside its attention scores."""
_VAE_TYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_VAE_NAMES = {dtype: name for name, dtype in _VAE_TYPES.items()}


class _Watched:
    """Calls a check between the modules of a model, so that a long run stops in its middle."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._check: Check | None = None
        for module in model.modules():
            if not any(True for _ in module.children()):
                module.register_forward_pre_hook(self._look)

    def _look(self, _module: torch.nn.Module, _given: Any) -> None:
        if self._check is not None:
            self._check()

    @contextlib.contextmanager
    def by(self, check: Check) -> Iterator[None]:
        """Call ``check`` while the context lasts; what it raises leaves the model's run."""
        check()
        self._check = check
        try:
            yield
        finally:
            self._check = None


class _TextEncoders:
    """ComfyUI's CLIP object of a set: all of its text encoders."""

    def __init__(self, clip: Any, comfy: Comfy, shelf: LoraShelf) -> None:
        self._clip = clip
        self._comfy = comfy
        self.model: Any = clip.cond_stage_model
        self.modules = comfy_loading.text_modules(clip)
        self.facts = {role: _encoder_facts(module) for role, module in self.modules.items()}
        learned = {role: _positions(module) for role, module in self.modules.items()}
        self.positions = {role: count for role, count in learned.items() if count is not None}
        self.loras = SetLoras({role: _slots(self.model, module) for role, module in self.modules.items()}, {}, shelf)
        self._watched = _Watched(self.model)

    def encode(self, items: Sequence[EncodeItem], check: Check) -> list[Encoded]:
        """Encode prompts, one after the other."""
        loras = self.loras.plan(items)
        return [self._encode(item, index, loras, check) for index, item in enumerate(items)]

    def _encode(self, item: EncodeItem, index: int, loras: LoraPlan, check: Check) -> Encoded:
        """Encode one prompt as ComfyUI would, with its options set anew."""
        self.model.reset_clip_options()
        for role, layer in item.layers.items():
            self.modules[role].set_clip_options({"layer": layer})
        if not item.projected:
            self.model.set_clip_options({"projected_pooled": False})
        self.load()
        # Said last, as ComfyUI does: it is then that a layer beyond an encoder's last falls back to its default.
        self.model.set_clip_options({"execution_device": self._clip.patcher.load_device})
        tokens: dict[str, Any] = collections.defaultdict(list)
        tokens.update({role: _token_rows(given) for role, given in item.encoders.items()})
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._watched.by(check))
            for role in self.modules:
                stack.enter_context(loras.rows(role, [index] * _row_count(item.encoders.get(role))))
            cond, pooled, *more = self.model.encode_token_weights(tokens)
        return Encoded(
            cond.float().cpu(),
            None if pooled is None else pooled.float().cpu(),
            _tensors(more[0] if more else {}),
            sum(_dropped(given, self.facts[role].width) for role, given in item.encoders.items()),
            loras.did(index),
        )

    def tokenize(self, text: str) -> dict[str, EncoderInput]:
        """Tokenize with ComfyUI's tokenizer, which is given no embeddings folder: it would read pickles."""
        tokens = self._clip.tokenize(text)
        return {role: _given(tokens[role]) for role in self.facts if role in tokens}

    def load(self) -> None:
        """Have all weights on the device."""
        self._comfy.management.load_models_gpu([self._clip.patcher], force_full_load=True)

    def unload(self) -> None:
        """Have all weights in main memory."""
        self._clip.patcher.detach()


class _Vae:
    """ComfyUI's VAE object of a set."""

    def __init__(self, vae: Any, comfy: Comfy) -> None:
        self._vae = vae
        self._comfy = comfy
        self.model: torch.nn.Module = vae.first_stage_model
        self.facts = VaeFacts(
            latent_channels=vae.latent_channels,
            spatial=vae.spacial_compression_encode(),
            dtype=_VAE_NAMES[vae.vae_dtype],
            latent_dim=vae.latent_dim,
            temporal=vae.temporal_compression_decode(),
            output_channels=vae.output_channels,
        )
        self._watched = _Watched(self.model)

    def encode(self, pixels: torch.Tensor, check: Check, tile: Tile | None) -> torch.Tensor:
        """Encode as ComfyUI would."""
        with self._watched.by(check):
            if tile is not None:
                return self._out(self._vae.encode_tiled(pixels, **self._sizes(tile)))
            with self._without_silent_tiles():
                return self._out(self._vae.encode(pixels))

    def decode(self, latent: torch.Tensor, check: Check, tile: Tile | None) -> torch.Tensor:
        """Decode as ComfyUI would."""
        with self._watched.by(check):
            if tile is not None:
                return self._out(self._vae.decode_tiled(latent, **self._sizes(tile)))
            with self._without_silent_tiles():
                return self._out(self._vae.decode(latent))

    def _sizes(self, tile: Tile) -> dict[str, int | None]:
        sizes: dict[str, int | None] = {"tile_x": tile.x, "tile_y": tile.y, "overlap": tile.overlap}
        return sizes if self.facts.latent_dim == 2 else {**sizes, "tile_t": tile.t, "overlap_t": tile.overlap_t}

    @contextlib.contextmanager
    def _without_silent_tiles(self) -> Iterator[None]:
        """Turn ComfyUI's own step to tiles, when memory runs out, into the error that the engine knows and reports."""

        def refuse(*_: Any, **__: Any) -> None:
            raise MemoryError("a VAE run without tiles")

        ways = [name for name in dir(self._vae) if name.startswith(("encode_tiled_", "decode_tiled_"))]
        for name in ways:
            setattr(self._vae, name, refuse)
        try:
            yield
        finally:
            for name in ways:
                delattr(self._vae, name)

    @staticmethod
    def _out(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.float().cpu().contiguous()

    def load(self) -> None:
        """Have all weights on the device."""
        self._comfy.management.load_models_gpu([self._vae.patcher], force_full_load=True)

    def unload(self) -> None:
        """Have all weights in main memory."""
        self._vae.patcher.detach()


class ComfySet:
    """A loaded set of the comfy backend (see `luna_daemon.runtime.backend.ModelSet`)."""

    def __init__(self, family: str, text: _TextEncoders | None, vae: _Vae | None) -> None:
        self._is_partial = family in FAMILIES and FAMILIES[family].is_partial
        self._text = text
        self._vae = vae
        self._place = Place.DEVICE

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

    def encode(
        self,
        items: Sequence[EncodeItem],
        check: Check,
        row_cap: int | None = None,  # noqa: ARG002 - one prompt is the least
    ) -> list[Encoded]:
        """Encode the prompts in order, each by itself."""
        text = self._require_text()
        for item in items:
            _require_roles(item, text.facts)
            _require_lengths(item, text, is_partial=self._is_partial)
        return text.encode(items, check)

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

    def _require_text(self) -> _TextEncoders:
        if self._text is None:
            raise DaemonError(
                "component-missing", "the set has no text encoder", "load a set that has one, such as a checkpoint"
            )
        return self._text

    def _require_vae(self) -> _Vae:
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
    builds_on_device = True  # ComfyUI's own record of loaded models is not for two threads
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
        if asked not in {"auto", *_VAE_TYPES}:
            raise DaemonError(
                "precision-unsupported", f"no precision {asked!r}", f"use auto or one of {', '.join(_VAE_TYPES)}"
            )
        if not has_vae:
            return "fp16"
        if asked == "auto":
            working = [torch.bfloat16, torch.float32]
            return _VAE_NAMES[self._comfy.management.vae_dtype(self._device, working)]
        if asked == "fp16" and self._device.type == "cpu":
            raise DaemonError("precision-unsupported", "a CPU does not compute a VAE in fp16", "use fp32 or bf16")
        return asked

    def needed_bytes(self, parts: Mapping[str, Part], precision: str) -> int:
        """Return the bytes that the weights of a set will hold."""
        return sum(
            part.elements * _VAE_TYPES[precision].itemsize if role == "vae" else comfy_loading.text_bytes(part)
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
        dtype = _VAE_TYPES[precision]
        vae = comfy_loading.load_vae(self._comfy, parts["vae"], dtype, self._device, check) if "vae" in parts else None
        return ComfySet(
            family,
            None if encoders is None else _TextEncoders(encoders, self._comfy, self.loras),
            None if vae is None else _Vae(vae, self._comfy),
        )


def _encoder_facts(module: Any) -> EncoderFacts:
    table = module.transformer.get_input_embeddings().weight
    longest = min(int(module.max_length), _ROW_MAX)
    return EncoderFacts(int(module.num_layers), int(table.shape[1]), longest, int(table.shape[0]))


def _slots(model: torch.nn.Module, module: torch.nn.Module) -> dict[str, Slot]:
    """Return where each weight of one encoder is, by its name in the state dict of all."""
    name = next(name for name, child in model.named_children() if child is module)
    # As wide as can be: ComfyUI holds each weight in the very type that it counts as.
    return {f"{name}.{inner}": slot for inner, slot in find_slots(module, torch.float32)}


def _row_count(given: EncoderInput | None) -> int:
    """Return the rows of a prompt in one encoder: its chunks, and the empty row if it is weighted or has none."""
    rows = () if given is None else given.rows
    is_weighted = any(weight != 1.0 for row in rows for weight in row.weights)
    return len(rows) + int(is_weighted or not rows)


def _require_roles(item: EncodeItem, facts: Mapping[str, EncoderFacts]) -> None:
    unknown = sorted((set(item.encoders) | set(item.layers)) - set(facts))
    if unknown:
        raise DaemonError(
            "token-invalid",
            f"the set has no text encoder {unknown[0]!r}; it has {', '.join(sorted(facts))}",
            "tokenise with the tokenizer of the set's own family",
        )


def _require_lengths(item: EncodeItem, text: _TextEncoders, *, is_partial: bool) -> None:
    """Check what ComfyUI would fail on with an error about tensors: CLIP reads rows of one length, one at least.

    A partial family goes without its CLIP encoders if a prompt has tokens for none of them.
    """
    rows = {role: item.encoders[role].rows if role in item.encoders else () for role in text.positions}
    is_without = is_partial and not any(rows.values())
    for role, length in text.positions.items():
        if not is_without and (not rows[role] or any(len(row.ids) != length for row in rows[role])):
            raise DaemonError(
                "token-invalid",
                f"{role} takes rows of {length} tokens, one at least",
                "tokenise with the tokenizer of the set's own family",
            )


def _positions(module: Any) -> int | None:
    """Return how many positions an encoder has learned, None where they are computed."""
    embeddings = getattr(getattr(module.transformer, "text_model", None), "embeddings", None)
    table = getattr(embeddings, "position_embedding", None)
    return None if table is None else int(table.weight.shape[0])


def _token_rows(given: EncoderInput) -> list[list[tuple[Any, float]]]:
    """Return rows as ComfyUI's tokenizers make them: a number, or a vector in its place."""
    vectors = [row for block in given.vectors for row in block]
    return [
        [
            (vectors[-1 - token] if token < 0 else token, weight)
            for token, weight in zip(row.ids, row.weights, strict=True)
        ]
        for row in given.rows
    ]


def _given(rows: Sequence[Sequence[Any]]) -> EncoderInput:
    return EncoderInput(
        tuple(Row(tuple(int(pair[0]) for pair in row), tuple(float(pair[1]) for pair in row)) for row in rows)
    )


def _dropped(given: EncoderInput, width: int) -> int:
    wrong = [block for block in given.vectors if block.shape[-1] != width]
    return sum(len(block) for block in wrong)


def _tensors(extras: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    odd = next((name for name, value in extras.items() if not torch.is_tensor(value)), None)
    if odd is not None:
        raise DaemonError(
            "model-unsupported",
            f"this text encoder gives {odd}, which is no tensor",
            "keep this model in ComfyUI itself",
        )
    return {name: value.cpu() for name, value in extras.items()}
