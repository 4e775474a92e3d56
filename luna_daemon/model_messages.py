"""Bodies of the model commands: files and sets, text encoding, VAE. Tensors travel beside them as named segments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from luna_daemon.fields import Fields, invalid
from luna_daemon.messages import Did

PRECISIONS = ("auto", "fp16", "bf16", "fp32")
CACHE_MODES = ("use", "bypass", "refresh")
PUT_STEPS = ("begin", "chunk", "commit", "abort")
ROWS_MAX = 512


@dataclass(frozen=True, slots=True)
class EncoderFacts:
    """Shape of a text encoder: ``row_max`` tokens a row (None: no limit), ``vocab`` token ids."""

    layers: int
    width: int
    row_max: int | None
    vocab: int

    @classmethod
    def decode(cls, fields: Fields) -> EncoderFacts:
        """Read all fields."""
        return cls(
            layers=fields.integer("layers"),
            width=fields.integer("width"),
            row_max=fields.integer_or_none("row_max"),
            vocab=fields.integer("vocab"),
        )


@dataclass(frozen=True, slots=True)
class VaeFacts:
    """Shape of a VAE: pixels per latent along space and time, channels, number of latent dimensions after batch."""

    latent_channels: int
    spatial: int
    dtype: str
    latent_dim: int = 2
    temporal: int | None = None
    output_channels: int = 3

    @classmethod
    def decode(cls, fields: Fields) -> VaeFacts:
        """Read all fields."""
        return cls(
            latent_channels=fields.integer("latent_channels"),
            spatial=fields.integer("spatial"),
            dtype=fields.text("dtype"),
            latent_dim=fields.integer("latent_dim", 2),
            temporal=fields.integer_or_none("temporal"),
            output_channels=fields.integer("output_channels", 3),
        )


@dataclass(frozen=True, slots=True)
class LanguageFacts:
    """Shape of a language model: ``context`` tokens at most, ``has_vision`` if it reads images."""

    layers: int
    width: int
    vocab: int
    context: int
    has_vision: bool

    @classmethod
    def decode(cls, fields: Fields) -> LanguageFacts:
        """Read all fields."""
        return cls(
            layers=fields.integer("layers"),
            width=fields.integer("width"),
            vocab=fields.integer("vocab"),
            context=fields.integer("context"),
            has_vision=fields.boolean("has_vision"),
        )


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a client must know of a set to act like the model: encoders by role, VAE, language model."""

    family: str
    backend: str
    precision: str
    encoders: dict[str, EncoderFacts] = field(default_factory=dict)
    vae: VaeFacts | None = None
    language: LanguageFacts | None = None

    @classmethod
    def decode(cls, fields: Fields) -> ModelFacts:
        """Read all fields."""
        return cls(
            family=fields.text("family"),
            backend=fields.text("backend"),
            precision=fields.text("precision"),
            encoders=fields.table("encoders", EncoderFacts.decode),
            vae=fields.nested_or_none("vae", VaeFacts.decode),
            language=fields.nested_or_none("language", LanguageFacts.decode),
        )


@dataclass(frozen=True, slots=True)
class ListModels:
    """List loaded sets and files. ``kind`` narrows the files; ``loaded`` true leaves out the files."""

    kind: str | None = None
    loaded: bool | None = None

    @classmethod
    def decode(cls, fields: Fields) -> ListModels:
        """Read all fields."""
        return cls(kind=fields.text_or_none("kind", longest=64), loaded=fields.boolean_or_none("loaded"))


@dataclass(frozen=True, slots=True)
class SetRow:
    """A set that the daemon holds."""

    id: str
    family: str
    precision: str
    parts: dict[str, str]
    place: str
    bytes: int
    default: bool = False

    @classmethod
    def decode(cls, fields: Fields) -> SetRow:
        """Read all fields."""
        return cls(
            id=fields.text("id"),
            family=fields.text("family"),
            precision=fields.text("precision"),
            parts=fields.scalars("parts", (str,)),
            place=fields.text("place"),
            bytes=fields.integer("bytes"),
            default=fields.boolean("default", default=False),
        )


