"""The table of profiles (WILDCARDS 2.4), row by row, and the peers themselves as oracles where they are at hand."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Any

import pytest

from luna_engine.wildcards import Profile, Root, WildcardLibrary
from tests.bench.wildcard_engines import dynamicprompts, impact

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

IMPACT_PACK = os.environ.get("IMPACT_PACK_PATH", "")
FILES = {
    "moods.txt": "calm\nsoft\n",
    "sea/tints.txt": "teal\n",
    "land/tints.txt": "ochre\n",
    "tints-plus.txt": "2::rust\n2::rust\nash\n",
    "sea/boats.yaml": "boats:\n  small: [skiff]\n  tall ship: [brig]\n",
    "land/carts.yaml": "carts:\n  small: [dray]\n",
    "notes.txt": "wave # deep\nfoam // white\nhttp://x\n",
    "pairs.yaml": "pairs: ['[sign] a', '{sign} b']\nsign: [oak]\n",
}
NATIVE, DYNAMIC, IMPACT = Profile.NATIVE, Profile.DYNAMICPROMPTS, Profile.IMPACT

# row, profile, template, every text it can give; "peer" where the peer's own engine gives exactly these too
TABLE: list[tuple[str, Profile, str, set[str], str]] = [
    ("references", NATIVE, "a {moods} b", {"a calm b", "a soft b"}, ""),
    ("references", DYNAMIC, "a {moods} b", {"a moods b"}, "peer"),
    ("references", IMPACT, "a {moods} b", {"a moods b"}, "peer"),
    ("references", NATIVE, "{sea/boats:boats.small}", {"skiff"}, ""),
    ("references", DYNAMIC, "{sea/boats:boats.small}", {"sea/boats:boats.small"}, "peer"),
    ("references", IMPACT, "{sea/boats:boats.small}", {"sea/boats:boats.small"}, "peer"),
    ("references", NATIVE, "__pairs/pairs__", {"oak a", "oak b"}, ""),
    ("references", DYNAMIC, "__pairs__", {"[sign] a", "sign b"}, "peer"),
    ("references", IMPACT, "__pairs__", {"[sign] a", "sign b"}, "peer"),
    ("references", NATIVE, "{2-3}", {"2", "3"}, ""),
    ("references", DYNAMIC, "{2-3}", {"2-3"}, "peer"),
    ("references", IMPACT, "{2-3}", {"2-3"}, "peer"),
    ("braces", NATIVE, "{k 1} {}", {"{k 1} {}"}, ""),
    ("braces", DYNAMIC, "{k 1}", {"k 1"}, "peer"),
    ("braces", IMPACT, "{k 1} {}", {"k 1 "}, "peer"),
    ("separator", NATIVE, "{2$$a|a}", {"a, a"}, ""),
    ("separator", DYNAMIC, "{2$$a|a}", {"a,a"}, "peer"),
    ("separator", IMPACT, "{2$$a|a}", {"a a"}, "peer"),
    ("brackets", NATIVE, "{[a|b]|c}", {"[a|b]", "c"}, ""),
    ("brackets", DYNAMIC, "{[a|b]|c}", {"[a", "b]", "c"}, "peer"),
    ("brackets", IMPACT, "{[a|b]|c}", {"[a", "b]", "c"}, "peer"),
    ("commands", NATIVE, "${x=!oak}${x}", {"oak"}, ""),
    ("commands", DYNAMIC, "${x=!oak}${x}", {"oak"}, "peer"),
    ("commands", IMPACT, "${x=!oak}${x}", {"$x=!oak$x"}, "peer"),
    ("commands", DYNAMIC, "%{a ... b$$c}", {"a c b"}, "peer"),
    ("commands", IMPACT, "%{a}", {"%a"}, "peer"),
    ("commands", NATIVE, "{@a|a}", {"a"}, ""),
    ("commands", DYNAMIC, "{@a|a}", {"a"}, "peer"),
    ("commands", IMPACT, "{@a|@a}", {"@a"}, "peer"),
    ("commands", DYNAMIC, "__~sea/tints__", {"teal"}, "peer"),
    ("commands", IMPACT, "__~sea/tints__", {"__~sea/tints__"}, "peer"),
    ("quantity", NATIVE, "{2$$-$$2#__sea/tints__}", {"teal-teal"}, ""),
    ("quantity", DYNAMIC, "{1$$-$$2#__sea/tints__|2#__sea/tints__}", {"2#teal"}, ""),  # the peer raises
    ("quantity", IMPACT, "{2$$-$$2#__sea/tints__}", {"teal-teal"}, "peer"),
    ("line weights", NATIVE, "__tints-plus__", {"rust", "ash"}, ""),
    ("line weights", DYNAMIC, "__tints-plus__", {"2::rust", "ash"}, "peer"),
    ("line weights", IMPACT, "__tints-plus__", {"rust", "ash"}, ""),
    ("comments", NATIVE, "# gone\na # b // c /* d */", {"a # b // c /* d */"}, ""),
    ("comments", DYNAMIC, "/* d */ a", {" a"}, "peer"),
    ("comments", DYNAMIC, "{a|a}/* d */ b", {"a b"}, "peer"),
    ("comments", DYNAMIC, "a # b", {"a "}, "peer"),
    ("comments", DYNAMIC, "# gone\na # b", {"a "}, ""),
    ("comments", DYNAMIC, "see http://x // y", {"see http://x "}, ""),
    ("comments", IMPACT, "# gone\na # b // c /* d */", {"a # b // c /* d */"}, "peer"),
    ("comments", NATIVE, "__notes__", {"wave # deep", "foam // white", "http://x"}, ""),
    ("comments", DYNAMIC, "__notes__", {"wave", "foam", "http://x"}, ""),  # it keeps the blank before #, and some //
    ("comments", IMPACT, "__notes__", {"wave # deep", "foam // white", "http://x"}, "peer"),
    ("names", NATIVE, "__sea/boats/boats/small__", {"skiff"}, ""),
    ("names", DYNAMIC, "__sea/boats/boats/small__", {"__sea/boats/boats/small__"}, ""),
    ("names", DYNAMIC, "__sea/boats/small__", {"skiff"}, "peer"),
    ("names", DYNAMIC, "__boats/small__", {"skiff"}, "peer"),
    ("names", DYNAMIC, "__tints__", {"teal", "ochre"}, "peer"),
    ("names", DYNAMIC, "__small__", {"skiff", "dray"}, "peer"),
    ("names", NATIVE, "__small__", {"dray"}, ""),
    ("names", IMPACT, "__boats/small__", {"skiff"}, "peer"),
    ("names", IMPACT, "__sea/boats/small__", {"__sea/boats/small__"}, "peer"),
    ("names", IMPACT, "__boats/tall-ship__", {"brig"}, "peer"),
    ("names", IMPACT, "__boats/tall ship__", {"brig"}, ""),
    ("names", NATIVE, "__sea/boats/boats/tall-ship__", {"__sea/boats/boats/tall-ship__"}, ""),
    ("names", IMPACT, "__small__", {"skiff", "dray"}, "peer"),
    ("names", IMPACT, "__sea/tints__", {"teal"}, "peer"),
]


def named(rows: list[tuple[str, Profile, str, set[str], str]]) -> list[Any]:
    return [pytest.param(*row[1:4], id=f"{row[0]}-{row[1].value}-{at}") for at, row in enumerate(rows)]


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    return folder


@pytest.fixture(scope="module")
def libraries(pack: Path) -> dict[Profile, WildcardLibrary]:
    return {profile: WildcardLibrary.load(Root(pack, profile=profile), cache=False) for profile in Profile}


@pytest.mark.parametrize(("profile", "template", "texts"), named(TABLE))
def test_each_row_of_the_table_holds(
    libraries: dict[Profile, WildcardLibrary], profile: Profile, template: str, texts: set[str]
) -> None:
    library = libraries[profile]
    assert {library.expand(template, seed, profile=profile).text for seed in range(60)} == texts


def test_lists_of_a_peer_are_sorted_without_repeats_and_others_are_not(
    libraries: dict[Profile, WildcardLibrary],
) -> None:
    listed = {profile: [item.text for item in library.items("tints-plus")] for profile, library in libraries.items()}
    assert listed == {NATIVE: ["rust", "rust", "ash"], DYNAMIC: ["2::rust", "ash"], IMPACT: ["rust", "rust", "ash"]}


@pytest.mark.parametrize("profile", [DYNAMIC, IMPACT])
def test_a_union_draws_counts_and_is_found_like_one_list(
    libraries: dict[Profile, WildcardLibrary], profile: Profile
) -> None:
    library = libraries[profile]
    assert library.count("__tints__ {a|b}", profile=profile) == 4
    result = library.expand("__tints__", 3, profile=profile)
    assert result.diagnostics == ()
    assert result.choices[0].pool_size == 2
    assert {library.expand("{2$$ $$__small__}", seed, profile=profile).text for seed in range(30)} == {
        "skiff dray",
        "dray skiff",
    }
    assert sorted(one.text for one in library.enumerate("__tints__", 9, profile=profile)) == ["ochre", "teal"]
    [site] = library.probabilities("__tints__", profile=profile)
    assert {share.text for share in site.shares} == {"teal", "ochre"}


def test_a_union_keeps_the_fingerprint_of_all_its_files(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "hue.txt").write_text(f"{folder}\n", "utf-8")
    library = WildcardLibrary.load(tmp_path, cache=False)
    before = library.expand("__hue__", profile="dynamicprompts").fingerprint
    (tmp_path / "b" / "hue.txt").write_text("other\n", "utf-8")
    library.refresh()
    assert library.expand("__hue__", profile="dynamicprompts").fingerprint != before


def test_items_are_looked_up_in_the_profile_of_their_root(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "hue.txt").write_text(f"{folder}\n", "utf-8")
    (tmp_path / "top.txt").write_text("is __hue__\n", "utf-8")
    peer = WildcardLibrary.load(Root(tmp_path, profile=DYNAMIC), cache=False)
    assert {peer.expand("__top__", seed).text for seed in range(30)} == {"is a", "is b"}
    native = WildcardLibrary.load(tmp_path, cache=False)
    result = native.expand("__top__", 1)
    assert [found.code for found in result.diagnostics] == ["ambiguous-ref"]
    assert peer.lint() == []


# -- the peers themselves


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the parser library that the peer uses
@pytest.mark.skipif(not importlib.util.find_spec("dynamicprompts"), reason="dynamicprompts is not installed")
@pytest.mark.parametrize(
    ("profile", "template", "texts"), named([row for row in TABLE if row[4] and row[1] is DYNAMIC])
)
def test_dynamicprompts_gives_these_texts(pack: Path, profile: Profile, template: str, texts: set[str]) -> None:
    del profile
    assert drawn(dynamicprompts(pack, template), texts) == texts


@pytest.mark.skipif(not IMPACT_PACK, reason="IMPACT_PACK_PATH names no checkout")
@pytest.mark.parametrize(("profile", "template", "texts"), named([row for row in TABLE if row[4] and row[1] is IMPACT]))
def test_impact_pack_gives_these_texts(
    pack: Path, monkeypatch: pytest.MonkeyPatch, profile: Profile, template: str, texts: set[str]
) -> None:
    del profile
    monkeypatch.setenv("IMPACT_PACK_PATH", IMPACT_PACK)
    assert drawn(impact(pack, template), texts) == texts


def drawn(expand: Callable[[int], str], wanted: set[str]) -> set[str]:
    """Return what an engine gives in sixty seeds; sooner if that is more than what was wanted."""
    found: set[str] = set()
    for seed in range(60):
        found.add(expand(seed))
        if not found <= wanted:
            break
    return found
