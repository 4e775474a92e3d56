"""The table of the commands: bodies, lanes, segments, errors. `luna_daemon.protocol` gives it to both sides.

Must not import torch, sockets or the engine.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luna_daemon.arena_messages import CudaOpened, OpenCuda
from luna_daemon.encode_messages import Encoded, EncodeText, EncodeTokens, Image, Latent, VaeDecode, VaeEncode
from luna_daemon.language_messages import Generate, Generated
from luna_daemon.lora_messages import (
    LoraDrop,
    LoraDropped,
    LoraFound,
    LoraHas,
    LoraList,
    LoraPut,
    LoraReport,
    Loras,
    LoraStored,
    LoraValidate,
)
from luna_daemon.memory_messages import Free, Freed, Lease, Leased
from luna_daemon.messages import (
    Auth,
    Cancel,
    Cancelled,
    Challenge,
    Hello,
    OpenShm,
    Ping,
    Pong,
    ShmOpened,
    Shutdown,
    ShutdownReply,
    Welcome,
)
from luna_daemon.model_messages import (
    DescribeModel,
    Description,
    ListModels,
    Loaded,
    LoadModel,
    ModelList,
    PutModel,
    PutReply,
    Unloaded,
    UnloadModel,
)
from luna_daemon.status_messages import DaemonStatus, StatusRequest
from luna_daemon.watch_messages import (
    Drain,
    Drained,
    MetricsReply,
    MetricsRequest,
    Subscribe,
    Subscribed,
    Unsubscribe,
    Unsubscribed,
)
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from luna_daemon.fields import Body
    from luna_daemon.frames import WireTensor

CONNECTION_ERRORS = frozenset({"protocol-mismatch", "daemon-auth", "frame-invalid", "payload-too-large"})
LANE_ERRORS = frozenset({"daemon-busy", "daemon-draining", "daemon-timeout", "cancelled", "device-lost"})
SET_ERRORS = frozenset({"model-missing", "daemon-model-changed", "service-not-here", "out-of-memory"})
FLOATS = ("f32", "f16")


class Lane(enum.Enum):
    """Who answers: the connection's reader, the loader thread, or the executor of the device."""

    NOW = "now"
    LOAD = "load"
    DEVICE = "device"


@dataclass(frozen=True, slots=True)
class SegmentRule:
    """A tensor that a command takes or gives: its name, dtypes and numbers of dimensions."""

    name: str
    dtypes: tuple[str, ...]
    dimensions: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """One row of the table.

    Attributes:
        errors: own codes; `all_errors` adds those of the lane and of a ``set``.
        takes, gives: fixed segments. ``named_by_body`` commands take the segments that their items name.
        streams: parts of the answer may come before the reply.
        reply_as_json: the reply may outgrow a header and travels as one u8 segment ``json``.
        repeatable: the client may send it again after a lost connection.
    """

    name: str
    request: type[Body]
    reply: type[Body]
    lane: Lane
    summary: str
    errors: frozenset[str] = frozenset()
    takes: tuple[SegmentRule, ...] = ()
    gives: tuple[SegmentRule, ...] = ()
    named_by_body: bool = False
    streams: bool = False
    reply_as_json: bool = False
    repeatable: bool = True

    @property
    def moves_tensors(self) -> bool:
        """Tell whether requests or replies may be large, so that opening a transport is worth it."""
        return (self.lane is Lane.DEVICE and self.repeatable) or bool(self.takes)

    @property
    def all_errors(self) -> frozenset[str]:
        """Return every code this command may answer besides those that close the connection."""
        lane = LANE_ERRORS | {"daemon-loading"} if self.lane is not Lane.NOW else frozenset()
        has_set = "set" in getattr(self.request, "__slots__", ())
        return (
            self.errors
            | lane
            | (SET_ERRORS if has_set else frozenset())
            | {"request-invalid", "tensor-invalid", "internal"}
        )


def _row(
    name: str, request: type[Body], reply: type[Body], lane: Lane, summary: str, errors: str = "", **more: Any
) -> Command:
    return Command(name, request, reply, lane, summary, frozenset(errors.split()), **more)


