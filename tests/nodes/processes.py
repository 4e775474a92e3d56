"""Processes for the node tests: a real headless ComfyUI and a real daemon, started, asked and stopped."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from luna_daemon.client import DaemonClient
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

REPO = Path(__file__).resolve().parents[2]
PROBE_PACK = Path(__file__).with_name("probe_pack")
MODEL_FOLDERS = ("checkpoints", "diffusion_models", "text_encoders", "vae", "loras", "embeddings")
START_DEADLINE_S = 300.0
PROMPT_DEADLINE_S = 300.0


def free_port() -> int:
    """Ask the operating system for a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def poll_until(what: str, deadline_s: float, look: Any) -> Any:
    """Call ``look`` until it returns something true; fail with ``what`` after the deadline."""
    deadline = time.monotonic() + deadline_s
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} within {deadline_s:g} s")
        time.sleep(0.1)


def stop_process(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, then insist."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(20)
    if process.poll() is None:
        process.kill()
        process.wait()


@dataclass
class ComfyServer:
    """A running ComfyUI."""

    port: int
    base: Path
    log: Path
    process: subprocess.Popen[bytes]

    def request(self, path: str, body: object = None) -> Any:
        """GET, or POST JSON; return the parsed answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data=data, headers={"Content-Type": "application/json"}
        )
        try:
            answer = urllib.request.urlopen(request, timeout=60)  # noqa: S310 - likewise
        except urllib.error.HTTPError as error:
            body_of = error.read()
            told = f"{error.reason}: {path}: {body_of.decode()[:2000]}"
            raise urllib.error.HTTPError(error.url, error.code, told, error.headers, io.BytesIO(body_of)) from error
        with answer:
            return json.loads(answer.read() or b"null")

    def log_text(self) -> str:
        """Return what ComfyUI has logged so far."""
        return self.log.read_text("utf-8", "replace")

    def run(self, prompt: Mapping[str, Any]) -> Run:
        """Queue a prompt and wait for its end."""
        prompt_id = self.request("/prompt", {"prompt": prompt})["prompt_id"]
        history = poll_until(
            f"prompt {prompt_id} ended",
            PROMPT_DEADLINE_S,
            lambda: self.request(f"/history/{prompt_id}").get(prompt_id),
        )
        return Run(history)

    def output(self, name: str) -> Path:
        """Return a file that a probe wrote."""
        return self.base / "output" / name


@dataclass(repr=False)
class Run:
    """One prompt's history."""

    history: dict[str, Any]
    messages: dict[str, dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        self.messages = dict(self.history["status"]["messages"])

    @property
    def is_success(self) -> bool:
        """Tell whether every node ran."""
        return bool(self.history["status"]["status_str"] == "success")

    def __repr__(self) -> str:
        if self.is_success:
            return "Run(success)"
        error = self.error
        return f"Run({error['node_id']}: {error['exception_message']}\n{''.join(error['traceback'][-3:])})"

    @property
    def cached(self) -> set[str]:
        """Return the ids of the nodes that were served from the cache."""
        return set(self.messages["execution_cached"]["nodes"])

    @property
    def error(self) -> dict[str, Any]:
        """Return the error message of the node that failed."""
        return self.messages["execution_error"]

    def ui(self, node: str) -> dict[str, Any]:
        """Return what a node showed."""
        return self.history["outputs"][node]


@dataclass
class DaemonHandle:
    """A real daemon process on CPU that serves the sets it preloads; tests may stop and start it."""

    environment: dict[str, str]
    preload: str = "demo"
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it unless it runs, and wait until it is ready."""
        if self.process is not None and self.process.poll() is None:
            return
        command = [sys.executable, str(REPO / "luna_daemon" / "server.py"), "--service-type", "full"]
        command += ["--device", "cpu", "--name", "nodes", *(["--preload", self.preload] if self.preload else [])]
        command += ["--port", self.environment["LUNA_DAEMON_PORT"]]
        with (Path(self.environment["LUNA_HOME"]) / "daemon-output.txt").open("ab") as output:
            self.process = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        poll_until("the daemon was ready", START_DEADLINE_S, self._is_ready)

    def stop(self) -> None:
        """End it."""
        if self.process is not None:
            stop_process(self.process)

    def kill(self) -> None:
        """End it as the kernel would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    @property
    def port(self) -> int:
        """Return where it listens."""
        return int(self.environment["LUNA_DAEMON_PORT"])

    def forget(self, family: str) -> None:
        """Unload the sets of a family, whoever holds them."""
        with self._connect() as client:
            for row in client.list_models(loaded=True).sets:
                if row.family == family:
                    client.unload_model(row.id, force=True)

    def leases(self, family: str) -> int:
        """Return how many connections hold a set of a family."""
        with self._connect() as client:
            return sum(row.leases for row in client.status(detail="full").sets if row.family == family)

    def is_computing(self) -> bool:
        """Tell whether a request runs on the device now."""
        with self._connect() as client:
            return any(lane.running for lane in client.status().queue.values())

    def _is_ready(self) -> bool:
        if self.process is None or self.process.poll() is not None:
            raise RuntimeError("the daemon exited")
        try:
            with self._connect() as client:
                return client.ping().state == "ready"
        except DaemonError:
            return False

    @contextlib.contextmanager
    def _connect(self) -> Iterator[DaemonClient]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LUNA_HOME", self.environment["LUNA_HOME"])
            with DaemonClient.connect("127.0.0.1", self.port) as client:
                yield client


def prepare_base(base: Path, models: Path) -> Path:
    """Make a ComfyUI's base folder with this clone and the probe pack in it; return its list of model folders."""
    for folder in ("custom_nodes", "output"):
        (base / folder).mkdir()
    (base / "custom_nodes" / "luna-pack").symlink_to(REPO)
    shutil.copytree(PROBE_PACK, base / "custom_nodes" / "luna_probe")
    extra = base / "extra_model_paths.yaml"
    extra.write_text(json.dumps({"demo": {"base_path": str(models), **{name: name for name in MODEL_FOLDERS}}}))
    return extra


@contextlib.contextmanager
def running_comfy(root: Path, base: Path, extra: Path, environment: dict[str, str]) -> Iterator[ComfyServer]:
    """Run ComfyUI on CPU until the block ends."""
    port = free_port()
    log = base / "comfyui.log"
    command = [os.environ.get("COMFYUI_PYTHON", sys.executable), str(root / "main.py"), "--cpu"]
    command += ["--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(base)]
    command += ["--database-url", "sqlite:///:memory:", "--extra-model-paths-config", str(extra)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=root
        )
    server = ComfyServer(port, base, log, process)

    def answers() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"ComfyUI exited with {process.returncode}:\n{server.log_text()[-4000:]}")
        try:
            return bool(server.request("/system_stats"))
        except (urllib.error.URLError, ConnectionError):
            return False

    try:
        poll_until("ComfyUI answered", START_DEADLINE_S, answers)
        yield server
    finally:
        stop_process(process)
