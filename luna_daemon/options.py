"""The command line of `luna-daemon`: what it accepts, what it means, and how to write one for a configured daemon."""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from luna_daemon import identity
from luna_daemon.engine_seam import EngineOptions
from luna_daemon.messages import SERVICE_TYPES
from luna_daemon.model_messages import PRECISIONS
from luna_engine.errors import DaemonError
from luna_engine.settings import ModelSet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luna_engine.settings import DaemonInstance, Settings

BACKENDS = ("auto", "native", "comfy")
FILES_SET = "files"
"""The name of the set that the settings' clip_l_path, clip_g_path and vae_path are."""
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_BYTES = re.compile(r"(\d{1,15})(KiB|MiB|GiB)?")
_UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_DEVICE = re.compile(r"cpu|cuda(:\d{1,3})?|GPU-[0-9a-fA-F-]{8,64}")


@dataclass(frozen=True, slots=True)
class DaemonOptions:
    """A parsed command line. ``port`` None: no TCP; ``socket`` None: the usual place."""

    name: str
    service_type: str
    host: str
    port: int | None
    socket: Path | None
    device: str | None
    backend: str
    comfyui: Path | None
    precision: str
    clip_precision: str | None
    vae_precision: str | None
    preload: tuple[str, ...]
    vram_budget_bytes: int | None
    ram_budget_bytes: int | None
    threads: int | None
    start_log: Path | None
    metrics_port: int | None = None
    is_exact: bool = False
    shares_card: bool = True


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise DaemonError("settings-invalid", message, "see luna-daemon --help")


def parser() -> argparse.ArgumentParser:
    """Return the parser."""
    make = _Parser(
        prog="luna-daemon",
        description="Serves text encoders and VAEs to several ComfyUI instances.",
        allow_abbrev=False,
    )
    add = make.add_argument
    add("-t", "--service-type", choices=SERVICE_TYPES, default="full", help="what to serve (default: full)")
    add("-d", "--device", help="cpu, cuda:N or GPU-<uuid> (default: by service type, cpu without a card)")
    add("-p", "--port", type=int, help="TCP port on loopback (default: 19283, vae 19284; 0 lets the system choose)")
    add("--socket", type=Path, help="path of the Unix socket")
    add("--no-tcp", action="store_true", help="listen on the Unix socket only")
    add("--backend", choices=BACKENDS, default="auto", help="what runs the models (default: auto)")
    add("--comfyui", type=Path, help="ComfyUI checkout (default: COMFYUI_PATH)")
    add("--precision", choices=PRECISIONS, default="auto", help="of all models")
    add("--clip-precision", choices=PRECISIONS, help="of text encoders")
    add("--vae-precision", choices=PRECISIONS, help="of VAEs")
    add("--preload", default="", metavar="SET,...", help="sets of the settings to load before being ready")
    add("--vram-budget", metavar="BYTES", help="what models may hold on a card, such as 6GiB (default: what is free)")
    add("--ram-budget", metavar="BYTES", help="what models may hold in RAM (default: what is free)")
    add("--exact", action="store_true", help="compute everything as ComfyUI does, LoRAs rounded and requests alone")
    add("--threads", type=int, help="CPU threads (default: physical cores)")
    add("--metrics-port", type=int, help="HTTP port on loopback for Prometheus (default: off; 0: the system chooses)")
    add("--no-cuda-ipc", action="store_true", help="map no memory of the card into clients; tensors go through RAM")
    add("--name", help="name of this daemon (default: the service type)")
    add("--start-log", type=Path, help=argparse.SUPPRESS)
    return make


def parse(arguments: Sequence[str], settings: Settings) -> DaemonOptions:
    """Parse a command line.

    Raises:
        DaemonError: ``settings-invalid``.
    """
    given = parser().parse_args(list(arguments))
    if settings.daemon.host not in LOOPBACK:
        raise DaemonError(
            "settings-invalid",
            f"daemon.host is {settings.daemon.host}, a daemon listens on loopback only",
            "reach it from another machine through an SSH or WireGuard tunnel",
        )
    if given.threads is not None and given.threads < 1:
        raise DaemonError("settings-invalid", f"--threads {given.threads}: at least 1")
    return DaemonOptions(
        name=identity.check_name(given.name or given.service_type),
        service_type=given.service_type,
        host=settings.daemon.host,
        port=None if given.no_tcp else _port(given.port, given.service_type, settings),
        socket=given.socket.absolute() if given.socket else None,
        device=_device(given.device, given.service_type, settings),
        backend=given.backend,
        comfyui=given.comfyui or _comfyui(),
        precision=given.precision,
        clip_precision=given.clip_precision,
        vae_precision=given.vae_precision,
        preload=_preload(given.preload, given.service_type, settings),
        vram_budget_bytes=_budget("--vram-budget", given.vram_budget),
        ram_budget_bytes=_budget("--ram-budget", given.ram_budget),
        threads=given.threads,
        start_log=given.start_log,
        metrics_port=None if given.metrics_port is None else _checked("--metrics-port", given.metrics_port),
        is_exact=given.exact,
        shares_card=settings.daemon.cuda_ipc and not given.no_cuda_ipc,
    )


