"""Qwen3 and Qwen3-VL as generators of text: transformers' own classes, built from a configuration, remote code never.

The loop is Luna's: it looks at cancel and deadline between tokens, lets waiting encodes through, samples from a
generator of its own seed, and gives the text away while it grows.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from luna_daemon.runtime.language_files import HINT
from luna_daemon.runtime.language_images import PatchedImage, PatchSizes, patch, positions
from luna_daemon.runtime.language_text import IMAGE_BEGIN, IMAGE_END, ChatTokenizer, Growing, prompt
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from luna_daemon.language_messages import Generate
    from luna_daemon.runtime.language_files import LanguageFiles


_NOT_SIZES = frozenset({"model_type", "auto_map", "architectures", "quantization_config", "torch_dtype", "dtype"})


@dataclass(frozen=True, slots=True)
class Outcome:
    """An answer, why it ended, and how many tokens went in and came out."""

    text: str
    finish: str
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """A conversation as the model reads it: ids, images, positions [4, n] and the one behind them."""

    ids: list[int]
    images: list[PatchedImage]
    positions: torch.Tensor
    next_position: int


class LanguageModel:
    """A model with its weights. Only the device's thread calls it.

    Args:
        files: opened; they are read here and not needed afterwards.
        check: raises on cancel or deadline; called between tensors.
        has_card: whether it will run on one. Weights keep their type there; on a CPU, which does not compute with
            halves, those become fp32.

    Raises:
        DaemonError: ``file-damaged`` or ``wrong-type`` for weights that are not those of the configuration.
    """

    def __init__(self, files: LanguageFiles, check: Callable[[], None], *, has_card: bool) -> None:
        self.label = files.part.source
        self.device = torch.device("cpu")
        self._tokenizer_path = files.tokenizer
        self._tokenizer: ChatTokenizer | None = None
        self.config = _configuration(files.config)
        self.has_vision = files.config["model_type"] == "qwen3_vl"
        self.model = _build(self.config, files, check, has_card=has_card)
        forward = inspect.signature(type(self.model).forward).parameters
        self._cache_name = "cache" if "cache" in forward else "past_key_values"

    def to(self, device: torch.device) -> None:
        """Move the weights; it computes where they are."""
        self.model.to(device)
        self.device = device

    @property
    def text_config(self) -> Any:
        """The configuration of the language part."""
        return self.config.text_config if self.has_vision else self.config

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        found: torch.dtype = self.model.get_input_embeddings().weight.dtype
        return found

    def tokenizer(self) -> ChatTokenizer:
        """Return the tokenizer, read at first use.

        Raises:
            DaemonError: ``tokenizer-missing``.
        """
        if self._tokenizer is None:
            self._tokenizer = ChatTokenizer(self._tokenizer_path, self.label)
        return self._tokenizer

    def generate(
        self,
        asked: Generate,
        images: Mapping[str, Sequence[torch.Tensor]],
        check: Callable[[], None],
        tell: Callable[[str], None],
    ) -> Outcome:
        """Answer.

        Args:
            asked: messages and how to sample.
            images: the pictures of each image segment, [H, W, C] in 0..1.
            check: called between tokens; raises on cancel or deadline.
            tell: gets each piece of text as soon as it is certain.

        Raises:
            DaemonError: ``llm-failed``, ``llm-missing`` for images without a vision part, ``tokenizer-missing``,
                ``image-shape``, ``value-range``, and what ``check`` raises for a deadline.
        """
        tokenizer = self.tokenizer()
        prepared = self._prepare(asked, images, tokenizer)
        growing = Growing(tokenizer.text, asked.stop)
        count, finish = 0, "length"
        try:
            for token in self._tokens(prepared, asked, check):
                if token in tokenizer.ends:
                    finish = "stop"
                    break
                count += 1
                _tell(tell, growing.add(token))
                if growing.is_stopped:
                    finish = "stop"
                    break
        except DaemonError as error:
            if error.code != "cancelled":
                raise
            finish = "cancelled"
        _tell(tell, growing.finish())
        finish = "stop" if growing.is_stopped else finish
        if not growing.text.strip() and finish != "cancelled":
            raise DaemonError("llm-failed", f"{self.label} gave an empty answer", "change the prompt or the seed")
        return Outcome(growing.text, finish, len(prepared.ids), count)

    def _prepare(
        self, asked: Generate, images: Mapping[str, Sequence[torch.Tensor]], tokenizer: ChatTokenizer
    ) -> Prepared:
        if images and not self.has_vision:
            raise DaemonError(
                "llm-missing", f"{self.label} has no vision part and reads no images", "load a Qwen3-VL model"
            )
        patched = {name: [patch(one, self._sizes) for one in batch] for name, batch in images.items()}
        marks = {name: self._marks(batch, tokenizer) for name, batch in patched.items()}
        ids = prompt(tokenizer, asked.messages, marks)
        room = self.text_config.max_position_embeddings
        if len(ids) + asked.max_tokens > room:
            raise DaemonError(
                "llm-failed",
                f"{len(ids)} tokens and {asked.max_tokens} more are asked for; {self.label} reads {room}",
                "shorten the messages, or ask for fewer tokens",
            )
        named = [part.image for message in asked.messages for part in message.parts if part.image is not None]
        shown = [one for name in named for one in patched[name]]
        where, following = positions(ids, self.config.image_token_id if shown else -1, shown, self._merged)
        return Prepared(ids, shown, where, following)

    @property
    def _sizes(self) -> PatchSizes:
        vision = self.config.vision_config
        return PatchSizes(vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size)

    @property
    def _merged(self) -> int:
        return self._sizes.merged if self.has_vision else 1

    def _marks(self, batch: Sequence[PatchedImage], tokenizer: ChatTokenizer) -> list[int]:
        ids: list[int] = []
        for one in batch:
            tokens = one.rows * one.columns // self._merged**2
            ids += [tokenizer.mark(IMAGE_BEGIN), *[self.config.image_token_id] * tokens, tokenizer.mark(IMAGE_END)]
        return ids

    def _tokens(self, prepared: Prepared, asked: Generate, check: Callable[[], None]) -> Any:
        """Yield the tokens of an answer, one after another."""
        from transformers import DynamicCache

        chance = torch.Generator().manual_seed(asked.seed)
        cache = DynamicCache()
        check()
        logits = self._step(prepared.ids, prepared.positions, cache, prepared.images)
        for index in range(asked.max_tokens):
            token = pick(logits, asked.temperature, asked.top_k, asked.top_p, chance)
            yield token
            if index + 1 == asked.max_tokens:
                return
            check()
            at = prepared.next_position + index
            where = torch.tensor([[len(prepared.ids) + index], [at], [at], [at]])
            logits = self._step([token], where, cache, [])

    def _step(
        self, ids: Sequence[int], where: torch.Tensor, cache: Any, images: Sequence[PatchedImage]
    ) -> torch.Tensor:
        """Read tokens; return the logits behind the last, fp32 [vocabulary] on the CPU."""
        given: dict[str, Any] = {
            "input_ids": torch.tensor([list(ids)], device=self.device),
            "position_ids": (where[:, None] if self.has_vision else where[:1]).to(self.device),
            self._cache_name: cache,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        if images:
            given["pixel_values"] = torch.cat([one.values for one in images]).to(self.device, self.dtype)
            given["image_grid_thw"] = torch.tensor([[1, one.rows, one.columns] for one in images], device=self.device)
        logits: torch.Tensor = self.model(**given).logits[0, -1].float().cpu()
        if not torch.isfinite(logits).all():
            raise DaemonError("llm-failed", f"{self.label} computes values that are no numbers", HINT)
        return logits


def pick(logits: torch.Tensor, temperature: float, top_k: int, top_p: float, chance: torch.Generator) -> int:
    """Choose a token.

    Args:
        logits: fp32 [vocabulary].
        temperature: 0 takes the likeliest.
        top_k: keep so many of the likeliest, 0 keeps all.
        top_p: keep the likeliest that make up this share (nucleus sampling, Holtzman et al. 2019).
        chance: where randomness comes from.
    """
    if temperature == 0.0:
        return int(logits.argmax())
    kept = min(top_k, len(logits)) if top_k else len(logits)
    ordered, tokens = torch.topk(logits / temperature, kept)
    shares = ordered.softmax(-1)
    if top_p < 1.0:
        before = shares.cumsum(-1) - shares
        shares = shares.masked_fill(before >= top_p, 0.0)
    return int(tokens[torch.multinomial(shares, 1, generator=chance)])


def _tell(tell: Callable[[str], None], piece: str) -> None:
    if piece:
        tell(piece)


def _configuration(given: Mapping[str, Any]) -> Any:
    import transformers

    kinds = {"qwen3": transformers.Qwen3Config, "qwen3_vl": transformers.Qwen3VLConfig}
    config = kinds[given["model_type"]](**_sizes_only(given))
    config._attn_implementation = "sdpa"  # noqa: SLF001 - transformers' own way to say so after the fact
    return config


def _sizes_only(given: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what names code rather than sizes: transformers would fetch some of it from a hub."""
    return {
        key: _sizes_only(value) if isinstance(value, dict) else copy.deepcopy(value)
        for key, value in given.items()
        if not key.startswith("_") and not key.endswith("_implementation") and key not in _NOT_SIZES
    }


