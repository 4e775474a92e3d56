"""The one module that touches ComfyUI: its folders, interrupt, progress, tokenizers, memory and notices.

ComfyUI's modules are imported when used, never at the top: the pack's classes can be looked at, documented and
tested on a machine without ComfyUI. Names that differ between versions are asked for with ``hasattr`` here only.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import importlib
import ipaddress
import logging
import sys
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna_daemon.lora_naming import is_for_text, meaning
from luna_engine.errors import InputFileError, LunaError

from .lora_stack import ClipPatches

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .routes import Answer

_log = logging.getLogger("luna")
_TOKENIZERS = {
    "sd15": ("comfy.sd1_clip", "SD1Tokenizer"),
    "sdxl": ("comfy.sdxl_clip", "SDXLTokenizer"),
    "sd3": ("comfy.text_encoders.sd3_clip", "SD3Tokenizer"),
    "flux": ("comfy.text_encoders.flux", "FluxTokenizer"),
    "z-image": ("comfy.text_encoders.z_image", "ZImageTokenizer"),
}
_FAMILY_OF_LATENT_FORMAT = {"SD15": "sd15", "SDXL": "sdxl", "SD3": "sd3", "Flux": "flux"}
"""ComfyUI's latent format classes; Z-Image uses Flux's."""
_HARMLESS_OBJECTS = frozenset({"manual_cast_dtype"})
"""ComfyUI sets it on every text encoder, for computing in float32 as the daemon does."""
WILDCARD_SUFFIXES = frozenset({".txt", ".yaml", ".yml", ".json"})


class ComfyHost:
    """What Luna's nodes and proxies need of the ComfyUI they run in (`luna_daemon.proxy.HostHooks`)."""

    def check_interrupt(self) -> None:
        """Raise ComfyUI's interrupt exception if the user has pressed cancel."""
        import comfy.model_management as management

        management.throw_exception_if_processing_interrupted()

    def intermediate_device(self) -> Any:
        """Return the torch device on which ComfyUI keeps conditioning, latents and images."""
        import comfy.model_management as management

        return management.intermediate_device()

    def tokenize(self, family: str, text: str) -> tuple[dict[str, Any], list[str]]:
        """Tokenize with ComfyUI's own tokenizer of a family and ComfyUI's embedding folders.

        Returns:
            The token dictionary, and the names of embeddings that were asked for and not found.

        Raises:
            LunaError: ``model-unsupported`` for a family whose tokenizer is not known here.
        """
        if family not in _TOKENIZERS:
            raise LunaError("model-unsupported", f"prompts for {family} cannot be tokenized here yet")
        return _Tokenizer.of(family).tokenize(text)

    def lora_files(self) -> list[str]:
        """List ComfyUI's LoRA files, paths below their folders."""
        import folder_paths

        return list(folder_paths.get_filename_list("loras"))

    def embedding_files(self) -> list[str]:
        """List ComfyUI's embedding files, paths below their folders."""
        import folder_paths

        return list(folder_paths.get_filename_list("embeddings"))

    def lora_stamp(self) -> str:
        """Return a stamp of the LoRA folders: names, sizes and times of the files in them; never raises."""
        import folder_paths

        digest = hashlib.sha256()
        for name in folder_paths.get_filename_list("loras"):
            path = folder_paths.get_full_path("loras", name)
            with contextlib.suppress(OSError, TypeError):  # gone since it was listed
                found = Path(path).stat()
                digest.update(repr((name, found.st_size, found.st_mtime_ns)).encode())
        return digest.hexdigest()

    def clip_patches(self, clip: Any, file: str) -> ClipPatches:
        """Read the text encoders' part of a LoRA file with ComfyUI's own reader and names.

        Raises:
            LunaError: ``file-damaged``.
        """
        import folder_paths
        from comfy import lora, lora_convert
        from comfy.utils import load_torch_file
        from safetensors import SafetensorError

        try:
            tensors = load_torch_file(folder_paths.get_full_path_or_raise("loras", file), safe_load=True)
        except (SafetensorError, OSError, ValueError) as error:
            raise LunaError("file-damaged", f"{file} cannot be read: {error}", "copy or download it again") from error
        keys = lora.model_lora_keys_clip(clip.cond_stage_model, {})
        patches = lora.load_lora(lora_convert.convert_lora(tensors), keys, log_missing=False)
        stems = {found[0] for name in tensors if is_for_text(name) and (found := meaning(name)) is not None}
        return ClipPatches(patches, tuple(sorted(stems - keys.keys())))

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

    def model_files(self) -> list[str]:
        """List checkpoints, then diffusion models, paths below their folders; a name of both is listed once."""
        folder_paths = sys.modules.get("folder_paths")
        if folder_paths is None:
            return []
        names = [*folder_paths.get_filename_list("checkpoints"), *folder_paths.get_filename_list("diffusion_models")]
        return list(dict.fromkeys(names))

    def model_path(self, name: str) -> Path:
        """Return the file of a checkpoint or diffusion model.

        Raises:
            LunaError: ``model-missing`` with the closest names.
        """
        import folder_paths

        for kind in ("checkpoints", "diffusion_models"):
            if (found := folder_paths.get_full_path(kind, name)) is not None:
                return Path(found)
        near = difflib.get_close_matches(name, self.model_files(), 3, 0.5)
        raise LunaError(
            "model-missing",
            f"there is no checkpoint or diffusion model {name!r}",
            f"near: {', '.join(near)}" if near else "look into ComfyUI's models folders, then refresh the page (r)",
        )

    def load_diffusion_model(self, path: Path) -> Any:
        """Load a file with a diffusion model alone; GGUF stays packed."""
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

        from . import checkpoints

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

        from . import packed

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

    def wildcard_folders(self) -> tuple[Path, ...]:
        """Return ComfyUI's ``wildcards`` folders that exist, those of extra_model_paths included."""
        import folder_paths

        return tuple(Path(folder) for folder in folder_paths.get_folder_paths("wildcards") if Path(folder).is_dir())

    def is_on_loopback(self) -> bool:
        """Tell whether this ComfyUI can be reached from its own machine only."""
        from comfy.cli_args import args

        return all(_is_loopback(address) for address in str(args.listen).split(","))

    def own_roots(self) -> tuple[Path, ...]:
        """Return ComfyUI's own folders, their real paths: input, output, temp, models and wildcards."""
        import folder_paths

        places = [
            folder_paths.get_input_directory(),
            folder_paths.get_output_directory(),
            folder_paths.get_temp_directory(),
            folder_paths.models_dir,
            *folder_paths.get_folder_paths("wildcards"),
        ]
        return tuple(Path(place).resolve() for place in places)

    def reads_scaled_fp8(self) -> bool:
        """Tell whether this ComfyUI reads fp8 scales under their current names; older ones pass over them: noise."""
        from comfy import ops

        return hasattr(ops, "mixed_precision_ops")

    def progress(self) -> Callable[[int, int], None]:
        """Return a function that moves the running node's progress bar to (done, total); ComfyUI throttles it."""
        from comfy.utils import ProgressBar

        return ProgressBar(1).update_absolute  # type: ignore[no-any-return]  # ComfyUI has no types

    def notice(self, message: str) -> None:
        """Tell the user that something was done other than asked: a line in the log and a toast."""
        from server import PromptServer

        _log.warning("%s", message)
        PromptServer.instance.send_sync("luna.notice", {"message": message})


