"""`luna wildcards odds|uses|steps`: what the Wildcards screen shows about a template or address, for a shell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from luna_engine.errors import LunaError
from luna_tui import frame
from luna_tui.commands.wildcards_group import (
    group,
    library_of,
    profile_option,
    roots_option,
    seed_value,
    template_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from luna_engine.wildcards import Choice, SiteOdds, WildcardLibrary


@frame.verb(group, "odds")
@click.argument("template", metavar="TEMPLATE|ADDRESS")
@click.option("--top", default=10, show_default=True, type=click.IntRange(1, 10_000), help="How many texts a site.")
@profile_option
@roots_option
def odds(template: str, top: int, profile: str, roots: tuple[Path, ...]) -> None:
    """Print what each site of TEMPLATE (or the list at ADDRESS) can give, and how likely, exactly."""
    library = library_of(roots)
    text = template_of(template)
    sites = library.probabilities(_as_template(library, text), top, profile=profile)
    lines = [line for site in sites for line in _bars(site)]
    frame.output().data("luna.wildcards.odds/1", {"sites": [site.as_dict() for site in sites]}, "\n".join(lines))


def _as_template(library: WildcardLibrary, text: str) -> str:
    """Return a reference if the text is an address and nothing else, else the text."""
    is_address = not any(sign in text for sign in "{}[]_$\n") and library.snapshot.index.resolve(text) is not None
    return f"{{{text}}}" if is_address else text


def _bars(site: SiteOdds) -> Iterator[str]:
    yield site.reference if site.is_exact else f"{site.reference}  (not exact: it depends on earlier draws)"
    width = min(60, max((len(share.text) for share in site.shares), default=0))
    for share in site.shares:
        yield f"  {share.text:<{width}}  {float(share.probability) * 100:7.3f} %"
    if site.rest:
        yield f"  {'all others':<{width}}  {float(site.rest) * 100:7.3f} %"


@frame.verb(group, "uses")
@click.argument("address")
@click.option("--templates", multiple=True, metavar="FILE", help="Look into prompt files too.")
@roots_option
def uses(address: str, templates: tuple[str, ...], roots: tuple[Path, ...]) -> None:
    """Print every reference that can draw from ADDRESS."""
    library = library_of(roots)
    if library.snapshot.index.resolve(address) is None:
        raise LunaError("unknown-ref", f"nothing has the address {address!r}", "luna wildcards tree lists all")
    found = library.where_used(address, [template_of(f"@{name}") for name in templates])
    lines = []
    for use in found:
        file = use.file if use.template is None else templates[use.template]
        how = "" if use.is_direct else f"  (holds it: {use.names})"
        lines.append(f"{file}:{use.line}:{use.column}: {use.reference}{how}")
    frame.output().data("luna.wildcards.uses/1", {"uses": [use.as_dict() for use in found]}, "\n".join(lines))


@frame.verb(group, "steps")
@click.argument("template")
@click.option("--seed", default="0", show_default=True, callback=seed_value, metavar="N|random", help="Any integer.")
@profile_option
@roots_option
def steps(template: str, seed: int, profile: str, roots: tuple[Path, ...]) -> None:
    """Print one expansion of TEMPLATE draw by draw, what is not drawn yet as it is written."""
    states = list(library_of(roots).steps(template_of(template), seed, profile=profile))
    lines: list[str] = []
    records: list[dict[str, Any]] = []
    for number, state in enumerate(states):
        new = state.choices[state.first_new :]
        lines.append(f"{number:>3}  {state.text}")
        lines += [f"       {_told(choice)}" for choice in new]
        records.append({"step": number, "text": state.text, "choices": [choice.as_dict() for choice in new]})
    fields = {"seed": seed if abs(seed) <= 1 << 53 else str(seed), "steps": records}
    frame.output().data("luna.wildcards.steps/1", fields, "\n".join(lines))


def _told(choice: Choice) -> str:
    place = f"{choice.file}:{choice.line}" if choice.file else "the template"
    share = f"{choice.probability * 100:.3g} %"
    return f"{choice.site_text} -> {choice.value}  ({share}, 1 of {choice.pool_size}, {place})"
