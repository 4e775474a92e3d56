"""What proxies see of ComfyUI: a host, a tokenizer, hooks and adapters, each of a few lines; and weights to send."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from luna_daemon.sources import SentParts

if TYPE_CHECKING:
    from collections.abc import Callable

START, END = 49406, 49407


class Host:
    """What proxies ask of ComfyUI."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.steps: list[tuple[int, int]] = []
        self.is_cancelled = False

    def check_interrupt(self) -> None:
        if self.is_cancelled:
            raise KeyboardInterrupt

    def intermediate_device(self) -> torch.device:
        return torch.device("cpu")

    def progress(self) -> Callable[[int, int], None]:
        return lambda done, total: self.steps.append((done, total))

    def notice(self, message: str) -> None:
        self.notices.append(message)


class LetterTokenizer:
    """One token per letter: the shape of ComfyUI's tokenizers without their vocabulary."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def tokenize_with_weights(self, text: str, _word_ids: object, **kw: Any) -> dict[str, Any]:
        self.calls.append(kw)
        ids = [START, *(ord(letter) for letter in text[:75]), END]
        return {"l": [[(token, 1.0) for token in ids + [END] * (77 - len(ids))]]}


WEIGHT = "clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"


@dataclass(frozen=True)
class Frame:
    """A keyframe of ComfyUI's hooks."""

    start: float
    strength: float


class Hook:
    """What a proxy sees of ComfyUI's weight hooks."""

    def __init__(self, *frames: Frame) -> None:
        self.frames = frames
        self.hook_ref = object()


class HookGroup:
    """What a proxy sees of ComfyUI's hook groups, of one hook."""

    def __init__(self, hook: Hook) -> None:
        self.hooks = [hook]

    def get_hooks_for_clip_schedule(self) -> list[tuple[tuple[float, float], list[tuple[Hook, Frame]]]]:
        (hook,) = self.hooks
        ends = [*(frame.start for frame in hook.frames[1:]), 1.0]
        return [((frame.start, end), [(hook, frame)]) for frame, end in zip(hook.frames, ends, strict=True)]


class Adapter:
    """What ComfyUI's adapters look like from outside."""

    def __init__(self, name: str, weights: tuple[Any, ...]) -> None:
        self.name = name
        self.weights = weights


def lora_patches(seed: int) -> dict[str, Adapter]:
    """Return a LoRA on one weight, as ComfyUI reads it from a file."""
    generator = torch.Generator().manual_seed(seed)
    up, down = (torch.randn(shape, generator=generator) * 0.1 for shape in ((768, 8), (8, 768)))
    return {WEIGHT: Adapter("lora", (up, down, 8.0, None, None, None))}


def sent(tensors: Callable[[], Any], role: str = "l", family: str = "sd15") -> SentParts:
    return SentParts(family, (role,), tensors, lambda: None)
