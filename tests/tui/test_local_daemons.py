"""The real daemons port: forms checked against real sockets and written to real settings; the supervisor's lock."""

from __future__ import annotations

import dataclasses
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from luna_engine import settings
from luna_engine.errors import LunaError
from luna_engine.settings import DaemonInstance, Settings
from luna_tui.backend import daemon_forms
from luna_tui.backend.local import LocalBackend
from luna_tui.views import DaemonDraft, EventRow
from tests.synthetic_models import TINY_SDXL, random_values, write_values

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DRAFT = DaemonDraft("clip", port="0")


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture
def backend() -> Iterator[LocalBackend]:
    found = LocalBackend(settings.load())
    found.open()
    yield found
    found.close()


def test_a_port_is_tried_and_its_holder_named() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        draft = dataclasses.replace(DRAFT, port=str(holder.getsockname()[1]))
        (problem,) = daemon_forms.check(draft, Settings())
    assert problem.field == "port"
    assert f"taken by pid {os.getpid()}" in problem.message


@pytest.mark.parametrize("port", ["", "80", "65536", "abc", "-1"])
def test_a_port_that_can_be_none_is_refused(port: str) -> None:
    problems = daemon_forms.check(dataclasses.replace(DRAFT, port=port), Settings())
    assert [problem.field for problem in problems] == ["port"]


@pytest.mark.parametrize("name", ["", "a b", "../x", "x" * 33, "-x"])
def test_a_name_that_can_be_none_is_refused(name: str) -> None:
    problems = daemon_forms.check(dataclasses.replace(DRAFT, name=name, port=free_port()), Settings())
    assert [problem.field for problem in problems] == ["name"]


def test_two_daemons_cannot_have_one_name_or_port() -> None:
    port = free_port()
    known = Settings(daemons={"clip": DaemonInstance(port=int(port))})
    taken = daemon_forms.check(dataclasses.replace(DRAFT, port=port), known)
    assert [problem.field for problem in taken] == ["name", "port"]
    same = dataclasses.replace(DRAFT, port=port, editing="clip")
    assert daemon_forms.check(same, known) == (), "a daemon may keep its own"


def test_a_saved_form_stands_in_the_settings_and_in_the_list(backend: LocalBackend) -> None:
    port = free_port()
    outcome = backend.daemons.save(dataclasses.replace(DRAFT, port=port, service_type="vae", autostart=True))
    assert outcome.ok
    saved = settings.load().daemons["clip"]
    assert (saved.service_type, saved.port, saved.autostart) == ("vae", int(port), True)
    backend.daemons.adopt()
    assert [row.name for row in backend.daemons.snapshot().daemons] == ["clip"]
    assert backend.daemons.draft("clip").port == port


def test_a_checkpoint_becomes_a_set_once(tmp_path: Path) -> None:
    shapes = {
        **TINY_SDXL,
        "first_stage_model.decoder.conv_in.weight": (8, 4, 3, 3),
        "first_stage_model.encoder.conv_in.weight": (8, 3, 3, 3),
    }
    file = tmp_path / "my model.safetensors"
    write_values(file, random_values(shapes, "F32"))
    family, parts, _ = daemon_forms.parts_of(file)
    assert (family, parts[-1]) == ("sdxl", "vae")
    draft = dataclasses.replace(DRAFT, port=free_port(), file=str(file))
    assert daemon_forms.write(draft, settings.load()) == "my-model"
    assert settings.load().daemons["clip"].preload == ("my-model",)
    assert settings.load().daemon.sets["my-model"].vae == str(file)
    second = dataclasses.replace(draft, name="other")
    assert daemon_forms.write(second, settings.load()) == "my-model", "the same parts are the same set"


def test_renaming_moves_the_daemon(backend: LocalBackend) -> None:
    first = dataclasses.replace(DRAFT, port=free_port())
    backend.daemons.save(first)
    backend.daemons.save(dataclasses.replace(first, name="text", editing="clip"))
    assert list(settings.load().daemons) == ["text"]


def test_one_supervises_and_the_other_looks_on(backend: LocalBackend) -> None:
    other = LocalBackend(settings.load())
    other.open()
    try:
        assert backend.role() == "supervising"
        assert other.role() == f"viewer, pid {os.getpid()} supervises"
    finally:
        other.close()


def test_read_only_refuses_every_change_and_takes_no_lock() -> None:
    settings.save_daemon("clip", DaemonInstance(port=int(free_port())))
    found = LocalBackend(settings.load(), readonly=True)
    found.open()
    try:
        daemons: Any = found.daemons
        for verb in ("start", "stop", "restart", "kill", "forget"):
            with pytest.raises(LunaError, match="read-only"):
                getattr(daemons, verb)("clip")
        with pytest.raises(LunaError, match="read-only"):
            daemons.save(DRAFT)
        assert found.role() == ""
    finally:
        found.close()


def test_ignored_settings_become_events() -> None:
    file = settings.paths.settings_file()
    file.parent.mkdir(parents=True)
    file.write_text("[daemon]\nspeed = 3\n", "utf-8")
    found = LocalBackend(settings.load())
    found.open()
    try:
        messages = [event.message for event in found.events.snapshot().events]
        assert messages[0].startswith("daemon.speed: unknown setting")
        assert found.daemons.snapshot().problems == (messages[0],)
    finally:
        found.close()


def test_forgetting_leaves_the_rest_of_the_file_alone(backend: LocalBackend) -> None:
    file = settings.paths.settings_file()
    file.parent.mkdir(parents=True)
    file.write_text("# mine\n[ui]\nascii = true # keep\n", "utf-8")
    backend.daemons.save(dataclasses.replace(DRAFT, port=free_port()))
    backend.daemons.adopt()
    backend.daemons.forget("clip")
    text = file.read_text("utf-8")
    assert "# mine" in text
    assert "# keep" in text
    assert "clip" not in text


def test_events_of_others_are_seen(backend: LocalBackend) -> None:
    LocalBackend(Settings()).events.record(EventRow("", 1.0, "info", "x", "y", "from elsewhere"))
    assert "from elsewhere" in [event.message for event in backend.events.snapshot().events]
