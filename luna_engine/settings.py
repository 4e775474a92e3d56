"""The user's settings: one TOML file read into frozen dataclasses, and written back with comments kept.

A value of the wrong type or an unknown name is a problem with its place; the other values still apply. Only
`save_daemon` and `remove_daemon` write, both through tomlkit so that the user's comments and order stay.
"""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luna_engine import paths
from luna_engine.errors import SettingsError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CLIP_PORT = 19283
VAE_PORT = 19284


@dataclass(frozen=True, slots=True)
class ModelSet:
    """A family and the files of its parts, ``[daemon.sets.NAME]``. Files are ids ``root/name`` or absolute paths."""

    family: str = ""
    l: str | None = None  # noqa: E741 - the role's name on the wire and in ComfyUI's token dictionary
    g: str | None = None
    t5xxl: str | None = None
    qwen3_4b: str | None = None
    vae: str | None = None
    llm: str | None = None
    default: bool = False


@dataclass(frozen=True, slots=True)
class DaemonSettings:
    """What all daemons and their clients share, ``[daemon]``.

    Attributes:
        python: what runs daemons; None is the Python that starts them.
        shared_device, vae_device: of a clip or full, and of a vae daemon that is started without ``--device``.
        clip_l_path, clip_g_path, vae_path: files that such a daemon loads when it is started without ``--preload``.
        lora_cache_bytes: what a daemon keeps of LoRAs.
        cuda_ipc: whether tensors that lie on a daemon's card may stay there on their way between processes.
    """

    host: str = "127.0.0.1"
    port: int = CLIP_PORT
    vae_port: int = VAE_PORT
    timeout_s: float = 120.0
    python: str | None = None
    shared_device: str | None = None
    vae_device: str | None = None
    clip_l_path: str | None = None
    clip_g_path: str | None = None
    vae_path: str | None = None
    lora_cache_bytes: int = 2 * 1024**3
    cuda_ipc: bool = True
    sets: dict[str, ModelSet] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DaemonInstance:
    """One configured daemon, ``[daemons.NAME]``: what the start form edits and the supervisor runs.

    Attributes:
        restart: after a crash.
        metrics_port: for Prometheus; None is off.
        kill_after_s: how long a daemon may not answer before its supervisor kills it; None is for ever.
    """

    service_type: str = "full"
    device: str = "cpu"
    port: int = CLIP_PORT
    backend: str = "auto"
    precision: str = "auto"
    preload: tuple[str, ...] = ()
    threads: int | None = None
    autostart: bool = False
    restart: bool = True
    metrics_port: int | None = None
    kill_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class WildcardSettings:
    """``[wildcards]``: library roots, earlier ones shadow later ones; the bundled library comes last."""

    roots: tuple[str, ...] = ()
    bundled: bool = True


@dataclass(frozen=True, slots=True)
class WeightsSettings:
    """``[weights]``: where checkpoints are and where converted files go."""

    paths: tuple[str, ...] = ()
    optimized_dir: str | None = None
    keep_free_bytes: int = 0


