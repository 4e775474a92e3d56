"""Vocabularies: words to token ids, from the user's ComfyUI checkout, or for CLIP from the package that ships it.

With a checkout the ids are those of ComfyUI in the same interpreter. Without one they are those of transformers 5,
which differ from transformers 4 (where ftfy is not installed) in three odd cases: 4 sets ideographs apart, drops
control and joining characters, and reads ``<|ENDOFTEXT|>`` in capitals as the end token. A client that sends ids
is independent of all this.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Any, Protocol

from luna_daemon.runtime.clip_text import END, START
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

CHECKOUT_FOLDER = ("comfy", "sd1_tokenizer")
_ENCODER_FOLDER = ("comfy", "text_encoders")
_MARKS = {"<|startoftext|>": START, "<|endoftext|>": END}
_MARK = re.compile("|".join(map(re.escape, _MARKS)))


class Vocabulary(Protocol):
    """Turns text into token ids, without start and end."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text of any length."""
        ...


class CheckoutVocabulary:
    """The tokenizer files of a ComfyUI checkout, read by transformers' class as ComfyUI does."""

    def __init__(self, folder: Path) -> None:
        from transformers import CLIPTokenizer

        self._tokenizer: Any = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text of any length."""
        ids: list[int] = self._tokenizer(text, verbose=False)["input_ids"]
        return ids[1:-1]


class PackagedVocabulary:
    """The vocabulary inside the package ``instant-clip-tokenizer``; no files, no network."""

    def __init__(self) -> None:
        import instant_clip_tokenizer

        self._tokenizer: Any = instant_clip_tokenizer.Tokenizer()

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text of any length; ``<|endoftext|>`` written out is the end token itself."""
        ids: list[int] = []
        done = 0
        for mark in _MARK.finditer(text):
            ids += [*self._plain(text[done : mark.start()]), _MARKS[mark[0]]]
            done = mark.end()
        return ids + self._plain(text[done:])

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(unicodedata.normalize("NFC", text))
        return ids


class T5Vocabulary:
    """T5's pieces, from a ComfyUI checkout's ``tokenizer.json``."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text of any length."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


class QwenVocabulary:
    """Qwen's byte pairs, from a ComfyUI checkout, read by transformers' class as ComfyUI does."""

    def __init__(self, folder: Path) -> None:
        from transformers import Qwen2Tokenizer

        self._tokenizer: Any = Qwen2Tokenizer.from_pretrained(str(folder), local_files_only=True)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text of any length."""
        ids: list[int] = self._tokenizer(text, verbose=False)["input_ids"]
        return ids


_LARGE: Mapping[str, tuple[str, str, Callable[[Path], Vocabulary]]] = {
    "t5xxl": ("t5_tokenizer", "tokenizer.json", T5Vocabulary),
    "qwen3_4b": ("qwen25_tokenizer", "vocab.json", QwenVocabulary),
}


def open_role_vocabulary(role: str, comfyui: Path | None) -> Vocabulary:
    """Return the vocabulary of a text encoder.

    Raises:
        DaemonError: ``tokenizer-missing`` if it is not here; for all but CLIP it takes a checkout.
    """
    if role not in _LARGE:
        return open_vocabulary(comfyui)
    name, marker, opened = _LARGE[role]
    folder = None if comfyui is None else comfyui.joinpath(*_ENCODER_FOLDER, name)
    if folder is None or not (folder / marker).is_file():
        raise DaemonError(
            "tokenizer-missing",
            f"there is no vocabulary for {role} here: it comes from a ComfyUI checkout",
            "set COMFYUI_PATH to a checkout, or send token ids with encode_tokens",
        )
    return opened(folder)


def open_vocabulary(comfyui: Path | None) -> Vocabulary:
    """Return CLIP's vocabulary, from the checkout if there is one.

    Raises:
        DaemonError: ``tokenizer-missing`` if neither a checkout nor the package is there.
    """
    folder = comfyui.joinpath(*CHECKOUT_FOLDER) if comfyui is not None else None
    if folder is not None and (folder / "merges.txt").is_file():
        return CheckoutVocabulary(folder)
    try:
        return PackagedVocabulary()
    except ImportError as error:
        raise DaemonError(
            "tokenizer-missing",
            "there is no CLIP vocabulary here: no ComfyUI checkout, and no instant-clip-tokenizer for this Python",
            "set COMFYUI_PATH to a checkout, or send token ids with encode_tokens",
        ) from error