def _class(config: Any) -> Any:
    import transformers

    return (
        transformers.Qwen3VLForConditionalGeneration
        if config.model_type == "qwen3_vl"
        else transformers.Qwen3ForCausalLM
    )


def _build(config: Any, files: LanguageFiles, check: Callable[[], None], *, has_card: bool) -> Any:
    with torch.device("meta"):
        model = _class(config)(config)
    part = files.part
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    is_tied = "lm_head.weight" not in part.names
    needed = {name for name in shapes if not (is_tied and name == "lm_head.weight")}
    missing = sorted(needed - part.names.keys())
    if missing:
        raise DaemonError(
            "file-damaged", f"{part.source} lacks {len(missing)} of {len(needed)} tensors, first {missing[0]}", HINT
        )
    odd = next((name for name in sorted(needed) if part.entries[name].shape != shapes[name]), None)
    if odd is not None:
        raise DaemonError(
            "wrong-type", f"{part.source}: {odd} is {list(part.entries[odd].shape)}, not {list(shapes[odd])}", HINT
        )
    weights: dict[str, torch.Tensor] = {}
    for name in sorted(needed):
        check()
        tensor = part.tensor(name)
        is_half_on_cpu = not has_card and tensor.dtype == torch.float16
        weights[name] = tensor.float() if is_half_on_cpu or tensor.dtype == torch.float64 else tensor
    if is_tied:
        weights["lm_head.weight"] = weights[next(name for name in weights if name.endswith("embed_tokens.weight"))]
    model.load_state_dict(weights, strict=True, assign=True)
    if is_tied:  # one parameter, or a move to a card would make two of it
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    _fill_buffers(model, config)
    model.requires_grad_(requires_grad=False)
    return model.eval()


def _fill_buffers(model: Any, config: Any) -> None:
    """Give a model built without memory the tables that no file holds (rotary frequencies), out of a small sibling."""
    small = copy.deepcopy(config)
    text = small.text_config if small.model_type == "qwen3_vl" else small
    text.num_hidden_layers, text.vocab_size, text.intermediate_size = 1, 8, 8
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:1]
    text.pad_token_id = None
    if small.model_type == "qwen3_vl":
        vision = small.vision_config
        vision.depth, vision.intermediate_size, vision.deepstack_visual_indexes = 1, 8, []
    sibling = dict(_class(small)(small).named_buffers())
    for name, buffer in list(model.named_buffers()):
        if buffer.is_meta:
            owner = model.get_submodule(name.rpartition(".")[0])
            setattr(owner, name.rpartition(".")[2], sibling[name])
