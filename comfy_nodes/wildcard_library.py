"""The libraries behind the wildcard nodes: which folders they read, kept fresh, and how their problems are told.

Nothing here is a node. The language and the drawing are `luna_engine.wildcards`'.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna_engine import paths
from luna_engine.errors import InputFileError, LunaError, WildcardError
from luna_engine.wildcards import Root, Severity, WildcardLibrary

from . import comfy
from .access import require_readable
from .widgets import choice, text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from luna_engine.wildcards import Diagnostic, Expansion, RuleOptions

    from .widgets import Declaration

YAML_KINDS = (".yaml", ".yml", ".json")
TXT_KINDS = (".txt",)
_USUAL = "instead of ComfyUI's wildcards folders and the bundled library."
_MOST_NOTICES = 5


def directory_inputs() -> dict[str, Declaration]:
    """Declare the two folders that replace the usual ones."""
    return {
        "yaml_directory": text(f"Folder with .yaml and .json files, {_USUAL}"),
        "txt_wildcard_directory": text(f"Folder with .txt files, {_USUAL}"),
    }


def template_input(default: str) -> Declaration:
    """Declare the template of a prompt."""
    return text("The template. Text outside braces stays as written, line breaks included.", default, multiline=True)


def missing_input() -> dict[str, Declaration]:
    """Declare what a reference that nobody defines does."""
    return {
        "missing": choice(
            ("keep", "error", "drop"),
            "keep",
            "A reference that nobody defines: keep it as text, stop with an error, or leave it out.",
        )
    }


def roots(host: comfy.ComfyHost, yaml_directory: str = "", txt_directory: str = "") -> tuple[Root, ...]:
    """Return the roots, earlier ones first: a given folder replaces the usual ones for its kind of file.

    Raises:
        InputFileError: ``file-missing`` for a folder that is none, ``path-outside`` for one nodes may not read.
    """
    usual = (*host.wildcard_folders(), paths.bundled("wildcards"))
    if not yaml_directory.strip() and not txt_directory.strip():
        return tuple(Root(folder) for folder in usual)
    found: list[Root] = []
    for given, kinds in ((yaml_directory, YAML_KINDS), (txt_directory, TXT_KINDS)):
        folders = (_folder(given, host),) if given.strip() else usual
        found.extend(Root(folder, kinds) for folder in folders)
    return tuple(found)


def _folder(given: str, host: comfy.ComfyHost) -> Path:
    folder = require_readable(Path(given.strip()), host)
    if not folder.is_dir():
        raise InputFileError("file-missing", f"{given} is no folder", "give the folder that holds the wildcard files")
    return folder


_library_lock = threading.Lock()


@functools.lru_cache(maxsize=8)
def _loaded(of: tuple[Root, ...]) -> WildcardLibrary:
    return WildcardLibrary.load(of)


def fresh_library(of: tuple[Root, ...]) -> WildcardLibrary:
    """Return the library of these roots as it is on disk now."""
    with _library_lock:
        library = _loaded(of)
        library.refresh()
        return library


def library_of(yaml_directory: str = "", txt_directory: str = "") -> WildcardLibrary:
    """Return the library of the folders that a node was given, as it is on disk now."""
    return fresh_library(roots(comfy.current_host(), yaml_directory, txt_directory))


def fingerprint(
    templates: Sequence[str | None], yaml_directory: str | None, txt_directory: str | None, *, rules: bool = False
) -> str:
    """Digest the templates and every file they reach; all files if a template comes over a link (None).

    Never raises: what is wrong is part of the digest, and the run itself raises it with its code.
    """
    try:
        of = roots(comfy.current_host(), yaml_directory or "", txt_directory or "")
        if any(template is None for template in templates):
            return stamp(of)
        library = fresh_library(of)
        known = (template for template in templates if template is not None)
        return " ".join(library.fingerprint(template, rules=rules) for template in known)
    except (LunaError, OSError) as error:
        return f"unreadable: {error}"


def stamp(of: Iterable[Root]) -> str:
    """Return a digest of names, sizes and times of all files of the roots."""
    digest = hashlib.sha256()
    for root in of:
        for path in sorted(Path(root.path).rglob("*")):
            if path.suffix.lower() in root.kinds:
                facts = path.stat()
                digest.update(f"{path}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def expand(
    library: WildcardLibrary, templates: dict[str, str], seed: int, missing: str, rules: RuleOptions | None = None
) -> Expansion:
    """Expand the parts of one draw, by rules if any are given.

    Raises:
        WildcardError: ``wildcard-unresolved`` for an unknown reference with ``missing="error"``,
            ``wildcard-syntax`` for a construct out of shape.
    """
    try:
        expansion = library.expand_parts(templates, seed, missing=missing, rules=rules)
    except WildcardError as error:
        raise unresolved(error) from error
    raise_on_syntax(expansion.diagnostics, templates.values())
    return expansion


def unresolved(error: WildcardError) -> WildcardError:
    """Return the engine's error under the nodes' code for references."""
    return WildcardError(
        "wildcard-unresolved", error.message, error.hint, file=error.file, line=error.line, column=error.column
    )


def raise_on_syntax(diagnostics: Iterable[Diagnostic], templates: Iterable[str]) -> None:
    """Raise ``wildcard-syntax`` for the first syntax error; a place in a template gets a caret."""
    for found in diagnostics:
        if found.code == "syntax":
            raise WildcardError(
                "wildcard-syntax",
                f"{found.message}{_caret(found, templates)}",
                found.hint,
                file=found.file or "<template>",
                line=found.line,
                column=found.column,
            )


def _caret(found: Diagnostic, templates: Iterable[str]) -> str:
    """Return the template's line with a caret under the column; nothing for a place in a file.

    A diagnostic does not say which of several templates it means: the first with anything at that place is shown.
    """
    if found.file is not None or found.line is None or found.column is None:
        return ""
    for template in templates:
        lines = template.splitlines()
        if found.line <= len(lines) and found.column <= len(lines[found.line - 1]):
            return f"\n  {lines[found.line - 1]}\n  {' ' * (found.column - 1)}^"
    return ""


def tell_problems(host: comfy.ComfyHost, diagnostics: Iterable[Diagnostic]) -> list[str]:
    """Send errors and warnings as notices, the first few; return all as lines for a report."""
    problems = [problem_line(found) for found in dict.fromkeys(diagnostics) if found.severity is not Severity.HINT]
    for problem in problems[:_MOST_NOTICES]:
        host.notice(problem)
    if len(problems) > _MOST_NOTICES:
        host.notice(f"and {len(problems) - _MOST_NOTICES} more problems: see the report output")
    return problems


def problem_line(found: Diagnostic) -> str:
    """Return a diagnostic on one line, the hint included."""
    place = ":".join(str(part) for part in (found.file or "<template>", found.line, found.column) if part is not None)
    hint = f" ({found.hint})" if found.hint else ""
    return f"{place}: {found.code}: {found.message}{hint}"


def summary_of(expansion: Expansion, seed: Any) -> str:
    """Return the first line of a report."""
    files = {choice.file for choice in expansion.choices if choice.file}
    return f"seed {seed}: {len(expansion.choices)} choices from {len(files)} files"
