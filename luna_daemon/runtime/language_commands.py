"""The command `generate`: finds the model, hands it messages and images, sends the text while it grows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_daemon.language_messages import Generated
from luna_daemon.messages import Did
from luna_daemon.runtime.failures import is_out_of_memory
from luna_daemon.runtime.language_files import ROLE
from luna_daemon.runtime.language_sets import LanguageSet
from luna_daemon.tensors import to_torch
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from luna_daemon.engine_seam import Answer, Steps
    from luna_daemon.frames import WireTensor
    from luna_daemon.language_messages import Generate
    from luna_daemon.runtime.held import HeldSet
    from luna_daemon.runtime.models import ModelStore
    from luna_daemon.runtime.vision_language import LanguageModel

    Segments = Mapping[str, WireTensor]

HINT = "load one with load_model and the role llm, from a folder or file of Qwen3-VL or Qwen3"


class LanguageCommands:
    """Answers `generate`.

    Args:
        store: holds the sets.
    """

    def __init__(self, store: ModelStore) -> None:
        self._store = store

    def generate(self, body: Generate, segments: Segments, steps: Steps) -> Answer:
        """Let a model answer.

        Raises:
            DaemonError: ``llm-missing``, and what `LanguageModel.generate` raises.
        """
        held = self._find(body.set)
        images = {name: _pictures(segments[name]) for name in body.segments()}
        told: list[str] = []

        def tell(piece: str) -> None:
            told.append(piece)
            if body.stream:
                steps.tell({"text": piece})

        place = held.place.value
        try:
            with self._store.using(held):
                made = _language(held).generate(body, images, steps, tell)
        except (RuntimeError, MemoryError) as error:
            if not (told and body.stream and is_out_of_memory(error)):
                raise  # nothing was shown: the engine frees memory and tries again
            raise DaemonError(
                "llm-failed", "memory ran out in the middle of the answer", "ask for fewer tokens"
            ) from error
        did = Did(backend="transformers", set=held.id, place_before=place)
        return Generated(made.text, made.finish, made.tokens_in, made.tokens_out, did), []

    def _find(self, name: str) -> HeldSet:
        try:
            held = self._store.get(name, ROLE)
        except DaemonError as error:
            if error.code != "model-missing":
                raise
            raise DaemonError("llm-missing", error.message, HINT) from error
        if held.facts.language is None:
            raise DaemonError("llm-missing", f"set {held.id} ({held.family}) is no language model", HINT)
        return held


def _language(held: HeldSet) -> LanguageModel:
    model = held.model
    assert isinstance(model, LanguageSet)  # noqa: S101 - what its facts say
    return model.language


def _pictures(tensor: WireTensor) -> Sequence[torch.Tensor]:
    """Return the pictures of a segment, [H, W, C] or [B, H, W, C]."""
    if tensor.dtype not in {"f32", "f16"} or len(tensor.shape) not in {3, 4}:
        raise DaemonError(
            "tensor-invalid",
            f"segment {tensor.name!r}: expected f32 or f16 with 3 or 4 dimensions, "
            f"found {tensor.dtype} {list(tensor.shape)}",
            details={"segment": tensor.name},
        )
    whole = to_torch(tensor).float()
    return list(whole) if whole.ndim == 4 else [whole]
