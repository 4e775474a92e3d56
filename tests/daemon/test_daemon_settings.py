"""The command line and the settings of `luna-daemon`: what they mean, and what the process says when they cannot be."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from luna_daemon import identity, options
from luna_daemon.identity import DaemonPlaces
from luna_engine import paths, settings
from luna_engine.errors import DaemonError
from luna_engine.settings import DaemonInstance, ModelSet

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from luna_daemon.options import DaemonOptions

    from .conftest import WireDaemon

SERVER = paths.checkout_root() / "luna_daemon" / "server.py"


def given(text: str = "") -> settings.Settings:
    path = paths.settings_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    loaded = settings.load()
    assert loaded.problems == ()
    return loaded


def parsed(*arguments: str, text: str = "") -> DaemonOptions:
    return options.parse(arguments, given(text))


def test_a_daemon_serves_all_at_the_usual_port_unless_told_otherwise() -> None:
    assert (parsed().service_type, parsed().port, parsed().name, parsed().device) == ("full", 19283, "full", None)
    vae = parsed("-t", "vae", "-d", "cuda:1")
    assert (vae.service_type, vae.port, vae.name, vae.device) == ("vae", 19284, "vae", "cuda:1")
    assert (parsed("--no-tcp").port, parsed().metrics_port) == (None, None)
    assert parsed("-p", "0", "--metrics-port", "9500").metrics_port == 9500
    assert parsed("-d", "GPU-01234567-89ab").device == "GPU-01234567-89ab"


def test_ports_and_devices_come_from_the_settings() -> None:
    text = '[daemon]\nport = 20001\nvae_port = 20002\nshared_device = "cuda:3"\nvae_device = "cpu"\n'
    assert (parsed("-t", "clip", text=text).port, parsed("-t", "clip", text=text).device) == (20001, "cuda:3")
    assert (parsed(text=text).port, parsed(text=text).device) == (20001, "cuda:3")
    assert (parsed("-t", "vae", text=text).port, parsed("-t", "vae", text=text).device) == (20002, "cpu")
    assert parsed("-t", "vae", "-d", "cuda:0", text=text).device == "cuda:0"
    with pytest.raises(DaemonError) as caught:
        parsed(text='[daemon]\nshared_device = "tpu"\n')
    assert caught.value.code == "settings-invalid"


FILES = '[daemon]\nclip_l_path = "/m/l.safetensors"\nclip_g_path = "te/g"\nvae_path = "/m/vae.safetensors"\n'


@pytest.mark.parametrize(
    ("arguments", "text", "preload"),
    [
        ((), FILES, ("files",)),
        (("-t", "clip"), FILES, ("files",)),
        (("-t", "vae"), FILES, ("files",)),
        (("-t", "vae"), '[daemon]\nclip_l_path = "/m/l"\n', ()),
        (("-t", "clip"), '[daemon]\nvae_path = "/m/vae"\n', ()),
        ((), "", ()),
        (("--preload", "mine, other"), FILES, ("mine", "other")),
    ],
)
def test_files_of_the_settings_are_a_set_that_is_loaded_first(
    arguments: tuple[str, ...], text: str, preload: tuple[str, ...]
) -> None:
    assert parsed(*arguments, text=text).preload == preload
    told = options.engine_options(parsed(*arguments, text=text), given(text))
    assert told.sets is not None
    if text == FILES:
        expected = ModelSet(l="/m/l.safetensors", g="te/g", vae="/m/vae.safetensors", default=True)
        assert told.sets["files"] == expected


def test_the_lora_cache_has_the_size_of_the_settings() -> None:
    assert options.engine_options(parsed(), given()).lora_cache_bytes == 2 * 1024**3
    text = "[daemon]\nlora_cache_bytes = 5000\n"
    assert options.engine_options(parsed(text=text), given(text)).lora_cache_bytes == 5000


def test_a_configured_daemon_s_command_line_is_understood() -> None:
    instance = DaemonInstance("vae", "cpu", 20000, "native", "bf16", ("a", "b"), threads=2, metrics_port=9400)
    arguments = options.arguments_for("mine", instance)
    back = parsed(*arguments)
    assert (back.name, back.service_type, back.device, back.port) == ("mine", "vae", "cpu", 20000)
    assert (back.backend, back.precision, back.preload, back.threads) == ("native", "bf16", ("a", "b"), 2)
    assert back.metrics_port == 9400


def test_the_socket_may_lie_elsewhere(start_daemon: Callable[..., WireDaemon], tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir(mode=0o700)
    daemon = start_daemon("--socket", str(folder / "d.sock"), "--no-tcp")
    assert daemon.identity.socket == str(folder / "d.sock")
    connection, _reader = daemon.greeted()
    connection.close()


def test_a_socket_in_a_folder_that_others_may_enter_is_78(
    run_daemon: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o755)
    assert run_daemon("--port", "0", "--socket", str(folder / "d.sock"))[0] == 78
    record = identity.read_exit("wire")
    assert record is not None
    assert "path-unsafe" in record.reason


def product(home: Path, *arguments: str) -> int:
    """Run the product's own daemon, which is expected to end by itself."""
    import os

    environ = {name: value for name, value in os.environ.items() if not name.startswith(("LUNA_", "COMFYUI"))}
    environ |= {"LUNA_HOME": str(home), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SERVER), "--name", "real", "--port", "0", *arguments]
    return subprocess.run(command, env=environ, stderr=subprocess.DEVNULL, timeout=100, check=False).returncode


def test_a_missing_model_to_preload_is_66_in_the_product(luna_home: Path) -> None:
    assert product(luna_home, "--device", "cpu", "--preload", "checkpoints/none.safetensors") == 66
    record = identity.read_exit("real")
    assert record is not None
    assert "checkpoints/none.safetensors" in record.reason
    assert not DaemonPlaces("real").identity.exists()


def test_a_card_that_is_not_there_is_69_in_the_product(luna_home: Path) -> None:
    assert product(luna_home, "--device", "cuda:63") == 69
    record = identity.read_exit("real")
    assert record is not None
    assert "cuda:63" in record.reason
