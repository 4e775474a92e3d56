"""A small library with every kind of rule, and what a result under rules says of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_engine.wildcards import ChoiceKind, Expansion, RuleOptions, WildcardLibrary

if TYPE_CHECKING:
    from pathlib import Path

PLACE = """\
beach: [{value: a beach, tags: [sea, summer]}]
slope: [{value: a ski slope, id: slope-1, tags: [winter]}]
hall: [a hall]
"""
CLOTHING = "a parka\nred swimwear\nleather sandals\na long coat\na chair cover\n"
CONSTRAINTS = """\
place:beach:
  clothing:
    compatible: ["10::swimwear", sandals]
    incompatible: [parka]
clothing:
  context_preferences:
    - {when: [winter], prefer: ["4::coat"], avoid: [sandals], require: [parka, coat]}
"""
MODIFIERS = "place:beach:\n  clothing: {modifiers: ['2::wet', sun-bleached], incompatible: [sandals]}\n"
EXPANDERS = "place:beach:\n  light: {paths: [light:day], values: [sea haze], count: [1, 2], weight: 0.6}\n"
LORAS = """\
place:beach:
  loras: [{name: coast, model_weight: 0.8, clip_weight: 0.6, trigger: "surf, dunes", priority: 2}]
  embeddings: [{name: seafoam, weight: 1.1, polarity: positive}, {name: drought, polarity: negative}]
place:
  loras: [{name: anywhere, trigger: wide open}]
"""
FILES = {
    "place.yaml": PLACE,
    "clothing.txt": CLOTHING,
    "light.yaml": "day: [noon sun, soft haze, glare]\n",
    "constraints_coast.yaml": CONSTRAINTS,
    "modifiers_coast.yaml": MODIFIERS,
    "expanders_coast.yaml": EXPANDERS,
    "lora_coast.yaml": LORAS,
}
ONLY_CONSTRAINTS = RuleOptions(modifiers=False, expanders=False, lora_links=False)


def made(folder: Path, files: dict[str, str]) -> WildcardLibrary:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    return WildcardLibrary.load(folder)


def items(result: Expansion) -> set[str]:
    return {choice.value for choice in result.choices if choice.kind is ChoiceKind.ITEM}


def notes(result: Expansion) -> list[tuple[str, str | None, int | None]]:
    return [(choice.written, choice.file, choice.line) for choice in result.choices if choice.kind is ChoiceKind.RULE]


def relaxed(result: Expansion) -> list[tuple[str | None, int | None]]:
    return [(found.file, found.line) for found in result.diagnostics if found.code == "rule-relaxed"]
