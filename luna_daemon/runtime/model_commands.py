"""The model commands: describe, load, put, unload. Bodies in, replies and segments out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from luna_daemon.frames import WireTensor
from luna_daemon.messages import Did, Downgrade
from luna_daemon.model_messages import Description, Loaded, ModelFacts, PutReply, Unloaded
from luna_daemon.runtime import uploads
from luna_daemon.runtime.files import require_file
from luna_daemon.runtime.held import HeldSet, WantedPart
from luna_daemon.runtime.language_files import ROLE as LANGUAGE
from luna_daemon.runtime.parts import KINDS, OpenFile
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from luna_daemon.engine_seam import Answer, Check
    from luna_daemon.model_messages import DescribeModel, LoadModel, PutModel, UnloadModel
    from luna_daemon.runtime.models import ModelStore
    from luna_engine.settings import ModelSet

    Segments = Mapping[str, WireTensor]

_SET_ROLES = ("l", "g", "t5xxl", "qwen3_4b", "vae", LANGUAGE)


def serves(service_type: str, role: str) -> bool:
    """Tell whether a service takes parts of a role."""
    return service_type == "full" or (role == "vae") == (service_type == "vae")


class ModelCommands:
    """Answers the model commands.

    Args:
        store: holds the sets.
        service_type: ``full``, ``clip`` or ``vae``.
        precision: the daemon's own, used where a request says ``auto``.
    """

    def __init__(self, store: ModelStore, service_type: str, precision: str) -> None:
        self._store = store
        self._service_type = service_type
        self._precision = precision

    def describe_model(self, body: DescribeModel, segments: Segments, check: Check) -> Answer:  # noqa: ARG002 - the seam
        """Return facts and, as JSON, the tensor names of a set."""
        held = self._store.get(body.set)
        names = {entry.name: {"shape": entry.shape, "dtype": entry.dtype} for entry in held.facts.names}
        contents = {part.role: part.content or "" for part in held.parts}
        data = WireTensor.of_bytes("names", json.dumps(names, separators=(",", ":")).encode())
        return Description(held.id, self._facts(held), contents), [data]

    def load_model(self, body: LoadModel, segments: Segments, check: Check) -> Answer:  # noqa: ARG002 - the seam
        """Load a set, or find it loaded."""
        wanted = []
        for part in body.parts:
            self._require_service(part.role)
            path = None if part.id is None else self._store.files.resolve(part.id, may_be_folder=part.role == LANGUAGE)
            wanted.append(WantedPart(part.role, path, part.id, part.content, part.expect))
        precision = self._precision if body.precision == "auto" else body.precision
        result = self._store.load(body.family, wanted, precision, check)
        held = result.held
        self._store.mark(held, pin=body.pin, default=body.default)
        contents = {part.role: part.content or "" for part in held.parts}
        reply = Loaded(
            set=held.id,
            facts=self._facts(held),
            content=contents,
            bytes=held.size_bytes,
            place=held.place.value,
            evicted=result.evicted,
            did=Did(backend=self._store.backend.name, set=held.id),
        )
        return reply, []

    def put_model(self, body: PutModel, segments: Segments, check: Check) -> Answer:
        """Take a step of an upload; the message has checked that each step has its fields."""
        store = self._store.uploads
        if body.step == "begin":
            return self._begin(body.content or "", body.nbytes or 0), []
        upload = body.upload or ""
        if body.step == "chunk":
            if "bytes" not in segments:
                raise DaemonError("tensor-invalid", "segment 'bytes' is missing", details={"segment": "bytes"})
            store.chunk(upload, body.offset or 0, segments["bytes"].data)
            return PutReply(upload=upload), []
        if body.step == "commit":
            return PutReply(have=True, id=f"content:{store.commit(upload, check)}"), []
        store.abort(upload)
        return PutReply(), []

    def _begin(self, content: str, nbytes: int) -> PutReply:
        if self._store.has_content(content):
            return PutReply(have=True, id=f"content:{content}")
        upload = self._store.uploads.begin(content, nbytes)
        return PutReply(upload=upload, chunk_bytes=uploads.CHUNK_BYTES)

    def unload_model(self, body: UnloadModel, segments: Segments, check: Check) -> Answer:  # noqa: ARG002 - the seam
        """Unload one set, or all and what was sent.

        Raises:
            DaemonError: ``model-in-use`` for a single set that is pinned, leased or used, without ``force``.
        """
        freed, kept = self._store.unload(body.set, force=body.force)
        if body.all:
            freed += self._store.uploads.clear()
        if body.set is not None and kept:
            ((name, why),) = kept.items()
            raise DaemonError("model-in-use", f"set {name} {why}", "unload it with force")
        return Unloaded(freed, tuple(kept)), []

    def preload(self, name: str, sets: Mapping[str, ModelSet]) -> tuple[HeldSet, Downgrade | None]:
        """Load a set of the settings, or whatever a model file holds for this service.

        Args:
            name: a set's name, a file id or a path; a folder is a language model's.
            sets: the settings' sets.

        Returns:
            The set, and what was left out of a file.
        """
        if name in sets:
            return self._preload_set(name, sets[name]), None
        path, file_id = self._place(name, may_be_folder=True)
        if path.is_dir():
            self._require_service(LANGUAGE)
            wanted = WantedPart(LANGUAGE, path, file_id)
            return self._store.load("auto", [wanted], self._precision, lambda: None).held, None
        return self._preload_file(path, file_id)

    def _preload_set(self, name: str, entry: ModelSet) -> HeldSet:
        given = {role: getattr(entry, role) for role in _SET_ROLES if getattr(entry, role) is not None}
        wanted = [
            WantedPart(role, *self._place(value, may_be_folder=role == LANGUAGE))
            for role, value in given.items()
            if serves(self._service_type, role)
        ]
        if not wanted:
            raise DaemonError(
                "component-missing",
                f"set {name!r} has no part for a {self._service_type} daemon",
                "name its files under [daemon.sets] in the settings",
            )
        result = self._store.load(entry.family or "auto", wanted, self._precision, lambda: None)
        self._store.mark(result.held, pin=False, default=entry.default)
        return result.held

    def _preload_file(self, path: Path, file_id: str | None) -> tuple[HeldSet, Downgrade | None]:
        label = file_id or path.name
        with OpenFile(path, label) as file:
            found = [role for role in KINDS if file.find(role) is not None]
            family = file.family
        roles = [role for role in found if serves(self._service_type, role)]
        usable = self._store.backend.usable_roles(family or "auto", roles)
        if not usable:
            raise DaemonError(
                "wrong-type" if not roles else "model-unsupported",
                f"{label} holds nothing that a {self._service_type} daemon with the native backend serves",
                "name a checkpoint, a text encoder or a VAE of sd15, sdxl, sd3, flux or z-image",
            )
        wanted = [WantedPart(role, path, file_id) for role in usable]
        result = self._store.load(family or "auto", wanted, self._precision, lambda: None)
        left = [role for role in roles if role not in usable]
        if not left:
            return result.held, None
        reason = f"the native backend has no {family} text encoding"
        return result.held, Downgrade(",".join(roles), ",".join(usable), reason)

    def _place(self, value: str, *, may_be_folder: bool = False) -> tuple[Path, str | None]:
        """Return path and id of a file, or of a model's folder, that the user's own command line or settings name."""
        path = Path(value).expanduser()
        if path.is_absolute() or path.exists():
            if not (may_be_folder and path.is_dir()):
                require_file(path, path.name)
            return path.absolute(), self._store.files.id_of(path)
        return self._store.files.resolve(value, may_be_folder=may_be_folder), value

    def _require_service(self, role: str) -> None:
        if not serves(self._service_type, role):
            raise DaemonError(
                "service-not-here",
                f"this is a {self._service_type} daemon; it takes no part {role!r}",
                "ask the other daemon, or start one with --service-type full",
            )

    def _facts(self, held: HeldSet) -> ModelFacts:
        return ModelFacts(
            family=held.family,
            backend=self._store.backend.name,
            precision=held.precision,
            encoders=dict(held.facts.encoders),
            vae=held.facts.vae,
            language=held.facts.language,
        )
