"""ComfyUI's models: what a MODEL, CLIP or VAE is, its weights, loading files and taking models off their device."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from luna_engine.errors import InputFileError

from .running import Running

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_FAMILY_OF_LATENT_FORMAT = {"SD15": "sd15", "SDXL": "sdxl", "SD3": "sd3", "Flux": "flux"}
"""ComfyUI's latent format classes; Z-Image uses Flux's."""
_HARMLESS_OBJECTS = frozenset({"manual_cast_dtype"})
"""ComfyUI sets it on every text encoder, for computing in float32 as the daemon does."""


class Models(Running):
    """What Luna does with ComfyUI's model objects."""

    def model_family(self, model: Any) -> str | None:
        """Name the family of a MODEL by its latent format, or None if Luna does not know it.

        Z-Image works on Flux's latents and is told apart by its configuration.
        """
        if type(getattr(getattr(model, "model", None), "model_config", None)).__name__ == "ZImage":
            return "z-image"
        latent_format = getattr(getattr(model, "model", None), "latent_format", None)
        return _FAMILY_OF_LATENT_FORMAT.get(type(latent_format).__name__)

    def clip_roles(self, clip: Any) -> tuple[str, ...]:
        """Name the encoders of a CLIP as its token dictionary does: ``clip_l`` is ``l``."""
        return tuple(name.removeprefix("clip_") for name, _ in clip.cond_stage_model.named_children())

    def is_patched(self, patcher: Any) -> bool:
        """Tell whether a model differs from its file: LoRAs, merges, hooks, replaced objects."""
        objects = set(getattr(patcher, "object_patches", ())) - _HARMLESS_OBJECTS
        kinds = ("patches", "hook_patches", "weight_wrapper_patches", "forced_hooks")
        return bool(objects) or any(bool(getattr(patcher, name, None)) for name in kinds)

    def weights_of(self, patcher: Any) -> Callable[[], dict[str, Any] | None]:
        """Return a function that gives a model's unpatched weights by name, or None once the model is gone.

        Only weak references are kept. Another clone's LoRA may be patched into the shared weights in place; the
        originals are then in the patcher's backup.
        """
        model, owner = weakref.ref(patcher.model), weakref.ref(patcher)

        def weights() -> dict[str, Any] | None:
            module = model()
            if module is None:
                return None
            backup = getattr(owner(), "backup", {})
            originals = {name: saved.weight for name, saved in backup.items() if name in module.state_dict()}
            tensors = {**module.state_dict(), **originals}
            # ComfyUI uses CLIP-L's projection for no family and leaves it uninitialised if the file has none.
            tensors.pop("clip_l.transformer.text_projection.weight", None)
            return tensors

        return weights

    def load_diffusion_model(self, path: Path) -> Any:
        """Load a file with a diffusion model alone; GGUF stays packed. The catalogue is told, beside the load."""
        from luna_engine.weights.usage import record_use_later

        record_use_later(path, self.name())
        if path.suffix.lower() == ".gguf":
            return self.load_gguf(path, self.progress())
        from comfy import sd

        return sd.load_diffusion_model(str(path))

    def load_clip_and_vae(self, path: Path, *, clip: bool, vae: bool) -> tuple[Any, Any]:
        """Load text encoders and VAE of a checkpoint without reading its diffusion model.

        The diffusion model's tensors are given by shape alone, which is what ComfyUI recognises the checkpoint by.

        Raises:
            InputFileError: ``component-missing`` for a part that the file does not hold.
        """
        if not (clip or vae):
            return None, None
        import folder_paths
        from comfy import sd

        from .. import checkpoints

        tensors, metadata, parts = checkpoints.read_parts(path, clip=clip, vae=vae)
        for part, is_wanted in ((checkpoints.TEXT_ENCODERS, clip), (checkpoints.VAE, vae)):
            if is_wanted and part not in parts:
                raise InputFileError(
                    "component-missing",
                    f"{path.name} holds no {part}",
                    "load it with a node of its own, or leave the output unlinked",
                    file=str(path),
                )
        found = sd.load_state_dict_guess_config(
            tensors,
            output_vae=vae,
            output_clip=clip,
            output_model=False,
            embedding_directory=folder_paths.get_folder_paths("embeddings"),
            metadata=metadata,
        )
        return found[1] if clip else None, found[2] if vae else None

    def load_gguf(self, path: Path, progress: Callable[[int, int], None] | None = None) -> Any:
        """Load a diffusion model from a GGUF file; its weights stay packed and ComfyUI manages their memory.

        Args:
            path: the file.
            progress: told (bytes read, bytes in all).

        Raises:
            InputFileError: ``file-damaged``, ``precision-unsupported`` or ``family-unsupported``.
        """
        import comfy.model_patcher
        from comfy import ops, sd, utils

        from .. import packed

        tensors, metadata = packed.read_gguf(path, progress)
        options = {"custom_operations": packed.make_operations(ops.manual_cast)}
        config = metadata.get("luna.source_metadata.config")
        extra = {"metadata": {"config": config}} if config is not None else {}
        model = sd.load_diffusion_model_state_dict(tensors, model_options=options, **extra)
        if model is None:
            architecture = metadata.get("general.architecture", "unknown")
            raise InputFileError(
                "family-unsupported",
                f"{path.name} (architecture {architecture}) is no diffusion model that this ComfyUI knows",
                "`luna weights inspect` says what it holds",
                file=str(path),
            )
        is_dynamic = getattr(model, "is_dynamic", lambda: False)()  # weights that its own allocator pages: not ours
        base = comfy.model_patcher.ModelPatcher if is_dynamic else type(model)
        patcher = packed.make_patcher(base, comfy.model_patcher.LowVramPatch, utils.get_attr)
        return patcher(model.model, load_device=model.load_device, offload_device=model.offload_device)

    def release(self, patcher: Any) -> int:
        """Take a model off its device through ComfyUI's memory management.

        Returns:
            Bytes freed on the device; 0 where the model computes in main memory anyway.
        """
        import comfy.model_management as management

        freed = 0
        for loaded in list(management.current_loaded_models):
            held = loaded.model
            if held is None or not (held is patcher or patcher.is_clone(held)):
                continue
            freed += 0 if management.is_device_cpu(loaded.device) else int(held.loaded_size())
            if loaded.model_unload():
                management.current_loaded_models.remove(loaded)
        return freed

    def reads_scaled_fp8(self) -> bool:
        """Tell whether this ComfyUI reads fp8 scales under their current names; older ones pass over them: noise."""
        from comfy import ops

        return hasattr(ops, "mixed_precision_ops")