_NAMES = SegmentRule("names", ("u8",), (1,))
_ROWS = (
    _row(
        "hello",
        Hello,
        Challenge,
        Lane.NOW,
        "First message; a Unix socket answers with the welcome at once.",
        "protocol-mismatch daemon-auth",
        repeatable=False,
    ),
    _row("auth", Auth, Welcome, Lane.NOW, "TCP: the client's proof of the token.", "daemon-auth", repeatable=False),
    _row("ping", Ping, Pong, Lane.NOW, "Sign of life."),
    _row("status", StatusRequest, DaemonStatus, Lane.NOW, "What the daemon is, holds and does.", reply_as_json=True),
    _row(
        "metrics",
        MetricsRequest,
        MetricsReply,
        Lane.NOW,
        "Counts and times in Prometheus' text format.",
        "settings-invalid",
        gives=(SegmentRule("text", ("u8",), (1,)),),
    ),
    _row("subscribe", Subscribe, Subscribed, Lane.NOW, "Send events of some topics.", repeatable=False),
    _row("unsubscribe", Unsubscribe, Unsubscribed, Lane.NOW, "Send no more of them.", repeatable=False),
    _row("cancel", Cancel, Cancelled, Lane.NOW, "Give up one request of this connection.", repeatable=False),
    _row(
        "open_shm",
        OpenShm,
        ShmOpened,
        Lane.NOW,
        "Shared memory for this connection; its descriptors come with the reply.",
        "transport-failed",
        repeatable=False,
    ),
    _row(
        "open_cuda",
        OpenCuda,
        CudaOpened,
        Lane.DEVICE,
        "Memory of the card for this connection: lease it, try it, give it back.",
        "transport-failed",
        repeatable=False,
    ),
    _row("drain", Drain, Drained, Lane.NOW, "Take no new work, or take it again.", repeatable=False),
    _row("shutdown", Shutdown, ShutdownReply, Lane.NOW, "Finish what is queued, close, exit 0.", repeatable=False),
    _row(
        "list_models", ListModels, ModelList, Lane.NOW, "Loaded sets and the files under the roots.", reply_as_json=True
    ),
    _row("describe_model", DescribeModel, Description, Lane.LOAD, "Facts and tensor names of a set.", gives=(_NAMES,)),
    _row(
        "load_model",
        LoadModel,
        Loaded,
        Lane.LOAD,
        "Load a set from files or put models.",
        "wrong-type component-missing model-unsupported precision-unsupported file-damaged path-outside "
        "model-missing daemon-model-changed service-not-here out-of-memory",
    ),
    _row(
        "put_model",
        PutModel,
        PutReply,
        Lane.LOAD,
        "Send a model that has no file on the daemon's side.",
        "payload-too-large file-damaged out-of-memory",
        takes=(SegmentRule("bytes", ("u8",), (1,), optional=True),),
    ),
    _row("free", Free, Freed, Lane.LOAD, "Give memory back: kept results, LoRAs, idle models."),
    _row("lease", Lease, Leased, Lane.NOW, "Hold a set for this connection, or give it back."),
    _row("unload_model", UnloadModel, Unloaded, Lane.LOAD, "Give a set's memory back.", "model-in-use"),
    _row(
        "encode_tokens",
        EncodeTokens,
        Encoded,
        Lane.DEVICE,
        "Token rows to conditioning.",
        "token-invalid lora-missing lora-invalid lora-no-match model-unsupported component-missing",
        named_by_body=True,
    ),
    _row(
        "encode_text",
        EncodeText,
        Encoded,
        Lane.DEVICE,
        "Text to conditioning with the daemon's tokenizer.",
        "tokenizer-missing embedding-missing lora-missing lora-invalid lora-no-match model-unsupported "
        "component-missing",
    ),
    _row("lora_list", LoraList, Loras, Lane.NOW, "The LoRAs that are kept.", reply_as_json=True),
    _row("lora_has", LoraHas, LoraFound, Lane.NOW, "Which LoRAs are here, by content hash."),
    _row(
        "lora_put",
        LoraPut,
        LoraStored,
        Lane.LOAD,
        "Send a LoRA, or name its file.",
        "lora-invalid lora-too-large path-outside model-missing wrong-type out-of-memory",
        takes=(SegmentRule("blob", ("u8",), (1,), optional=True),),
    ),
    _row("lora_drop", LoraDrop, LoraDropped, Lane.LOAD, "Forget LoRAs."),
    _row(
        "lora_validate",
        LoraValidate,
        LoraReport,
        Lane.LOAD,
        "Judge a LoRA against a set.",
        "lora-invalid lora-missing lora-too-large path-outside wrong-type",
    ),
    _row(
        "vae_encode",
        VaeEncode,
        Latent,
        Lane.DEVICE,
        "Pixels to latent.",
        "image-shape latent-mismatch value-range component-missing",
        takes=(SegmentRule("pixels", FLOATS, (4, 5)),),
        gives=(SegmentRule("latent", FLOATS, (4, 5)),),
    ),
    _row(
        "vae_decode",
        VaeDecode,
        Image,
        Lane.DEVICE,
        "Latent to pixels.",
        "latent-mismatch value-range component-missing model-unsupported",
        takes=(SegmentRule("latent", FLOATS, (4, 5)),),
        gives=(SegmentRule("image", FLOATS, (4,)),),
    ),
    _row(
        "generate",
        Generate,
        Generated,
        Lane.DEVICE,
        "A language model's answer to messages of text and images; with `stream`, text as it comes.",
        "llm-missing llm-failed tokenizer-missing image-shape value-range",
        named_by_body=True,
        streams=True,
        reply_as_json=True,
    ),
)
COMMANDS: Mapping[str, Command] = {row.name: row for row in _ROWS}


def check_tensors(command: Command, body: Body, tensors: Mapping[str, WireTensor]) -> None:
    """Check that exactly the segments that a request needs are there, with the right dtype and dimensions.

    Raises:
        DaemonError: ``tensor-invalid`` naming the segment.
    """
    if command.named_by_body:
        wanted: tuple[str, ...] = body.segments()  # type: ignore[attr-defined]  # what named_by_body promises
        optional: set[str] = set()
    else:
        wanted = tuple(rule.name for rule in command.takes)
        optional = {rule.name for rule in command.takes if rule.optional}
    missing = set(wanted) - optional - tensors.keys()
    surplus = tensors.keys() - set(wanted)
    if missing or surplus:
        word, name = ("missing", min(missing)) if missing else ("not expected", min(surplus))
        raise DaemonError("tensor-invalid", f"segment {name!r} is {word}", details={"segment": name})
    for rule in command.takes:
        if rule.name in tensors:
            _check_rule(rule, tensors[rule.name])


def _check_rule(rule: SegmentRule, tensor: WireTensor) -> None:
    if tensor.dtype not in rule.dtypes or len(tensor.shape) not in rule.dimensions:
        dimensions = " or ".join(map(str, rule.dimensions))
        raise DaemonError(
            "tensor-invalid",
            f"segment {rule.name!r}: expected {' or '.join(rule.dtypes)} with {dimensions} dimensions, "
            f"found {tensor.dtype} {list(tensor.shape)}",
            details={"segment": rule.name},
        )
