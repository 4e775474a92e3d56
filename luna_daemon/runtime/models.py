"""The sets a daemon holds: opened from files or uploads, named by what is in them, evicted when room is needed.

The loader's thread opens, checks and builds. Only the device's thread changes ``sets``, which is replaced as a whole,
so that any thread may read it.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from luna_daemon.engine_seam import here
from luna_daemon.progress import counting
from luna_daemon.runtime.backend import Place
from luna_daemon.runtime.contents import content_of
from luna_daemon.runtime.failures import release_cache, trim_heap
from luna_daemon.runtime.files import Stamp
from luna_daemon.runtime.held import HeldSet, SetFacts, WantedPart
from luna_daemon.runtime.language_files import ROLE as LANGUAGE
from luna_daemon.runtime.language_files import open_language_files
from luna_daemon.runtime.leases import Leases
from luna_daemon.runtime.parts import KINDS, SUPPORT_HINT, VAE, OpenFile
from luna_daemon.status_messages import PartStatus
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from luna_daemon.engine_seam import OnDevice
    from luna_daemon.runtime.backend import ModelBackend, ModelSet
    from luna_daemon.runtime.files import ModelFiles
    from luna_daemon.runtime.parts import Part
    from luna_daemon.runtime.residency import Residency
    from luna_daemon.runtime.uploads import UploadStore

_SD3_CHANNELS = 16


@dataclass(frozen=True, slots=True)
class LoadResult:
    """A set, and the sets that had to go for it."""

    held: HeldSet
    evicted: tuple[str, ...] = ()


@dataclass(slots=True)
class ModelStore:
    """Loads, finds and unloads sets.

    Attributes:
        backend: builds them.
        files: resolves file ids.
        uploads: holds what clients sent.
        residency: decides where they are.
        leases: who needs which.
        on_device: runs what changes ``sets`` on the device's thread.
        sources: content hash → the file it was found in, so that a client need not send what a file holds.
        sets: by id.
    """

    backend: ModelBackend
    files: ModelFiles
    uploads: UploadStore
    residency: Residency
    leases: Leases = field(default_factory=Leases)
    on_device: OnDevice = here
    sources: dict[str, tuple[WantedPart, Stamp]] = field(default_factory=dict)
    sets: Mapping[str, HeldSet] = field(default_factory=dict)

    def load(self, family: str, wanted: Sequence[WantedPart], precision: str, check: Callable[[], None]) -> LoadResult:
        """Load a set, or return it if it is there.

        Raises:
            DaemonError: see `ModelBackend.load`, and ``wrong-type``, ``component-missing``, ``model-missing``,
                ``daemon-model-changed``, ``out-of-memory``.
        """
        _require_single_roles(wanted)
        if any(one.role == LANGUAGE for one in wanted):
            return self._load_language(family, wanted, check)
        with contextlib.ExitStack() as stack:
            opened = {one.role: self._open(one, stack) for one in wanted}
            if family == "auto":
                family = guess_family(opened)
            read_bytes = sum(part.size_bytes for part in opened.values())
            hashed_bytes = sum(opened[one.role].size_bytes for one in wanted if one.path is not None)
            stack.enter_context(counting(read_bytes + hashed_bytes, "bytes"))
            contents = {one.role: self._identify(one, opened[one.role], check) for one in wanted}
            resolved = self.backend.resolve_precision(precision, has_vae="vae" in opened)
            name = set_id(family, contents, resolved, self.backend.name)
            known = self.sets.get(name)
            if known is not None and known.loaded is not None:
                return LoadResult(known)
            needed = self.backend.needed_bytes(opened, resolved)
            evicted = self._room_for(needed, known)
            model = self.backend.load(family, opened, resolved, check)
        sizes = model.part_bytes()
        parts = tuple(PartStatus(one.role, one.id, contents[one.role], sizes[one.role]) for one in wanted)
        facts = SetFacts(dict(model.encoders), model.vae, tuple(model.names()))
        held = known or HeldSet(name, family, resolved, parts, tuple(wanted), facts, None)
        evicted += self.on_device(lambda: self._publish(held, model))
        trim_heap()  # what reading took
        return LoadResult(held, evicted)

    def bring(self, name: str, check: Callable[[], None]) -> None:
        """Read a set that had to go to disk again; one that is in memory is left as it is.

        Raises:
            DaemonError: ``model-missing`` if it was unloaded or what it was sent from is gone, ``daemon-model-changed``
                if its files hold other weights now, ``out-of-memory``.
        """
        held = self.get(name)
        if held.loaded is not None:
            return
        found = self.load(held.family, held.wanted, held.precision, check).held
        if found is not held:
            raise DaemonError(
                "daemon-model-changed",
                f"the files of set {held.id} hold other weights now than when it was loaded",
                "load the model again",
                details={"set": found.id},
            )

    def _room_for(self, needed_bytes: int, keep: HeldSet | None) -> tuple[str, ...]:
        """Make room before anything is read, where host memory is the device."""
        if self.residency.has_card:
            return ()  # it is built in host memory and makes its room when it moves
        made: tuple[str, ...] = self.on_device(lambda: self.residency.make_room(self.sets.values(), needed_bytes, keep))
        return made

    def _load_language(self, family: str, wanted: Sequence[WantedPart], check: Callable[[], None]) -> LoadResult:
        """Load a language model; see `luna_daemon.runtime.language_files`."""
        from luna_daemon.runtime.language_sets import LanguageSet
        from luna_daemon.runtime.vision_language import LanguageModel

        one = wanted[0]
        if len(wanted) > 1 or one.path is None:
            raise DaemonError("request-invalid", "a language model is a set by itself, loaded from files")
        with contextlib.ExitStack() as stack:
            files = open_language_files(one.path, one.id or one.path.name, stack)
            if family not in {"auto", files.family}:
                raise DaemonError("wrong-type", f"{files.part.source} is {files.family}, not {family}")
            content = content_of(files.part, files.stamp, check)
            _require_expected(one, files.stamp, content)
            precision = files.precision(has_card=self.residency.has_card)
            name = set_id(files.family, {LANGUAGE: content, "config": files.config_hash}, precision, "transformers")
            known = self.sets.get(name)
            if known is not None and known.loaded is not None:
                return LoadResult(known)
            needed = files.needed_bytes(has_card=self.residency.has_card)
            evicted = self._room_for(needed, known)
            model = LanguageSet(LanguageModel(files, check, has_card=self.residency.has_card), self.residency.device)
        parts = (PartStatus(LANGUAGE, one.id, content, model.part_bytes()[LANGUAGE]),)
        facts = SetFacts({}, None, tuple(model.names()), model.facts)
        held = known or HeldSet(name, files.family, precision, parts, tuple(wanted), facts, None)
        evicted += self.on_device(lambda: self._publish(held, model))
        trim_heap()  # what reading took
        return LoadResult(held, evicted)

    def _publish(self, held: HeldSet, model: ModelSet) -> tuple[str, ...]:
        evicted: tuple[str, ...] = ()
        if model.place is not Place.DEVICE:
            evicted = self.residency.make_room(self.sets.values(), held.size_bytes, held)
            model.move(Place.DEVICE)
        held.loaded = model
        held.last_used = time.monotonic()
        self.sets = {**self.sets, held.id: held}
        return evicted

    @contextlib.contextmanager
    def using(self, held: HeldSet) -> Iterator[float]:
        """Have a set on the device and keep it there while it is used; gives the seconds that it took to get it there.

        Raises:
            SetOnDiskError: its weights have to be read first.
            DaemonError: ``model-missing`` if it was unloaded meanwhile, ``out-of-memory``.
        """
        if self.sets.get(held.id) is not held:
            raise DaemonError("model-missing", f"set {held.id} was unloaded", "load it with load_model")
        seconds = self.residency.promote(held, self.sets.values())
        held.users += 1
        try:
            yield seconds
        finally:
            held.users -= 1
            held.touch()

    def demote_idle(self, nbytes: int | None = None, keep: str | None = None) -> tuple[int, list[str]]:
        """Move idle sets off the device, but for one; return the bytes that this freed there and their ids."""
        known = self.sets
        moved: list[str] = self.residency.demote_idle(known.values(), nbytes, known.get(keep or ""))
        return sum(known[name].size_bytes for name in moved), moved

    def _open(self, wanted: WantedPart, stack: contextlib.ExitStack) -> Part:
        kind = KINDS.get(wanted.role)
        if kind is None and not self.backend.reads_any:
            raise DaemonError(
                "model-unsupported",
                f"the {self.backend.name} backend has no part {wanted.role!r}; it has {', '.join(KINDS)}",
                SUPPORT_HINT,
            )
        if wanted.path is None:
            return self._by_content(wanted, stack)
        label = wanted.id or wanted.path.name
        file = stack.enter_context(OpenFile(wanted.path, label))
        part = None if kind is None else file.find(wanted.role)
        if part is not None:
            return part
        if self.backend.reads_any and (kind is None or kind is VAE):
            return file.whole(wanted.role)
        raise _without_part(file, KINDS[wanted.role].label)

    def has_content(self, content: str) -> bool:
        """Tell whether a part with this hash can be loaded without being sent."""
        return self.uploads.part(content) is not None or self._file_with(content) is not None

    def _file_with(self, content: str) -> WantedPart | None:
        if content not in self.sources:
            return None
        source, stamp = self.sources[content]
        assert source.path is not None  # noqa: S101 - only files are noted
        with contextlib.suppress(OSError):
            if Stamp.of(source.path) == stamp:
                return source
        del self.sources[content]
        return None

    def _by_content(self, wanted: WantedPart, stack: contextlib.ExitStack) -> Part:
        content = wanted.content or ""
        source = self._file_with(content)
        part = self.uploads.part(content) if source is None else self._open(source, stack)
        if part is None:
            raise DaemonError("model-missing", f"content {content} is not here", "send it with put_model")
        if part.kind.role != wanted.role:
            raise DaemonError(
                "wrong-type", f"content {wanted.content} is {part.kind.label}, not a part {wanted.role!r}", None
            )
        return part

    def _identify(self, wanted: WantedPart, part: Part, check: Callable[[], None]) -> str:
        if wanted.path is None:
            return wanted.content or ""
        stamp = Stamp.of(wanted.path)
        content = content_of(part, stamp, check)
        self.sources[content] = (WantedPart(wanted.role, wanted.path, wanted.id), stamp)
        _require_expected(wanted, stamp, content)
        return content

    def mark(self, held: HeldSet, *, pin: bool, default: bool) -> None:
        """Pin a set, or make it its family's default in place of another with the same roles."""
        held.is_pinned = held.is_pinned or pin
        if default:
            for other in self.sets.values():
                if other.family == held.family and other.roles & held.roles:
                    other.is_default = False
            held.is_default = True

    def get(self, name: str, component: str | None = None) -> HeldSet:
        """Return a set by id, or a family's default set.

        Args:
            name: set id or family.
            component: ``text``, ``vae`` or ``llm``; a family's sets without it do not count.

        Raises:
            DaemonError: ``model-missing``.
        """
        if name in self.sets:
            return self.sets[name]
        fitting = [held for held in self.sets.values() if held.family == name and _has(held, component)]
        chosen = [held for held in fitting if held.is_default] or fitting
        if len(chosen) == 1:
            return chosen[0]
        if chosen:
            ids = ", ".join(held.id for held in chosen)
            raise DaemonError("model-missing", f"{len(chosen)} sets of {name} are loaded: {ids}", "name one by its id")
        loaded = ", ".join(f"{held.family} {held.id}" for held in self.sets.values()) or "nothing"
        raise DaemonError(
            "model-missing", f"no set {name!r} is loaded here; loaded is {loaded}", "load it with load_model"
        )

    def unload(self, name: str | None, *, force: bool) -> tuple[int, dict[str, str]]:
        """Forget one set (by id or family) or all.

        Returns:
            The freed bytes, and the ids of those that stayed with the reason.
        """
        done: tuple[int, dict[str, str]] = self.on_device(lambda: self._unload(name, force=force))
        release_cache()  # a model and its hooks refer to each other: without a collection it stays for long
        return done

    def _unload(self, name: str | None, *, force: bool) -> tuple[int, dict[str, str]]:
        chosen = list(self.sets.values()) if name is None else [self.get(name)]
        kept = {} if force else {held.id: why for held in chosen if (why := self._why_kept(held)) is not None}
        gone = [held for held in chosen if held.id not in kept]
        self.sets = {key: held for key, held in self.sets.items() if held not in gone}
        return sum(held.held_bytes for held in gone), kept

    def _why_kept(self, held: HeldSet) -> str | None:
        if held.is_pinned:
            return "is pinned"
        if held.users:
            return "is used by a request that runs"
        leases = self.leases.count(held.id)
        return f"is held by {leases} connections" if leases else None


