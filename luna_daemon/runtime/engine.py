"""The engine: what the server calls for every model command. It owns the device, the backend and the sets.

torch is imported in `start`, not before. Which thread calls what is said at `luna_daemon.engine_seam.ModelEngine`.
Failures of the device become errors of the protocol here, and only here.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

from luna_daemon.arenas import NoDeviceMemory
from luna_daemon.encode_messages import EncodeText, EncodeTokens, Tile
from luna_daemon.engine_seam import here
from luna_daemon.lora_messages import LoraFound, Loras
from luna_daemon.model_messages import ModelList, SetRow
from luna_daemon.runtime.device import choose_device, find_cards, show_only
from luna_daemon.runtime.effort import Effort
from luna_daemon.runtime.files import ModelFiles, find_roots
from luna_daemon.runtime.leases import Leases
from luna_daemon.runtime.listing import FileList
from luna_daemon.runtime.uploads import UploadStore
from luna_daemon.status_messages import CacheStatus, DeviceStatus, EngineSnapshot
from luna_engine import settings as luna_settings
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    import torch

    from luna_daemon.device_memory import DeviceMemory
    from luna_daemon.encode_messages import VaeDecode, VaeEncode
    from luna_daemon.engine_seam import Answer, Check, Encoding, EngineOptions, OnDevice, OnPhase, Ran, Steps
    from luna_daemon.frames import WireTensor
    from luna_daemon.language_messages import Generate
    from luna_daemon.lora_messages import LoraDrop, LoraHas, LoraList, LoraPut, LoraValidate
    from luna_daemon.memory_messages import Free
    from luna_daemon.messages import Downgrade
    from luna_daemon.model_messages import DescribeModel, ListModels, LoadModel, PutModel, UnloadModel
    from luna_daemon.runtime.backend import ModelBackend
    from luna_daemon.runtime.compute import ComputeCommands
    from luna_daemon.runtime.device import DeviceChoice
    from luna_daemon.runtime.freeing import Freeing
    from luna_daemon.runtime.ladder import Ladder
    from luna_daemon.runtime.lora_commands import LoraCommands
    from luna_daemon.runtime.model_commands import ModelCommands
    from luna_daemon.runtime.models import ModelStore

    Segments = Mapping[str, WireTensor]

EncodeBody = TypeVar("EncodeBody", bound=EncodeTokens | EncodeText)
_log = logging.getLogger("luna.daemon.engine")
_DOWNGRADES_KEPT = 10
_REFRESH_S = 0.5
ENCODE_TILE, DECODE_TILE = Tile(512, 512, 64), Tile(64, 64, 16)
"""What ComfyUI tiles with when memory runs out: pixels, latent units."""


class Engine:
    """See `luna_daemon.engine_seam.ModelEngine`.

    Args:
        options: from the command line and the settings; roots that are not given are looked for.
    """

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        environ = os.environ if options.comfyui is None else {**os.environ, "COMFYUI_PATH": str(options.comfyui)}
        roots = options.roots if options.roots is not None else find_roots(luna_settings.load(), environ)
        self._files = ModelFiles(roots)
        self._list = FileList(self._files)
        self._uploads = UploadStore()
        self._downgrades: deque[Downgrade] = deque(maxlen=_DOWNGRADES_KEPT)
        self._backend_reason: str | None = None
        self._device_status = DeviceStatus("unknown")
        self._measured_at = 0.0
        self._on_device: OnDevice = here
        self._device: torch.device | None = None
        self._store: ModelStore | None = None
        self._models: ModelCommands | None = None
        self._compute: ComputeCommands | None = None
        self._loras: LoraCommands | None = None
        self._freeing: Freeing | None = None
        self._ladder: Ladder | None = None
        self.leases = Leases()
        self.device_memory: DeviceMemory | NoDeviceMemory = NoDeviceMemory("the daemon is still starting")

    # ---- start and status -----------------------------------------------------------------------------------

    def start(self, on_phase: OnPhase, on_device: OnDevice = here) -> None:
        """Import torch, take the device, choose the backend, preload and warm up.

        Raises:
            DaemonError: ``device-unusable``; ``settings-invalid`` for a backend that is not there;
                ``precision-unsupported``; what loading a preloaded set raises.
        """
        self._on_device = _in_inference(on_device)
        self._refuse_clip_precision()
        on_phase("importing torch", None)
        choice = choose_device(self._options.device, self._options.service_type, find_cards())
        show_only(choice.card)
        from luna_daemon.runtime.setup import share_card, take_device

        self._device = take_device(choice, self._options.threads)
        self.device_memory = share_card(self._device, is_wanted=self._options.shares_card)
        self._build(choice, self._backend(self._device, on_phase))
        self._preload(on_phase)

    def _refuse_clip_precision(self) -> None:
        clip = self._options.clip_precision
        if clip not in {None, "auto", "fp16"}:
            raise DaemonError(
                "precision-unsupported",
                f"text encoders are kept in fp16 and compute in fp32, as in ComfyUI; {clip} is not offered",
                "leave --clip-precision out",
            )

    def _backend(self, device: torch.device, on_phase: OnPhase) -> ModelBackend:
        from luna_daemon.runtime.choice import choose_backend

        on_phase("choosing the backend", None)
        backend, self._backend_reason = choose_backend(
            self._options.backend, self._options.comfyui, device, self._on_device
        )
        _log.info("backend %s: %s", backend.name, self._backend_reason)
        return backend

    def _build(self, choice: DeviceChoice, backend: ModelBackend) -> None:
        from luna_daemon.runtime.compute import ComputeCommands
        from luna_daemon.runtime.freeing import Freeing
        from luna_daemon.runtime.ladder import Ladder
        from luna_daemon.runtime.lora_commands import LoraCommands
        from luna_daemon.runtime.model_commands import ModelCommands
        from luna_daemon.runtime.models import ModelStore
        from luna_daemon.runtime.setup import make_residency

        options, device = self._options, self._device
        assert device is not None  # noqa: S101 - start has set it; not input
        backend.loras.registry.cap_bytes = options.lora_cache_bytes
        drop_merged, leases = backend.loras.merged.drop, self.leases
        residency = make_residency(device, options, drop_merged, leases.count)
        self._store = ModelStore(backend, self._files, self._uploads, residency, leases, self._on_device)
        store = self._store
        self._ladder = Ladder(drop_merged, lambda keep: self._on_device(lambda: store.demote_idle(keep=keep))[1])
        precision = options.vae_precision or options.precision
        self._models = ModelCommands(self._store, options.service_type, precision)
        self._compute = ComputeCommands(self._store, options.service_type, options.comfyui)
        self._freeing = Freeing(self._store, self._compute.results, self._on_device)
        self._loras = LoraCommands(self._store.backend.loras.registry, self._store, device)
        self._device_status = DeviceStatus(
            kind=device.type,
            uuid=choice.card.uuid if choice.card else None,
            name=choice.card.name if choice.card else None,
            reason=choice.reason,
        )
        self._measure()

    def _preload(self, on_phase: OnPhase) -> None:
        from luna_daemon.runtime.preload import warm_up

        assert self._models is not None and self._store is not None  # noqa: S101, PT018 - set by _build
        names = self._options.preload
        for index, name in enumerate(names):
            on_phase(f"loading {name}", index / len(names))
            held, left_out = self._run("loading", self._models.preload, name, self._options.sets or {})
            if left_out is not None:
                self._downgrades.append(left_out)
                _log.warning("%s: %s instead of %s: %s", name, left_out.did, left_out.asked, left_out.reason)
            on_phase(f"warming up {name}", (index + 0.8) / len(names))
            self._run("warming up", warm_up, held.model)
        self._measure()

    def snapshot(self) -> EngineSnapshot:
        """Return the engine's share of the status."""
        sets = self._store.sets if self._store is not None else {}
        sent = self._uploads
        caches = {"uploads": CacheStatus(sent.size_bytes(), sent.cap_bytes, len(sent), evictions=sent.evictions)}
        if self._compute is not None:
            caches["results"] = self._compute.results.status()
        if self._store is not None:
            shelf = self._store.backend.loras
            caches |= {"loras": shelf.registry.status(), "merged": shelf.merged.status()}
        return EngineSnapshot(
            device=self._device_status,
            backend=None if self._store is None else self._store.backend.name,
            backend_reason=self._backend_reason,
            sets=tuple(held.status(self.leases.count(held.id)) for held in sets.values()),
            caches=caches,
            downgrades=tuple(self._downgrades),
        )

    def _measure(self) -> None:
        """Read the device's memory; only threads that may touch the device call this."""
        from luna_daemon.runtime.setup import measure

        if self._device is not None:
            self._device_status = measure(self._device_status, self._device)
            self._measured_at = time.monotonic()

    # ---- commands -------------------------------------------------------------------------------------------

    def list_models(self, body: ListModels, segments: Segments, check: Check) -> Answer:  # noqa: ARG002 - the seam
        """List the loaded sets and, unless only loaded ones are asked for, the files under the roots."""
        rows = () if body.loaded else self._list.rows(body.kind)
        return ModelList(tuple(_set_row(status) for status in self.snapshot().sets), rows), []

    def describe_model(self, body: DescribeModel, segments: Segments, check: Check) -> Answer:
        """Return facts and tensor names of a set."""
        return self._command("describing", self._ready_models().describe_model, body, segments, check)

    def load_model(self, body: LoadModel, segments: Segments, check: Check) -> Answer:
        """Load a set from files or sent parts."""
        return self._command("loading a set", self._ready_models().load_model, body, segments, check)

    def put_model(self, body: PutModel, segments: Segments, check: Check) -> Answer:
        """Take a step of an upload."""
        return self._command("taking a model", self._ready_models().put_model, body, segments, check)

    def unload_model(self, body: UnloadModel, segments: Segments, check: Check) -> Answer:
        """Unload one set or all."""
        return self._command("unloading", self._ready_models().unload_model, body, segments, check)

    def encode_tokens(self, body: EncodeTokens, segments: Segments, check: Check) -> Answer:
        """Encode token rows."""
        return self._alone(body, segments, check)

    def encode_text(self, body: EncodeText, segments: Segments, check: Check) -> Answer:
        """Encode texts."""
        return self._alone(body, segments, check)

    def _alone(self, body: EncodeTokens | EncodeText, segments: Segments, check: Check) -> Answer:
        ran = self.encode([self.prepare(body, segments, check)], check)
        return ran.answers[0]

    def group(self, body: Any) -> Hashable | None:
        """Put encodes of one set together, but for exact ones."""
        if not isinstance(body, (EncodeTokens, EncodeText)) or self._asked(body).exact:
            return None
        try:
            return self._ready_store().get(body.set, "text").id
        except DaemonError:
            return body.set  # refused when it is its turn, if the set is still not there

    def prepare(self, body: EncodeTokens | EncodeText, segments: Segments, check: Check) -> Encoding:  # noqa: ARG002 - the seam
        """Look at a request to encode."""
        encoding: Encoding = self._run("reading a prompt", self._ready_compute().prepare, self._asked(body), segments)
        return encoding

    def row_cap(self, encoding: Encoding) -> int:
        """Ask the device for its memory."""
        from luna_daemon.runtime.memory import row_cap

        assert self._device is not None  # noqa: S101 - nothing is prepared before start
        return row_cap(self._device, encoding.row_bytes)

    def encode(self, batch: Sequence[Encoding], check: Check) -> Ran:
        """Encode a batch."""
        encode = self._ready_compute().encode
        effort = Effort(rows=max(self.row_cap(encoding) for encoding in batch))
        ran: Ran = self._climb("encoding text", lambda effort: encode(batch, check, effort), effort)  # type: ignore[arg-type]  # they are what prepare gave
        self._measure_now_and_then()
        return ran

    def recall(self, body: Any, segments: Segments) -> Answer | None:
        """Answer token rows that were encoded before, on any thread."""
        if self._compute is None or not isinstance(body, EncodeTokens):
            return None
        return self._compute.recall(self._asked(body), segments)

    def _asked(self, body: EncodeBody) -> EncodeBody:
        """Return a request as it is to be computed: an exact daemon makes all of them exact."""
        return dataclasses.replace(body, exact=True) if self._options.is_exact else body

    def lora_list(self, body: LoraList, segments: Segments, check: Check) -> Answer:  # noqa: ARG002 - the seam
        """List the LoRAs that are kept, on any thread."""
        return (Loras(()) if self._loras is None else self._loras.lora_list()), []

    def lora_has(self, body: LoraHas, segments: Segments, check: Check) -> Answer:  # noqa: ARG002 - the seam
        """Tell which LoRAs are here, on any thread."""
        return (LoraFound((), body.hashes) if self._loras is None else self._loras.lora_has(body)), []

    def lora_put(self, body: LoraPut, segments: Segments, check: Check) -> Answer:
        """Take a LoRA in."""
        return self._command("taking a LoRA", self._ready_loras().lora_put, body, segments, check)

    def lora_drop(self, body: LoraDrop, segments: Segments, check: Check) -> Answer:
        """Forget LoRAs."""
        return self._command("forgetting LoRAs", self._ready_loras().lora_drop, body, segments, check)

    def lora_validate(self, body: LoraValidate, segments: Segments, check: Check) -> Answer:
        """Judge a LoRA against a set."""
        return self._command("judging a LoRA", self._ready_loras().lora_validate, body, segments, check)

    def vae_encode(self, body: VaeEncode, segments: Segments, check: Check) -> Answer:
        """Encode pixels; in tiles of ComfyUI's size if nothing else helps against too little memory."""
        encode = self._ready_compute().vae_encode
        effort = Effort(spare_tile=None if body.tile else ENCODE_TILE)
        return self._measured("encoding an image", lambda effort: encode(body, segments, check, effort), effort)

    def vae_decode(self, body: VaeDecode, segments: Segments, check: Check) -> Answer:
        """Decode a latent; in tiles of ComfyUI's size if nothing else helps against too little memory."""
        decode = self._ready_compute().vae_decode
        effort = Effort(spare_tile=None if body.tile else DECODE_TILE)
        return self._measured("decoding a latent", lambda effort: decode(body, segments, check, effort), effort)

    def free(self, body: Free, segments: Segments, check: Check) -> Answer:
        """Give memory back on demand."""
        if self._freeing is None:
            raise _loading()
        return self._command("freeing memory", self._freeing.free, body, segments, check)

    def bring(self, set_id: str, check: Check) -> None:
        """Read a set from disk."""
        self._run("reading a set", self._ready_store().bring, set_id, check)

    def generate(self, body: Generate, segments: Segments, check: Steps) -> Answer:
        """Let a language model answer."""
        from luna_daemon.runtime.language_commands import LanguageCommands

        return self._command("generating text", LanguageCommands(self._ready_store()).generate, body, segments, check)

    def _ready_store(self) -> ModelStore:
        if self._store is None:
            raise _loading()
        return self._store

    def _ready_models(self) -> ModelCommands:
        if self._models is None:
            raise _loading()
        return self._models

    def _ready_compute(self) -> ComputeCommands:
        if self._compute is None:
            raise _loading()
        return self._compute

    def _ready_loras(self) -> LoraCommands:
        if self._loras is None:
            raise _loading()
        return self._loras

    def _command(
        self, doing: str, method: Callable[[Any, Segments, Any], Answer], body: Any, segments: Segments, check: Check
    ) -> Answer:
        return self._measured(doing, lambda _: method(body, segments, check), Effort())

    def _measured(self, doing: str, work: Callable[[Effort], Answer], effort: Effort) -> Answer:
        answer: Answer = self._climb(doing, work, effort)
        self._measure_now_and_then()
        return answer

    def _measure_now_and_then(self) -> None:
        if time.monotonic() - self._measured_at > _REFRESH_S:
            self._on_device(self._measure)

    def _run(self, doing: str, call: Callable[..., Any], *arguments: Any) -> Any:
        return self._climb(doing, lambda _: call(*arguments), Effort())

    def _climb(self, doing: str, work: Callable[[Effort], Any], effort: Effort) -> Any:
        """Do work under inference mode, with less at once when memory runs out (`luna_daemon.runtime.ladder`)."""
        import torch

        from luna_daemon.runtime.failures import is_device_lost, out_of_memory

        ladder, device, store = self._ladder, self._device, self._store
        assert ladder is not None and device is not None and store is not None  # noqa: S101, PT018 - set by start

        def refuse(needed_bytes: int | None) -> DaemonError:
            holders = {held.id: held.held_bytes for held in store.sets.values() if held.held_bytes}
            return out_of_memory(device, doing, holders, needed_bytes)

        try:
            with torch.inference_mode():
                return ladder.run(doing, work, effort, refuse)
        except RuntimeError as error:
            if is_device_lost(error):
                raise DaemonError("device-lost", f"the device failed while {doing}: {error}", None) from error
            raise


def _in_inference(on_device: OnDevice) -> OnDevice:
    """Have work on the device's thread run under inference mode, which is a thread's own."""

    def run(work: Callable[[], Any]) -> Any:
        import torch

        with torch.inference_mode():
            return work()

    return lambda work: on_device(lambda: run(work))


def _loading() -> DaemonError:
    return DaemonError("daemon-loading", "the daemon is still starting", retry_after_ms=500)


def _set_row(status: Any) -> SetRow:
    return SetRow(
        id=status.set,
        family=status.family,
        precision=status.precision,
        parts={part.role: part.content or "" for part in status.parts},
        place=status.place,
        bytes=status.bytes,
        default=status.default,
    )
