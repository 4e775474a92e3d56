"""A node that waits for a conversion, with real workers; and which folders a node may write to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from comfy_nodes.access import require_readable, require_writable
from comfy_nodes.conversions import converted
from luna_engine import paths
from luna_engine.errors import InputFileError, LunaError
from luna_engine.weights.jobs import JobState
from luna_engine.weights.queue import JobQueue
from tests.nodes.hosts import FolderHost
from tests.synthetic_models import PREFIX, TINY_SDXL, random_values, under, write_values

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def host(tmp_path: Path) -> FolderHost:
    return FolderHost(tmp_path / "models")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_values(tmp_path / "checkpoints" / "tiny.safetensors", random_values(under(PREFIX, TINY_SDXL)))


def test_the_file_is_made_once_and_its_bytes_are_told(tmp_path: Path, host: FolderHost, source: Path) -> None:
    made = converted(host, source, "gguf_Q8_0", tmp_path / "out")
    assert made == tmp_path / "out" / "tiny_Q8_0.gguf"
    stamp = made.stat().st_mtime_ns
    assert converted(host, source, "gguf_Q8_0", tmp_path / "out") == made
    assert made.stat().st_mtime_ns == stamp
    assert all(0 <= done <= total for done, total in host.steps)


def test_a_source_that_is_at_the_target_is_the_file(tmp_path: Path, host: FolderHost) -> None:
    plain = write_values(tmp_path / "unet" / "plain.safetensors", random_values(TINY_SDXL))
    assert converted(host, plain, "fp16", tmp_path / "out") == plain


def test_an_interrupt_cancels_the_job_and_leaves_nothing(tmp_path: Path, host: FolderHost, source: Path) -> None:
    host.is_cancelled = True
    with pytest.raises(KeyboardInterrupt):
        converted(host, source, "gguf_Q8_0", tmp_path / "out")
    assert [job.state for job in JobQueue.open().jobs()] == [JobState.CANCELLED]
    assert not list((tmp_path / "out").glob("*"))


def test_a_job_that_somebody_else_started_and_lost_is_taken_over(
    tmp_path: Path, host: FolderHost, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = JobQueue.start
    calls: list[str] = []

    def late(queue: JobQueue, job_id: str) -> object:
        calls.append(job_id)
        return start(queue, job_id) if len(calls) > 1 else None

    monkeypatch.setattr(JobQueue, "start", late)
    assert converted(host, source, "gguf_Q8_0", tmp_path / "out").exists()
    assert len(calls) == 2


def test_what_the_worker_says_is_raised_with_its_code(tmp_path: Path, host: FolderHost, source: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "tiny_Q8_0.gguf").write_bytes(b"mine")
    with pytest.raises(LunaError) as caught:
        converted(host, source, "gguf_Q8_0", folder)
    assert caught.value.code == "target-exists"
    assert (folder / "tiny_Q8_0.gguf").read_bytes() == b"mine"


def allow(folder: Path) -> None:
    paths.config_dir().mkdir(parents=True, exist_ok=True)
    paths.settings_file().write_text(f'allowed_roots = ["{folder}"]\n')


@pytest.mark.parametrize("is_local", [True, False])
def test_a_node_writes_below_comfyuis_folders_and_the_allowed_ones_only(
    tmp_path: Path, host: FolderHost, *, is_local: bool
) -> None:
    host.roots = None if is_local else (host.folder,)
    assert require_writable(host.folder / "unet", host) == (host.folder / "unet").resolve()
    with pytest.raises(InputFileError) as caught:
        require_writable(tmp_path / "fast", host)
    assert (caught.value.code, "allowed_roots" in caught.value.hint) == ("path-outside", True)
    with pytest.raises(InputFileError):
        require_writable(host.folder / ".." / "fast", host)
    allow(tmp_path / "fast")
    assert require_writable(tmp_path / "fast" / "new", host) == (tmp_path / "fast" / "new").resolve()


def test_reading_is_free_on_loopback_and_elsewhere_bound_to_the_same_folders(tmp_path: Path, host: FolderHost) -> None:
    reading: Callable[[], Path] = lambda: require_readable(tmp_path / "any", host)  # noqa: E731
    assert reading() == (tmp_path / "any").resolve()
    host.roots = (host.folder,)
    with pytest.raises(InputFileError):
        reading()
    allow(tmp_path)
    assert reading() == (tmp_path / "any").resolve()
