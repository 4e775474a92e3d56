"""Messages to token ids with Qwen's chat marks, and a growing answer back to text. Torch-free.

A user's text can never become a mark: special tokens written out in it are plain characters.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from luna_daemon.language_messages import Message

BEGIN, END, OVER = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
IMAGE_BEGIN, IMAGE_END = "<|vision_start|>", "<|vision_end|>"
UNFINISHED = "\ufffd"
PENDING_MAX = 16
"""So many tokens may wait for the rest of a character; then what they are is shown."""


class ChatTokenizer:
    """The tokenizer of a model's folder.

    Raises:
        DaemonError: ``tokenizer-missing`` if there is none, or it is not Qwen's.
    """

    def __init__(self, path: Path | None, label: str) -> None:
        if path is None:
            raise DaemonError(
                "tokenizer-missing",
                f"there is no tokenizer.json beside {label}",
                "put the model's tokenizer.json into its folder",
            )
        from tokenizers import Tokenizer

        try:
            self._tokenizer: Any = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception for a file it cannot read
            raise DaemonError("tokenizer-missing", f"{label}: tokenizer.json cannot be read: {error}") from error
        self._tokenizer.encode_special_tokens = True
        self.begin, self.end = self.mark(BEGIN), self.mark(END)
        over = self._tokenizer.token_to_id(OVER)
        self.ends = frozenset({self.end} if over is None else {self.end, over})

    def mark(self, name: str) -> int:
        """Return the id of a special token."""
        found: int | None = self._tokenizer.token_to_id(name)
        if found is None:
            raise DaemonError("tokenizer-missing", f"the model's tokenizer has no {name}; it is not Qwen's")
        return found

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text; marks in it are characters."""
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return found

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of ids, marks left out."""
        found: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return found


def prompt(tokenizer: ChatTokenizer, messages: Sequence[Message], images: Mapping[str, Sequence[int]]) -> list[int]:
    """Return the ids of a conversation, opened for the assistant's answer.

    Args:
        tokenizer: of the model.
        messages: in order.
        images: the ids that stand for an image, by its name.
    """
    ids: list[int] = []
    for message in messages:
        ids += [tokenizer.begin, *tokenizer.ids(f"{message.role}\n")]
        for part in message.parts:
            if part.text is not None:
                ids += tokenizer.ids(part.text)
            elif part.image is not None:
                ids += images[part.image]
        ids += [tokenizer.end, *tokenizer.ids("\n")]
    return [*ids, tokenizer.begin, *tokenizer.ids("assistant\n")]


@dataclass
class Growing:
    """An answer while it grows.

    Args:
        decode: token ids to text.
        stops: texts before which it ends; none of them is ever shown.

    Attributes:
        text: what is certain so far.
        is_stopped: a stop text was met.
    """

    decode: Callable[[Sequence[int]], str]
    stops: Sequence[str] = ()
    text: str = ""
    is_stopped: bool = False
    _pending: list[int] = field(default_factory=list)
    _held: str = ""

    def add(self, token: int) -> str:
        """Take a token; return the text that is certain now and was not before."""
        self._pending.append(token)
        piece = self.decode(self._pending)
        if piece.endswith(UNFINISHED) and len(self._pending) < PENDING_MAX:
            return ""
        self._pending.clear()
        return self._show(piece, is_over=False)

    def finish(self) -> str:
        """End; return what was held back."""
        if self.is_stopped:
            return ""
        piece = self.decode(self._pending) if self._pending else ""
        return self._show(piece, is_over=True)

    def _show(self, piece: str, *, is_over: bool) -> str:
        self._held += piece
        found = [at for at in (self._held.find(stop) for stop in self.stops) if at >= 0]
        if found:
            self.is_stopped = True
            certain, self._held = self._held[: min(found)], ""
        else:
            keep = 0 if is_over else self._half_a_stop()
            cut = len(self._held) - keep
            certain, self._held = self._held[:cut], self._held[cut:]
        self.text += certain
        return certain

    def _half_a_stop(self) -> int:
        """Return how many last characters may be the beginning of a stop text."""
        longest = max((len(stop) - 1 for stop in self.stops), default=0)
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self.stops):
                return length
        return 0
