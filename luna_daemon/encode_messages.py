"""Bodies of the commands that run a model: token and text encoding, VAE encode and decode."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from luna_daemon.fields import Fields, invalid
from luna_daemon.messages import Did
from luna_daemon.model_messages import CACHE_MODES, ROWS_MAX

RESULT_DTYPES = ("f32", "f16")
RESULT_VIA = ("auto",)
Layer = int | dict[str, int] | None


@dataclass(frozen=True, slots=True)
class ResultForm:
    """How results come back: their dtype, and by which transport (``auto``)."""

    dtype: str = "f32"
    via: str = "auto"

    @classmethod
    def decode(cls, fields: Fields) -> ResultForm:
        """Read all fields."""
        return cls(dtype=fields.choice("dtype", RESULT_DTYPES, "f32"), via=fields.choice("via", RESULT_VIA, "auto"))


@dataclass(frozen=True, slots=True)
class LoraUse:
    """One LoRA of a recipe: content hash, strength for this model, strength for the diffusion model."""

    hash: str
    patch: float
    model: float = 1.0

    @classmethod
    def decode(cls, fields: Fields) -> LoraUse:
        """Read all fields."""
        return cls(
            hash=fields.text("hash", longest=128),
            patch=fields.number("patch"),
            model=fields.number("model", 1.0),
        )


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Rows of token ids for one encoder, all in flat segments.

    Attributes:
        rows: length of each row.
        ids: segment i32 ``[sum(rows)]``; -1-k is row k of the vectors.
        weights: segment f64 ``[sum(rows)]``, or None for all 1.0.
        vectors: segments ``[n, width]``, textual inversions, rows counted through.
        images: segments of pixels, for encoders with a vision tower.
    """

    rows: tuple[int, ...]
    ids: str
    weights: str | None = None
    vectors: tuple[str, ...] = ()
    images: tuple[str, ...] = ()

    @classmethod
    def decode(cls, fields: Fields) -> TokenRows:
        """Read all fields."""
        body = cls(
            rows=fields.integers("rows", 1, 1_000_000, most=ROWS_MAX),
            ids=fields.text("ids", longest=128),
            weights=fields.text_or_none("weights", longest=128),
            vectors=fields.texts("vectors", longest=128),
            images=fields.texts("images", longest=128),
        )
        if not body.rows:
            raise invalid(fields.place("rows"), "at least one row")
        return body

    def segments(self) -> tuple[str, ...]:
        """Return the names of all segments it refers to."""
        weights = () if self.weights is None else (self.weights,)
        return (self.ids, *weights, *self.vectors, *self.images)


def _layer(fields: Fields) -> Layer:
    value = fields.take("layer")
    if value is None or (type(value) is int and -1000 <= value <= 1000):
        return value
    if isinstance(value, dict) and all(type(item) is int and -1000 <= item <= 1000 for item in value.values()):
        return dict(value)
    raise invalid(fields.place("layer"), "expected null, an integer or {role: integer}")


@dataclass(frozen=True, slots=True)
class TokenItem:
    """One prompt as token rows per encoder role, with everything that changes its result.

    Attributes:
        layer: clip skip for all encoders, or per role; None is the model's own default.
        projected: False takes the pooled output before text_projection; None is the family's default.
        loras: the recipe, in order.
        aux: scalars that a ComfyUI tokenizer adds.
    """

    encoders: dict[str, TokenRows]
    layer: Layer = None
    projected: bool | None = None
    loras: tuple[LoraUse, ...] = ()
    aux: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def decode(cls, fields: Fields) -> TokenItem:
        """Read all fields."""
        body = cls(
            encoders=fields.table("encoders", TokenRows.decode, most=16),
            layer=_layer(fields),
            projected=fields.boolean_or_none("projected"),
            loras=fields.objects("loras", LoraUse.decode, most=64),
            aux=fields.scalars("aux", (str, int, float, bool)),
        )
        if not body.encoders:
            raise invalid(fields.place("encoders"), "at least one encoder")
        return body


@dataclass(frozen=True, slots=True)
class EncodeTokens:
    """Encode prompts whose tokens the client made."""

    set: str
    items: tuple[TokenItem, ...]
    exact: bool = False
    cache: str = "use"
    result: ResultForm = field(default_factory=ResultForm)

    @classmethod
    def decode(cls, fields: Fields) -> EncodeTokens:
        """Read all fields."""
        body = cls(
            set=fields.text("set", longest=128),
            items=_some(fields, fields.objects("items", TokenItem.decode, most=ROWS_MAX)),
            exact=fields.boolean("exact", default=False),
            cache=fields.choice("cache", CACHE_MODES, "use"),
            result=fields.nested_or_none("result", ResultForm.decode) or ResultForm(),
        )
        rows = sum(len(encoder.rows) for item in body.items for encoder in item.encoders.values())
        if rows > ROWS_MAX:
            raise invalid(fields.place("items"), f"{rows} rows in one request, at most {ROWS_MAX} are accepted")
        return body

    def segments(self) -> tuple[str, ...]:
        """Return the names of all segments it refers to."""
        return tuple(name for item in self.items for rows in item.encoders.values() for name in rows.segments())


def _some(fields: Fields, items: tuple[Any, ...]) -> tuple[Any, ...]:
    if not items:
        raise invalid(fields.place("items"), "at least one item")
    return items


