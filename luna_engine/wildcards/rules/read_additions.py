"""Reading the rule files that add to a prompt: modifiers, expanders, and links to LoRAs and embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_engine.wildcards.rules.records import (
    EmbeddingEntry,
    Entry,
    ExpanderRule,
    LinkRule,
    LoraEntry,
    ModifierRule,
    RuleFile,
)
from luna_engine.wildcards.rules.walking import leaves, path_of
from luna_engine.wildcards.tree_events import Mapping, Raw, Scalar, Sequence

if TYPE_CHECKING:
    from luna_engine.wildcards.rules.nodes import Problems
    from luna_engine.wildcards.rules.records import RuleKind

_MODIFIER_KEYS = ("modifiers", "compatible", "incompatible")
_EXPANDER_KEYS = ("paths", "values", "count", "weight")
_OLD_EXPANDER_LISTS = ("base", "details", "atmosphere")
_ACTION, _MODIFY = "action", "modify_"
_LORA_KEYS = ("name", "model_weight", "clip_weight", "trigger", "priority", "base_model")
_EMBEDDING_KEYS = ("name", "weight", "polarity", "format", "base_model")


def read_modifiers(kind: RuleKind, tops: list[tuple[Scalar, Raw]], problems: Problems) -> RuleFile:
    """Read ``path: category: {modifiers: [...]}`` and the older ``action: tag: modify_category: any: [...]``."""
    made: list[ModifierRule] = []
    for key, value in tops:
        if key.value == _ACTION and isinstance(value, Mapping) and _is_old(value):
            made += _old_modifiers(value, problems)
            continue
        for keys, spot, leaf in leaves(value, (key.value,), key, frozenset(("modifiers",)), problems, "a modifier"):
            lists = {
                name: problems.entries(node)
                for name, node in problems.fields(leaf, _MODIFIER_KEYS, "a modifier").items()
            }
            if len(keys) < 2 or not lists["modifiers"]:
                problems.report(spot, "a modifier needs a source, a target and texts", "path: category: {modifiers: …}")
                continue
            made.append(
                ModifierRule(
                    problems.spot(spot),
                    path_of(keys[:-1]),
                    None,
                    keys[-1],
                    lists["modifiers"],
                    lists.get("compatible", ()),
                    lists.get("incompatible", ()),
                )
            )
    return RuleFile(kind, modifiers=tuple(made))


def _is_old(node: Mapping) -> bool:
    return any(
        name.value.startswith(_MODIFY)
        for _, value in node.entries
        if isinstance(value, Mapping)
        for name, _ in value.entries
    )


def _old_modifiers(node: Mapping, problems: Problems) -> list[ModifierRule]:
    made: list[ModifierRule] = []
    for tag, targets in problems.pairs(node):
        if not isinstance(targets, Mapping):
            problems.report(tag, f"{tag.value}: should be a map", "write modify_category: {any name: [texts]}")
            continue
        for name, groups in problems.pairs(targets):
            if not name.value.startswith(_MODIFY):
                problems.report(name, f"{name.value}: is no part of an action", "write modify_category: …")
                continue
            lists = [value for _, value in problems.pairs(groups)] if isinstance(groups, Mapping) else [groups]
            texts = tuple(entry for part in lists for entry in problems.entries(part))
            if texts:
                condition = Entry(tag.value, None, problems.spot(tag))
                target = name.value.removeprefix(_MODIFY)
                made.append(ModifierRule(problems.spot(name), None, condition, target, texts, joiner=" "))
    return made


def read_expanders(kind: RuleKind, tops: list[tuple[Scalar, Raw]], problems: Problems) -> RuleFile:
    """Read ``path: name: {paths, values, count, weight}``, and the older ``path: {base, details, atmosphere}``."""
    made: list[ExpanderRule] = []
    marks = frozenset(("paths", "values", *_OLD_EXPANDER_LISTS))
    for key, value in tops:
        for keys, spot, leaf in leaves(value, (key.value,), key, marks, problems, "an expander"):
            is_old = any(name.value in _OLD_EXPANDER_LISTS for name, _ in problems.pairs(leaf))
            known = (*_OLD_EXPANDER_LISTS, "count", "weight") if is_old else _EXPANDER_KEYS
            fields = problems.fields(leaf, known, "an expander")
            names = _OLD_EXPANDER_LISTS if is_old else ("values",)
            values = tuple(entry for name in names if name in fields for entry in problems.entries(fields[name]))
            paths = problems.entries(fields["paths"]) if "paths" in fields else ()
            low, high = problems.bounds(fields["count"]) if "count" in fields else (1, 2 if is_old else 1)
            chance = problems.micro(fields["weight"]) if "weight" in fields else 1_000_000
            if chance > 1_000_000:
                problems.report(fields["weight"], "the weight of an expander is a probability; 1 was taken")
            source, name = (path_of(keys[:-1]), keys[-1]) if len(keys) > 1 and not is_old else (path_of(keys), "")
            rule = ExpanderRule(problems.spot(spot), source, name, paths, values, low, high, min(chance, 1_000_000))
            made.append(rule)
    return RuleFile(kind, expanders=tuple(made))


def read_links(kind: RuleKind, tops: list[tuple[Scalar, Raw]], problems: Problems) -> RuleFile:
    """Read ``path: {loras: [...], embeddings: [...]}``."""
    made: list[LinkRule] = []
    marks = frozenset(("loras", "embeddings"))
    for key, value in tops:
        for keys, spot, leaf in leaves(value, (key.value,), key, marks, problems, "a link"):
            fields = problems.fields(leaf, ("loras", "embeddings"), "a link")
            loras = [_lora(node, problems) for node in _maps(fields.get("loras"))]
            embeddings = [_embedding(node, problems) for node in _maps(fields.get("embeddings"))]
            made.append(
                LinkRule(
                    problems.spot(spot),
                    path_of(keys),
                    tuple(lora for lora in loras if lora is not None),
                    tuple(found for found in embeddings if found is not None),
                )
            )
    return RuleFile(kind, links=tuple(made))


def _maps(node: Raw | None) -> list[Raw]:
    if node is None:
        return []
    return list(node.entries) if isinstance(node, Sequence) else [node]


def _named(node: Raw, known: tuple[str, ...], what: str, problems: Problems) -> dict[str, Raw] | None:
    """Return the fields of an entry; a single text is its name."""
    if isinstance(node, Scalar) and not node.is_absent:
        return {"name": node}
    fields = problems.fields(node, known, what) if isinstance(node, Mapping) else {}
    if "name" not in fields:
        problems.report(node, f"{what} needs a name", "write {name: file}")
        return None
    return fields


def _lora(node: Raw, problems: Problems) -> LoraEntry | None:
    fields = _named(node, _LORA_KEYS, "a LoRA", problems)
    if fields is None:
        return None
    model = problems.decimal(fields["model_weight"], 1.0) if "model_weight" in fields else 1.0
    return LoraEntry(
        problems.spot(node),
        problems.text(fields["name"]),
        model,
        problems.decimal(fields["clip_weight"], model) if "clip_weight" in fields else model,
        tuple(entry.value.strip() for entry in problems.scalars(fields["trigger"])) if "trigger" in fields else (),
        int(problems.decimal(fields["priority"], 0)) if "priority" in fields else 0,
        problems.text(fields["base_model"]) if "base_model" in fields else None,
    )


def _embedding(node: Raw, problems: Problems) -> EmbeddingEntry | None:
    fields = _named(node, _EMBEDDING_KEYS, "an embedding", problems)
    if fields is None:
        return None
    polarity = problems.text(fields["polarity"]).lower() if "polarity" in fields else "positive"
    if polarity not in {"positive", "negative"}:
        problems.report(fields["polarity"], f"the polarity {polarity!r} is unknown; positive was taken")
    return EmbeddingEntry(
        problems.spot(node),
        problems.text(fields["name"]),
        problems.decimal(fields["weight"], 1.0) if "weight" in fields else 1.0,
        polarity == "negative",
        problems.text(fields["format"]) if "format" in fields else None,
        problems.text(fields["base_model"]) if "base_model" in fields else None,
    )