def _require_expected(wanted: WantedPart, stamp: Stamp, content: str) -> None:
    expect = wanted.expect
    if expect is not None and not stamp.agrees(expect) and expect.content != content:
        raise DaemonError(
            "daemon-model-changed",
            f"{wanted.id} is another file here than the one the client sees",
            "let both sides use the same models folder, or use LunaCheckpointTunnel, which sends its own model",
            details={"content": content},
        )


def set_id(family: str, contents: Mapping[str, str], precision: str, backend: str) -> str:
    """Return the 16 hex digits that name a set: the same model, precision and backend give the same id anywhere."""
    lines = [family, precision, backend, *(f"{role}:{contents[role]}" for role in sorted(contents))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def guess_family(parts: Mapping[str, Part]) -> str:
    """Return the family of parts given without one.

    Qwen3 is z-image's; T5 with CLIP-L alone is flux, other company of T5, or none, is sd3. CLIP-L with CLIP-G, or
    anything out of an SDXL checkpoint, is sdxl; CLIP-L alone is sd15's encoder. A VAE alone
    counts as sd15's if it has 4 channels and as flux's if it has 16: the families that share a number of channels
    build it alike, and what it computes does not depend on the name.

    Raises:
        DaemonError: ``request-invalid`` for architectures that Luna does not know.
    """
    if any(part.is_whole for part in parts.values()):
        raise DaemonError(
            "request-invalid",
            f"the family of {', '.join(part.source for part in parts.values())} cannot be guessed",
            "name it as ComfyUI's CLIPLoader does, such as wan or hunyuan_video",
        )
    text = [part for role, part in parts.items() if role != "vae"]
    if not text:
        (vae,) = parts.values()
        if vae.latent_channels == _SD3_CHANNELS:
            return "flux"
        return "sdxl" if vae.is_of_sdxl else "sd15"
    if "qwen3_4b" in parts:
        return "z-image"
    if "t5xxl" in parts:
        return "sd3" if "g" in parts or "l" not in parts else "flux"
    return "sdxl" if "g" in parts or any(part.is_of_sdxl for part in text) else "sd15"


def _require_single_roles(wanted: Sequence[WantedPart]) -> None:
    roles = [one.role for one in wanted]
    if len(set(roles)) != len(roles):
        raise DaemonError("request-invalid", "a role is named twice", "name every part of the set once")


def _without_part(file: OpenFile, label: str) -> DaemonError:
    found = [kind.label for role, kind in KINDS.items() if file.find(role) is not None]
    if found:
        return DaemonError("component-missing", f"{file.source} has {', '.join(found)} but not {label}", None)
    return DaemonError(
        "wrong-type",
        f"{file.source} is no checkpoint with {label}, nor that part alone; it holds {file.description()}",
        "luna weights inspect FILE says what a file is",
    )


def _has(held: HeldSet, component: str | None) -> bool:
    if component is None:
        return True
    if component in {"vae", LANGUAGE}:
        return component in held.roles
    return bool(held.roles - {"vae", LANGUAGE})
