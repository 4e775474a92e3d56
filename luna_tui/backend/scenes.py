"""Recorded snapshots for `luna_tui.backend.fake`: a small house with two cards at work, and the same house empty."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from luna_engine.errors import InputFileError, LunaError, SettingsError
from luna_tui.views import (
    DaemonRow,
    EventRow,
    EventsView,
    ExitView,
    Failure,
    FormChoices,
    GpuCard,
    GpuProcess,
    GpusView,
    LinkRow,
    LinksView,
    MemoryView,
    ModelFile,
    SetView,
)

if TYPE_CHECKING:
    from pathlib import Path

# Lines of the recorded logs as daemons of this version write them: seconds before NOW, level, text.
_LOGS = {
    "clip": (
        (8047.0, "info", "listening on unix:/run/user/1000/luna/clip.sock, 127.0.0.1:19283"),
        (8047.0, "info", "phase: importing torch"),
        (8044.1, "info", "phase: loading sdxl"),
        (8040.5, "info", "phase: warming up sdxl"),
        (8039.7, "info", "phase: loading sd15"),
        (8039.2, "info", "phase: warming up sd15"),
        (8039.1, "info", "ready after 7.9 s"),
        (312.4, "warning", "1 connections refused, the last because: a wrong token"),
        (95.9, "info", "encode_tokens 41.2 ms for comfyui"),
        (12.7, "info", "encode_tokens 40.6 ms for comfyui"),
    ),
    "vae": (
        (64.0, "info", "listening on unix:/run/user/1000/luna/vae.sock, 127.0.0.1:19284"),
        (64.0, "info", "phase: importing torch"),
        (62.1, "info", "phase: loading sdxl-vae"),
        (61.2, "info", "phase: warming up sdxl-vae"),
        (60.8, "info", "ready after 3.2 s"),
    ),
}

NOW = 1_763_966_200.0  # 2025-11-24 06:36:40 UTC
GIB = 1024**3
MIB = 1024**2

SETTINGS_BROKEN = SettingsError(
    "settings-invalid", "not valid TOML: expected '=' after a key", "mend the line, or move the file away",
    file="settings.toml", line=12,
)  # fmt: skip
GPU_BROKEN = LunaError("nvml-gpu-lost", "the card fell off the bus", "reboot needed")
ROOT_GONE = InputFileError("root-missing", "/models/loras does not exist", "create it, or correct LUNA_MODELS")
FOLDER_AWAY = LunaError("folder-unreadable", "/models cannot be read: stale file handle", "check that it is mounted")
EVENTS_BROKEN = LunaError("events-unreadable", "the event file cannot be read: permission denied", "check its mode")


def write_logs(folder: Path) -> dict[str, str]:
    """Write the recorded logs as the daemons would; return their paths by name."""
    written = {}
    for name, lines in _LOGS.items():
        file = folder / f"{name}.log"
        records = ({"at": NOW - ago, "level": level, "message": text} for ago, level, text in lines)
        file.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
        written[name] = str(file)
    return written


_CRASH = ExitView(NOW - 9, None, 9, "signal 9 (SIGKILL)", 9_800 * MIB, None, tuple(text for _, _, text in _LOGS["vae"]))


def daemons(scene: str) -> tuple[DaemonRow, ...]:
    """Return the recorded daemons of a scene."""
    if scene == "empty":
        return ()
    has_gpu = scene != "no-gpu"
    # A daemon that runs tells the kind of its device, one that does not is shown as configured.
    running, first = ("cuda", "cuda:0") if has_gpu else ("cpu", "cpu")
    return (
        DaemonRow(
            "clip", "clip", "ready", running, 19283, pid=41233, uptime_s=8047, rss_bytes=1_912 * MIB,
            vram_bytes=1_940 * MIB if has_gpu else None, queue_depth=0,
            backend="native: no ComfyUI checkout is named", clients=("comfyui inline", "comfyui inline"),
            sets=(
                SetView("sdxl", "sdxl", ("l", "g"), 1_560 * MIB, "fp16", "device"),
                SetView("sd15", "sd15", ("l",), 235 * MIB, "fp16", "device"),
            ),
            log_path=None,
        ),
        DaemonRow(
            "vae", "vae", "backoff", first, 19284, reason=_CRASH.reason, restarts_total=3, backoff_s=8,
            last_exit=_CRASH,
        ),
        DaemonRow("spare", "full", "stopped", "cpu", 19285, reason="stopped by you", restarts_total=1),
        DaemonRow(
            "vision", "clip", "loading", running, 19286, pid=41801, uptime_s=6,
            rss_bytes=812 * MIB, phase="loading sdxl", phase_fraction=0.5,
        ),
    )  # fmt: skip


def _history(start: float, end: float) -> tuple[float, ...]:
    steps = 60
    return tuple(
        (start + (end - start) * min(1.0, index / 38) + (0.6 if index % 17 > 12 else 0)) * GIB for index in range(steps)
    )


def gpus(scene: str) -> GpusView:
    """Return the recorded cards of a scene."""
    memory = MemoryView(64 * GIB, 21 * GIB, 43 * GIB, (
        GpuProcess(41233, "luna clip", "daemon", 1_912 * MIB, "system"),
        GpuProcess(41801, "luna vision", "daemon", 812 * MIB, "system"),
    ) if scene != "empty" else ())  # fmt: skip
    if scene == "no-gpu":
        reason = Failure(
            "nvml-missing", "libnvidia-ml is not installed: no NVIDIA driver here", "daemons can run on the CPU"
        )
        return GpusView(NOW, "nvml", None, reason, (), memory)
    busy = scene != "empty"
    first = GpuCard(
        "GPU-3f2a81c0", 0, "NVIDIA GeForce RTX 4090", total_bytes=24 * GIB, used_bytes=17 * GIB if busy else 0,
        free_bytes=7 * GIB if busy else 24 * GIB, peak_bytes=int(22.7 * GIB), peak_at=NOW - 1480,
        util_percent=91 if busy else 0, temperature_c=67, power_w=310.0, history=_history(5, 16.4) if busy else (),
        processes=(
            GpuProcess(40112, "python main.py", "other", int(11.2 * GIB), "nvml", peak_bytes=16 * GIB),
            GpuProcess(40990, "python main.py", "other", int(4.4 * GIB), "nvml", peak_bytes=int(4.4 * GIB)),
            GpuProcess(2203, "Xorg", "other", int(0.4 * GIB), "nvml", peak_bytes=int(0.4 * GIB)),
            GpuProcess(None, "driver and unexplained", "remainder", 1 * GIB, "remainder"),
        ) if busy else (),
    )  # fmt: skip
    second = GpuCard(
        "GPU-90c1d2aa", 1, "NVIDIA GeForce RTX 3090", total_bytes=24 * GIB, used_bytes=int(2.9 * GIB) if busy else 0,
        free_bytes=int(21.1 * GIB) if busy else 24 * GIB, peak_bytes=int(3.1 * GIB), peak_at=NOW - 5190,
        util_percent=3, temperature_c=41, power_w=28.0, history=_history(2.3, 2.3) if busy else (),
        processes=(
            GpuProcess(41233, "luna clip", "daemon", int(2.4 * GIB), "nvml", peak_bytes=int(2.6 * GIB)),
            GpuProcess(None, "driver and unexplained", "remainder", int(0.5 * GIB), "remainder"),
        ) if busy else (),
    )  # fmt: skip
    return GpusView(NOW, "nvml", "580.95", None, (first, second), memory)


def events(scene: str) -> EventsView:
    """Return the recorded events of a scene."""
    if scene == "empty":
        return EventsView(NOW)
    rows = (
        EventRow("e1", NOW - 9, "error", "vae", "daemon-ended", f"vae: {_CRASH.reason}"),
        EventRow("e2", NOW - 44, "info", "you", "command", "vision is starting", None, "luna daemon start vision"),
        EventRow("e3", NOW - 60, "info", "vae", "daemon-ready", "vae is ready after 3.2 s, pid 43950"),
        EventRow("e4", NOW - 64, "info", "vae", "restarting", "vae is started again, restart 3"),
        EventRow("e5", NOW - 72, "error", "vae", "daemon-ended", f"vae: {_CRASH.reason}"),
        EventRow("e6", NOW - 2070, "warning", "settings", "settings-ignored",
                 "daemon.speed: unknown setting; known here: "
                 "host, port, python, sets, timeout_s, vae_port", None, None, 2),
        EventRow("e7", NOW - 2307, "info", "spare", "daemon-stopped", "spare has stopped: stopped by you"),
        EventRow("e8", NOW - 2308, "info", "you", "command", "spare is stopping", None, "luna daemon stop spare"),
        EventRow("e9", NOW - 8046, "info", "clip", "daemon-adopted", "clip runs already as pid 41233: ready"),
    )  # fmt: skip
    return EventsView(NOW, rows)


def links(scene: str) -> LinksView:
    """Return the recorded LoRAs of a scene."""
    if scene == "empty":
        return LinksView(NOW)
    root = "/models/loras"
    rows = (
        LinkRow(f"{root}/char/elara_v3.safetensors", "char/elara_v3", "lora", root, 218 * MIB, "sdxl", "metadata", 32,
                ("unet", "l", "g"), ("elara", "silver hair")),
        LinkRow(f"{root}/style/detail_tweaker_xl.safetensors", "style/detail_tweaker_xl", "lora", root, 218 * MIB,
                "sdxl", "keys", 64, ("unet", "l", "g")),
        LinkRow(f"{root}/old/gothic_sd15.safetensors", "old/gothic_sd15", "lora", root, 36 * MIB, "sd15", "metadata",
                16,
                ("unet", "l"), ("gothic dress",)),
        LinkRow(f"{root}/broken.safetensors", "broken", "lora", root, 4_096, problem=Failure(
            "file-damaged", "broken.safetensors: 37,748,744 bytes are promised, 4,096 are there",
            "copy or download the file again")),
        LinkRow("/models/embeddings/bad_hands.safetensors", "bad_hands", "embedding", "/models/embeddings", 24_576,
                "sd15", "keys"),
    )  # fmt: skip
    return LinksView(NOW, (root, "/models/embeddings"), rows)


def choices(scene: str) -> FormChoices:
    """Return what the recorded form offers."""
    if scene == "empty":
        return FormChoices()
    cards = (
        ("GPU-3f2a81c0", "cuda:0 NVIDIA GeForce RTX 4090, 7.0 GiB free"),
        ("GPU-90c1d2aa", "cuda:1 NVIDIA GeForce RTX 3090, 21.1 GiB free"),
    )
    return FormChoices(
        tuple(row.name for row in daemons(scene)),
        (("cpu", "cpu"), *(cards if scene != "no-gpu" else ())),
        ("sdxl", "sd15"),
        (ModelFile("/models/checkpoints/sd15.safetensors", "checkpoints/sd15", "sd15", ("l", "vae"), 2 * GIB),),
        ("/models",),
        19287,
    )
