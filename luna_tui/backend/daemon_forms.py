"""What the start form needs: choices from the machine and the settings, checks of each field, and the writing.

A port is tried by binding it; who holds it is named from the list of sockets where the system allows that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from luna_engine import settings as settings_file
from luna_engine.errors import InputFileError, LunaError
from luna_engine.settings import DaemonInstance, ModelSet
from luna_tui.backend import roots
from luna_tui.views import DaemonDraft, FieldProblem, FormChoices, ModelFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from luna_engine.settings import Settings
    from luna_tui.views import GpusView

SERVICE_TYPES = ("full", "clip", "vae")
PRECISIONS = ("auto", "fp16", "bf16", "fp32")
FIRST_PORT = 19283
_PARTS = ("l", "g", "t5xxl", "qwen3_4b", "vae")
_ROLES = {"clip_l": "l", "clip_g": "g", "t5xxl": "t5xxl", "qwen3_4b": "qwen3_4b", "vae": "vae"}
_FAMILY_OF_PART = {"clip_l": "sd15", "4 channels": "sd15", "clip_g": "sdxl", "16 channels": "flux", "t5xxl": "flux"}
_SUFFIXES = (".safetensors",)


def choices(settings: Settings, gpus: GpusView | None) -> FormChoices:
    """Return what the form offers. Reads the header of every model file below the roots."""
    places = roots.model_roots(settings)
    devices = [("cpu", "cpu")]
    for card in gpus.cards if gpus else ():
        free = "" if card.free_bytes is None else f", {card.free_bytes / 1024**3:.1f} GiB free"
        devices.append((card.uuid, f"cuda:{card.index} {card.name}{free}"))
    taken = {instance.port for instance in settings.daemons.values()}
    return FormChoices(
        names=tuple(settings.daemons),
        devices=tuple(devices),
        sets=tuple(settings.daemon.sets),
        files=tuple(model_files(places)),
        roots=tuple(str(place) for place in places),
        free_port=_free_port(settings.daemon.host, taken),
    )


def model_files(places: Sequence[Path]) -> list[ModelFile]:
    """Return the files that hold a text encoder or a VAE; damaged ones are left to the Weights screen."""
    found = []
    for root, file in roots.files((place for place in places if place.is_dir()), _SUFFIXES):
        try:
            family, parts, size_bytes = parts_of(file)
        except InputFileError:
            continue
        if parts:
            found.append(ModelFile(str(file), str(file.relative_to(root)), family, parts, size_bytes))
    return found


def parts_of(file: Path) -> tuple[str, tuple[str, ...], int]:
    """Return family, roles and bytes of a file: the text encoders and VAE that its header shows.

    A lone VAE with four latent channels serves SD 1.5 and SDXL alike; it is offered as SD 1.5's.
    """
    from luna_engine.weights.inspection import inspect

    seen = inspect(file)
    roles = dict.fromkeys(role for component in seen.components if (role := _ROLES.get(component.name)))
    if seen.kind.value == "vae":
        roles = {"vae": None}
    family = seen.family or _FAMILY_OF_PART.get(seen.part, "")
    return family, tuple(role for role in _PARTS if role in roles), seen.size_bytes


def draft(settings: Settings, name: str) -> DaemonDraft:
    """Return the form of a configured daemon."""
    instance = settings.daemons.get(name)
    if instance is None:
        raise LunaError("daemon-unknown", f"{name} is not in the settings", "c sets up a new one")
    return DaemonDraft(
        name, instance.service_type, instance.device, str(instance.port), instance.precision,
        set_name=instance.preload[0] if instance.preload else None, preload=bool(instance.preload),
        autostart=instance.autostart, restart=instance.restart, editing=name,
    )  # fmt: skip


def check(draft: DaemonDraft, settings: Settings, own_ports: Iterable[int] = ()) -> tuple[FieldProblem, ...]:
    """Return what is wrong, in the order of the fields.

    Args:
        draft: the form.
        settings: as they are on disk.
        own_ports: ports that the edited daemon itself holds now.
    """
    problems = [_name_problem(draft, settings), _port_problem(draft, settings, set(own_ports))]
    if draft.service_type not in SERVICE_TYPES:
        problems.append(FieldProblem("service_type", f"one of {', '.join(SERVICE_TYPES)}"))
    if draft.precision not in PRECISIONS:
        problems.append(FieldProblem("precision", f"one of {', '.join(PRECISIONS)}"))
    problems.append(_model_problem(draft, settings))
    return tuple(problem for problem in problems if problem is not None)


def _name_problem(draft: DaemonDraft, settings: Settings) -> FieldProblem | None:
    from luna_daemon.identity import check_name

    if not draft.name:
        return FieldProblem("name", "a name is needed, such as clip")
    try:
        check_name(draft.name)
    except LunaError as error:
        return FieldProblem("name", error.hint or error.message)
    if draft.name in settings.daemons and draft.name != draft.editing:
        return FieldProblem("name", f"{draft.name} exists already: e edits it")
    return None


def _port_problem(draft: DaemonDraft, settings: Settings, own: set[int]) -> FieldProblem | None:
    if not draft.port.isdigit() or not 1024 <= int(draft.port) <= 65535:
        return FieldProblem("port", "a number from 1024 to 65535")
    port = int(draft.port)
    for name, instance in settings.daemons.items():
        if name != draft.editing and instance.port == port:
            return FieldProblem("port", f"daemon {name} has it in the settings")
    if port in own or is_free(settings.daemon.host, port):
        return None
    return FieldProblem("port", f"taken{holder(port)}")


def _model_problem(draft: DaemonDraft, settings: Settings) -> FieldProblem | None:
    if draft.file is not None and not Path(draft.file).is_file():
        return FieldProblem("model", f"{draft.file} is not there")
    if draft.file is None and draft.set_name is not None and draft.set_name not in settings.daemon.sets:
        return FieldProblem("model", f"no set {draft.set_name} in the settings")
    return None


def is_free(host: str, port: int) -> bool:
    """Try to listen there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def holder(port: int) -> str:
    """Return `` by pid 812 python`` of whoever listens on a port; empty where the system does not tell."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            is_listener = connection.status == psutil.CONN_LISTEN and connection.laddr[1:2] == (port,)
            if is_listener and connection.pid is not None:
                return f" by pid {connection.pid} {psutil.Process(connection.pid).name()}"
    return ""


def _free_port(host: str, taken: set[int]) -> int:
    return next(port for port in range(FIRST_PORT, 65536) if port not in taken and is_free(host, port))


def write(draft: DaemonDraft, settings: Settings) -> str:
    """Write a checked form to the settings; return the name of the set it serves, empty if none."""
    set_name = draft.set_name
    if draft.file is not None:
        set_name = _write_set(Path(draft.file), settings)
    old = settings.daemons.get(draft.editing or "", DaemonInstance())
    instance = dataclasses.replace(
        old,  # what the form does not show stays
        service_type=draft.service_type,
        device=draft.device,
        port=int(draft.port),
        precision=draft.precision,
        preload=(set_name,) if set_name and draft.preload else (),
        autostart=draft.autostart,
        restart=draft.restart,
    )
    settings_file.save_daemon(draft.name, instance)
    if draft.editing and draft.editing != draft.name:
        settings_file.remove_daemon(draft.editing)
    return set_name or ""


def _write_set(file: Path, settings: Settings) -> str:
    """Make a set of all parts of a file, unless there is one with exactly these; return its name."""
    family, roles, _ = parts_of(file)
    parts: dict[str, Any] = dict.fromkeys(roles, str(file))
    models = ModelSet(family, default=not settings.daemon.sets, **parts)
    for name, known in settings.daemon.sets.items():
        if {part: getattr(known, part) for part in _PARTS if getattr(known, part)} == parts:
            return name
    name = _free_name(file.stem, settings.daemon.sets)
    settings_file.save_set(name, models)
    return name


def _free_name(stem: str, taken: Iterable[str]) -> str:
    base = "".join(sign if sign.isalnum() or sign in "-_" else "-" for sign in stem)[:24].strip("-") or "set"
    names = set(taken)
    return next(name for name in (base, *(f"{base}-{n}" for n in range(2, 999))) if name not in names)