@dataclass(frozen=True, slots=True)
class UiSettings:
    """``[ui]``."""

    theme: str | None = None
    ascii: bool = False
    readonly: bool = False
    editor: str | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """A setting that was ignored, and why."""

    key: str
    message: str


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings.

    Attributes:
        models: the model roots (ComfyUI's folders are added through ``COMFYUI_PATH``).
        allowed_roots: folders beside ComfyUI's own that nodes may write to, and read from where ComfyUI can be
            reached from other machines.
    """

    daemon: DaemonSettings = field(default_factory=DaemonSettings)
    daemons: dict[str, DaemonInstance] = field(default_factory=dict)
    models: tuple[str, ...] = ()
    allowed_roots: tuple[str, ...] = ()
    wildcards: WildcardSettings = field(default_factory=WildcardSettings)
    weights: WeightsSettings = field(default_factory=WeightsSettings)
    ui: UiSettings = field(default_factory=UiSettings)
    keys: dict[str, str] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


def load(path: Path | None = None) -> Settings:
    """Read the settings; a missing file gives the defaults.

    Raises:
        SettingsError: ``settings-invalid`` when the file is no TOML or cannot be read. Single bad values do not
            raise: they are listed in ``Settings.problems`` and keep their default.
    """
    path = path or paths.settings_file()
    try:
        data = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        return Settings()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError("settings-invalid", f"{path} cannot be read: {error}", file=str(path)) from error
    except tomllib.TOMLDecodeError as error:
        line = _line_of(error)
        raise SettingsError(
            "settings-invalid",
            f"not valid TOML: {error}",
            "mend the line, or move the file away",
            file=str(path),
            line=line,
        ) from error
    problems: list[Problem] = []
    settings = typing.cast("Settings", _build(Settings, data, "", problems))
    return dataclasses.replace(settings, problems=tuple(problems))


def _line_of(error: tomllib.TOMLDecodeError) -> int | None:
    """Take the line out of "… (at line 3, column 7)", which is all that tomllib offers before 3.14."""
    _, _, tail = str(error).rpartition("at line ")
    digits = tail.split(",", 1)[0].strip()
    return int(digits) if digits.isdigit() else None


def _build(kind: type[Any], data: Mapping[str, Any], prefix: str, problems: list[Problem]) -> object:
    hints = typing.get_type_hints(kind)
    names = {entry.name for entry in dataclasses.fields(kind)} - ({"problems"} if kind is Settings else set())
    values: dict[str, Any] = {}
    for key, value in data.items():
        dotted = f"{prefix}{key}"
        if key not in names:
            problems.append(Problem(dotted, f"unknown setting; known here: {', '.join(sorted(names))}"))
            continue
        ok, converted = _convert(hints[key], value, dotted, problems)
        if ok:
            values[key] = converted
    return kind(**values)


def _convert(hint: Any, value: Any, key: str, problems: list[Problem]) -> tuple[bool, Any]:
    origin = typing.get_origin(hint)
    if origin is types.UnionType or origin is typing.Union:
        inner = next(part for part in typing.get_args(hint) if part is not type(None))
        return _convert(inner, value, key, problems)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return True, _build(typing.cast("type[Any]", hint), value, f"{key}.", problems)
    if origin is dict and isinstance(value, dict):
        inner = typing.get_args(hint)[1]
        pairs = {name: _convert(inner, item, f"{key}.{name}", problems) for name, item in value.items()}
        return True, {name: item for name, (ok, item) in pairs.items() if ok}
    if origin is tuple and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return True, tuple(value)
    if hint is float and type(value) is int:
        return True, float(value)
    if isinstance(hint, type) and type(value) is hint:
        return True, value
    expected = (
        "a list of texts"
        if origin is tuple
        else "a table"
        if origin is dict or dataclasses.is_dataclass(hint)
        else getattr(hint, "__name__", str(hint))
    )
    problems.append(Problem(key, f"expected {expected}, found {value!r}; the default stands"))
    return False, None


def save_daemon(name: str, instance: DaemonInstance, path: Path | None = None) -> str:
    """Write ``[daemons.NAME]``, keeping comments and order of the rest.

    Returns:
        The TOML of that table as written, for showing.

    Raises:
        SettingsError: the existing file is no TOML (it is left as it was).
    """
    document, path = _document(path)
    table = tomlkit_table({key: value for key, value in dataclasses.asdict(instance).items() if value is not None})
    daemons = document.setdefault("daemons", _tomlkit().table(is_super_table=True))
    daemons[name] = table
    _write(document, path)
    return f"[daemons.{name}]\n{table.as_string()}"


def save_set(name: str, models: ModelSet, path: Path | None = None) -> str:
    """Write ``[daemon.sets.NAME]``, keeping comments and order of the rest.

    Returns:
        The TOML of that table as written, for showing.

    Raises:
        SettingsError: the existing file is no TOML (it is left as it was).
    """
    document, path = _document(path)
    values = {key: value for key, value in dataclasses.asdict(models).items() if value not in {None, "", False}}
    table = tomlkit_table(values)
    daemon = document.setdefault("daemon", _tomlkit().table(is_super_table=True))
    sets = daemon.setdefault("sets", _tomlkit().table(is_super_table=True))
    sets[name] = table
    _write(document, path)
    return f"[daemon.sets.{name}]\n{table.as_string()}"


def remove_daemon(name: str, path: Path | None = None) -> bool:
    """Remove ``[daemons.NAME]``; tell whether it was there."""
    document, path = _document(path)
    daemons = document.get("daemons")
    if daemons is None or name not in daemons:
        return False
    del daemons[name]
    _write(document, path)
    return True


def tomlkit_table(values: Mapping[str, Any]) -> Any:
    """Return a tomlkit table of plain values (tuples as arrays)."""
    table = _tomlkit().table()
    for key, value in values.items():
        table[key] = list(value) if isinstance(value, tuple) else value
    return table


def _tomlkit() -> Any:
    import tomlkit  # only writers need it

    return tomlkit


def _document(path: Path | None) -> tuple[Any, Path]:
    path = path or paths.settings_file()
    load(path)  # the same clear error as reading
    text = path.read_text("utf-8-sig") if path.exists() else ""
    return _tomlkit().parse(text), path


def _write(document: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # A link (dotfile managers) stays one: the file behind it is replaced.
    with paths.atomic_write(path.resolve()) as temporary:
        temporary.write_text(_tomlkit().dumps(document), "utf-8")
