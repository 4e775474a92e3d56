"""A prompt put together from a template, LoRAs and embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luna_engine.loras.names import resolve
from luna_engine.loras.tags import decimal_text, format_tag, parse_tags, without_extension

from . import comfy, lora_choices, wildcard_library
from .lora_choices import embedding_choice, is_empty, lora_choice
from .reports import status_text
from .widgets import number, seed, text
from .wildcard_library import directory_inputs, library_of, missing_input, template_input
from .wildcards import CATEGORY, DEFAULT_TEMPLATE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LORA_SLOTS = range(1, 5)
EMBEDDING_SLOTS = range(1, 4)
Stack = list[tuple[str, float, float]]


class LunaWildcardBuilder:
    """Expand a template between a prefix and a suffix, with LoRAs and embeddings."""

    DISPLAY_NAME = "Luna Wildcard Builder"
    DESCRIPTION = (
        "Puts a prompt together: prefix, embeddings, the expanded template, LoRA tags, suffix. The LoRAs also come as "
        "a stack. Prefix and suffix are templates too and share the draw."
    )
    SEARCH_ALIASES = ["compose prompt", "prefix", "suffix"]
    CATEGORY = CATEGORY
    FUNCTION = "build"
    RETURN_TYPES = ("STRING", "STRING", "STRING", "LORA_STACK", "STRING")
    RETURN_NAMES = ("prompt", "loras_string", "full_prompt", "lora_stack", "report")
    OUTPUT_TOOLTIPS = (
        "The expanded template alone.",
        "The LoRA tags: the incoming text, then one tag for each slot.",
        "Prefix, embeddings, prompt, LoRA tags and suffix, joined by commas.",
        "The LoRAs of the incoming text and of the slots, for a node that loads a stack.",
        "One summary line, then a line for each problem.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare the parts of the prompt."""
        slots: dict[str, Any] = {}
        for slot in LORA_SLOTS:
            slots[f"lora_{slot}"] = lora_choice("A LoRA for the tags and the stack, or none.")
            slots[f"lora_{slot}_weight"] = number(f"Strength of LoRA {slot}; 0 leaves it out.", 1.0, -2.0, 2.0, 0.05)
        for slot in EMBEDDING_SLOTS:
            slots[f"embedding_{slot}"] = embedding_choice("An embedding to put before the prompt, or none.")
        weights = {
            f"embedding_{slot}_weight": number(f"Weight of embedding {slot}.", 1.0, -2.0, 2.0, 0.05)
            for slot in EMBEDDING_SLOTS
        }
        incoming = {"forceInput": True, "tooltip": "LoRA tags of another node; they come before those of the slots."}
        return {
            "required": {
                "prompt_template": template_input(DEFAULT_TEMPLATE),
                "seed": seed("Every value is a seed and reproduces the same prompt, 0 included."),
            },
            "optional": {
                **directory_inputs(),
                "lora_string_input": ("STRING", incoming),
                **slots,
                "prefix": text("Template that stands before everything.", multiline=True),
                "suffix": text("Template that stands behind everything.", multiline=True),
                **weights,
                **missing_input(),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(
        cls,
        lora_1: str | None = None,
        lora_2: str | None = None,
        lora_3: str | None = None,
        lora_4: str | None = None,
        embedding_1: str | None = None,
        embedding_2: str | None = None,
        embedding_3: str | None = None,
    ) -> bool | str:
        """Check the slots by Luna's rules for names instead of ComfyUI's list check."""
        loras = dict(zip((f"lora_{slot}" for slot in LORA_SLOTS), (lora_1, lora_2, lora_3, lora_4), strict=True))
        embeddings = (embedding_1, embedding_2, embedding_3)
        answer = lora_choices.check(loras, "lora")
        if answer is not True:
            return answer
        named = dict(zip((f"embedding_{slot}" for slot in EMBEDDING_SLOTS), embeddings, strict=True))
        return lora_choices.check(named, "embedding")

    @classmethod
    def IS_CHANGED(
        cls,
        prompt_template: str | None = None,
        prefix: str | None = "",
        suffix: str | None = "",
        yaml_directory: str | None = "",
        txt_wildcard_directory: str | None = "",
        **_: Any,
    ) -> str:
        """Fingerprint the files that the templates reach; all files if a template comes over a link."""
        templates = (prompt_template, prefix, suffix)
        return wildcard_library.fingerprint(templates, yaml_directory, txt_wildcard_directory)

    def build(
        self,
        prompt_template: str,
        seed: int,
        yaml_directory: str = "",
        txt_wildcard_directory: str = "",
        lora_string_input: str = "",
        prefix: str = "",
        suffix: str = "",
        missing: str = "keep",
        **slots: Any,
    ) -> dict[str, Any]:
        """Expand, collect, join."""
        host = comfy.current_host()
        library = library_of(yaml_directory, txt_wildcard_directory)
        templates = {"": prompt_template, "prefix": prefix, "suffix": suffix}
        expansion = wildcard_library.expand(library, templates, seed, missing)
        problems = wildcard_library.tell_problems(host, expansion.diagnostics)
        stack, notes = _stack(host.lora_files(), lora_string_input, slots)
        tags = [format_tag(name, weight) for name, weight in _lora_slots(slots)]
        loras = " ".join(part for part in (lora_string_input.strip(), *tags) if part)
        embeddings = _embeddings(host.embedding_files(), slots)
        prompt = expansion.parts[""]
        pieces = (expansion.parts["prefix"], *embeddings, prompt, loras, expansion.parts["suffix"])
        full = ", ".join(piece for piece in pieces if piece.strip())
        summary = f"{wildcard_library.summary_of(expansion, seed)}, {len(stack)} LoRAs, {len(embeddings)} embeddings"
        report = status_text(summary, notes=notes, warnings=problems)
        return {"ui": {"text": [full]}, "result": (prompt, loras, full, stack, report)}


def _lora_slots(slots: dict[str, Any]) -> list[tuple[str, float]]:
    """Return name and strength of the slots that hold a LoRA; strength 0 leaves a slot out."""
    found = [(slots.get(f"lora_{slot}"), float(slots.get(f"lora_{slot}_weight", 1.0))) for slot in LORA_SLOTS]
    return [(name, weight) for name, weight in found if name is not None and not is_empty(name) and weight]


def _stack(files: Sequence[str], incoming: str, slots: dict[str, Any]) -> tuple[Stack, list[str]]:
    """Return the LoRAs of the incoming text, then of the slots, each file once, and what was done about repeats."""
    wanted = [(tag.name, tag.model_strength, tag.clip_strength) for tag in parse_tags(incoming)]
    wanted += [(name, weight, weight) for name, weight in _lora_slots(slots)]
    stack: dict[str, tuple[str, float, float]] = {}
    notes: list[str] = []
    for name, model, clip in wanted:
        if not model and not clip:
            continue
        file = resolve(name, files)
        if file in stack:
            notes.append(f"{file} is named twice: its later strengths are used")
        stack[file] = (file.replace("\\", "/"), model, clip)
    return list(stack.values()), notes


def _embeddings(files: Iterable[str], slots: dict[str, Any]) -> list[str]:
    files = list(files)
    found = []
    for slot in EMBEDDING_SLOTS:
        name = slots.get(f"embedding_{slot}")
        weight = float(slots.get(f"embedding_{slot}_weight", 1.0))
        if name is None or is_empty(name) or not weight:
            continue
        path = without_extension(resolve(name, files, "embedding")).replace("\\", "/")
        plain = f"embedding:{path}"
        found.append(plain if weight == 1.0 else f"({plain}:{decimal_text(weight)})")
    return found


NODES = (LunaWildcardBuilder,)
