"""LoRAs drawn at random, from slots and from a wildcard list."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from luna_engine.errors import LunaError, WildcardError
from luna_engine.loras.names import resolve
from luna_engine.loras.tags import decimal_text, parse_tags, without_extension
from luna_engine.wildcards.seeds import below, frame_key, site_key, stream

from . import comfy, lora_choices, wildcard_library
from .lora_choices import is_empty, lora_choice
from .widgets import choice, integer, number, seed, text
from .wildcard_library import library_of
from .wildcards import CATEGORY

if TYPE_CHECKING:
    from luna_engine.wildcards.model import Item

POOL_SLOTS = range(1, 11)
_MICRO = 1_000_000


@dataclass(frozen=True, slots=True)
class Candidate:
    """One LoRA of the pool: its pick weight and the range its strength is drawn from."""

    file: str
    pick_weight: float
    low: Decimal
    high: Decimal


class LunaLoRARandomizer:
    """Draw some LoRAs of a pool, each at a strength from a range."""

    DISPLAY_NAME = "Luna LoRA Randomizer"
    DESCRIPTION = (
        "Draws LoRAs from up to ten slots and from a wildcard list, none twice, each at a strength from a range. "
        "Filling another slot changes no other LoRA's strength."
    )
    SEARCH_ALIASES = ["random lora"]
    CATEGORY = CATEGORY
    FUNCTION = "draw"
    RETURN_TYPES = ("STRING", "LORA_STACK")
    RETURN_NAMES = ("lora_string", "lora_stack")
    OUTPUT_TOOLTIPS = (
        "The drawn LoRAs as tags, separated by blanks.",
        "The drawn LoRAs, for a node that loads a stack.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Declare pool, number and strengths."""
        pool = {f"pool_{slot}": lora_choice("A LoRA of the pool, or none.") for slot in POOL_SLOTS}
        return {
            "required": {
                "lora_count": integer("How many LoRAs to draw.", 2, 0, 10),
                "seed": seed("Every value is a seed and reproduces the same draw, 0 included."),
                "weight_min": number("Least strength.", 0.5, -2.0, 2.0, 0.05),
                "weight_max": number("Greatest strength.", 1.0, -2.0, 2.0, 0.05),
                "weight_step": number("Strengths are the least one plus a multiple of this.", 0.1, 0.01, 1.0, 0.01),
            },
            "optional": {
                **pool,
                "yaml_source": text(
                    "A wildcard address such as loras:styles.anime. Its items are names, tags, or maps with value, "
                    "weight (how often it is picked), min and max (its strengths)."
                ),
                "clip_weight": choice(
                    ("same", "own draw"), "same", "Strength for the text encoders: that of the model, or its own draw."
                ),
                "missing": choice(
                    ("error", "skip"), "error", "A LoRA that is not there: stop with an error, or leave it out."
                ),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(
        cls,
        missing: str | None = None,
        pool_1: str | None = None,
        pool_2: str | None = None,
        pool_3: str | None = None,
        pool_4: str | None = None,
        pool_5: str | None = None,
        pool_6: str | None = None,
        pool_7: str | None = None,
        pool_8: str | None = None,
        pool_9: str | None = None,
        pool_10: str | None = None,
    ) -> bool | str:
        """Check the slots by Luna's rules for names; with ``missing`` = ``skip`` the run leaves out what is gone."""
        if missing not in {"error", "skip"}:
            return f"missing is {missing!r}; known are error and skip"
        if missing == "skip":
            return True
        pool = (pool_1, pool_2, pool_3, pool_4, pool_5, pool_6, pool_7, pool_8, pool_9, pool_10)
        return lora_choices.check(dict(zip((f"pool_{slot}" for slot in POOL_SLOTS), pool, strict=True)), "lora")

    @classmethod
    def IS_CHANGED(cls, yaml_source: str | None = "", **_: Any) -> str:
        """Fingerprint the file that the source names."""
        if yaml_source is not None and not yaml_source.strip():
            return ""
        template = f"{{{_address(yaml_source)}}}" if yaml_source is not None else None
        return wildcard_library.fingerprint((template,), "", "")

    def draw(
        self,
        lora_count: int,
        seed: int,
        weight_min: float,
        weight_max: float,
        weight_step: float,
        yaml_source: str = "",
        clip_weight: str = "same",
        missing: str = "error",
        **slots: Any,
    ) -> dict[str, Any]:
        """Draw without replacement."""
        host = comfy.current_host()
        low, high = sorted((_exact(weight_min), _exact(weight_max)))
        pool: dict[str, Candidate] = {}
        skipped: list[str] = []
        for candidate in _from_slots(host, slots, low, high, missing, skipped):
            pool[candidate.file] = candidate
        for candidate in _from_source(host, yaml_source, low, high, missing, skipped):
            pool[candidate.file] = candidate
        for name in skipped:
            host.notice(f"{name} is not there and left out")
        drawn = _sample(list(pool.values()), lora_count, seed)
        if len(drawn) < lora_count:
            host.notice(f"{lora_count} LoRAs were wanted, the pool holds {len(drawn)}: all are taken")
        step = max(_exact(weight_step), Decimal("0.01"))
        stack = [_strengths(candidate, step, seed, own_clip=clip_weight == "own draw") for candidate in drawn]
        tags = " ".join(_tag(*entry) for entry in stack)
        return {"ui": {"text": [tags]}, "result": (tags, stack)}


def _exact(value: float) -> Decimal:
    """Return a widget's value as the decimal it shows."""
    return Decimal(decimal_text(value))


def _from_slots(
    host: comfy.ComfyHost, slots: dict[str, Any], low: Decimal, high: Decimal, missing: str, skipped: list[str]
) -> list[Candidate]:
    names = [slots.get(f"pool_{slot}") for slot in POOL_SLOTS]
    files = [_file(host, name, missing, skipped) for name in names if name is not None and not is_empty(name)]
    return [Candidate(file, 1.0, low, high) for file in files if file is not None]


def _from_source(
    host: comfy.ComfyHost, source: str, low: Decimal, high: Decimal, missing: str, skipped: list[str]
) -> list[Candidate]:
    """Read the items of a wildcard list.

    Raises:
        WildcardError: ``wildcard-unresolved`` if nothing has the address.
        LunaError: ``lora-tag``; ``value-range`` for a ``min`` or ``max`` that is no number.
    """
    if not source.strip():
        return []
    address = _address(source)
    library = library_of()
    found = library.snapshot.index.resolve(address)
    if found is None:
        expansion = library.expand(f"{{{address}}}")
        hint = next((one.hint for one in expansion.diagnostics if one.hint), None)
        raise WildcardError("wildcard-unresolved", f"yaml_source: nothing has the address {address!r}", hint)
    made = (_candidate(host, item, low, high, missing, skipped) for item in library.items(address))
    return [candidate for candidate in made if candidate is not None]


def _address(source: str) -> str:
    """Return the address in ``file:path``, ``{file:path}`` or ``__folder/path__``."""
    text = source.strip()
    for opening, closing in (("{", "}"), ("__", "__")):
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening + closing):
            text = text[len(opening) : -len(closing)]
    return text.strip()


def _candidate(
    host: comfy.ComfyHost, item: Item, low: Decimal, high: Decimal, missing: str, skipped: list[str]
) -> Candidate | None:
    name = item.text.strip()
    tags = parse_tags(name)
    if tags:
        name = tags[0].name
        if ":" in item.text.strip("<> ").partition(":")[2]:
            low = high = _exact(tags[0].model_strength)
    extra = item.extra or {}
    low, high = sorted((_bound(extra.get("min"), low, item), _bound(extra.get("max"), high, item)))
    weight = item.weight.micro / _MICRO
    file = _file(host, name, missing, skipped) if weight > 0 else None
    return Candidate(file, weight, low, high) if file is not None else None


def _bound(value: Any, default: Decimal, item: Item) -> Decimal:
    if value is None:
        return default
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite():
        raise LunaError("value-range", f"line {item.line}: {value!r} is no strength for {item.text}", "write a number")
    return number


def _file(host: comfy.ComfyHost, name: str, missing: str, skipped: list[str]) -> str | None:
    try:
        return resolve(name, host.lora_files())
    except LunaError as error:
        if missing == "error" or error.code != "lora-missing":
            raise
        skipped.append(name)
        return None


def _sample(pool: list[Candidate], count: int, seed: int) -> list[Candidate]:
    """Return ``count`` candidates, none twice, heavier ones more often and earlier.

    Each has a key of its own, drawn from (seed, file): the least of -ln(u)/weight are taken (Efraimidis and Spirakis
    2006), so that another member of the pool moves nobody else's key.
    """
    frame = frame_key("lora", seed)

    def order(candidate: Candidate) -> float:
        unit = ((stream(site_key(frame, candidate.file, 0), 0) >> 11) + 1) / (1 << 53)
        return -math.log(unit) / candidate.pick_weight

    return sorted(pool, key=lambda candidate: (order(candidate), candidate.file))[:count]


def _strengths(candidate: Candidate, step: Decimal, seed: int, *, own_clip: bool) -> tuple[str, float, float]:
    frame = frame_key("lora-strength", seed)
    points = int((candidate.high - candidate.low) / step) + 1
    model, clip = (
        candidate.low + step * below(site_key(frame, f"{part}:{candidate.file}", 0), points)
        for part in ("model", "clip")
    )
    return candidate.file.replace("\\", "/"), float(model), float(clip if own_clip else model)


def _tag(file: str, model: float, clip: float) -> str:
    strengths = decimal_text(model) if model == clip else f"{decimal_text(model)}:{decimal_text(clip)}"
    return f"<lora:{without_extension(file)}:{strengths}>"


NODES = (LunaLoRARandomizer,)
