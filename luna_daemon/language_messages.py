"""Bodies of `generate`: messages of text and images in, text out, whole or piece by piece."""

from __future__ import annotations

from dataclasses import dataclass

from luna_daemon.fields import Fields, invalid
from luna_daemon.messages import Did

SPEAKERS = ("system", "user", "assistant")
ENDS = ("stop", "length", "cancelled")
MESSAGES_MAX = 64
PARTS_MAX = 64
TOKENS_MAX = 8192
STOPS_MAX = 16
STOP_LENGTH_MAX = 256
TEMPERATURE_MAX = 10.0


@dataclass(frozen=True, slots=True)
class MessagePart:
    """A piece of a message: text, or the name of an image segment."""

    text: str | None = None
    image: str | None = None

    @classmethod
    def decode(cls, fields: Fields) -> MessagePart:
        """Read all fields."""
        part = cls(fields.text_or_none("text"), fields.text_or_none("image", longest=128))
        if (part.text is None) == (part.image is None):
            raise invalid(fields.place("text"), "either text or image")
        return part


@dataclass(frozen=True, slots=True)
class Message:
    """What ``system``, ``user`` or ``assistant`` said, in order."""

    role: str
    parts: tuple[MessagePart, ...]

    @classmethod
    def decode(cls, fields: Fields) -> Message:
        """Read all fields."""
        return cls(
            role=fields.choice("role", SPEAKERS),
            parts=fields.objects("parts", MessagePart.decode, most=PARTS_MAX),
        )


@dataclass(frozen=True, slots=True)
class Generate:
    """Let a language model answer.

    Attributes:
        temperature: 0 always takes the likeliest token.
        top_p: keep the likeliest tokens that make up this share, 1 keeps all.
        top_k: keep that many tokens, 0 keeps all.
        seed: equal seeds give equal texts on one device.
        stop: texts before which the answer ends.
        stream: send the text as ``part`` frames while it grows, too.
    """

    set: str
    messages: tuple[Message, ...]
    max_tokens: int = 256
    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    stream: bool = False

    @classmethod
    def decode(cls, fields: Fields) -> Generate:
        """Read all fields."""
        body = cls(
            set=fields.text("set", longest=128),
            messages=fields.objects("messages", Message.decode, most=MESSAGES_MAX),
            max_tokens=fields.integer("max_tokens", 256, 1, TOKENS_MAX),
            temperature=fields.number("temperature", 0.7),
            top_p=fields.number("top_p", 1.0),
            top_k=fields.integer("top_k", 0, 0, 1_000_000),
            seed=fields.integer("seed", 0),
            stop=fields.texts("stop", most=STOPS_MAX, longest=STOP_LENGTH_MAX),
            stream=fields.boolean("stream", default=False),
        )
        body._check(fields)
        return body

    def _check(self, fields: Fields) -> None:
        if not self.messages:
            raise invalid(fields.place("messages"), "at least one message")
        if not 0.0 <= self.temperature <= TEMPERATURE_MAX:
            raise invalid(fields.place("temperature"), f"expected 0 to {TEMPERATURE_MAX:g}")
        if not 0.0 < self.top_p <= 1.0:
            raise invalid(fields.place("top_p"), "expected more than 0, at most 1")
        if "" in self.stop:
            raise invalid(fields.place("stop"), "an empty text stops everything")

    def segments(self) -> tuple[str, ...]:
        """Return the names of the images, each once."""
        named = (part.image for message in self.messages for part in message.parts if part.image is not None)
        return tuple(dict.fromkeys(named))


@dataclass(frozen=True, slots=True)
class Generated:
    """The answer. ``finish`` is ``stop`` (the model or a stop text ended it), ``length`` or ``cancelled``."""

    text: str
    finish: str
    tokens_in: int
    tokens_out: int
    did: Did | None = None

    @classmethod
    def decode(cls, fields: Fields) -> Generated:
        """Read all fields."""
        return cls(
            text=fields.text("text", longest=2**24),
            finish=fields.choice("finish", ENDS),
            tokens_in=fields.integer("tokens_in"),
            tokens_out=fields.integer("tokens_out"),
            did=fields.nested_or_none("did", Did.decode),
        )