_HOST = ComfyHost()


class _Tokenizer:
    """One of ComfyUI's tokenizers, with a note of the embeddings it does not find (it only logs them)."""

    def __init__(self, family: str) -> None:
        import folder_paths

        module, name = _TOKENIZERS[family]
        self._inner = getattr(importlib.import_module(module), name)(
            embedding_directory=folder_paths.get_folder_paths("embeddings")
        )
        self._lost: list[str] = []
        self._lock = threading.Lock()
        for part in vars(self._inner).values():
            if hasattr(part, "_try_get_embedding"):
                part._try_get_embedding = self._noting(part._try_get_embedding)  # noqa: SLF001 - the only place that knows

    @classmethod
    @functools.cache
    def of(cls, family: str) -> _Tokenizer:
        """Return the tokenizer of a family; reading the vocabulary takes 0.1 s and is done once."""
        return cls(family)

    def _noting(self, lookup: Callable[[str], tuple[Any, str]]) -> Callable[[str], tuple[Any, str]]:
        def noting(name: str) -> tuple[Any, str]:
            embedding, rest = lookup(name)
            if embedding is None:
                self._lost.append(name.split(maxsplit=1)[0].rstrip(","))
            return embedding, rest

        return noting

    def tokenize(self, text: str) -> tuple[dict[str, Any], list[str]]:
        """Return the tokens and the embeddings not found, each once."""
        with self._lock:
            self._lost.clear()
            tokens = self._inner.tokenize_with_weights(text)
            return tokens, list(dict.fromkeys(self._lost))


def current_host() -> ComfyHost:
    """Return the ComfyUI this process runs in."""
    return _HOST


def is_running() -> bool:
    """Tell whether a ComfyUI runs in this process; without one the classes are only looked at."""
    return "folder_paths" in sys.modules


def register(on_prompt: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Make ComfyUI know the ``wildcards`` folder and call ``on_prompt``; does nothing where no ComfyUI runs.

    Args:
        on_prompt: gets every posted prompt before it is queued, and returns it.
    """
    server = sys.modules.get("server")
    if server is not None and getattr(server.PromptServer, "instance", None) is not None:
        server.PromptServer.instance.add_on_prompt_handler(on_prompt)
    folder_paths = sys.modules.get("folder_paths")
    if folder_paths is None:
        return
    folder_paths.add_model_folder_path("wildcards", str(Path(folder_paths.models_dir) / "wildcards"))
    folders, suffixes = folder_paths.folder_names_and_paths["wildcards"]
    folder_paths.folder_names_and_paths["wildcards"] = (folders, set(suffixes) | WILDCARD_SUFFIXES)


def add_routes(answers: Mapping[str, Answer]) -> None:
    """Let ComfyUI's server answer JSON requests; does nothing where no server runs (another front end, tests)."""
    server = sys.modules.get("server")
    instance = getattr(getattr(server, "PromptServer", None), "instance", None)
    if instance is None:
        return
    web: Any = importlib.import_module("aiohttp.web")  # ComfyUI's, no dependency of Luna's own

    from .routes import MOST_BODY_BYTES, answer_to

    def handler(answer: Answer) -> Any:
        async def handle(request: Any) -> Any:
            if (request.content_length or MOST_BODY_BYTES + 1) > MOST_BODY_BYTES:
                return web.json_response({"error": {"code": "limit", "message": "the body is too large"}}, status=413)
            status, found = await answer_to(request.headers, await request.read(), answer)
            return web.json_response(found, status=status)

        return handle

    for path, answer in answers.items():
        instance.routes.post(path)(handler(answer))


def _is_loopback(address: str) -> bool:
    address = address.strip()
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
