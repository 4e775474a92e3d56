"""`luna wildcards`: expand, count, lint, look at and watch wildcard files. Thin over `luna_engine.wildcards`."""

from __future__ import annotations

import json
import queue
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from luna_engine.errors import LunaError
from luna_engine.wildcards import Diagnostic, RuleOptions, Severity
from luna_tui import frame
from luna_tui.commands import wildcards_edit, wildcards_import, wildcards_look
from luna_tui.commands.wildcards_group import group, library_of, profile_option, roots_option, seed_value, template_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from luna_engine.wildcards import Batch, Change, Expansion, TreeNode, WildcardLibrary

__all__ = ["group", "wildcards_edit", "wildcards_import", "wildcards_look"]  # importing the three registers their verbs


def _variables(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    del context, parameter
    made: dict[str, str] = {}
    for value in values:
        name, sign, text = value.partition("=")
        if not sign or not name.isidentifier():
            raise click.BadParameter(f"{value!r} is not NAME=VALUE")
        made[name] = text
    return made


def _say(diagnostics: Iterable[Diagnostic]) -> None:
    """Write diagnostics to stderr: errors and warnings always, hints with ``-v``."""
    for found in dict.fromkeys(diagnostics):
        if found.severity is not Severity.HINT or frame.output().verbose:
            frame.output().note(found.as_text())


def _print_json(data: Any) -> None:
    click.echo(json.dumps(data, ensure_ascii=False))


@frame.verb(group, "expand")
@click.argument("template")
@click.option("--seed", default="0", show_default=True, callback=seed_value, metavar="N|random", help="Any integer.")
@click.option("--count", default=1, show_default=True, type=click.IntRange(1, 100_000), help="How many texts.")
@click.option("--unique", is_flag=True, help="Only distinct texts; exit 1 if there are not enough.")
@click.option(
    "--mode",
    type=click.Choice(["random", "enumerate", "cycle", "bag"]),
    default="random",
    show_default=True,
    help="How sites without a sampler mark draw over a batch.",
)
@click.option("--start", default=0, show_default=True, type=click.IntRange(0), help="Index of the first text.")
@click.option(
    "--missing",
    type=click.Choice(["keep", "error", "drop"]),
    default="keep",
    show_default=True,
    help="What happens to references nobody defines.",
)
@click.option("--negative", metavar="TEXT", help="A negative prompt expanded in the same draw.")
@click.option("--var", "variables", multiple=True, callback=_variables, metavar="K=V", help="Set a variable.")
@click.option("--strict", is_flag=True, help="Fail if anything is an error.")
@click.option("--rules", is_flag=True, help="Draw by the library's rule files; what had to be relaxed is told.")
@profile_option
@roots_option
def expand(
    template: str,
    seed: int,
    count: int,
    unique: bool,  # noqa: FBT001 - click passes by name
    negative: str | None,
    rules: bool,  # noqa: FBT001 - click passes by name
    roots: tuple[Path, ...],
    **options: Any,
) -> int:
    """Expand TEMPLATE (@FILE reads a file, - reads stdin) and print one text a line."""
    library = library_of(roots)
    text = template_of(template)
    parts: str | Mapping[str, str] = text if negative is None else {"": text, "negative": template_of(negative)}
    if options["mode"] == "enumerate" and negative is not None:
        raise click.UsageError("--mode enumerate walks one text; leave --negative out")
    if rules and options["mode"] != "random":
        raise click.UsageError(f"--rules draw by weight; leave --mode {options['mode']} out")
    options["rules"] = RuleOptions() if rules else None
    batch = library.expand_many(parts, count, seed, unique, **options)
    return _report(batch, seed, unique=unique)


def _report(batch: Batch, seed: int, *, unique: bool) -> int:
    out = frame.output()
    if out.json:
        records = [_record(result) for result in batch]
        if batch.diagnostics:
            for record in records[-1:]:
                record["diagnostics"] += [found.as_dict() for found in batch.diagnostics]
        _print_json(records)
    else:
        for result in batch:
            click.echo(result.text)
            for name, text in result.parts.items():
                if name:
                    click.echo(f"{name}: {text}")
        out.note(f"seed {seed}")
        _say(found for result in batch for found in result.diagnostics)
        _say(batch.diagnostics)
    return 1 if unique and batch.diagnostics else 0


def _record(result: Expansion) -> dict[str, Any]:
    record = result.as_dict()
    if abs(result.seed) > 1 << 53:
        record["seed"] = str(result.seed)
        record["index"] = str(result.index) if abs(result.index) > 1 << 53 else result.index
    return record


@frame.verb(group, "count")
@click.argument("template")
@profile_option
@roots_option
def count(template: str, profile: str, roots: tuple[Path, ...]) -> None:
    """Print the exact number of ways to expand TEMPLATE."""
    total = library_of(roots).count(template_of(template), profile=profile)
    fields = {"count": total if total <= 1 << 53 else str(total)}
    frame.output().data("luna.wildcards.count/1", fields, str(total))


@frame.verb(group, "tree")
@click.argument("address", required=False)
@click.option("--depth", type=click.IntRange(1), help="How many levels to show.")
@click.option("--filter", "words", metavar="TEXT", help="Only addresses that contain TEXT.")
@roots_option
def tree(address: str | None, depth: int | None, words: str | None, roots: tuple[Path, ...]) -> None:
    """Print addresses with their numbers of items and combinations."""
    library = library_of(roots)
    nodes = library.tree(combinations=True)
    if address is not None:
        wanted = address.replace("\\", "/")
        nodes = tuple(node for top in nodes for node in top.walk() if node.address == wanted)
        if not nodes:
            raise LunaError("unknown-ref", f"nothing has the address {address!r}", "luna wildcards tree lists all")
    rows = [
        (level, node)
        for level, node in _flat(nodes, 0)
        if (depth is None or level < depth) and (words is None or words.casefold() in node.address.casefold())
    ]
    width = max((len(_label(level, node)) for level, node in rows), default=0)
    lines = [f"{_label(level, node):<{width}} {node.items:>8} {_number(node.combinations):>14}" for level, node in rows]
    entries = [{**node.as_dict(), "level": level} for level, node in rows]
    for entry in entries:
        del entry["children"]
    frame.output().data("luna.wildcards.tree/1", {"addresses": entries}, "\n".join(lines))
    _say(library.diagnostics)


def _flat(nodes: tuple[TreeNode, ...], level: int) -> list[tuple[int, TreeNode]]:
    return [pair for node in nodes for pair in ((level, node), *_flat(node.children, level + 1))]


def _label(level: int, node: TreeNode) -> str:
    return f"{'  ' * level}{node.name}{'/' if node.kind == 'folder' else ''}"


def _number(number: int | None) -> str:
    if number is None:
        return "-"
    return str(number) if number < 10**12 else f"{number:.3e}" if number < 10**300 else "huge"


@frame.verb(group, "lint")
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--format", "style", type=click.Choice(["text", "json", "github"]), default="text", show_default=True)
@click.option("--fail-on", type=click.Choice(["error", "warning"]), default="error", show_default=True)
@click.option("--templates", multiple=True, metavar="FILE", help="Check prompt files against the library too.")
@click.option("--fix", is_flag=True, help="Show what the fixes offered would change; with --write change it.")
@click.option("--write", is_flag=True, help="With --fix: write the fixes, then check again.")
@roots_option
def lint(
    paths: tuple[Path, ...],
    style: str,
    fail_on: str,
    templates: tuple[str, ...],
    fix: bool,  # noqa: FBT001 - click passes by name
    write: bool,  # noqa: FBT001 - click passes by name
    roots: tuple[Path, ...],
) -> int:
    """Check whole libraries (PATH… or the roots): broken files, dead references, loops, duplicates."""
    if write and not fix:
        raise click.UsageError("--write goes with --fix")
    library = library_of((*paths, *roots))
    texts = [template_of(f"@{name}") for name in templates]
    found = library.lint(texts)
    if fix:
        wildcards_edit.fix(library, found, write=write)
        found = library.lint(texts) if write else found
    if style == "json" or frame.output().json:
        _print_json([diagnostic.as_dict() for diagnostic in found])
    else:
        for diagnostic in found:
            click.echo(diagnostic.as_github() if style == "github" else diagnostic.as_text())
        totals = {severity: sum(one.severity is severity for one in found) for severity in Severity}
        frame.output().note(", ".join(f"{number} {severity.value}s" for severity, number in totals.items()))
    worst = Severity(fail_on).rank
    return 1 if any(diagnostic.severity.rank <= worst for diagnostic in found) else 0


@frame.verb(group, "watch")
@click.argument("template")
@click.option("--seed", default="0", show_default=True, callback=seed_value, metavar="N|random", help="Any integer.")
@click.option("--count", default=5, show_default=True, type=click.IntRange(1, 1000), help="How many samples.")
@click.option("--changes", type=click.IntRange(1), help="Stop after so many changes; default: until Ctrl-C.")
@roots_option
def watch(template: str, seed: int, count: int, changes: int | None, roots: tuple[Path, ...]) -> None:
    """Print samples of TEMPLATE, and again after each change of a file."""
    library = library_of(roots)
    text = template_of(template)
    events: queue.SimpleQueue[Change] = queue.SimpleQueue()
    library.watch(events.put)
    try:
        _show_samples(library, text, seed, count, ())
        left = changes
        while left is None or left > 0:
            change = events.get()
            if change.notice:
                frame.output().note(change.notice)
                continue
            _show_samples(library, text, seed, count, change.paths)
            left = None if left is None else left - 1
    finally:
        library.close()


def _show_samples(library: WildcardLibrary, text: str, seed: int, count: int, changed: tuple[str, ...]) -> None:
    results = library.preview(text, count, seed)
    diagnostics = dict.fromkeys(found for result in results for found in result.diagnostics)
    fields = {
        "changed": list(changed),
        "samples": [{"seed": result.seed, "text": result.text} for result in results],
        "diagnostics": [found.as_dict() for found in diagnostics],
    }
    head = f"-- {', '.join(changed)}\n" if changed else ""
    frame.output().data("luna.wildcards.watch/1", fields, head + "\n".join(result.text for result in results))
    if not frame.output().json:
        _say(diagnostics)
    sys.stdout.flush()
