"""CLIP's vocabulary: words to token ids, from the user's ComfyUI checkout or from the package that ships it.

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
    from pathlib import Path

CHECKOUT_FOLDER = ("comfy", "sd1_tokenizer")
_MARKS = {"<|startoftext|>": START, "<|endoftext|>": END}
_MARK = re.compile("|".join(map(re.escape, _MARKS)))


class ClipVocabulary(Protocol):
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


def open_vocabulary(comfyui: Path | None) -> ClipVocabulary:
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
