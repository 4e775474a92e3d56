"""What ComfyUI's nodes reach into behind a CLIP or VAE: a module without weights and a patcher that patches nothing.

They answer what can be answered from names and shapes, and raise where an answer would need the weights.
"""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from luna_daemon.lora_recipe import RecordedLora, append, record
from luna_daemon.remote import RemoteOnlyError
from luna_daemon.tensors import TORCH_NAMES
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from luna_daemon.remote import RemoteSet


class RemoteModule:
    """A module whose names, shapes and dtypes are known and whose weights are elsewhere.

    Args:
        remote: the set it stands for.
        member: how the error calls it, such as ``clip.cond_stage_model``.
        prefix: the names this module owns, such as ``clip_l.``; children are found the same way.
    """

    def __init__(self, remote: RemoteSet, member: str, prefix: str = "") -> None:
        self._remote = remote
        self._member = member
        self._prefix = prefix

    def state_dict(self) -> dict[str, Any]:
        """Return meta tensors by name: what a LoRA hits is decided by the names alone."""
        import torch

        return {
            name[len(self._prefix) :]: torch.empty(
                entry["shape"], dtype=getattr(torch, TORCH_NAMES[entry["dtype"]]), device="meta"
            )
            for name, entry in self._remote.names().items()
            if name.startswith(self._prefix)
        }

    def __getattr__(self, name: str) -> RemoteModule:
        prefix = f"{self._prefix}{name}."
        if not name.startswith("_") and any(known.startswith(prefix) for known in self._remote.names()):
            return RemoteModule(self._remote, f"{self._member}.{name}", prefix)
        raise RemoteOnlyError(f"{self._member}.{name}", self._remote.place)


def reject_patches(patches: Iterable[Any], names: Mapping[str, Any], strengths: tuple[float, float]) -> list[Any]:
    """Judge patches of a VAE, which the daemon does not apply.

    Args:
        patches: keys as ComfyUI gives them, a name or ``(name, slice…)``.
        names: the tensors of the model.
        strengths: of the patch and of the weight itself.

    Returns:
        The keys that exist here, if the patches change nothing at these strengths; empty if none exists.

    Raises:
        DaemonError: ``patch-unsupported`` if they would change a weight.
    """
    hits = [key for key in patches if (key if isinstance(key, str) else key[0]) in names]
    if hits and strengths != (0.0, 1.0):
        raise DaemonError(
            "patch-unsupported",
            f"{len(hits)} weights of a VAE in the daemon would be patched; this daemon cannot do that",
            "take the VAE from before the tunnel",
        )
    return hits


class PatcherStandIn:
    """The patcher of a remote model: holds per-clone state, loads nothing, applies nothing.

    Attributes:
        recipe: the LoRAs that were added, in order; they travel with every request.
        hook_recipes: reference of a hook → the LoRAs that it brings, with the strength of its keyframe left out.
    """

    def __init__(self, remote: RemoteSet, *, is_clip: bool, prefix: str = "") -> None:
        self._remote = remote
        self._prefix = prefix
        self.is_clip = is_clip
        self.model = RemoteModule(remote, "patcher.model", prefix)
        self.forced_hooks: Any = None
        self.recipe: tuple[RecordedLora, ...] = ()
        self.hook_recipes: dict[Any, tuple[RecordedLora, ...]] = {}
        self.patches_uuid = uuid.uuid4()
        self.load_device = self.offload_device = remote.host.intermediate_device()
        self.model_options: dict[str, Any] = {"transformer_options": {}}

    def clone(self) -> PatcherStandIn:
        """Return a copy with state of its own."""
        copy = PatcherStandIn(self._remote, is_clip=self.is_clip, prefix=self._prefix)
        copy.forced_hooks = self.forced_hooks
        copy.recipe = self.recipe
        copy.hook_recipes = dict(self.hook_recipes)
        copy.patches_uuid = self.patches_uuid
        return copy

    @property
    def patches(self) -> dict[str, list[Any]]:
        """Return weight → what was added to it, as (strength, patch, strength of the weight itself)."""
        added: dict[str, list[Any]] = {}
        for lora in self.recipe:
            for patch in lora.patches:
                added.setdefault(patch.target, []).append((lora.strength, patch, lora.strength_model))
        return added

    def model_state_dict(self, filter_prefix: str | None = None) -> dict[str, Any]:
        """Return meta tensors by name."""
        tensors = self.model.state_dict()
        return {name: t for name, t in tensors.items() if filter_prefix is None or name.startswith(filter_prefix)}

    def add_patches(
        self, patches: Mapping[Any, Any], strength_patch: float = 1.0, strength_model: float = 1.0
    ) -> list[Any]:
        """Record patches of a text encoder; those of a VAE are refused.

        Returns:
            The keys that exist here, in the caller's form.

        Raises:
            DaemonError: ``patch-unsupported`` for a patch that the daemon does not apply.
        """
        strengths = (float(strength_patch), float(strength_model))
        if not self.is_clip:
            return reject_patches(patches, self._remote.names(), strengths)
        hits, added = record(patches, self._remote.names(), strengths)
        if added is not None:
            self.recipe = append(self.recipe, added)
        self.patches_uuid = uuid.uuid4()
        return hits

    def add_hook_patches(
        self, hook: Any, patches: Mapping[Any, Any], strength_patch: float = 1.0, strength_model: float = 1.0
    ) -> list[Any]:
        """Record the patches that a hook brings; see `add_patches`."""
        strengths = (float(strength_patch), float(strength_model))
        if not self.is_clip:
            return reject_patches(patches, self._remote.names(), strengths)
        hits, added = record(patches, self._remote.names(), strengths)
        if added is not None:
            self.hook_recipes[hook.hook_ref] = (*self.hook_recipes.get(hook.hook_ref, ()), added)
        self.patches_uuid = uuid.uuid4()
        return hits

    def recipe_under(self, strengths: Mapping[Any, float]) -> tuple[RecordedLora, ...]:
        """Return the LoRAs of one moment of a schedule: those that were added, then those of the forced hooks.

        Args:
            strengths: reference of a hook → the strength of its keyframe; a hook without one has 1.
        """
        if self.forced_hooks is None:
            return self.recipe
        under = [
            replace(lora, strength=lora.strength * strengths.get(hook.hook_ref, 1.0))
            for hook in self.forced_hooks.hooks
            for lora in self.hook_recipes.get(hook.hook_ref, ())
        ]
        return (*self.recipe, *under)

    def register_all_hook_patches(
        self, hooks: Any, target_dict: Mapping[str, Any], model_options: Any = None, registered: Any = None
    ) -> Any:
        """Let every weight hook of a group register itself here; other kinds do nothing to a text encoder.

        Returns:
            The group of those that did.

        Raises:
            DaemonError: ``patch-unsupported`` if one of them patches in a way that the daemon does not apply.
        """
        if registered is None:
            registered = type(hooks)()
        for hook in (hook for hook in hooks.hooks if getattr(hook.hook_type, "value", None) == "weight"):
            hook.add_hook_patches(self, model_options, target_dict, registered)
        return registered

    def get_ram_usage(self) -> int:
        """Return the bytes of the recipe; of the model nothing is held here."""
        return sum(lora.nbytes for loras in (self.recipe, *self.hook_recipes.values()) for lora in loras)

    def __getattr__(self, name: str) -> Any:
        raise RemoteOnlyError(f"patcher.{name}", self._remote.place)