@dataclass(frozen=True, slots=True)
class FileRow:
    """A model file under the roots: ``id`` is ``root/name``; ``content`` is its hash where known."""

    id: str
    kind: str
    family: str | None
    components: tuple[str, ...]
    size_bytes: int
    content: str | None = None

    @classmethod
    def decode(cls, fields: Fields) -> FileRow:
        """Read all fields."""
        return cls(
            id=fields.text("id"),
            kind=fields.text("kind"),
            family=fields.text_or_none("family"),
            components=fields.texts("components"),
            size_bytes=fields.integer("size_bytes"),
            content=fields.text_or_none("content"),
        )


@dataclass(frozen=True, slots=True)
class ModelList:
    """Loaded sets and files."""

    sets: tuple[SetRow, ...] = ()
    files: tuple[FileRow, ...] = ()

    @classmethod
    def decode(cls, fields: Fields) -> ModelList:
        """Read all fields."""
        return cls(
            sets=fields.objects("sets", SetRow.decode, most=100_000),
            files=fields.objects("files", FileRow.decode, most=1_000_000),
        )


@dataclass(frozen=True, slots=True)
class DescribeModel:
    """Ask for the facts and the tensor names of a set (an id, or a family for its default set)."""

    set: str

    @classmethod
    def decode(cls, fields: Fields) -> DescribeModel:
        """Read all fields."""
        return cls(set=fields.text("set", longest=128))


@dataclass(frozen=True, slots=True)
class Description:
    """Facts of a set; segment ``names`` (u8) is JSON: name -> {shape, dtype}, in ComfyUI's state-dict names."""

    set: str
    facts: ModelFacts
    content: dict[str, str]

    @classmethod
    def decode(cls, fields: Fields) -> Description:
        """Read all fields."""
        return cls(
            set=fields.text("set"),
            facts=fields.nested("facts", ModelFacts.decode),
            content=fields.scalars("content", (str,)),
        )


