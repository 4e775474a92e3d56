"""DaemonCLIP: a CLIP for ComfyUI's nodes whose text encoders run in a daemon.

State that a prompt can set (layer, LoRAs, tokenizer options, hooks) is per clone and travels with each request; the
set, its tokenizer and its names are shared between clones. ComfyUI is reached through `HostHooks` alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luna_daemon import lora_recipe
from luna_daemon.remote import RemoteOnlyError, RemoteSet
from luna_daemon.stand_ins import PatcherStandIn, RemoteModule
from luna_daemon.token_item import TokenState, encode_item

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from luna_daemon.encode_messages import EncodedItem
    from luna_daemon.frames import WireTensor
    from luna_daemon.lora_recipe import RecordedLora


@dataclass(frozen=True, slots=True)
class _Moment:
    """A range of the schedule, in percent (None: there is no schedule), and the LoRAs that hold in it."""

    recipe: tuple[RecordedLora, ...]
    span: tuple[float, float] | None


class DaemonCLIP:
    """A CLIP whose text encoders run in a daemon.

    Args:
        remote: the loaded set.
        tokenizer: ComfyUI's own tokenizer of the family; ids, weights and inversion vectors travel, no text.
    """

    def __init__(self, remote: RemoteSet, tokenizer: Any) -> None:
        self.remote = remote
        self.tokenizer = tokenizer
        self.layer_idx: int | None = None
        self.layers: dict[str, int] | None = None
        self.tokenizer_options: dict[str, Any] = {}
        self.use_clip_schedule = False
        self.apply_hooks_to_conds: Any = None
        self.patcher = PatcherStandIn(remote, is_clip=True)
        self.cond_stage_model = RemoteModule(remote, "clip.cond_stage_model")

    def clone(self) -> DaemonCLIP:
        """Return a copy whose state can be changed without touching this one."""
        copy = DaemonCLIP(self.remote, self.tokenizer)
        copy.layer_idx = self.layer_idx
        copy.layers = self.layers
        copy.tokenizer_options = dict(self.tokenizer_options)
        copy.use_clip_schedule = self.use_clip_schedule
        copy.apply_hooks_to_conds = self.apply_hooks_to_conds
        copy.patcher = self.patcher.clone()
        return copy

    def clip_layer(self, layer_idx: int | None) -> None:
        """Stop at this layer (-1 is the last), in every encoder; sent with each request."""
        self.layer_idx = layer_idx

    def set_tokenizer_option(self, option_name: str, value: Any) -> None:
        """Set an option that is passed to the tokenizer."""
        self.tokenizer_options[option_name] = value

    def tokenize(self, text: str, return_word_ids: bool = False, **kwargs: Any) -> Any:  # noqa: FBT001, FBT002 - ComfyUI's signature
        """Tokenize with ComfyUI's tokenizer; unknown keywords are passed on."""
        options = {**self.tokenizer_options, **kwargs.get("tokenizer_options", {})}
        if options:
            kwargs["tokenizer_options"] = options
        return self.tokenizer.tokenize_with_weights(text, return_word_ids, **kwargs)

    def add_hooks_to_dict(self, pooled_dict: dict[str, Any]) -> dict[str, Any]:
        """Add the hooks that shall travel with the conditioning."""
        if self.apply_hooks_to_conds:
            pooled_dict["hooks"] = self.apply_hooks_to_conds
        return pooled_dict

    def encode(self, text: str) -> Any:
        """Tokenize and encode; return the conditioning tensor alone."""
        return self.encode_from_tokens(self.tokenize(text))

    def encode_from_tokens(
        self,
        tokens: Mapping[str, Any],
        return_pooled: bool | str = False,  # noqa: FBT001, FBT002 - ComfyUI's signature
        return_dict: bool = False,  # noqa: FBT001, FBT002 - ComfyUI's signature
    ) -> Any:
        """Encode a token dictionary.

        Returns:
            cond ``[1, tokens, width]`` f32; with ``return_pooled`` the pair (cond, pooled ``[1, width]`` or None);
            with ``return_dict`` a dict of both, the encoder's extras and the hooks.
        """
        recipe = self.patcher.recipe_under({})
        (result,) = self._request([(tokens, recipe)], unprojected=return_pooled == "unprojected")
        if return_dict:
            return self.add_hooks_to_dict(result)
        if return_pooled:
            return result["cond"], result["pooled_output"]
        return result["cond"]

    def encode_from_tokens_scheduled(
        self,
        tokens: Mapping[str, Any],
        unprojected: bool = False,  # noqa: FBT001, FBT002 - ComfyUI's signature
        add_dict: Mapping[str, Any] | None = None,
        show_pbar: bool = True,  # noqa: FBT001, FBT002, ARG002 - ComfyUI's signature; one request has no steps to show
    ) -> list[list[Any]]:
        """Encode into ComfyUI's CONDITIONING; with a clip schedule, one entry per keyframe."""
        (entries,) = self.encode_prompts([tokens], unprojected=unprojected, add_dict=add_dict)
        return entries

    def encode_prompts(
        self,
        prompts: Sequence[Mapping[str, Any]],
        *,
        unprojected: bool = False,
        add_dict: Mapping[str, Any] | None = None,
    ) -> list[list[list[Any]]]:
        """Encode several prompts, and all moments of a schedule, in one request.

        Returns:
            Per prompt what `encode_from_tokens_scheduled` gives for it.
        """
        extra = dict(add_dict or {})
        moments = self._moments(extra)
        results = iter(
            self._request(
                [(tokens, moment.recipe) for tokens in prompts for moment in moments], unprojected=unprojected
            )
        )
        return [[self._entry(next(results), moment, extra) for moment in moments] for _ in prompts]

    def _moments(self, extra: Mapping[str, Any]) -> list[_Moment]:
        """Return what is encoded: once, or for each range of the schedule that the wanted one touches."""
        hooks = self.patcher.forced_hooks
        if hooks is None or not self.use_clip_schedule:
            return [_Moment(self.patcher.recipe_under({}), None)]
        moments = []
        for (start, end), keyframes in hooks.get_hooks_for_clip_schedule():
            if end < extra.get("start_percent", end) or start > extra.get("end_percent", start):
                continue
            strengths = {hook.hook_ref: 1.0 if frame is None else float(frame.strength) for hook, frame in keyframes}
            moments.append(_Moment(self.patcher.recipe_under(strengths), (start, end)))
        return moments

    def _entry(self, result: dict[str, Any], moment: _Moment, extra: Mapping[str, Any]) -> list[Any]:
        cond = result.pop("cond")
        if moment.span is None:
            return [cond, {**self.add_hooks_to_dict(result), **extra}]
        start, end = moment.span  # ComfyUI leaves the encoder's extras out here
        entry = {
            "pooled_output": result["pooled_output"],
            "clip_start_percent": start,
            "clip_end_percent": end,
            **extra,
        }
        return [cond, self.add_hooks_to_dict(entry)]

    def _request(
        self, prompts: Sequence[tuple[Mapping[str, Any], tuple[RecordedLora, ...]]], *, unprojected: bool
    ) -> list[dict[str, Any]]:
        """Encode token dictionaries, each with its LoRAs."""
        if not prompts:
            return []
        made = [
            encode_item(tokens, self._state(recipe, unprojected=unprojected), str(index))
            for index, (tokens, recipe) in enumerate(prompts)
        ]
        items = [item for item, _ in made]
        tensors = [tensor for _, given in made for tensor in given]
        poll = self.remote.host.check_interrupt
        reply, returned = lora_recipe.call(
            self.remote,
            [lora for _, recipe in prompts for lora in recipe],
            lambda client, set_id: client.encode_tokens(set=set_id, items=items, tensors=tensors, poll=poll),
        )
        return [self._result(encoded, returned) for encoded in reply.items]

    def _state(self, recipe: Sequence[RecordedLora], *, unprojected: bool) -> TokenState:
        return TokenState(
            roles=tuple(self.remote.facts.encoders),
            layer=self.layers if self.layers is not None else self.layer_idx,
            projected=False if unprojected else None,
            loras=tuple(lora.use for lora in recipe),
        )

    def _result(self, encoded: EncodedItem, returned: Mapping[str, WireTensor]) -> dict[str, Any]:
        from luna_daemon.tensors import to_torch

        device = self.remote.host.intermediate_device()
        result = {"cond": to_torch(returned[encoded.cond]).to(device), "pooled_output": None}
        if encoded.pooled is not None:
            result["pooled_output"] = to_torch(returned[encoded.pooled]).to(device)
        for name, segment in encoded.extras.items():
            result[name] = to_torch(returned[segment]).to(device)
        return result

    def add_patches(
        self, patches: Mapping[Any, Any], strength_patch: float = 1.0, strength_model: float = 1.0
    ) -> list[Any]:
        """Record patches; they travel with every request of this clone and of its clones.

        Returns:
            The keys that exist, in the caller's form.

        Raises:
            DaemonError: ``patch-unsupported`` for a patch that the daemon does not apply.
        """
        return self.patcher.add_patches(patches, strength_patch, strength_model)

    def load_model(self, tokens: Any = None) -> PatcherStandIn:  # noqa: ARG002 - ComfyUI's signature
        """Return the patcher's stand-in; the daemon loads by itself."""
        return self.patcher

    def get_ram_usage(self) -> int:
        """Return the bytes of the recipe; the weights are not in this process."""
        return self.patcher.get_ram_usage()

    def get_sd(self) -> Any:
        """Refuse: saving needs the weights."""
        raise RemoteOnlyError("clip.get_sd", self.remote.place)

    def get_key_patches(self) -> Any:
        """Refuse: merging needs the weights."""
        raise RemoteOnlyError("clip.get_key_patches", self.remote.place)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "remote" not in self.__dict__:
            raise AttributeError(name)
        raise RemoteOnlyError(f"clip.{name}", self.remote.place)
