"""The published table of draws, bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from luna_engine.wildcards import WildcardLibrary
from luna_engine.wildcards.seeds import batch_seed, below, frame_key, site_key

if TYPE_CHECKING:
    from pathlib import Path

SEEDS = (0, 1, 2, 7, -1, 2**64)
TABLE = {
    "{300-900}": ("491", "345", "554", "831", "598", "695"),
    "{0-10000000000}": ("8439557912", "1642142519", "2618685724", "6102807821", "5391920417", "5061440996"),
    "{{oak|elm}|fir}": ("elm", "oak", "fir", "elm"),
    "{oak|elm|ash|fir}, {oak|elm|ash|fir}": (
        "fir, oak",
        "oak, fir",
        "oak, fir",
        "oak, fir",
        "fir, fir",
        "oak, elm",
    ),
}


@pytest.mark.parametrize("template", TABLE)
def test_published_draws(template: str) -> None:
    library = WildcardLibrary.load()
    texts = tuple(library.expand(template, seed).text for seed in SEEDS)
    assert texts[: len(TABLE[template])] == TABLE[template]


def test_intermediate_keys_of_the_first_cell() -> None:
    frame = frame_key("", 0)
    assert frame == 0xFA29411048A93785
    assert site_key(frame, "{oak|elm|ash|fir}", 0) == 0xD645D98C9577A6BF


def test_batch_seeds_of_seven() -> None:
    assert [batch_seed(7, index) for index in range(3)] == [7, 3162781167611607, 4969014401193456]


def test_wide_bounds_stay_below_and_reach_both_halves() -> None:
    bound = 10**20
    draws = [below(site_key(frame_key("", seed), "x", 0), bound) for seed in range(200)]
    assert all(0 <= draw < bound for draw in draws)
    assert min(draws) < bound // 4
    assert max(draws) > 3 * bound // 4


def test_neighbouring_base_seeds_share_nothing() -> None:
    first = {batch_seed(7, index) for index in range(1, 500)}
    second = {batch_seed(8, index) for index in range(1, 500)}
    assert not first & second


def test_a_seed_of_ten_thousand_digits_is_a_seed() -> None:
    library = WildcardLibrary.load()
    assert library.expand("{a|b}", 10**10_000).text in {"a", "b"}


def test_editing_elsewhere_keeps_a_draw(library: WildcardLibrary) -> None:
    plain = [library.expand("__mood__ and {300-900}", seed).text.split(" and ") for seed in range(20)]
    edited = [
        library.expand("a new word, {x|y|z} __coast/boats__, __mood__ and {300-900} tail", seed).text
        for seed in range(20)
    ]
    assert all(
        mood in text and f"and {number} tail" in text for (mood, number), text in zip(plain, edited, strict=True)
    )


def test_equal_sites_are_independent(library: WildcardLibrary) -> None:
    pairs = {library.expand("{a|b} {a|b}", seed).text for seed in range(60)}
    assert pairs == {"a a", "a b", "b a", "b b"}


def test_an_unrelated_file_changes_nothing(folder: Path) -> None:
    before = [WildcardLibrary.load(folder).expand("{harbor}", seed).text for seed in range(20)]
    (folder / "aaa.yaml").write_text("boats: [raft]\n", "utf-8")
    assert [WildcardLibrary.load(folder).expand("{harbor}", seed).text for seed in range(20)] == before


def test_crlf_templates_draw_like_lf_ones(library: WildcardLibrary) -> None:
    for seed in range(10):
        assert library.expand("{a\r\n|b}", seed).text.replace("\r\n", "\n") == library.expand("{a\n|b}", seed).text