@dataclass(frozen=True, slots=True)
class TextItem:
    """One prompt as text: the same for all encoders, or per role."""

    text: str | dict[str, str]
    layer: Layer = None
    projected: bool | None = None
    loras: tuple[LoraUse, ...] = ()
    template: str | None = None

    @classmethod
    def decode(cls, fields: Fields) -> TextItem:
        """Read all fields."""
        text = fields.take("text")
        per_role = isinstance(text, dict) and text and all(isinstance(item, str) for item in text.values())
        if not isinstance(text, str) and not per_role:
            raise invalid(fields.place("text"), "expected a text or {role: text}")
        return cls(
            text=text,
            layer=_layer(fields),
            projected=fields.boolean_or_none("projected"),
            loras=fields.objects("loras", LoraUse.decode, most=64),
            template=fields.text_or_none("template"),
        )


@dataclass(frozen=True, slots=True)
class EncodeText:
    """Encode prompts with the daemon's own tokenizer."""

    set: str
    items: tuple[TextItem, ...]
    exact: bool = False
    cache: str = "use"
    result: ResultForm = field(default_factory=ResultForm)

    @classmethod
    def decode(cls, fields: Fields) -> EncodeText:
        """Read all fields."""
        return cls(
            set=fields.text("set", longest=128),
            items=_some(fields, fields.objects("items", TextItem.decode, most=64)),
            exact=fields.boolean("exact", default=False),
            cache=fields.choice("cache", CACHE_MODES, "use"),
            result=fields.nested_or_none("result", ResultForm.decode) or ResultForm(),
        )


@dataclass(frozen=True, slots=True)
class EncodedItem:
    """One prompt's result; ``cond``, ``pooled`` and the values of ``extras`` are names of segments.

    Attributes:
        cond: ``[1, tokens, width]``.
        pooled: ``[1, width]``, None where the family has none.
        extras: further tensors, such as ``attention_mask``.
        tokens: encode_text: tokens per role before padding.
        missing_embeddings: encode_text: embedding names that were not found.
    """

    cond: str
    pooled: str | None = None
    extras: dict[str, str] = field(default_factory=dict)
    cached: bool = False
    tokens: dict[str, int] = field(default_factory=dict)
    missing_embeddings: tuple[str, ...] = ()

    @classmethod
    def decode(cls, fields: Fields) -> EncodedItem:
        """Read all fields."""
        return cls(
            cond=fields.text("cond"),
            pooled=fields.text_or_none("pooled"),
            extras=fields.scalars("extras", (str,)),
            cached=fields.boolean("cached", default=False),
            tokens=fields.scalars("tokens", (int,)),
            missing_embeddings=fields.texts("missing_embeddings"),
        )


@dataclass(frozen=True, slots=True)
class Encoded:
    """Results in the order of the items."""

    items: tuple[EncodedItem, ...]
    did: Did | None = None

    @classmethod
    def decode(cls, fields: Fields) -> Encoded:
        """Read all fields."""
        return cls(items=fields.objects("items", EncodedItem.decode), did=fields.nested_or_none("did", Did.decode))


@dataclass(frozen=True, slots=True)
class Tile:
    """Tile size and overlap: pixels for encoding, latent units for decoding; ``t`` along time."""

    x: int
    y: int
    overlap: int
    t: int | None = None
    overlap_t: int | None = None

    @classmethod
    def decode(cls, fields: Fields) -> Tile:
        """Read all fields."""
        return cls(
            x=fields.integer("x", low=1, high=1_000_000),
            y=fields.integer("y", low=1, high=1_000_000),
            overlap=fields.integer("overlap", low=0, high=1_000_000),
            t=fields.integer_or_none("t", 1, 1_000_000),
            overlap_t=fields.integer_or_none("overlap_t", 0, 1_000_000),
        )


@dataclass(frozen=True, slots=True)
class VaeEncode:
    """Encode segment ``pixels`` (BHWC or BTHWC, f32 or f16, 0..1)."""

    set: str
    tile: Tile | None = None

    @classmethod
    def decode(cls, fields: Fields) -> VaeEncode:
        """Read all fields."""
        return cls(set=fields.text("set", longest=128), tile=fields.nested_or_none("tile", Tile.decode))


@dataclass(frozen=True, slots=True)
class Latent:
    """Segment ``latent`` is the mean of the posterior, unscaled: ``[B, C, H, W]`` or ``[B, C, T, H, W]``."""

    did: Did | None = None

    @classmethod
    def decode(cls, fields: Fields) -> Latent:
        """Read all fields."""
        return cls(did=fields.nested_or_none("did", Did.decode))


@dataclass(frozen=True, slots=True)
class VaeDecode:
    """Decode segment ``latent``. ``options`` are those of ComfyUI's VAE wrapper."""

    set: str
    tile: Tile | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def decode(cls, fields: Fields) -> VaeDecode:
        """Read all fields."""
        return cls(
            set=fields.text("set", longest=128),
            tile=fields.nested_or_none("tile", Tile.decode),
            options=fields.scalars("options", (str, int, float, bool)),
        )


@dataclass(frozen=True, slots=True)
class Image:
    """Segment ``image`` is ``[B, H, W, C]`` in 0..1."""

    did: Did | None = None

    @classmethod
    def decode(cls, fields: Fields) -> Image:
        """Read all fields."""
        return cls(did=fields.nested_or_none("did", Did.decode))
