"""ComfyUI's text side: tokenizers with its embedding folders, and the text encoders' part of LoRA files."""

from __future__ import annotations

import functools
import importlib
import threading
from typing import TYPE_CHECKING, Any

from luna_daemon.lora_naming import is_for_text, meaning
from luna_engine.errors import LunaError

from ..lora_stack import ClipPatches

if TYPE_CHECKING:
    from collections.abc import Callable

_TOKENIZERS = {
    "sd15": ("comfy.sd1_clip", "SD1Tokenizer"),
    "sdxl": ("comfy.sdxl_clip", "SDXLTokenizer"),
    "sd3": ("comfy.text_encoders.sd3_clip", "SD3Tokenizer"),
    "flux": ("comfy.text_encoders.flux", "FluxTokenizer"),
    "z-image": ("comfy.text_encoders.z_image", "ZImageTokenizer"),
}


class Prompts:
    """What Luna has ComfyUI do with texts and with LoRAs for text encoders."""

    def tokenize(self, family: str, text: str) -> tuple[dict[str, Any], list[str]]:
        """Tokenize with ComfyUI's own tokenizer of a family and ComfyUI's embedding folders.

        Returns:
            The token dictionary, and the names of embeddings that were asked for and not found.

        Raises:
            LunaError: ``model-unsupported`` for a family whose tokenizer is not known here.
        """
        _require_known(family)
        return _Tokenizer.of(family).tokenize(text)

    def tokenizer(self, family: str) -> Any:
        """Return ComfyUI's own tokenizer of a family, with ComfyUI's embedding folders.

        Raises:
            LunaError: ``model-unsupported`` for a family whose tokenizer is not known here.
        """
        _require_known(family)
        return _plain_tokenizer(family)

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


def _require_known(family: str) -> None:
    if family not in _TOKENIZERS:
        raise LunaError("model-unsupported", f"prompts for {family} cannot be tokenized here yet")


def _make_tokenizer(family: str) -> Any:
    import folder_paths

    module, name = _TOKENIZERS[family]
    return getattr(importlib.import_module(module), name)(
        embedding_directory=folder_paths.get_folder_paths("embeddings")
    )


_plain_tokenizer = functools.cache(_make_tokenizer)


class _Tokenizer:
    """One of ComfyUI's tokenizers, with a note of the embeddings it does not find (it only logs them)."""

    def __init__(self, family: str) -> None:
        self._inner = _make_tokenizer(family)
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
