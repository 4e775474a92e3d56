"""Wildcard nodes: templates in, finished prompts out. The language and the drawing are luna_engine.wildcards'."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from luna_engine.errors import WildcardError

from . import comfy, wildcard_library
from .reports import status_text
from .widgets import choice, flag, integer, seed, text
from .wildcard_library import directory_inputs, library_of, missing_input, template_input

if TYPE_CHECKING:
    from luna_engine.wildcards import Batch, WildcardLibrary

CATEGORY = "Luna/Wildcards"
DEFAULT_TEMPLATE = "{characters}"
_PROGRESS_STEP = 50


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
                "prompt_template": template_input(DEFAULT_TEMPLATE),
                "seed": seed("Every value is a seed and reproduces the same prompt, 0 included."),
            },
            "optional": {
                **directory_inputs(),
                "negative_template": text(
                    "Template of the negative prompt; variables are shared with the prompt.", multiline=True
                ),
                **missing_input(),
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
        templates = (prompt_template, negative_template)
        return wildcard_library.fingerprint(templates, yaml_directory, txt_wildcard_directory)

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
        library = library_of(yaml_directory, txt_wildcard_directory)
        templates = {"": prompt_template, "negative": negative_template}
        expansion = wildcard_library.expand(library, templates, seed, missing)
        prompt, negative = expansion.parts[""], expansion.parts["negative"]
        problems = wildcard_library.tell_problems(comfy.current_host(), expansion.diagnostics)
        report = status_text(wildcard_library.summary_of(expansion, seed), warnings=problems)
        choices = json.dumps(expansion.choices_json(), ensure_ascii=False)
        shown = [prompt, negative] if negative else [prompt]
        return {"ui": {"text": shown}, "result": (prompt, negative, choices, report)}


class LunaYAMLWildcardBatch:
    """Expand one template many times, as lists for the nodes behind it."""

    DISPLAY_NAME = "Luna YAML Wildcard Batch"
    DESCRIPTION = (
        "Gives many prompts of one template as a list: the nodes behind it run once for each. Random draws with a "
        "seed of their own each, or every combination in a fixed order."
    )
    SEARCH_ALIASES = ["dynamic prompt", "random prompt", "template"]
    CATEGORY = CATEGORY
    FUNCTION = "expand"
    RETURN_TYPES = ("STRING", "INT", "STRING", "STRING")
    RETURN_NAMES = ("prompts", "seeds", "choices", "report")
    OUTPUT_IS_LIST = (True, True, True, False)
    OUTPUT_TOOLTIPS = (
        "The prompts, one after the other.",
        "The seed of each prompt, for Luna YAML Wildcard; in enumerate mode the number of the combination.",
        "For each prompt a JSON list of what was picked.",
        "One summary line, then a line for each problem.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare template, number and how to draw."""
        return {
            "required": {
                "prompt_template": template_input(DEFAULT_TEMPLATE),
                "count": integer("How many prompts.", 10, 1, 1000),
                "seed": seed("The base seed. Neighbouring base seeds share no prompt but by chance."),
            },
            "optional": {
                **directory_inputs(),
                "unique_only": flag("Only distinct prompts: repeats are drawn again until it is enough.", default=True),
                "mode": choice(
                    ("random", "enumerate"),
                    "random",
                    "random: each prompt has a seed of its own. enumerate: every combination in a fixed order.",
                ),
                "start_index": integer("Number of the first prompt or combination, from 0.", 0, 0, 2**53 - 1),
                "exhausted": choice(
                    ("error", "fewer"),
                    "error",
                    "Fewer prompts exist than were asked for: stop with an error, or give those there are.",
                ),
                **missing_input(),
            },
        }

    @classmethod
    def IS_CHANGED(
        cls,
        prompt_template: str | None = None,
        yaml_directory: str | None = "",
        txt_wildcard_directory: str | None = "",
        **_: Any,
    ) -> str:
        """Fingerprint the files that the template reaches; all files if it comes over a link."""
        return wildcard_library.fingerprint((prompt_template,), yaml_directory, txt_wildcard_directory)

    def expand(
        self,
        prompt_template: str,
        count: int,
        seed: int,
        yaml_directory: str = "",
        txt_wildcard_directory: str = "",
        unique_only: bool = True,  # noqa: FBT001, FBT002 - ComfyUI passes widgets by name
        mode: str = "random",
        start_index: int = 0,
        exhausted: str = "error",
        missing: str = "keep",
    ) -> dict[str, Any]:
        """Draw or enumerate."""
        host = comfy.current_host()
        library = library_of(yaml_directory, txt_wildcard_directory)
        batch = _drawn(host, library, prompt_template, count, seed, unique=unique_only, mode=mode, start=start_index,
                       missing=missing)  # fmt: skip
        wildcard_library.raise_on_syntax((found for one in batch for found in one.diagnostics), (prompt_template,))
        for found in batch.diagnostics:
            if exhausted == "error":
                raise WildcardError(found.code, found.message, "ask for fewer, or set exhausted to fewer")
        problems = wildcard_library.tell_problems(
            host, [*batch.diagnostics, *(found for one in batch for found in one.diagnostics)]
        )
        seeds = [one.index if mode == "enumerate" else one.seed for one in batch]
        choices = [json.dumps(one.choices_json(), ensure_ascii=False) for one in batch]
        summary = f"{len(batch)} of {count} prompts, {len({one.text for one in batch})} distinct, base seed {seed}"
        report = status_text(summary, warnings=problems)
        return {
            "ui": {"text": [one.text for one in batch]},
            "result": ([one.text for one in batch], seeds, choices, report),
        }


def _drawn(
    host: comfy.ComfyHost, library: WildcardLibrary, template: str, count: int, seed: int, **options: Any
) -> Batch:
    """Draw a batch, with progress, until ComfyUI's cancel.

    Raises:
        WildcardError: ``wildcard-unresolved`` with ``missing="error"``.
    """
    progress = host.progress()

    def drawn(number: int) -> None:
        if number % _PROGRESS_STEP == 0:
            host.check_interrupt()
            progress(min(number, count), count)

    try:
        batch = library.expand_many(template, count, seed, on_draw=drawn, **options)
    except WildcardError as error:
        raise wildcard_library.unresolved(error) from error
    progress(count, count)
    return batch


NODES = (LunaYAMLWildcard, LunaYAMLWildcardBatch)
