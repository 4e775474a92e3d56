"""The group that the verbs of `luna wildcards` register on, and the options and arguments they share."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from luna_engine import settings
from luna_engine.errors import InputFileError, LunaError
from luna_engine.wildcards import WildcardLibrary, default_roots
from luna_engine.wildcards.parser import MOST_CHARACTERS
from luna_tui import frame

if TYPE_CHECKING:
    from collections.abc import Callable

_MOST_BYTES = 4 * MOST_CHARACTERS


@click.group("wildcards")
@frame.global_options
def group() -> None:
    """Expand, count, check and watch wildcard files."""


def roots_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--root``."""
    return click.option(
        "--root",
        "roots",
        multiple=True,
        metavar="DIR",
        type=click.Path(path_type=Path),
        help="A wildcard folder (repeatable); default: the configured ones, then the bundled library.",
    )(command)


def profile_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--profile``."""
    return click.option(
        "--profile",
        type=click.Choice(["native", "dynamicprompts", "impact"]),
        default="native",
        show_default=True,
        help="The dialect of the template.",
    )(command)


def library_of(roots: tuple[Path, ...]) -> WildcardLibrary:
    """Return the library of the folders named, or of the configured ones and the bundled library."""
    if not roots:
        return WildcardLibrary.load(default_roots(settings.load()))
    return WildcardLibrary.load(roots)


def check_writable(what: str) -> None:
    """Refuse a verb that changes files where the command line is told not to.

    Raises:
        LunaError: ``read-only``.
    """
    if frame.output().readonly:
        raise LunaError("read-only", f"luna wildcards {what} changes something and --readonly is set")


def template_of(text: str) -> str:
    """Return the template: the argument, the file behind ``@``, or stdin for ``-``."""
    if text == "-":
        data = sys.stdin.buffer.read(_MOST_BYTES + 1)
        source = "stdin"
    elif text.startswith("@"):
        source = text[1:]
        try:
            with Path(source).open("rb") as file:
                data = file.read(_MOST_BYTES + 1)
        except OSError as error:
            raise InputFileError(
                "file-missing",
                f"the template {source} cannot be read: {error.strerror or error}",
                r"write \@ in front if the text itself begins with @" if not Path(source).suffix else None,
                file=source,
            ) from error
    else:
        return text.removeprefix("\\") if text.startswith(("\\@", "\\-")) else text
    if len(data) > _MOST_BYTES:
        raise InputFileError("limit", f"the template {source} is larger than {_MOST_BYTES} bytes", file=source)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputFileError(
            "encoding", f"the template {source} is not UTF-8 (byte {error.start})", "save it as UTF-8", file=source
        ) from error


def seed_value(context: click.Context, parameter: click.Parameter, value: str) -> int:
    """Read ``--seed``: an integer of any size, or ``random``."""
    del context, parameter
    if value == "random":
        return secrets.randbits(53)
    digits = value.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 4000:
        raise click.BadParameter(f"{value[:40]!r} is neither an integer nor 'random'")
    return int(value)