@dataclass(frozen=True, slots=True)
class Expect:
    """The file as the client sees it, so that two files of one name are never mixed up."""

    device: int = field(metadata={"wire_type": "decimal digits"})
    inode: int = field(metadata={"wire_type": "decimal digits"})
    size_bytes: int
    mtime_ns: int = field(metadata={"wire_type": "decimal digits"})
    content: str | None = None

    @classmethod
    def decode(cls, fields: Fields) -> Expect:
        """Read all fields; those that may exceed 2**53 travel as decimal digits."""
        return cls(
            device=fields.wide_integer("device"),
            inode=fields.wide_integer("inode"),
            size_bytes=fields.integer("size_bytes"),
            mtime_ns=fields.wide_integer("mtime_ns"),
            content=fields.text_or_none("content", longest=128),
        )

    def as_wire(self) -> dict[str, Any]:
        """Return the JSON record."""
        return {
            "device": str(self.device),
            "inode": str(self.inode),
            "size_bytes": self.size_bytes,
            "mtime_ns": str(self.mtime_ns),
            "content": self.content,
        }


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a set: exactly one of a file ``id`` under the roots and a ``content`` that was put before."""

    role: str
    id: str | None = None
    content: str | None = None
    expect: Expect | None = None

    @classmethod
    def decode(cls, fields: Fields) -> Part:
        """Read all fields."""
        part = cls(
            role=fields.text("role", longest=32),
            id=fields.text_or_none("id", longest=4096),
            content=fields.text_or_none("content", longest=128),
            expect=fields.nested_or_none("expect", Expect.decode),
        )
        if (part.id is None) == (part.content is None):
            raise invalid(fields.place("id"), "give a file id or a content hash, not both and not neither")
        return part


@dataclass(frozen=True, slots=True)
class LoadModel:
    """Load a set. With ``wait`` false a set that is not there yet gives ``daemon-loading`` at once and loads on."""

    parts: tuple[Part, ...]
    family: str = "auto"
    precision: str = "auto"
    pin: bool = False
    default: bool = False
    wait: bool = True

    @classmethod
    def decode(cls, fields: Fields) -> LoadModel:
        """Read all fields."""
        parts = fields.objects("parts", Part.decode, most=16)
        if not parts:
            raise invalid(fields.place("parts"), "name at least one part")
        return cls(
            parts=parts,
            family=fields.text("family", "auto", longest=64),
            precision=fields.choice("precision", PRECISIONS, "auto"),
            pin=fields.boolean("pin", default=False),
            default=fields.boolean("default", default=False),
            wait=fields.boolean("wait", default=True),
        )


@dataclass(frozen=True, slots=True)
class Loaded:
    """A set is loaded; ``content`` has the hash of each part, ``evicted`` what had to go for it."""

    set: str
    facts: ModelFacts
    content: dict[str, str]
    bytes: int
    place: str
    evicted: tuple[str, ...] = ()
    did: Did | None = None

    @classmethod
    def decode(cls, fields: Fields) -> Loaded:
        """Read all fields."""
        return cls(
            set=fields.text("set"),
            facts=fields.nested("facts", ModelFacts.decode),
            content=fields.scalars("content", (str,)),
            bytes=fields.integer("bytes"),
            place=fields.text("place"),
            evicted=fields.texts("evicted"),
            did=fields.nested_or_none("did", Did.decode),
        )


@dataclass(frozen=True, slots=True)
class PutModel:
    """Send a model that the daemon has no file of, in steps.

    ``begin`` names content and nbytes; ``chunk`` carries segment ``bytes`` (u8) for an offset of the upload;
    ``commit`` checks the hash and keeps it; ``abort`` drops it.
    """

    step: str
    content: str | None = None
    nbytes: int | None = None
    upload: str | None = None
    offset: int | None = None

    @classmethod
    def decode(cls, fields: Fields) -> PutModel:
        """Read all fields and check that the step has what it needs."""
        body = cls(
            step=fields.choice("step", PUT_STEPS),
            content=fields.text_or_none("content", longest=128),
            nbytes=fields.integer_or_none("nbytes", 1),
            upload=fields.text_or_none("upload", longest=64),
            offset=fields.integer_or_none("offset"),
        )
        needed = {"begin": ("content", "nbytes"), "chunk": ("upload", "offset")}.get(body.step, ("upload",))
        for name in ("content", "nbytes", "upload", "offset"):
            if (getattr(body, name) is not None) != (name in needed):
                word = "needs" if name in needed else "does not take"
                raise invalid(fields.place(name), f"step {body.step} {word} this field")
        return body


@dataclass(frozen=True, slots=True)
class PutReply:
    """``have`` true: the content is here, no upload needed. ``id`` after commit: ``content:<hash>``."""

    have: bool = False
    upload: str | None = None
    chunk_bytes: int | None = None
    id: str | None = None

    @classmethod
    def decode(cls, fields: Fields) -> PutReply:
        """Read all fields."""
        return cls(
            have=fields.boolean("have", default=False),
            upload=fields.text_or_none("upload"),
            chunk_bytes=fields.integer_or_none("chunk_bytes"),
            id=fields.text_or_none("id"),
        )


@dataclass(frozen=True, slots=True)
class UnloadModel:
    """Unload one set or all. Sets in use stay unless ``force``."""

    set: str | None = None
    all: bool = False
    force: bool = False

    @classmethod
    def decode(cls, fields: Fields) -> UnloadModel:
        """Read all fields."""
        body = cls(
            set=fields.text_or_none("set", longest=128),
            all=fields.boolean("all", default=False),
            force=fields.boolean("force", default=False),
        )
        if (body.set is None) != body.all:
            raise invalid(fields.place("set"), "name a set, or all true, not both and not neither")
        return body


@dataclass(frozen=True, slots=True)
class Unloaded:
    """Bytes given back and the sets that stayed."""

    freed_bytes: int
    kept: tuple[str, ...] = ()

    @classmethod
    def decode(cls, fields: Fields) -> Unloaded:
        """Read all fields."""
        return cls(freed_bytes=fields.integer("freed_bytes"), kept=fields.texts("kept"))
