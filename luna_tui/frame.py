"""The frame of the `luna` command line: lazy groups, global options, streams and exit codes.

stdout carries data only, stderr all else. A verb is a function that returns data or raises LunaError; this module
turns that into text, JSON and the exit codes 0 done, 1 failed, 2 usage, 3 daemon unreachable, 4 bad input file.
"""

from __future__ import annotations

import datetime
import functools
import importlib
import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from luna_engine.errors import LunaError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True)
class Output:
    """How this run talks: set by the global options, read by verbs through `output()`."""

    json: bool = False
    progress: str = "auto"
    yes: bool = False
    readonly: bool = False
    quiet: bool = False
    verbose: int = 0

    def data(self, schema: str, fields: Mapping[str, Any], text: str) -> None:
        """Print the result: one JSON object ``{schema, at, **fields}``, or the text for people."""
        if self.json:
            click.echo(json.dumps({"schema": schema, "at": now(), **fields}, ensure_ascii=False))
        elif text:
            click.echo(text)

    def note(self, text: str) -> None:
        """Say something beside the data, on stderr, unless quiet."""
        if not self.quiet:
            click.echo(text, err=True)


def now() -> str:
    """Return the time as RFC 3339 in UTC, to the millisecond."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def output() -> Output:
    """Return the current run's Output."""
    context = click.get_current_context()
    found = context.find_object(Output)
    return found if found is not None else context.ensure_object(Output)


def _set(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value:
        setattr(context.ensure_object(Output), str(parameter.name).replace("json_", "json"), value)


def global_options(command: Callable[P, T]) -> Callable[P, T]:
    """Add the options that may stand before or behind any verb."""
    options = [
        click.option("--json", "json_", is_flag=True, expose_value=False, callback=_set, help="JSON on stdout."),
        click.option(
            "--progress",
            type=click.Choice(["auto", "rich", "plain", "json", "none"]),
            expose_value=False,
            callback=_set,
            help="How progress is shown on stderr.",
        ),
        click.option("--yes", is_flag=True, expose_value=False, callback=_set, help="Answer questions with yes."),
        click.option("--readonly", is_flag=True, expose_value=False, callback=_set, help="Refuse every change."),
        click.option("-q", "--quiet", is_flag=True, expose_value=False, callback=_set, help="No notes on stderr."),
        click.option("-v", "--verbose", count=True, expose_value=False, callback=_set, help="More on stderr."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def verb(
    group: click.Group, name: str, *, mutates: bool = False, **attributes: Any
) -> Callable[[Callable[..., Any]], click.Command]:
    """Register a function as `luna GROUP NAME` with the global options; ``--readonly`` refuses it if it mutates."""

    def register(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            if mutates and output().readonly:
                raise LunaError("read-only", f"luna {group.name} {name} changes something and --readonly is set")
            return function(*args, **kwargs)

        return group.command(name, **attributes)(global_options(run))

    return register


class LazyGroup(click.Group):
    """A group whose members are imported when they are used, so that `luna --version` stays instant."""

    def __init__(self, *args: Any, lazy: Mapping[str, tuple[str, str]] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = dict(lazy or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List eager and lazy members."""
        return sorted({*super().list_commands(ctx), *self._lazy})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the member's module when it is asked for."""
        if cmd_name not in self._lazy:
            return super().get_command(ctx, cmd_name)
        module, attribute = self._lazy[cmd_name][0].split(":")
        command = getattr(importlib.import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}:{attribute} is no click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help list from the table, importing nothing."""
        rows = [(name, self._lazy[name][1]) for name in sorted(self._lazy)]
        rows += [
            (name, command.get_short_help_str())
            for name in super().list_commands(ctx)
            if (command := super().get_command(ctx, name)) is not None
        ]
        with formatter.section("Commands"):
            formatter.write_dl(sorted(rows))


def ask(question: str) -> None:
    """Ask before something is lost: on a terminal a question, elsewhere ``--yes`` is needed.

    Raises:
        click.UsageError: nobody can answer.
        click.Abort: the answer was no.
    """
    if output().yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise click.UsageError(f"{question} Say --yes where nobody can answer")
    click.confirm(question, abort=True, err=True)


def fail(error: LunaError, *, as_json: bool) -> int:
    """Report an error on stderr and return the exit code."""
    if as_json:
        click.echo(
            json.dumps({"schema": "luna.error/1", "at": now(), **error.as_dict()}, ensure_ascii=False),
            err=True,
        )
    else:
        place = ":".join(str(part) for part in (error.file, error.line, error.column) if part is not None)
        click.echo(f"luna: {error.code}: {f'{place}: ' if place else ''}{error.message}", err=True)
        if error.hint:
            click.echo(f"  -> {error.hint}", err=True)
    return error.exit_code


def run(command: click.Command, arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit code; expected failures never show a traceback."""
    settings = Output()
    try:
        result = command.main(args=arguments, prog_name="luna", standalone_mode=False, obj=settings)
    except LunaError as error:
        return fail(error, as_json=settings.json)
    except click.exceptions.Abort:
        click.echo("luna: interrupted", err=True)
        return 130
    except KeyboardInterrupt:
        return 130
    except click.ClickException as error:
        error.show(sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    return result if isinstance(result, int) else 0
