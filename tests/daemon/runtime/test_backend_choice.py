"""Which backend a daemon takes, with checkouts that work, fail, or are not there at all."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
import torch

from luna_daemon.runtime import checkout
from luna_daemon.runtime.checkout import Comfy, find_problem
from luna_daemon.runtime.choice import choose_backend
from luna_daemon.runtime.models import guess_family
from luna_daemon.runtime.parts import KINDS, OpenFile
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from pathlib import Path

CPU = torch.device("cpu")


def make_checkout(folder: Path, sd: str) -> Path:
    """Write what the probe looks for; ``sd`` is the text of comfy/sd.py."""
    (folder / "comfy").mkdir(parents=True)
    (folder / "comfy/cli_args.py").write_text("class args:\n    cpu = False\n")
    (folder / "comfy/sd.py").write_text(sd)
    return folder


def test_a_checkout_is_tried_in_another_process_with_the_flags_set(tmp_path: Path) -> None:
    works = make_checkout(tmp_path / "works", "from comfy.cli_args import args\nassert args.cpu\n")
    assert find_problem(works) is None
    assert "comfy" not in sys.modules


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("import a_package_that_nobody_has\n", "a_package_that_nobody_has"),
        ("import os\nos._exit(7)\n", "exit 7"),
    ],
)
def test_why_a_checkout_does_not_work_is_told(tmp_path: Path, text: str, word: str) -> None:
    problem = find_problem(make_checkout(tmp_path / "broken", text))
    assert problem is not None
    assert word in problem
    backend, reason = choose_backend("auto", tmp_path / "broken", CPU)
    assert backend.name == "native"
    assert word in reason
    with pytest.raises(DaemonError) as caught:
        choose_backend("comfy", tmp_path / "broken", CPU)
    assert caught.value.code == "settings-invalid"
    assert word in caught.value.message


def test_a_checkout_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkout, "PROBE_TIMEOUT_S", 0.5)
    problem = find_problem(make_checkout(tmp_path / "slow", "import time\ntime.sleep(60)\n"))
    assert problem == "importing ComfyUI took more than 0.5 s"


@pytest.mark.parametrize("named", [None, "nothing", "file"])
def test_without_a_checkout_auto_is_native_and_says_so(tmp_path: Path, named: str | None) -> None:
    (tmp_path / "file").write_text("")
    backend, reason = choose_backend("auto", None if named is None else tmp_path / named, CPU)
    assert backend.name == "native"
    assert reason.startswith("auto: ")
    assert "checkout" in reason


def test_native_asks_no_checkout(tmp_path: Path) -> None:
    hangs = make_checkout(tmp_path / "slow", "import time\ntime.sleep(60)\n")
    backend, reason = choose_backend("native", hangs, CPU)
    assert (backend.name, reason) == ("native", "asked for")


def test_another_package_called_comfy_is_not_taken_for_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been imported, or be installed, before the checkout gets onto the path."""
    other = make_checkout(tmp_path / "other", "")
    for name in ("utils", "model_management"):
        (other / f"comfy/{name}.py").write_text("")
    monkeypatch.syspath_prepend(str(other))
    modules = [f"comfy{name}" for name in ("", ".cli_args", ".sd", ".utils", ".model_management")]
    with monkeypatch.context() as patch:
        for name in modules:
            patch.delitem(sys.modules, name, raising=False)
        __import__("comfy.sd")
        here = make_checkout(tmp_path / "here", "")
        patch.setattr(sys, "path", [*sys.path])
        with pytest.raises(DaemonError) as caught:
            Comfy(here, CPU)
    for name in modules:
        sys.modules.pop(name, None)
    assert caught.value.code == "settings-invalid"


def test_a_whole_file_is_a_part_of_its_own_and_its_family_must_be_named(model_root: Path) -> None:
    """What a backend with ``reads_any`` gets for an architecture that Luna does not know."""
    with OpenFile(model_root / "loras/lora.safetensors", "some model") as file:
        part = file.whole("umt5xxl")
        assert part.is_whole
        assert len(part.names) == len(file.entries) > 10
        assert part.kind.role not in KINDS
        assert len(part.content(lambda: None)) == 64
        with pytest.raises(DaemonError) as caught:
            guess_family({"umt5xxl": part})
    assert caught.value.code == "request-invalid"
