"""Which LoRAs and embeddings the picks of a prompt call for (WILDCARDS 9, point 6). Files are not looked at here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luna_engine.wildcards.linking import covers
from luna_engine.wildcards.rules.matching import in_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from luna_engine.wildcards.rules.records import EmbeddingEntry, LoraEntry, RuleOptions, Spot
    from luna_engine.wildcards.rules.ruleset import Link, RuleSet
    from luna_engine.wildcards.rules.search import Pick

_FAMILIES = {
    **dict.fromkeys(("sdxl", "sdxl10", "pony", "ponyxl", "ponyv6", "illustrious", "illustriousxl", "noobai"), "sdxl"),
    **dict.fromkeys(("noobaixl", "stablediffusionxl", "sdxllightning", "sdxlturbo"), "sdxl"),
    **dict.fromkeys(("sd15", "sd1", "sd14", "stablediffusion15", "stablediffusionv15"), "sd15"),
    **dict.fromkeys(("flux", "flux1", "flux1d", "flux1s", "flux1dev", "flux1schnell"), "flux"),
    **dict.fromkeys(("sd3", "sd35", "sd35large", "sd35medium"), "sd3"),
}


@dataclass(frozen=True, slots=True)
class LinkedLora:
    """A LoRA that a pick calls for; ``choice`` is the pick's number in the expansion's choices."""

    name: str
    model_weight: float
    clip_weight: float
    triggers: tuple[str, ...]
    priority: int
    base_model: str | None
    spot: Spot
    choice: int | None

    def as_dict(self) -> dict[str, Any]:
        """Return the record as JSON-safe data."""
        return {
            "name": self.name,
            "model_weight": self.model_weight,
            "clip_weight": self.clip_weight,
            "triggers": list(self.triggers),
            "priority": self.priority,
            "base_model": self.base_model,
            "file": self.spot.file,
            "line": self.spot.line,
            "choice": self.choice,
        }


@dataclass(frozen=True, slots=True)
class LinkedEmbedding:
    """An embedding that a pick calls for; ``text`` is how it stands in the prompt."""

    name: str
    weight: float
    is_negative: bool
    text: str
    spot: Spot
    choice: int | None

    def as_dict(self) -> dict[str, Any]:
        """Return the record as JSON-safe data."""
        return {
            "name": self.name,
            "weight": self.weight,
            "polarity": "negative" if self.is_negative else "positive",
            "text": self.text,
            "file": self.spot.file,
            "line": self.spot.line,
            "choice": self.choice,
        }


@dataclass(frozen=True, slots=True)
class Links:
    """What an expansion calls for. ``trigger_words`` are all of them; those already in the prompt are not repeated."""

    loras: tuple[LinkedLora, ...] = ()
    embeddings: tuple[LinkedEmbedding, ...] = ()

    @property
    def trigger_words(self) -> tuple[str, ...]:
        """The trigger words of the LoRAs, each once."""
        return tuple(dict.fromkeys(trigger for lora in self.loras for trigger in lora.triggers))

    def as_dict(self) -> dict[str, Any]:
        """Return the links as JSON-safe data."""
        return {
            "loras": [lora.as_dict() for lora in self.loras],
            "embeddings": [found.as_dict() for found in self.embeddings],
            "trigger_words": list(self.trigger_words),
        }


def family_of(base_model: str) -> str:
    """Return the family of a base model's name: Pony, Illustrious and NoobAI are SDXL."""
    name = re.sub(r"[^a-z0-9]", "", base_model.casefold())
    return _FAMILIES.get(name, name)


def find_links(rules: RuleSet, options: RuleOptions, picks: Sequence[Pick], numbers: dict[int, int]) -> Links:
    """Return what picks call for: each LoRA once, the highest priority first, at most ``max_loras``.

    Args:
        rules: the rules.
        options: base-model filter and bound.
        picks: those of the prompt, in an order that does not depend on the template's.
        numbers: the number of each pick's choice, by the pick's identity.
    """
    loras: dict[str, LinkedLora] = {}
    embeddings: dict[tuple[str, bool], LinkedEmbedding] = {}
    for pick in picks:
        choice = numbers.get(id(pick))
        for link in _nearest(rules.links, pick.facts.address):
            for entry in _fitting(link.rule.loras, options.base_model):
                known = loras.get(entry.name)
                if known is None or known.priority < entry.priority:
                    loras.pop(entry.name, None)
                    loras[entry.name] = _lora(entry, choice)
            for found in _fitting(link.rule.embeddings, options.base_model):
                embeddings.setdefault((found.name, found.is_negative), _embedding(found, choice))
    ordered = sorted(loras.values(), key=lambda lora: -lora.priority)
    return Links(tuple(ordered[: max(options.max_loras, 0)]), tuple(embeddings.values()))


def _nearest(links: Sequence[Link], address: str) -> list[Link]:
    """Return the links of the exact path, else those of the nearest path above."""
    above = [link for link in links if covers(link.path, address)]
    longest = max((len(link.path) for link in above), default=0)
    return [link for link in above if len(link.path) == longest]


def _fitting(entries: Sequence[Any], base_model: str) -> Iterator[Any]:
    wanted = family_of(base_model)
    for entry in entries:
        if wanted in {"", "any"} or entry.base_model is None or family_of(entry.base_model) == wanted:
            yield entry


def _lora(entry: LoraEntry, choice: int | None) -> LinkedLora:
    return LinkedLora(
        entry.name,
        entry.model_weight,
        entry.clip_weight,
        entry.triggers,
        entry.priority,
        entry.base_model,
        entry.spot,
        choice,
    )


def _embedding(entry: EmbeddingEntry, choice: int | None) -> LinkedEmbedding:
    weight = f"{entry.weight:g}"
    form = entry.form or ("embedding:{name}" if entry.weight == 1 else "(embedding:{name}:{weight})")
    text = form.replace("{name}", entry.name).replace("{weight}", weight)
    return LinkedEmbedding(entry.name, entry.weight, entry.is_negative, text, entry.spot, choice)


def missing_triggers(lora: LinkedLora, text: str) -> list[str]:
    """Return the trigger words of a LoRA that a prompt does not hold as whole words."""
    return [trigger for trigger in lora.triggers if not in_words(trigger, text)]
