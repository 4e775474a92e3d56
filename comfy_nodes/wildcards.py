"""Wildcard nodes: templates in, finished prompts out. The language and the drawing are luna_engine.wildcards'."""

from __future__ import annotations

import functools
import hashlib
import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna_engine import paths
from luna_engine.errors import InputFileError, LunaError, WildcardError
from luna_engine.wildcards import Root, Severity, WildcardLibrary

from . import comfy
from .access import require_readable
from .reports import status_text
from .widgets import choice, seed, text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from luna_engine.wildcards import Diagnostic, Expansion

CATEGORY = "Luna/Wildcards"
DEFAULT_TEMPLATE = "{characters}"
YAML_KINDS = (".yaml", ".yml", ".json")
TXT_KINDS = (".txt",)


class LunaYAMLWildcard:
    """Expand one prompt template, and a negative one in the same draw."""

    DISPLAY_NAME = "Luna YAML Wildcard"
    DESCRIPTION = (
        "Expands a prompt template from wildcard files: {file}, {file:path}, {file: text [path]}, {a|b}, {1-5}. "
        "The same template and seed give the same text in every Luna node, on the command line and in the app."
    )
    SEARCH_ALIASES = ["dynamic prompt", "random prompt", "template"]
    CATEGORY = CATEGORY
    FUNCTION = "expand"
    RETURN_TYPES = ("STRING", "STRING", "STRING", "STRING")
    RETURN_NAMES = ("prompt", "negative", "choices", "report")
    OUTPUT_TOOLTIPS = (
        "The finished prompt.",
        "The finished negative prompt, from the same draw.",
        "JSON list of what was picked: reference, path, file, line, text, weight, tags.",
        "One summary line, then a line for each reference that was kept or dropped and each problem.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the templates and where they look."""
        return {
            "required": {
                "prompt_template": text(
                    "The template. Text outside braces stays as written, line breaks included.",
                    DEFAULT_TEMPLATE,
                    multiline=True,
                ),
                "seed": seed("Every value is a seed and reproduces the same prompt, 0 included."),
            },
            "optional": {
                "yaml_directory": text(
                    "Folder with .yaml and .json files, instead of ComfyUI's wildcards folders and the bundled library."
                ),
                "txt_wildcard_directory": text(
                    "Folder with .txt files, instead of ComfyUI's wildcards folders and the bundled library."
                ),
                "negative_template": text(
                    "Template of the negative prompt; variables are shared with the prompt.", multiline=True
                ),
                "missing": choice(
                    ("keep", "error", "drop"),
                    "keep",
                    "A reference that nobody defines: keep it as text, stop with an error, or leave it out.",
                ),
            },
        }

    @classmethod
    def IS_CHANGED(
        cls,
        prompt_template: str | None = None,
        negative_template: str | None = "",
        yaml_directory: str | None = "",
        txt_wildcard_directory: str | None = "",
        **_: Any,
    ) -> str:
        """Fingerprint the files that the templates reach; all files if a template comes over a link."""
        try:
            roots = _roots(comfy.current_host(), yaml_directory or "", txt_wildcard_directory or "")
            if prompt_template is None or negative_template is None:
                return _stamp(roots)
            library = _library(roots)
            return f"{library.fingerprint(prompt_template)} {library.fingerprint(negative_template)}"
        except (LunaError, OSError) as error:
            return f"unreadable: {error}"  # the run itself raises it with its code

    def expand(
        self,
        prompt_template: str,
        seed: int,
        yaml_directory: str = "",
        txt_wildcard_directory: str = "",
        negative_template: str = "",
        missing: str = "keep",
    ) -> dict[str, Any]:
        """Expand both templates in one draw."""
        host = comfy.current_host()
        library = _library(_roots(host, yaml_directory, txt_wildcard_directory))
        expansion = _expand(library, {"": prompt_template, "negative": negative_template}, seed, missing)
        _raise_on_syntax(expansion, prompt_template)
        prompt, negative = expansion.parts[""], expansion.parts["negative"]
        problems = [_line(found) for found in expansion.diagnostics if found.severity is not Severity.HINT]
        for problem in problems:
            host.notice(problem)
        shown = [prompt, negative] if negative else [prompt]
        choices = json.dumps(expansion.choices_json(), ensure_ascii=False)
        return {
            "ui": {"text": shown},
            "result": (prompt, negative, choices, _report(expansion, seed, problems)),
        }


def _roots(host: comfy.ComfyHost, yaml_directory: str, txt_directory: str) -> tuple[Root, ...]:
    """Return the roots, earlier ones first: a given folder replaces the usual ones for its kind of file."""
    usual = (*host.wildcard_folders(), paths.bundled("wildcards"))
    roots: list[Root] = []
    for given, kinds in ((yaml_directory, YAML_KINDS), (txt_directory, TXT_KINDS)):
        folders = (_folder(given, host),) if given.strip() else usual
        roots.extend(Root(folder, kinds) for folder in folders)
    if not yaml_directory.strip() and not txt_directory.strip():
        return tuple(Root(folder) for folder in usual)
    return tuple(roots)


def _folder(given: str, host: comfy.ComfyHost) -> Path:
    folder = require_readable(Path(given.strip()), host)
    if not folder.is_dir():
        raise InputFileError("file-missing", f"{given} is no folder", "give the folder that holds the wildcard files")
    return folder


_library_lock = threading.Lock()


@functools.lru_cache(maxsize=8)
def _loaded(roots: tuple[Root, ...]) -> WildcardLibrary:
    return WildcardLibrary.load(roots)


def _library(roots: tuple[Root, ...]) -> WildcardLibrary:
    """Return the library of these roots as it is on disk now."""
    with _library_lock:
        library = _loaded(roots)
        library.refresh()
        return library


def _expand(library: WildcardLibrary, templates: dict[str, str], seed: int, missing: str) -> Expansion:
    try:
        return library.expand_parts(templates, seed, missing=missing)
    except WildcardError as error:
        raise WildcardError(
            "wildcard-unresolved", error.message, error.hint, file=error.file, line=error.line, column=error.column
        ) from error


def _raise_on_syntax(expansion: Expansion, template: str) -> None:
    for found in expansion.diagnostics:
        if found.code == "syntax":
            raise WildcardError(
                "wildcard-syntax",
                f"{found.message}{_caret(found, template)}",
                found.hint,
                file=found.file or "<template>",
                line=found.line,
                column=found.column,
            )


def _caret(found: Diagnostic, template: str) -> str:
    """Return the template's line with a caret under the column, or nothing for a place in a file."""
    lines = template.splitlines()
    if found.file is not None or found.line is None or found.column is None or found.line > len(lines):
        return ""
    return f"\n  {lines[found.line - 1]}\n  {' ' * (found.column - 1)}^"


def _line(found: Diagnostic) -> str:
    """Return a diagnostic on one line, the hint included."""
    place = ":".join(str(part) for part in (found.file or "<template>", found.line, found.column) if part is not None)
    hint = f" ({found.hint})" if found.hint else ""
    return f"{place}: {found.code}: {found.message}{hint}"


def _report(expansion: Expansion, seed: int, problems: Iterable[str]) -> str:
    files = {choice.file for choice in expansion.choices if choice.file}
    summary = f"seed {seed}: {len(expansion.choices)} choices from {len(files)} files"
    return status_text(summary, warnings=problems)


def _stamp(roots: Iterable[Root]) -> str:
    """Return a digest of names, sizes and times of all files of the roots."""
    digest = hashlib.sha256()
    for root in roots:
        for path in sorted(Path(root.path).rglob("*")):
            if path.suffix.lower() in root.kinds:
                facts = path.stat()
                digest.update(f"{path}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode())
    return digest.hexdigest()


NODES = (LunaYAMLWildcard,)
