"""The bundled library is clean, large, of sound grammar, and the same on every machine."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

import pytest

from luna_engine import paths
from luna_engine.settings import Settings
from luna_engine.wildcards import RuleOptions, WildcardLibrary, default_roots
from luna_engine.wildcards.model import TEMPLATES, ItemList, walk_places

if TYPE_CHECKING:
    from collections.abc import Iterator

    from luna_engine.wildcards.model import Item

FIVE = [
    (
        "a broad-shouldered elf with glowing blue eyes and a single white streak in salt-and-pepper hair, "
        "wearing a shift dress"
    ),
    "a nervous beekeeper at work, steady hands, blue hour",
    "a clockwork butler with twin glass eyes, leaning against a wall",
    "a stocky river dwarf with wide hazel eyes and long braided hair, wearing a linen shirt and braces",
    "weathered court jester with long braided hair, a velvet gown in amber, snapping fingers",
]
SUBJECTS = {
    "abstract",
    "actions",
    "animals",
    "architecture",
    "camera",
    "characters",
    "clothing",
    "colour",
    "creatures",
    "eras",
    "expressions",
    "fantasy",
    "fashion",
    "food",
    "gestures",
    "interiors",
    "light",
    "materials",
    "mood",
    "people",
    "places",
    "plants",
    "products",
    "professions",
    "quality",
    "scenes",
    "scifi",
    "style",
    "surfaces",
    "textures",
    "things",
    "vehicles",
    "water",
    "weather",
}
SEEDS = range(200)
_ARTICLE = re.compile(r"\b(an?) $", re.IGNORECASE)
_LIKE_A_CONSONANT = re.compile(r"uni|use|usu|uti|eu|one|ukul", re.IGNORECASE)
_DOUBLED = re.compile(r"\b(a|an|the) (a|an|the)\b|  |, ,|,,|[{}\[\]]|__")


@pytest.fixture(scope="module")
def bundled() -> WildcardLibrary:
    return WildcardLibrary.load(paths.bundled("wildcards"))


def lists(library: WildcardLibrary) -> Iterator[ItemList]:
    for document in library.snapshot.documents:
        if not document.content.is_rules:
            for place in walk_places(document.top):
                if isinstance(place, ItemList):
                    yield place


def templates(library: WildcardLibrary) -> dict[str, set[str]]:
    """Return for each file with templates their texts."""
    found: dict[str, set[str]] = {}
    for place in lists(library):
        if place.keys[:1] == (TEMPLATES,):
            found.setdefault(place.document.address, set()).update(item.text for item in place.items)
    return found


def test_seed_seven_gives_these_five_texts(bundled: WildcardLibrary) -> None:
    batch = bundled.expand_many("{characters}", 5, 7, unique=False)
    assert [result.text for result in batch] == FIVE


def test_the_bundled_library_lints_clean_of_errors_warnings_and_hints(bundled: WildcardLibrary) -> None:
    assert bundled.lint() == []


def test_it_holds_thousands_of_items_on_every_subject(bundled: WildcardLibrary) -> None:
    assert sum(len(place.items) for place in lists(bundled)) > 8_000
    assert {document.address for document in bundled.snapshot.documents if not document.content.is_rules} == SUBJECTS


def test_no_list_says_a_thing_twice(bundled: WildcardLibrary) -> None:
    """Case, articles and signs aside; numbered variants would be filler."""
    for place in lists(bundled):
        seen: dict[str, str] = {}
        for item in place.items:
            if place.keys[:1] == (TEMPLATES,):
                continue
            folded = unicodedata.normalize("NFKD", item.text).casefold()
            plain = " ".join(re.sub(r"[^a-z0-9{}|:]", " ", re.sub(r"\b(?:an?|the)\b", "", folded)).split())
            assert plain not in seen, f"{place.address}: {item.text!r} and {seen[plain]!r}"
            seen[plain] = item.text
            assert not re.search(r"[^\W\d]\s(?:#|no\. ?)?\d+$", item.text), item.text


def test_a_and_an_fit_whatever_is_drawn_behind_them(bundled: WildcardLibrary) -> None:
    snapshot = bundled.snapshot

    def behind(item: Item) -> Iterator[tuple[str, str]]:
        tree = snapshot.parse_item(item)
        document = item.owner.document if item.owner is not None else None
        for node, _, drawn in snapshot.references(tree.nodes, tree, document):
            article = _ARTICLE.search(tree.text[: node.start])
            if article:
                yield from ((article[1].lower(), one.text) for found in drawn for one in found.items)

    wrong = [
        (item.text, article, text)
        for place in lists(bundled)
        for item in place.items
        for article, text in behind(item)
        if text[0].isalpha()
        and article != ("an" if text[0] in "aeiouAEIOU" and not _LIKE_A_CONSONANT.match(text) else "a")
    ]
    assert wrong == []


@pytest.mark.parametrize("rules", [None, RuleOptions()], ids=["plain", "ruled"])
def test_every_template_expands_cleanly(bundled: WildcardLibrary, rules: RuleOptions | None) -> None:
    for address, texts in templates(bundled).items():
        drawn: set[str] = set()
        for seed in SEEDS:
            result = bundled.expand(f"{{{address}}}", seed, strict=True, rules=rules)
            assert result.diagnostics == (), (address, seed, result.diagnostics)
            assert result.text.strip() == result.text != ""
            assert not _DOUBLED.search(result.text), (address, seed, result.text)
            drawn.add(result.choices[0].written)
        if len(texts) < 30:
            assert drawn == texts, f"{address}: never drawn: {texts - drawn}"


def test_every_kind_of_scene_expands_cleanly(bundled: WildcardLibrary) -> None:
    kinds = [place.keys[1] for place in lists(bundled) if place.document.address == "scenes" and len(place.keys) > 1]
    assert len(kinds) >= 20
    for kind in kinds:
        for seed in range(20):
            for rules in (None, RuleOptions()):
                result = bundled.expand(f"{{scenes:{kind}}}", seed, rules=rules)
                assert result.diagnostics == ()
                assert not _DOUBLED.search(result.text), (kind, seed, result.text)


def test_rules_keep_a_period_to_itself(bundled: WildcardLibrary) -> None:
    def periods(seed: int, rules: RuleOptions | None) -> set[str]:
        choices = bundled.expand("{eras:whole}", seed, rules=rules).choices
        keys = (choice.address.partition(":")[2].split(".") for choice in choices[1:] if choice.address)
        return {key[1] for key in keys if key[0] in {"dress", "setting", "objects", "look"}}

    assert all(len(periods(seed, RuleOptions())) == 1 for seed in range(60))
    assert any(len(periods(seed, None)) > 1 for seed in range(60))


def test_rules_make_clothes_hour_and_weather_fit(bundled: WildcardLibrary) -> None:
    template = "someone in {clothing}, {weather:season}, {weather}, {light:hour}, {light:natural}, {weather:sky}"
    against = [{"winter", "airy"}, {"summer", "winter"}, {"by-day", "by-night"}, {"summer", "warm"}]
    mixed = 0
    for seed in range(80):
        ruled = bundled.expand(template, seed, rules=RuleOptions(modifiers=False, expanders=False))
        assert ruled.diagnostics == ()
        tags = {tag for choice in ruled.choices for tag in choice.tags}
        assert not [pair for pair in against if pair <= tags], ruled.text
        mixed += bundled.expand(template, seed).text != ruled.text
    assert mixed > 20


def test_the_default_roots_end_with_the_bundled_library() -> None:
    assert default_roots(Settings()) == [paths.bundled("wildcards")]
