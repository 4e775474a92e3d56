"""The client of a daemon: one kept connection, one method per command. Imports no torch; tensors are `WireTensor`.

`luna_daemon.tensors` turns those into torch tensors and back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import TYPE_CHECKING, Any, cast

from luna_daemon import address
from luna_daemon.frames import MIB, WireTensor
from luna_daemon.kept import KeptConnection
from luna_daemon.protocol import (
    Cancel,
    Cancelled,
    DaemonStatus,
    DescribeModel,
    Description,
    Drain,
    Drained,
    Encoded,
    EncodeText,
    EncodeTokens,
    Free,
    Freed,
    Generate,
    Generated,
    Image,
    Latent,
    Lease,
    Leased,
    ListModels,
    Loaded,
    LoadModel,
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
    MetricsRequest,
    ModelList,
    Part,
    Ping,
    Pong,
    PutModel,
    PutReply,
    ResultForm,
    Shutdown,
    ShutdownReply,
    StatusRequest,
    Subscribe,
    Subscribed,
    TextItem,
    Tile,
    TokenItem,
    Unloaded,
    UnloadModel,
    Unsubscribe,
    Unsubscribed,
    VaeDecode,
    VaeEncode,
)
from luna_daemon.transport import SHM_FROM_BYTES
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from luna_daemon.device_memory import DeviceMemory
    from luna_daemon.progress import Report


class DaemonClient(KeptConnection):
    """A thread-safe client that keeps one connection and makes a new one when the daemon was restarted.

    Every method may raise `DaemonUnreachableError` (``daemon-unreachable``) and DaemonError with the codes of its
    row in `luna_daemon.protocol.COMMANDS`. ``poll`` is called at least every 0.1 s while waiting; when it raises, the
    request is cancelled and the exception goes through. ``timeout_s`` is the request's deadline.
    """

    @classmethod
    def connect(
        cls,
        host: str | None = None,
        port: int | None = None,
        *,
        timeout_s: float = 2.0,
        transport: str = "auto",
        name: str = "luna",
        shm_from_bytes: int = SHM_FROM_BYTES,
        device_memory: DeviceMemory | None = None,
    ) -> DaemonClient:
        """Connect to a daemon.

        Args:
            host, port: its TCP address; None takes ``LUNA_DAEMON_HOST``, ``LUNA_DAEMON_PORT``, then the settings.
                A daemon of this user at that address is reached over its Unix socket.
            timeout_s: for the connection; requests have the deadline of the settings unless they name one.
            transport: ``auto``, or ``tcp`` to leave Unix sockets alone.
            name: what the daemon shows in its list of clients.
            shm_from_bytes: tensors of this size and more cross in shared memory where there is any.
            device_memory: of the card that the client's tensors lie on, for letting them stay there.

        Raises:
            DaemonUnreachableError: nothing listens there; the hint is the command that starts it.
            DaemonError: ``daemon-auth`` or ``protocol-mismatch``.
        """
        client = cls(
            host or address.default_host(),
            port or address.default_port(),
            timeout_s=timeout_s,
            transport=transport,
            name=name,
            shm_from_bytes=shm_from_bytes,
            device_memory=device_memory,
        )
        client._usable_link()
        return client

    def metrics(self) -> str:
        """Ask for counts and times in Prometheus' text format."""
        reply = self.call("metrics", MetricsRequest(), timeout_s=5.0)
        return bytes(reply.tensors["text"].data).decode()

    def subscribe(self, topics: Sequence[str], *, from_seq: int | None = None) -> Subscribed:
        """Ask for events, which `next_event` returns; ``from_seq`` also asks for those since that number."""
        body = Subscribe(tuple(topics), from_seq)
        return cast("Subscribed", self.call("subscribe", body, timeout_s=5.0).body)

    def unsubscribe(self, topics: Sequence[str] = ()) -> Unsubscribed:
        """Ask for no more events of these topics, or of any."""
        return cast("Unsubscribed", self.call("unsubscribe", Unsubscribe(tuple(topics)), timeout_s=5.0).body)

    def drain(self, *, deadline_ms: int = 10_000, reopen: bool = False) -> Drained:
        """Let the daemon take no new work and refuse at the deadline what still waits; or let it take work again."""
        return cast("Drained", self.call("drain", Drain(deadline_ms, reopen), timeout_s=5.0).body)

    def ping(self, nonce: str | None = None, *, timeout_s: float = 5.0) -> Pong:
        """Ask for a sign of life."""
        return cast("Pong", self.call("ping", Ping(nonce), timeout_s=timeout_s).body)

    def status(self, detail: str = "full", *, timeout_s: float = 5.0) -> DaemonStatus:
        """Ask what the daemon is, holds and does; ``brief`` leaves the lists empty."""
        return cast("DaemonStatus", self.call("status", StatusRequest(detail), timeout_s=timeout_s).body)

    def cancel(self, request: int) -> Cancelled:
        """Give up a request of this connection, by the id that its link gave it."""
        return cast("Cancelled", self.call("cancel", Cancel(request)).body)

    def shutdown(self, *, deadline_ms: int = 10_000, force: bool = False) -> ShutdownReply:
        """Ask the daemon to finish and exit."""
        return cast("ShutdownReply", self.call("shutdown", Shutdown(deadline_ms, force)).body)

    def list_models(self, kind: str | None = None, *, loaded: bool | None = None) -> ModelList:
        """List loaded sets and the files under the daemon's roots."""
        return cast("ModelList", self.call("list_models", ListModels(kind, loaded)).body)

    def describe_model(
        self,
        set: str,  # noqa: A002 - the field's name on the wire
        *,
        poll: Callable[[], None] | None = None,
    ) -> tuple[Description, dict[str, Any]]:
        """Return the facts of a set and its tensors: name -> ``{"shape": [...], "dtype": "f32"}``."""
        reply = self.call("describe_model", DescribeModel(set), poll=poll)
        return reply.body, json.loads(bytes(reply.tensors["names"].data))

    def load_model(
        self,
        parts: Sequence[Part],
        *,
        family: str = "auto",
        precision: str = "auto",
        pin: bool = False,
        default: bool = False,
        wait: bool = True,
        poll: Callable[[], None] | None = None,
        timeout_s: float | None = None,
        on_progress: Report | None = None,
    ) -> Loaded:
        """Load a set; one that is loaded already answers at once."""
        body = LoadModel(tuple(parts), family, precision, pin, default, wait)
        return cast(
            "Loaded", self.call("load_model", body, poll=poll, timeout_s=timeout_s, on_progress=on_progress).body
        )

    def put_model(
        self,
        body: PutModel,
        tensors: Sequence[WireTensor] = (),
        *,
        poll: Callable[[], None] | None = None,
        timeout_s: float | None = None,
        on_progress: Report | None = None,
    ) -> PutReply:
        """Do one step of an upload; `upload_model` does them all."""
        return cast(
            "PutReply",
            self.call("put_model", body, tensors, poll=poll, timeout_s=timeout_s, on_progress=on_progress).body,
        )

    def upload_model(self, content: str, data: memoryview, *, poll: Callable[[], None] | None = None) -> str:
        """Send a model's bytes unless the daemon has them.

        Args:
            content: its content hash.
            data: a safetensors file, whole.

        Returns:
            The part id ``content:<hash>``.
        """
        begun = self.put_model(PutModel("begin", content=content, nbytes=data.nbytes), poll=poll)
        if begun.have or begun.upload is None:
            return begun.id or f"content:{content}"
        chunk = begun.chunk_bytes or 16 * MIB
        try:
            for offset in range(0, data.nbytes, chunk):
                piece = WireTensor.of_bytes("bytes", data[offset : offset + chunk])
                self.put_model(PutModel("chunk", upload=begun.upload, offset=offset), [piece], poll=poll)
            done = self.put_model(PutModel("commit", upload=begun.upload), poll=poll)
        except BaseException:
            with contextlib.suppress(DaemonError):  # gone with the daemon, or dropped by the failed commit
                self.put_model(PutModel("abort", upload=begun.upload))
            raise
        return done.id or f"content:{content}"

    def unload_model(
        self,
        set: str | None = None,  # noqa: A002 - the field's name on the wire
        *,
        all: bool = False,  # noqa: A002 - the field's name on the wire
        force: bool = False,
    ) -> Unloaded:
        """Give the memory of one set, or of all, back."""
        return cast("Unloaded", self.call("unload_model", UnloadModel(set, all, force)).body)

    def free(self, what: str = "all", nbytes: int | None = None) -> Freed:
        """Have memory given back: ``results``, ``merged``, ``loras``, ``idle_models`` or ``all``."""
        return cast("Freed", self.call("free", Free(what, nbytes)).body)

    def lease(
        self,
        set: str,  # noqa: A002 - the field's name on the wire
        *,
        release: bool = False,
    ) -> Leased:
        """Hold a set for this connection, or give it back.

        `holds` counts for several users of one connection and gives the set back after the last of them.
        """
        return cast("Leased", self.call("lease", Lease(set, release)).body)

    def encode_tokens(
        self,
        *,
        set: str,  # noqa: A002 - the field's name on the wire
        items: Sequence[TokenItem],
        tensors: Sequence[WireTensor],
        exact: bool = False,
        cache: str = "use",
        result: ResultForm | None = None,
        poll: Callable[[], None] | None = None,
        timeout_s: float | None = None,
    ) -> tuple[Encoded, dict[str, WireTensor]]:
        """Encode token rows; the items name the segments in ``tensors``."""
        body = EncodeTokens(set, tuple(items), exact, cache, result or ResultForm())
        reply = self.call("encode_tokens", body, tensors, poll=poll, timeout_s=timeout_s)
        return reply.body, reply.tensors

    def encode_text(
        self,
        *,
        set: str,  # noqa: A002 - the field's name on the wire
        items: Sequence[TextItem],
        exact: bool = False,
        cache: str = "use",
        result: ResultForm | None = None,
        poll: Callable[[], None] | None = None,
        timeout_s: float | None = None,
    ) -> tuple[Encoded, dict[str, WireTensor]]:
        """Encode texts with the daemon's tokenizer."""
        body = EncodeText(set, tuple(items), exact, cache, result or ResultForm())
        reply = self.call("encode_text", body, poll=poll, timeout_s=timeout_s)
        return reply.body, reply.tensors

    def lora_list(self) -> Loras:
        """List the LoRAs that the daemon keeps."""
        return cast("Loras", self.call("lora_list", LoraList()).body)

    def lora_has(self, hashes: Sequence[str], *, poll: Callable[[], None] | None = None) -> LoraFound:
        """Ask which LoRAs are there, by content hash."""
        return cast("LoraFound", self.call("lora_has", LoraHas(tuple(hashes)), poll=poll).body)

    def lora_put(
        self,
        blob: bytes | None = None,
        *,
        hash: str | None = None,  # noqa: A002 - the field's name on the wire
        id: str | None = None,  # noqa: A002 - the field's name on the wire
        poll: Callable[[], None] | None = None,
        timeout_s: float | None = None,
    ) -> LoraStored:
        """Give the daemon a LoRA.

        Args:
            blob: as `luna_daemon.patches.pack` makes it, with its ``hash``; or
            id: of a file that the daemon can read.

        Raises:
            DaemonError: ``lora-too-large`` for a blob beyond what one message may carry, and the command's own.
        """
        limit = self.welcome.limits["payload_in_bytes"]
        if blob is not None and len(blob) > limit:
            raise DaemonError(
                "lora-too-large",
                f"the LoRA's text-encoder part has {len(blob):,} bytes, a message takes {limit:,}",
                "put its file below a model root of the daemon and name it by id",
            )
        tensors = [] if blob is None else [WireTensor.of_bytes("blob", blob)]
        reply = self.call("lora_put", LoraPut(hash, id), tensors, poll=poll, timeout_s=timeout_s)
        return cast("LoraStored", reply.body)

    def lora_drop(
        self,
        hashes: Sequence[str] = (),
        *,
        all: bool = False,  # noqa: A002 - the field's name on the wire
    ) -> LoraDropped:
        """Have some LoRAs, or all, forgotten."""
        return cast("LoraDropped", self.call("lora_drop", LoraDrop(tuple(hashes), all)).body)

    def lora_validate(
        self,
        set: str,  # noqa: A002 - the field's name on the wire
        *,
        hash: str | None = None,  # noqa: A002 - the field's name on the wire
        id: str | None = None,  # noqa: A002 - the field's name on the wire
    ) -> LoraReport:
        """Have a LoRA judged against a set; nothing is kept of a file."""
        return cast("LoraReport", self.call("lora_validate", LoraValidate(set, hash, id)).body)

    def vae_encode(
        self,
        *,
        set: str,  # noqa: A002 - the field's name on the wire
        pixels: WireTensor,
        tile: Tile | None = None,
        poll: Callable[[], None] | None = None,
        timeout_s: float | None = None,
        on_progress: Report | None = None,
    ) -> tuple[Latent, WireTensor]:
        """Encode pixels (segment name ``pixels``) to a latent; progress in tiles, or in images where there are none."""
        body = VaeEncode(set, tile)
        reply = self.call("vae_encode", body, [pixels], poll=poll, timeout_s=timeout_s, on_progress=on_progress)
        return reply.body, reply.tensors["latent"]

    def vae_decode(
        self,
        *,
        set: str,  # noqa: A002 - the field's name on the wire
        latent: WireTensor,
        tile: Tile | None = None,
        options: dict[str, Any] | None = None,
        poll: Callable[[], None] | None = None,
        timeout_s: float | None = None,
        on_progress: Report | None = None,
    ) -> tuple[Image, WireTensor]:
        """Decode a latent (segment name ``latent``) to an image; progress as for `vae_encode`."""
        body = VaeDecode(set, tile, options or {})
        reply = self.call("vae_decode", body, [latent], poll=poll, timeout_s=timeout_s, on_progress=on_progress)
        return reply.body, reply.tensors["image"]

    def generate(
        self,
        body: Generate,
        images: Sequence[WireTensor] = (),
        *,
        on_text: Callable[[str], None] | None = None,
        poll: Callable[[], None] | None = None,
        timeout_s: float | None = None,
    ) -> Generated:
        """Let a language model answer; the messages name the images.

        ``on_text`` gets the text piece by piece while it grows; what it raises cancels the request and goes through.
        """

        def on_part(part: Any) -> None:
            if on_text is not None and isinstance(part, dict):
                on_text(str(part.get("text", "")))

        request = dataclasses.replace(body, stream=on_text is not None)
        told = None if on_text is None else on_part
        reply = self.call("generate", request, images, poll=poll, timeout_s=timeout_s, on_part=told)
        return cast("Generated", reply.body)
