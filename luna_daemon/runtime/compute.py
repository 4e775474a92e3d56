"""The commands that compute: text and token encoding, VAE encode and decode. Wire tensors in and out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luna_daemon.encode_messages import Encoded as EncodedReply
from luna_daemon.encode_messages import EncodedItem, EncodeTokens, Image, Latent
from luna_daemon.engine_seam import Ran
from luna_daemon.messages import Did
from luna_daemon.runtime import images, items
from luna_daemon.runtime.backend import EncodeItem
from luna_daemon.runtime.clip_text import ClipShape
from luna_daemon.runtime.embeddings import EmbeddingFiles
from luna_daemon.runtime.families import FAMILIES
from luna_daemon.runtime.prompt_text import EMBEDDING
from luna_daemon.runtime.results import Result, ResultCache, keys_of
from luna_daemon.runtime.tokens import Tokenized, tokenize, tokenize_whole
from luna_daemon.runtime.vocabulary import open_role_vocabulary
from luna_daemon.tensors import from_torch, to_torch
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Mapping, Sequence
    from pathlib import Path

    import torch

    from luna_daemon.encode_messages import EncodeText, TextItem, Tile, VaeDecode, VaeEncode
    from luna_daemon.engine_seam import Answer, Check
    from luna_daemon.frames import WireTensor
    from luna_daemon.messages import LoraDid
    from luna_daemon.model_messages import VaeFacts
    from luna_daemon.runtime.backend import Encoded
    from luna_daemon.runtime.effort import Effort
    from luna_daemon.runtime.families import TextFamily
    from luna_daemon.runtime.held import HeldSet
    from luna_daemon.runtime.models import ModelStore
    from luna_daemon.runtime.vocabulary import Vocabulary

    Segments = Mapping[str, WireTensor]


@dataclass(frozen=True, slots=True)
class _Made:
    """What became of one: its tensors, and how its LoRAs were applied."""

    result: Result
    loras: tuple[LoraDid, ...]


_STATES = 16 * 4
"""Bytes of work per token and width: fp32, the wide layers, attention, what is kept of blocks; an upper bound."""


@dataclass(frozen=True, slots=True)
class _Missing:
    """One item that must be computed: where it stands in its request, and what tells it from others."""

    index: int
    item: EncodeItem
    key: Hashable
    dtype: str


class Encoding:
    """A request that was looked at (see `luna_daemon.engine_seam.Encoding`).

    Attributes:
        wanted: its items.
        found: what is in memory of each item, None for what must be computed.
    """

    def __init__(
        self,
        held: HeldSet,
        wanted: list[EncodeItem],
        replies: list[EncodedItem],
        dtype: str,
        keys: list[bytes],
        found: list[Result | None],
        *,
        is_exact: bool,
    ) -> None:
        self.held = held
        self.replies = replies
        self.found = found
        self.wanted = wanted
        self._dtype = dtype
        self._keys = keys
        inputs = [(role, given) for one in self.missing() for role, given in one.item.encoders.items()]
        shape = frozenset((role, len(row.ids)) for role, given in inputs for row in given.rows)
        self.rows = sum(len(given.rows) for _, given in inputs)
        is_alone = is_exact or (held.loaded is not None and not held.loaded.shares_rows)
        self.key: Hashable | None = None if is_alone else (held.id, shape)
        widths = {role: facts.width for role, facts in held.facts.encoders.items()}
        self.row_bytes = max((_STATES * length * widths[role] for role, length in shape), default=0)

    def missing(self) -> Iterator[_Missing]:
        """Give the items that are not in memory."""
        for index, item in enumerate(self.wanted):
            if self.found[index] is None:
                yield _Missing(index, item, self._keys[index] if self._keys else (id(self), index), self._dtype)


class ComputeCommands:
    """Answers the commands of the device lane.

    Args:
        store: holds the sets.
        service_type: ``full``, ``clip`` or ``vae``.
        comfyui: a checkout whose vocabulary is used, if there is one.
    """

    def __init__(self, store: ModelStore, service_type: str, comfyui: Path | None) -> None:
        self._store = store
        self._service_type = service_type
        self._comfyui = comfyui
        self._vocabularies: dict[str, Vocabulary] = {}
        self._embeddings = EmbeddingFiles(store.files)
        self.results = ResultCache()

    def recall(self, body: EncodeTokens, segments: Segments) -> Answer | None:
        """Answer from memory alone, on any thread and without torch; None if that cannot be done.

        Raises:
            DaemonError: as `encode_tokens` would.
        """
        if body.cache != "use" or any(rows.vectors for item in body.items for rows in item.encoders.values()):
            return None
        held = self._set(body.set, "text")
        wanted = _token_items(body, segments, held)
        found = self.results.get_all(keys_of(held.id, wanted, body.result.dtype, is_exact=body.exact))
        if found is None:
            return None
        held.touch()
        return self._from_memory(held, found, [EncodedItem("", cached=True)] * len(found))

    def prepare(self, body: EncodeTokens | EncodeText, segments: Segments) -> Encoding:
        """Check a request, turn its texts into tokens and look for its results in memory.

        Raises:
            DaemonError: whatever is wrong with it.
        """
        held = self._set(body.set, "text")
        if isinstance(body, EncodeTokens):
            wanted = _token_items(body, segments, held)
            return self._encoding(held, wanted, [EncodedItem("")] * len(wanted), body)
        wanted, replies = [], []
        for index, item in enumerate(body.items):
            made = self._tokenize(item, held, f"items.{index}")
            layers = items.layers(item.layer, held.facts.encoders)
            inputs = {role: tokenized.input for role, tokenized in made.items()}
            wanted.append(
                EncodeItem(
                    inputs,
                    layers,
                    projected=item.projected is not False,
                    loras=item.loras,
                    is_exact=body.exact,
                )
            )
            replies.append(_text_reply(made))
        return self._encoding(held, wanted, replies, body)

    def _encoding(
        self,
        held: HeldSet,
        wanted: list[EncodeItem],
        replies: list[EncodedItem],
        body: EncodeTokens | EncodeText,
    ) -> Encoding:
        dtype = body.result.dtype
        keys = [] if body.cache == "bypass" else keys_of(held.id, wanted, dtype, is_exact=body.exact)
        found: list[Result | None] = [None] * len(wanted)
        if body.cache == "use":
            found = [self.results.get(key) for key in keys]
        if body.exact and None in found:
            found = [None] * len(wanted)  # the batch is part of an exact result
        encoding = Encoding(held, wanted, replies, dtype, keys, found, is_exact=body.exact)
        for one in encoding.missing():
            wanted[one.index] = dataclasses.replace(one.item, recipe=held.model.find_loras(one.item))
        return encoding

    def _tokenize(self, item: TextItem, held: HeldSet, place: str) -> dict[str, Tokenized]:
        if held.family not in FAMILIES:
            return _tokenize_elsewhere(item, held, place)
        family = FAMILIES[held.family]
        template = _template(item, family, held.family, place)
        roles = held.facts.encoders
        texts = item.text if isinstance(item.text, dict) else dict.fromkeys(roles, item.text)
        unknown = sorted(set(texts) - set(roles))
        if unknown:
            raise DaemonError("request-invalid", f"{place}.text: the set has no text encoder {unknown[0]!r}")
        made = {}
        for role in roles:
            text, shape = texts.get(role, ""), family.shapes[role]
            vocabulary, find = self._vocabulary(role), self._embeddings.finder(role)
            if isinstance(shape, ClipShape):
                made[role] = tokenize(text, shape, vocabulary, find)
            else:
                least = family.min_tokens[role]
                made[role] = tokenize_whole(text, shape, vocabulary, find, min_tokens=least, template=template)
        return made

    def _vocabulary(self, role: str) -> Vocabulary:
        if role not in self._vocabularies:
            self._vocabularies[role] = open_role_vocabulary(role, self._comfyui)
        return self._vocabularies[role]

    def encode(self, batch: Sequence[Encoding], check: Check, effort: Effort) -> Ran:
        """Compute what is not in memory of requests of one set, keep it, and answer each in the order of its items."""
        held, place_before = batch[0].held, batch[0].held.place
        by_key = {one.key: one for encoding in batch for one in encoding.missing()}
        asked = list(by_key.values())  # what two of them ask for is computed once
        encoded, load_s = self._run(held, [one.item for one in asked], check, effort)
        made = {one.key: _Made(_result(each, one.dtype), each.loras) for one, each in zip(asked, encoded, strict=True)}
        for one in asked:
            if isinstance(one.key, bytes):
                self.results.put(one.key, made[one.key].result)
        rows = sum(len(given.rows) for one in asked for given in one.item.encoders.values())
        requests = sum(1 for encoding in batch if encoding.rows)
        did = Did(
            backend=self._store.backend.name,
            set=held.id,
            place_before=place_before.value,
            rows=rows or None,
            requests=requests if rows else None,
            downgraded=tuple(effort.downgraded),
        )
        return Ran(tuple(self._answer(encoding, made, did) for encoding in batch), load_s)

    def _run(self, held: HeldSet, asked: list[EncodeItem], check: Check, effort: Effort) -> tuple[list[Encoded], float]:
        if not asked:
            held.touch()
            return [], 0.0
        effort.set_id = held.id
        with self._store.using(held) as load_s:
            return held.model.encode(asked, check, effort.rows), load_s

    def _answer(self, encoding: Encoding, made: Mapping[Hashable, _Made], did: Did) -> Answer:
        found = list(encoding.found)
        loras: dict[LoraDid, None] = {}
        for one in encoding.missing():
            found[one.index] = made[one.key].result
            loras |= dict.fromkeys(made[one.key].loras)
        replies = [
            dataclasses.replace(reply, cached=encoding.found[index] is not None)
            for index, reply in enumerate(encoding.replies)
        ]
        if not encoding.rows:
            return self._from_memory(encoding.held, found, replies)
        return _reply(found, replies, dataclasses.replace(did, loras=tuple(loras)))

    def _from_memory(self, held: HeldSet, results: Sequence[Result | None], replies: Sequence[EncodedItem]) -> Answer:
        place = held.place.value
        return _reply(results, replies, Did(self._store.backend.name, held.id, place, cached=True))

    def vae_encode(self, body: VaeEncode, segments: Segments, check: Check, effort: Effort) -> Answer:
        """Encode pixels to the mean of the posterior."""
        held, facts = self._vae(body.set)
        pixels = images.prepare_pixels(to_torch(segments["pixels"]), facts)
        images.require_finite(pixels.tensor, "image")
        did = self._vae_did(held, body.tile, effort, pixels.crop)
        with self._store.using(held):
            latent = held.model.vae_encode(pixels.tensor, check, body.tile or effort.tile)
        return Latent(did), [from_torch("latent", latent)]

    def vae_decode(self, body: VaeDecode, segments: Segments, check: Check, effort: Effort) -> Answer:
        """Decode a latent to pixels in 0..1."""
        held, facts = self._vae(body.set)
        if body.options:
            raise DaemonError(
                "model-unsupported", f"options: this VAE takes none, found {', '.join(sorted(body.options))}", None
            )
        latent = images.prepare_latent(to_torch(segments["latent"]), facts)
        images.require_finite(latent, "latent")
        did = self._vae_did(held, body.tile, effort, None)
        with self._store.using(held):
            image = held.model.vae_decode(latent, check, body.tile or effort.tile)
        return Image(did), [from_torch("image", image)]

    def _vae_did(self, held: HeldSet, tile: Tile | None, effort: Effort, crop: tuple[int, int] | None) -> Did:
        if tile is not None:
            images.require_tile(tile, is_timed=held.model.vae is not None and images.is_video(held.model.vae))
        effort.set_id = held.id
        unasked = "no" if effort.tile is None else "oom"
        return Did(
            backend=self._store.backend.name,
            set=held.id,
            place_before=held.place.value,
            tiled=unasked if tile is None else "asked",
            crop=crop,
            downgraded=tuple(effort.downgraded),
        )

    def _set(self, name: str, component: str) -> HeldSet:
        if self._service_type not in {"full", "vae" if component == "vae" else "clip"}:
            raise DaemonError(
                "service-not-here",
                f"this is a {self._service_type} daemon",
                "ask the other daemon, or start one with --service-type full",
            )
        return self._store.get(name, component)

    def _vae(self, name: str) -> tuple[HeldSet, VaeFacts]:
        held = self._set(name, "vae")
        if held.facts.vae is None:
            raise DaemonError("component-missing", f"set {held.id} has no VAE", "load a set that has one")
        return held, held.facts.vae


def _template(item: TextItem, family: TextFamily, name: str, place: str) -> str | None:
    """Return the template that a text is put into: the request's own or the family's."""
    if item.template is None:
        return family.template
    if family.template is None:
        raise DaemonError("model-unsupported", f"{place}.template: {name} has no templates", None)
    if "{}" not in item.template:
        raise DaemonError("request-invalid", f"{place}.template: {{}} is missing, where the text goes")
    return item.template


def _tokenize_elsewhere(item: TextItem, held: HeldSet, place: str) -> dict[str, Tokenized]:
    """Have the backend tokenize for a family whose rules Luna does not know."""
    if not isinstance(item.text, str) or item.template is not None or EMBEDDING in item.text:
        raise DaemonError(
            "model-unsupported",
            f"{place}: prompts of {held.family} are one text, without template and {EMBEDDING}NAME",
            "send token ids with encode_tokens",
        )
    made = held.model.tokenize(item.text)
    return {role: Tokenized(given, sum(len(row.ids) for row in given.rows), ()) for role, given in made.items()}


def _text_reply(made: Mapping[str, Tokenized]) -> EncodedItem:
    missing = tuple(dict.fromkeys(name for tokenized in made.values() for name in tokenized.missing))
    counts = {role: tokenized.tokens for role, tokenized in made.items()}
    return EncodedItem("", tokens=counts, missing_embeddings=missing)


def _token_items(body: EncodeTokens, segments: Segments, held: HeldSet) -> list[EncodeItem]:
    return [
        items.token_item(item, segments, held.facts.encoders, f"items.{index}", is_exact=body.exact)
        for index, item in enumerate(body.items)
    ]


def _result(one: Encoded, dtype: str) -> Result:
    """Return a prompt's tensors as they go out."""

    def wire(tensor: torch.Tensor) -> WireTensor:
        if dtype == "f16" and tensor.is_floating_point():
            tensor = tensor.half()
        if tensor.untyped_storage().nbytes() > tensor.nbytes:
            tensor = tensor.clone()  # kept, it would hold the whole batch that it is cut from
        return from_torch("", tensor)

    pooled = None if one.pooled is None else wire(one.pooled)
    return Result(wire(one.cond), pooled, {name: wire(tensor) for name, tensor in one.extras.items()})


def _reply(results: Sequence[Result | None], replies: Sequence[EncodedItem], did: Did) -> Answer:
    tensors: list[WireTensor] = []
    named = tuple(
        _named(index, one, reply, tensors)
        for index, (one, reply) in enumerate(zip(results, replies, strict=True))
        if one is not None
    )
    return EncodedReply(named, did), tensors


def _named(index: int, one: Result, reply: EncodedItem, tensors: list[WireTensor]) -> EncodedItem:
    """Append an item's tensors under names of their own and return its reply with those."""

    def keep(name: str, tensor: WireTensor) -> str:
        full = f"{index}.{name}"
        tensors.append(dataclasses.replace(tensor, name=full))
        return full

    cond = keep("cond", one.cond)
    pooled = None if one.pooled is None else keep("pooled", one.pooled)
    extras = {name: keep(name, tensor) for name, tensor in one.extras.items()}
    return dataclasses.replace(reply, cond=cond, pooled=pooled, extras=extras)
