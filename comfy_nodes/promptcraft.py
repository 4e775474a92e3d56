"""PromptCraft: a template drawn by the library's rules. What the rules mean is luna_engine.wildcards'."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from luna_engine.errors import InputFileError, LunaError
from luna_engine.loras.names import resolve
from luna_engine.wildcards import ChoiceKind, RuleOptions

from . import comfy, wildcard_library
from .widgets import choice, flag, integer, seed, text
from .wildcard_library import missing_input, template_input

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luna_engine.wildcards import Expansion, LinkedLora

DEFAULT_TEMPLATE = "{characters:townsfolk}, {weather:season}, {weather:sky}"
BASE_MODELS = ("any", "sd15", "sdxl", "pony", "illustrious", "noobai", "sd3", "flux", "z-image")


class LunaPromptCraft:
    """Expand a template whose picks must fit together, and name the LoRAs they call for."""

    DISPLAY_NAME = "Luna PromptCraft"
    DESCRIPTION = (
        "Expands a template by rule files: what may be drawn together, texts and details that are added, LoRAs and "
        "embeddings that picks call for. The order of the template does not matter; what had to be relaxed is told."
    )
    SEARCH_ALIASES = ["rules", "constraints", "expanders"]
    CATEGORY = "Luna/Wildcards"
    FUNCTION = "craft"
    RETURN_TYPES = ("STRING", "INT", "LORA_STACK", "STRING", "STRING", "STRING", "STRING")
    RETURN_NAMES = ("prompt", "seed", "lora_stack", "trigger_words", "debug", "negative", "choices")
    OUTPUT_TOOLTIPS = (
        "The finished prompt, with what modifiers, expanders and links add.",
        "The seed it was drawn with.",
        "The linked LoRAs by priority, for a node that loads a stack.",
        "The trigger words of the linked LoRAs, those in the prompt and those that are not.",
        "JSON: what each rule did, which were relaxed, the links, every problem.",
        "Negative embeddings that the picks call for.",
        "JSON list of what was picked: reference, path, file, line, text, weight, tags.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the template and which rules count."""
        return {
            "required": {
                "template": template_input(DEFAULT_TEMPLATE),
                "seed": seed("Every value is a seed and reproduces the same prompt, 0 included."),
            },
            "optional": {
                "wildcards_path": text(
                    "Folder with lists and rule files, instead of ComfyUI's wildcards folders and the bundled library."
                ),
                "enable_constraints": flag(
                    "Draw only what fits together: constraints_ files and item tags.", default=True
                ),
                "enable_modifiers": flag("Append the texts of modifiers_ files to picks.", default=True),
                "enable_expanders": flag("Append the additions of expanders_ files to the prompt.", default=True),
                "enable_lora_links": flag("Link the LoRAs and embeddings of lora_ files.", default=True),
                "add_trigger_words": flag(
                    "Put trigger words behind the prompt that it does not hold yet.", default=True
                ),
                "max_loras": integer("At most so many LoRAs, those of the highest priority.", 4, 0, 20),
                "base_model": choice(
                    BASE_MODELS,
                    "any",
                    "Only links made for this family of models; Pony, Illustrious and NoobAI are SDXL.",
                ),
                **missing_input(),
            },
        }

    @classmethod
    def IS_CHANGED(cls, template: str | None = None, wildcards_path: str | None = "", **_: Any) -> str:
        """Fingerprint the files that the template reaches, the rule files, and the names of the LoRAs."""
        of_files = wildcard_library.fingerprint((template,), wildcards_path, wildcards_path, rules=True)
        return f"{of_files} {comfy.current_host().lora_files()}"

    def craft(
        self,
        template: str,
        seed: int,
        wildcards_path: str = "",
        enable_constraints: bool = True,  # noqa: FBT001, FBT002 - ComfyUI passes widgets by name
        enable_modifiers: bool = True,  # noqa: FBT001, FBT002 - likewise
        enable_expanders: bool = True,  # noqa: FBT001, FBT002 - likewise
        enable_lora_links: bool = True,  # noqa: FBT001, FBT002 - likewise
        add_trigger_words: bool = True,  # noqa: FBT001, FBT002 - likewise
        max_loras: int = 4,
        base_model: str = "any",
        missing: str = "keep",
    ) -> dict[str, Any]:
        """Draw the template by the rules."""
        host = comfy.current_host()
        library = wildcard_library.library_of(wildcards_path, wildcards_path)
        rules = RuleOptions(
            enable_constraints,
            enable_modifiers,
            enable_expanders,
            enable_lora_links,
            add_trigger_words,
            max_loras,
            base_model,
        )
        expansion = wildcard_library.expand(library, {"": template}, seed, missing, rules)
        problems = wildcard_library.tell_problems(host, expansion.diagnostics)
        loras = expansion.links.loras if expansion.links is not None else ()
        stack, lost = _stack(loras, host.lora_files(), missing)
        for line in lost:
            host.notice(line)
        words = expansion.links.trigger_words if expansion.links is not None else ()
        negative = expansion.parts.get("negative", "")
        debug = json.dumps(_debug(expansion, [*problems, *lost]), ensure_ascii=False)
        choices = json.dumps(expansion.choices_json(), ensure_ascii=False)
        shown = [expansion.text, negative] if negative else [expansion.text]
        return {
            "ui": {"text": shown},
            "result": (expansion.text, seed, stack, ", ".join(words), debug, negative, choices),
        }


def _stack(
    loras: tuple[LinkedLora, ...], files: Sequence[str], missing: str
) -> tuple[list[tuple[str, float, float]], list[str]]:
    """Return the stack of the linked LoRAs, and a line for each whose file is not there.

    Raises:
        InputFileError: ``lora-missing`` or ``name-ambiguous`` with ``missing="error"``.
    """
    stack: list[tuple[str, float, float]] = []
    lost: list[str] = []
    for lora in loras:
        try:
            stack.append((resolve(lora.name, files), lora.model_weight, lora.clip_weight))
        except InputFileError as error:
            place = f"{lora.spot.file}:{lora.spot.line}"
            if missing == "error":
                raise LunaError(error.code, f"{error.message}, which {place} links", error.hint) from error
            hint = f" ({error.hint})" if error.hint else ""
            lost.append(f"{place}: {error.code}: {error.message}; it was left out{hint}")
    return stack, lost


def _debug(expansion: Expansion, problems: list[str]) -> dict[str, Any]:
    """Return what the rules did, in the order of the choices."""
    choices = expansion.choices_json()
    return {
        "seed": expansion.seed,
        "picks": [entry for entry in choices if entry["kind"] in {"item", "template"}],
        "rules": [
            {
                "rule": found.written,
                "file": found.file,
                "line": found.line,
                "text": found.value,
                "for": expansion.choices[found.parent].value if found.parent is not None else None,
            }
            for found in expansion.choices
            if found.kind is ChoiceKind.RULE
        ],
        "relaxed": [found.as_dict() for found in expansion.diagnostics if found.code == "rule-relaxed"],
        "links": expansion.links.as_dict() if expansion.links is not None else {},
        "problems": problems,
    }


NODES = (LunaPromptCraft,)