def _device(given: str | None, service_type: str, settings: Settings) -> str | None:
    default = settings.daemon.vae_device if service_type == "vae" else settings.daemon.shared_device
    device = given or default
    if device is not None and not _DEVICE.fullmatch(device):
        raise DaemonError("settings-invalid", f"no device {device!r}", "use cpu, cuda:N or GPU-<uuid>")
    return device


def _preload(given: str, service_type: str, settings: Settings) -> tuple[str, ...]:
    """Return what to load first: what is asked for, else the files of the settings that this service can use."""
    named = tuple(part.strip() for part in given.split(",") if part.strip())
    if named:
        return named
    files = _set_of_files(settings)
    has_text, has_vae = bool(files.l or files.g), bool(files.vae)
    is_useful = (has_text and service_type != "vae") or (has_vae and service_type != "clip")
    return (FILES_SET,) if is_useful else ()


def _set_of_files(settings: Settings) -> ModelSet:
    daemon = settings.daemon
    return ModelSet(l=daemon.clip_l_path, g=daemon.clip_g_path, vae=daemon.vae_path, default=True)


def _port(given: int | None, service_type: str, settings: Settings) -> int:
    if given is None:
        return settings.daemon.vae_port if service_type == "vae" else settings.daemon.port
    return _checked("--port", given)


def _checked(option: str, port: int) -> int:
    if port != 0 and not 1024 <= port <= 65535:
        raise DaemonError("settings-invalid", f"{option} {port}: expected 1024 to 65535")
    return port


def _budget(option: str, given: str | None) -> int | None:
    """Read a number of bytes, plain or with KiB, MiB or GiB behind it."""
    if given is None:
        return None
    found = _BYTES.fullmatch(given)
    if found is None or int(found[1]) == 0:
        raise DaemonError("settings-invalid", f"{option} {given}: expected bytes, such as 6442450944 or 6GiB")
    return int(found[1]) * _UNITS[found[2] or ""]


def _comfyui() -> Path | None:
    value = os.environ.get("COMFYUI_PATH", "").strip()
    return Path(value) if value else None


def engine_options(options: DaemonOptions, settings: Settings) -> EngineOptions:
    """Return what the engine is told."""
    return EngineOptions(
        service_type=options.service_type,
        device=options.device,
        backend=options.backend,
        comfyui=options.comfyui,
        precision=options.precision,
        clip_precision=options.clip_precision,
        vae_precision=options.vae_precision,
        preload=options.preload,
        sets={FILES_SET: _set_of_files(settings), **settings.daemon.sets},
        vram_budget_bytes=options.vram_budget_bytes,
        ram_budget_bytes=options.ram_budget_bytes,
        threads=options.threads,
        is_exact=options.is_exact,
        shares_card=options.shares_card,
        lora_cache_bytes=settings.daemon.lora_cache_bytes,
    )


def arguments_for(name: str, instance: DaemonInstance) -> list[str]:
    """Return the command line of a configured daemon, without the program."""
    arguments = [
        *("--name", name),
        *("--service-type", instance.service_type),
        *("--device", instance.device),
        *("--port", str(instance.port)),
        *("--backend", instance.backend),
        *("--precision", instance.precision),
    ]
    if instance.preload:
        arguments += ["--preload", ",".join(instance.preload)]
    if instance.threads is not None:
        arguments += ["--threads", str(instance.threads)]
    if instance.metrics_port is not None:
        arguments += ["--metrics-port", str(instance.metrics_port)]
    return arguments


def without_start_log(arguments: Sequence[str]) -> list[str]:
    """Return a command line without the option that differs with every start."""
    kept = list(arguments)
    if "--start-log" in kept:
        index = kept.index("--start-log")
        del kept[index : index + 2]
    return kept
