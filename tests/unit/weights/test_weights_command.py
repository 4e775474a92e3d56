"""`luna weights` and `luna demo-models` as a shell sees them: streams, JSON and exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import pytest

from tests.synthetic_models import TINY_SDXL, random_values, write_holes, write_values

LUNA = [sys.executable, "-m", "luna_tui.cli"]


def luna(*arguments: object, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [*LUNA, *(str(argument) for argument in arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **(environment or {})}
    )


def data(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    (line,) = done.stdout.splitlines()
    record: dict[str, Any] = json.loads(line)
    return record


def errors(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stderr.splitlines() if '"luna.error/1"' in line]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_values(tmp_path / "checkpoints" / "tiny.safetensors", random_values(TINY_SDXL, "F32"))


def test_demo_models_are_written_and_named(tmp_path: Path) -> None:
    done = luna("demo-models", tmp_path / "demo", "--only", "flux,lora_flux", "--json")
    assert done.returncode == 0
    record = data(done)
    assert record["schema"] == "luna.demo-models/1"
    assert [model["name"] for model in record["models"]] == ["flux", "lora_flux"]
    found = luna("weights", "inspect", record["models"][0]["path"], "--json")
    assert data(found)["architecture"]["value"] == "flux"


def test_an_unknown_demo_model_is_a_wrong_call(tmp_path: Path) -> None:
    done = luna("demo-models", tmp_path, "--only", "nonesuch")
    assert done.returncode == 2
    assert "nonesuch" in done.stderr


def test_inspect_tells_family_parts_and_asked_for_tensors(source: Path) -> None:
    done = luna("weights", "inspect", source, "--keys", "*proj_in*", "--json")
    record = data(done)
    assert (done.returncode, record["schema"]) == (0, "luna.weights.inspect/1")
    assert record["architecture"] == {
        "value": "sdxl",
        "variant": "",
        "source": "header",
        "confidence": "certain",
    }
    assert {tensor["name"] for tensor in record["tensors"]} == {
        "input_blocks.4.1.proj_in.weight",
        "middle_block.1.proj_in.weight",
    }
    assert "sdxl" in luna("weights", "inspect", source).stdout


def test_inspect_of_a_missing_or_damaged_file_exits_4(tmp_path: Path) -> None:
    done = luna("weights", "inspect", tmp_path / "none.safetensors", "--json")
    assert (done.returncode, done.stdout) == (4, "")
    assert errors(done)[0]["code"] == "file-missing"
    broken = tmp_path / "b.safetensors"
    broken.write_bytes(b"<!DOCTYPE html>" + bytes(50))
    done = luna("weights", "inspect", broken, "--json")
    assert done.returncode == 4
    assert errors(done)[0]["code"] == "file-damaged"
    assert errors(done)[0]["file"] == str(broken)


def test_hostile_names_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = write_holes(tmp_path / "a\x1b[31m.safetensors", {**TINY_SDXL, "x\x1b]0;t\x07": (4,)})
    done = luna("weights", "inspect", path, "--keys", "x*")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout


def test_convert_writes_what_the_gguf_package_reads(source: Path, tmp_path: Path) -> None:
    done = luna("weights", "convert", source, "--to", "gguf_Q8_0,bf16", "--out", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    record = data(done)
    assert record["schema"] == "luna.weights.convert/1"
    assert [outcome["state"] for outcome in record["outcomes"]] == ["done", "done"]
    reader = gguf.GGUFReader(tmp_path / "out" / "tiny_Q8_0.gguf")
    assert reader.fields["general.architecture"].contents() == "sdxl"
    assert {tensor.name for tensor in reader.tensors} == set(TINY_SDXL)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "tiny_Q8_0.gguf",
        "tiny_bf16_unet.safetensors",
    ]


def test_progress_goes_to_stderr_in_the_form_asked_for(source: Path, tmp_path: Path) -> None:
    done = luna("weights", "convert", source, "--to", "Q8_0", "--out", tmp_path, "--progress", "json", "--json")
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert {"plan", "convert", "commit"} <= {line["phase"] for line in lines}
    plain = luna("weights", "convert", source, "--to", "bf16", "--out", tmp_path)
    assert "100 %" in plain.stderr
    assert "tiny_bf16_unet.safetensors" in plain.stdout
    quiet = luna("weights", "convert", source, "--to", "fp16", "--out", tmp_path, "--progress", "none")
    assert (quiet.returncode, quiet.stderr) == (0, "")


def test_all_are_tried_and_the_worst_code_is_returned(source: Path, tmp_path: Path) -> None:
    lora = write_holes(tmp_path / "l.safetensors", {"a.lora_up.weight": (4, 4), "a.lora_down.weight": (4, 4)})
    done = luna("weights", "convert", lora, source, "--to", "bf16", "--out", tmp_path / "out", "--json")
    assert done.returncode == 4
    outcomes = data(done)["outcomes"]
    assert [outcome["state"] for outcome in outcomes] == ["failed", "done"]
    assert outcomes[0]["error"]["code"] == "wrong-type"
    assert [error["code"] for error in errors(done)] == ["wrong-type"]


def test_an_error_of_the_worker_comes_through_with_its_exit_code(tmp_path: Path) -> None:
    values: dict[str, Any] = random_values(TINY_SDXL, "F32")
    values["out.0.weight"][1][0] = float("nan")
    source = write_values(tmp_path / "nan.safetensors", values)
    done = luna("weights", "convert", source, "--to", "Q8_0", "--out", tmp_path / "out", "--json")
    assert done.returncode == 4
    assert [error["code"] for error in errors(done)] == ["source-nonfinite"]
    assert list((tmp_path / "out").iterdir()) == []


def test_plan_writes_nothing_and_tells_exact_sizes(source: Path, tmp_path: Path) -> None:
    done = luna("weights", "convert", source, "--to", "Q8_0", "--out", tmp_path / "out", "--plan", "--json")
    assert done.returncode == 0
    (job,) = data(done)["jobs"]
    assert not (tmp_path / "out").exists()
    assert job["tensors"]["quantised"] > 20
    luna("weights", "convert", source, "--to", "Q8_0", "--out", tmp_path / "out")
    assert (tmp_path / "out" / "tiny_Q8_0.gguf").stat().st_size == job["output_bytes"]


def test_an_unknown_precision_names_those_that_exist(source: Path) -> None:
    done = luna("weights", "convert", source, "--to", "Q1_X")
    assert done.returncode == 1
    assert "precision-unsupported" in done.stderr
    assert "gguf_Q8_0" in done.stderr


def test_readonly_refuses_to_convert(source: Path, tmp_path: Path) -> None:
    done = luna("--readonly", "weights", "convert", source, "--to", "bf16", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "read-only" in done.stderr
    assert not (tmp_path / "out").exists()


def test_list_shows_sources_with_their_variants_from_models_folder(source: Path, tmp_path: Path) -> None:
    models = {"LUNA_MODELS": str(tmp_path)}
    assert luna("weights", "convert", source, "--to", "Q8_0", environment=models).returncode == 0
    (tmp_path / "checkpoints" / "broken.safetensors").write_bytes(b"nonsense")
    record = data(luna("weights", "list", "--json", environment=models))
    rows = {Path(row["path"]).name: row for row in record["sources"]}
    assert rows["broken.safetensors"]["error"]["code"] == "file-damaged"
    assert rows["tiny.safetensors"]["architecture"]["value"] == "sdxl"
    (variant,) = rows["tiny.safetensors"]["variants"]
    assert (variant["precision"], variant["state"]) == ("gguf_Q8_0", "current")
    assert variant["path"] == str(tmp_path / "unet" / "optimized" / "tiny_Q8_0.gguf")
    os.utime(source, (1, 1))
    stale = data(luna("weights", "list", "--stale", "--json", environment=models))
    assert [Path(row["path"]).name for row in stale["sources"]] == ["tiny.safetensors"]


def test_list_of_a_missing_folder_exits_4_and_of_none_says_what_to_set(tmp_path: Path) -> None:
    done = luna("weights", "list", tmp_path / "none", "--json")
    assert done.returncode == 4
    assert errors(done)[0]["code"] == "file-missing"
    empty = luna("weights", "list", environment={"COMFYUI_PATH": ""})
    assert empty.returncode == 0
    assert "LUNA_MODELS" in empty.stdout


def test_a_configured_folder_that_is_gone_is_named_and_the_others_are_listed(source: Path, tmp_path: Path) -> None:
    models = os.pathsep.join([str(tmp_path / "gone"), str(tmp_path)])
    done = luna("weights", "list", "--json", environment={"LUNA_MODELS": models, "COMFYUI_PATH": ""})
    record = data(done)
    assert done.returncode == 0
    assert record["missing"] == [str(tmp_path / "gone")]
    assert [Path(row["path"]).name for row in record["sources"]] == ["tiny.safetensors"]
    assert f"file-missing: there is no folder {tmp_path / 'gone'}" in done.stderr


def test_verify_compares_with_the_source_and_notices_damage(source: Path, tmp_path: Path) -> None:
    luna("weights", "convert", source, "--to", "Q8_0", "--out", tmp_path / "out")
    target = tmp_path / "out" / "tiny_Q8_0.gguf"
    done = luna("weights", "verify", target, "--source", source, "--json")
    assert done.returncode == 0
    report = data(done)["files"][0]["report"]
    assert report["checked"] == ["structure", "hash", "finite", "values"]
    assert 0 < report["errors"]["attention other"]["rmse"] < 0.01
    content = bytearray(target.read_bytes())
    content[-100] ^= 0x10
    target.write_bytes(content)
    done = luna("weights", "verify", target, "--json")
    assert done.returncode == 4
    assert errors(done)[0]["code"] == "file-damaged"


def test_jobs_are_listed_and_detached_ones_run_on(source: Path, tmp_path: Path) -> None:
    done = luna("weights", "convert", source, "--to", "Q8_0", "--out", tmp_path / "out", "--detach", "--json")
    (outcome,) = data(done)["outcomes"]
    for _ in range(200):
        record = data(luna("weights", "jobs", outcome["id"], "--json"))
        if record["jobs"][0]["state"] == "done":
            break
    assert record["jobs"][0]["state"] == "done"
    assert (tmp_path / "out" / "tiny_Q8_0.gguf").exists()
    missing = luna("weights", "jobs", "nonesuch", "--json")
    assert (missing.returncode, errors(missing)[0]["code"]) == (1, "job-missing")


def test_ctrl_c_cancels_and_leaves_nothing(tmp_path: Path) -> None:
    name = "input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight"
    source = write_holes(tmp_path / "large.safetensors", {**TINY_SDXL, name: (500_000, 4096)})
    # Whoever started the tests in the background made them ignore SIGINT, which children inherit.
    luna_in_front = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    luna_in_front += "from luna_tui.cli import main; main()"
    command = [
        *(sys.executable, "-c", luna_in_front),
        "weights",
        "convert",
        str(source),
        "--to",
        "Q8_0",
        "--out",
        str(tmp_path / "out"),
        "--progress",
        "json",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    with process:
        assert process.stderr is not None
        while b'"convert"' not in process.stderr.readline():
            pass
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stderr.read().decode()
    assert process.returncode == 130, rest
    assert list((tmp_path / "out").iterdir()) == []
    assert "cancelled" in luna("weights", "jobs").stdout


def test_the_command_line_loads_no_tensor_library(source: Path) -> None:
    code = (
        "import sys; from luna_tui.cli import luna; from luna_tui.frame import run;"
        "run(luna, ['weights', 'inspect', sys.argv[1]]); run(luna, ['weights', 'jobs']);"
        "run(luna, ['weights', 'convert', sys.argv[1], '--to', 'bf16', '--plan']);"
        "bad = [n for n in ('numpy', 'torch', 'gguf', 'safetensors', 'textual') if n in sys.modules]; print(bad)"
    )
    done = subprocess.run([sys.executable, "-c", code, source], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
