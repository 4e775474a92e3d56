"""The frame of `luna`: streams, exit codes, global options, and the doctor that uses them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

from luna_engine import paths
from luna_engine.errors import DaemonUnreachableError, InputFileError, LunaError
from luna_tui import frame
from luna_tui.cli import luna

ROOT = Path(__file__).resolve().parents[2]


@click.group()
@frame.global_options
def group() -> None:
    """A group for these tests."""


FAILURES = {
    "failed": (LunaError("it-failed", "it failed", "try again"), 1),
    "unreachable": (DaemonUnreachableError("daemon-unreachable", "nobody there"), 3),
    "bad-file": (InputFileError("file-damaged", "cut short", file="x.safetensors", line=3), 4),
}


@frame.verb(group, "fail")
@click.argument("kind")
def fail(kind: str) -> None:
    raise FAILURES[kind][0]


@frame.verb(group, "show")
def show() -> None:
    frame.output().note("on the way")
    frame.output().data("luna.test/1", {"answer": 42}, "forty-two")


@frame.verb(group, "change", mutates=True)
def change() -> None:
    click.echo("changed")


@pytest.mark.parametrize("kind", FAILURES)
def test_each_kind_of_failure_has_its_exit_code_and_says_what_to_do(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error, code = FAILURES[kind]
    assert frame.run(group, ["fail", kind]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert error.code in said.err
    assert error.message in said.err
    assert (error.hint or "") in said.err


@pytest.mark.parametrize("arguments", [["--json", "fail", "bad-file"], ["fail", "bad-file", "--json"]])
def test_a_failure_is_one_json_line_on_stderr(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    frame.run(group, arguments)
    said = capsys.readouterr()
    record = json.loads(said.err)
    assert (record["schema"], record["code"], record["file"], record["line"]) == (
        "luna.error/1", "file-damaged", "x.safetensors", 3,
    )  # fmt: skip


def test_data_goes_to_stdout_and_notes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert frame.run(group, ["show"]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("forty-two\n", "on the way\n")


def test_json_data_carries_schema_and_time_and_quiet_drops_the_notes(capsys: pytest.CaptureFixture[str]) -> None:
    assert frame.run(group, ["show", "--json", "-q"]) == 0
    said = capsys.readouterr()
    record = json.loads(said.out)
    assert (record["schema"], record["answer"]) == ("luna.test/1", 42)
    assert record["at"].endswith("Z")
    assert said.err == ""


def test_readonly_refuses_what_changes(capsys: pytest.CaptureFixture[str]) -> None:
    assert frame.run(group, ["change", "--readonly"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "read-only" in said.err


@pytest.mark.parametrize("arguments", [["nosuch"], ["fail"], ["show", "--nosuch"]])
def test_wrong_usage_is_exit_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert frame.run(group, arguments) == 2
    assert "Usage" in capsys.readouterr().err


def test_every_command_of_the_table_is_there_and_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    context = click.Context(luna)
    for name in luna.list_commands(context):
        assert frame.run(luna, [name, "--help"]) == 0
        assert "Usage: luna" in capsys.readouterr().out


def test_a_closed_pipe_is_quiet() -> None:
    """`luna … | head -0` ends without a traceback."""
    command = [sys.executable, "-m", "luna_tui.cli", "wildcards", "tree", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr as stream:
        assert stream.read() == ""
    process.wait(60)


class TestDoctor:
    """`luna doctor` on a machine that is well, and on one that is not."""

    def run(self, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict[str, object]]]:
        code = frame.run(luna, ["doctor", "--json"])
        record = json.loads(capsys.readouterr().out)
        assert record["schema"] == "luna.doctor/1"
        return code, {check["name"]: check for check in record["checks"]}

    def test_all_is_well_here(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("COMFYUI_PATH", raising=False)
        code, checks = self.run(capsys)
        assert code == 0, checks
        assert all(check["ok"] for check in checks.values())

    def test_it_creates_nothing(self, capsys: pytest.CaptureFixture[str], luna_home: Path) -> None:
        self.run(capsys)
        assert list(luna_home.iterdir()) == []

    def test_missing_folders_and_bad_settings_are_told_with_a_hint(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("LUNA_MODELS", str(tmp_path / "gone"))
        monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
        paths.settings_file().parent.mkdir(parents=True)
        paths.settings_file().write_text("[daemon]\nport = 'x'\n")
        code, checks = self.run(capsys)
        assert code == 1
        for name in ("LUNA_MODELS", "COMFYUI_PATH"):
            assert not checks[name]["ok"]
            assert checks[name]["code"] == "file-missing"
            assert checks[name]["hint"]
        assert "daemon.port" in str(checks["settings"]["message"])
