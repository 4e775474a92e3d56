"""Settings: what applies, what is ignored and said, and what a write must not touch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from luna_engine import paths, settings
from luna_engine.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "settings.toml"


def test_no_file_gives_the_defaults() -> None:
    loaded = settings.load()
    assert (loaded.daemon.port, loaded.daemon.vae_port) == (19283, 19284)
    assert loaded.daemons == {}
    assert loaded.problems == ()


def test_values_are_read_into_their_places(file: Path) -> None:
    file.write_text(
        'models = ["/m"]\n[daemon]\nport = 20000\ntimeout_s = 5\n[daemon.sets.mine]\nfamily = "sd15"\nl = "te/clip_l"\n'
        '[daemons.clip]\nservice_type = "clip"\npreload = ["mine"]\nthreads = 2\n'
    )
    loaded = settings.load(file)
    assert loaded.models == ("/m",)
    assert loaded.daemon.port == 20000
    assert loaded.daemon.timeout_s == 5.0
    assert loaded.daemon.sets["mine"].l == "te/clip_l"
    assert loaded.daemons["clip"] == settings.DaemonInstance("clip", preload=("mine",), threads=2)


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("[daemon]\nprot = 1\n", "daemon.prot", "unknown setting; known here"),
        ('[daemon]\nport = "19283"\n', "daemon.port", "expected int, found '19283'"),
        ("[daemon]\nport = true\n", "daemon.port", "expected int, found True"),
        ("models = [1]\n", "models", "expected a list of texts"),
        ("daemons = 3\n", "daemons", "expected a table"),
        ("[daemons.x]\nrestart = 1\n", "daemons.x.restart", "expected bool"),
    ],
)
def test_a_bad_value_is_named_and_the_others_apply(file: Path, text: str, key: str, words: str) -> None:
    file.write_text("keys = {}\n" + text + "[wildcards]\nbundled = false\n")
    loaded = settings.load(file)
    assert [problem.key for problem in loaded.problems] == [key]
    assert words in loaded.problems[0].message
    assert loaded.daemon.port == 19283
    assert not loaded.wildcards.bundled


@pytest.mark.parametrize("data", [b"[daemon\n", b"a = 1\nb = = 2\n", b"\xff\xfe\x00"])
def test_what_is_no_toml_is_refused_with_its_file(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    with pytest.raises(SettingsError) as caught:
        settings.load(file)
    assert caught.value.code == "settings-invalid"
    assert caught.value.file == str(file)


def test_the_line_of_a_mistake_is_told(file: Path) -> None:
    file.write_text("a = 1\nb = = 2\n")
    with pytest.raises(SettingsError) as caught:
        settings.load(file)
    assert caught.value.line == 2


def test_saving_a_daemon_keeps_comments_order_and_unknown_values(file: Path) -> None:
    before = '# mine\nmodels = ["/m"]  # the shelf\n\n[future]\nx = 1\n\n[daemons.a]\nport = 1  # keep\n'
    file.write_text(before)
    written = settings.save_daemon("b", settings.DaemonInstance("vae", port=19284, preload=("s",)), file)
    after = file.read_text()
    assert after.startswith(before.rstrip("\n"))
    assert "[daemons.b]" in written
    assert settings.load(file).daemons["b"] == settings.DaemonInstance("vae", port=19284, preload=("s",))


def test_a_saved_set_comes_back_equal(file: Path) -> None:
    models = settings.ModelSet(family="sd15", l="te/l.safetensors", vae="vae/v.safetensors", default=True)
    settings.save_set("mine", models, file)
    assert settings.load(file).daemon.sets == {"mine": models}


def test_removing_takes_just_that_daemon(file: Path) -> None:
    settings.save_daemon("a", settings.DaemonInstance(), file)
    settings.save_daemon("b", settings.DaemonInstance(), file)
    assert settings.remove_daemon("a", file)
    assert not settings.remove_daemon("a", file)
    assert list(settings.load(file).daemons) == ["b"]


def test_a_broken_file_is_never_written_over(file: Path) -> None:
    file.write_text("[daemon\n")
    with pytest.raises(SettingsError):
        settings.save_daemon("a", settings.DaemonInstance(), file)
    assert file.read_text() == "[daemon\n"


def test_a_linked_settings_file_stays_a_link(file: Path, tmp_path: Path) -> None:
    """Dotfile managers keep the real file elsewhere."""
    real = tmp_path / "dotfiles.toml"
    real.write_text("# mine\n")
    file.symlink_to(real)
    settings.save_daemon("a", settings.DaemonInstance(), file)
    assert file.is_symlink()
    assert "[daemons.a]" in real.read_text()


def test_luna_home_moves_everything_below_one_folder(luna_home: Path) -> None:
    for place in (paths.settings_file(), paths.state_dir(), paths.cache_dir()):
        assert place.is_relative_to(luna_home)


def test_the_state_folder_is_private() -> None:
    assert paths.private_dir("run").stat().st_mode & 0o777 == 0o700


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")

    def write_half() -> None:
        with paths.atomic_write(target) as temporary:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_half()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_replaced_file_keeps_its_mode(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    target.chmod(0o640)
    with paths.atomic_write(target) as temporary:
        temporary.write_text("new")
    assert (target.read_text(), target.stat().st_mode & 0o777) == ("new", 0o640)
