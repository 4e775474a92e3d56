"""What rule files say, as read: each rule with the place it stands at. Nothing here knows a library."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class RuleKind(enum.Enum):
    """The kinds of rule file."""

    CONSTRAINTS = "constraints"
    MODIFIERS = "modifiers"
    EXPANDERS = "expanders"
    LORA = "lora"
    TAGS = "tags"
    WEIGHTS = "weights"


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a rule or an entry stands; 1-based."""

    file: str
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A tag, id, path or text of a rule. ``micro`` is the written weight in millionths, None if none is written."""

    text: str
    micro: int | None
    spot: Spot


@dataclass(frozen=True, slots=True)
class PairRule:
    """Picks at or below ``source`` with picks at or below ``target``."""

    spot: Spot
    source: str
    target: str
    compatible: tuple[Entry, ...] = ()
    incompatible: tuple[Entry, ...] = ()


@dataclass(frozen=True, slots=True)
class ContextRule:
    """What a pick of ``target`` should be while the draw holds one of ``when``."""

    spot: Spot
    target: str
    when: tuple[Entry, ...]
    prefer: tuple[Entry, ...] = ()
    avoid: tuple[Entry, ...] = ()
    require: tuple[Entry, ...] = ()


@dataclass(frozen=True, slots=True)
class StateRule:
    """A pick of ``source`` (drawn together with one of ``target``, if given) needs one of ``states`` in the draw."""

    spot: Spot
    source: str
    target: str | None
    states: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class ModifierRule:
    """Texts for picks of ``target`` while the draw holds a pick of the path ``source``, or one that ``tag`` meets.

    ``compatible`` and ``incompatible`` say which picks of the target take the text.
    """

    spot: Spot
    source: str | None
    tag: Entry | None
    target: str
    texts: tuple[Entry, ...]
    compatible: tuple[Entry, ...] = ()
    incompatible: tuple[Entry, ...] = ()
    joiner: str = ", "


@dataclass(frozen=True, slots=True)
class ExpanderRule:
    """Additions to a prompt that holds a pick of ``source``; ``micro`` is their probability in millionths."""

    spot: Spot
    source: str
    name: str
    paths: tuple[Entry, ...]
    values: tuple[Entry, ...]
    low: int = 1
    high: int = 1
    micro: int = 1_000_000


@dataclass(frozen=True, slots=True)
class LoraEntry:
    """A LoRA that a path calls for; ``base_model`` None fits every model."""

    spot: Spot
    name: str
    model_weight: float = 1.0
    clip_weight: float = 1.0
    triggers: tuple[str, ...] = ()
    priority: int = 0
    base_model: str | None = None


@dataclass(frozen=True, slots=True)
class EmbeddingEntry:
    """An embedding that a path calls for; ``form`` is how it is written, with ``{name}`` and ``{weight}``."""

    spot: Spot
    name: str
    weight: float = 1.0
    is_negative: bool = False
    form: str | None = None
    base_model: str | None = None


@dataclass(frozen=True, slots=True)
class LinkRule:
    """The LoRAs and embeddings of a path."""

    spot: Spot
    path: str
    loras: tuple[LoraEntry, ...] = ()
    embeddings: tuple[EmbeddingEntry, ...] = ()


@dataclass(frozen=True, slots=True)
class TagRule:
    """Tags that every item at or below a path carries."""

    spot: Spot
    path: str
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WeightGroup:
    """Items whose weight is multiplied, everywhere and always."""

    spot: Spot
    name: str
    items: tuple[Entry, ...]
    micro: int


@dataclass(frozen=True, slots=True)
class RuleFile:
    """The rules of one file, in file order."""

    kind: RuleKind
    pairs: tuple[PairRule, ...] = ()
    contexts: tuple[ContextRule, ...] = ()
    states: tuple[StateRule, ...] = ()
    modifiers: tuple[ModifierRule, ...] = ()
    expanders: tuple[ExpanderRule, ...] = ()
    links: tuple[LinkRule, ...] = ()
    tags: tuple[TagRule, ...] = ()
    groups: tuple[WeightGroup, ...] = ()


@dataclass(frozen=True, slots=True)
class RuleOptions:
    """What of the rules an expansion uses.

    ``max_loras`` bounds the LoRAs linked; ``base_model`` keeps those of other families out (``any`` keeps none out).
    """

    constraints: bool = True
    modifiers: bool = True
    expanders: bool = True
    lora_links: bool = True
    trigger_words: bool = True
    max_loras: int = 4
    base_model: str = "any"
