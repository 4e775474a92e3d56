"""Several roots: which file an address means when more than one root has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from luna_engine.wildcards import Profile, Root, WildcardLibrary

if TYPE_CHECKING:
    from pathlib import Path


def test_earlier_roots_shadow_later_ones(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(f"{name}\n", "utf-8")
    (tmp_path / "two" / "b.txt").write_text("only\n", "utf-8")
    library = WildcardLibrary.load([tmp_path / "one", tmp_path / "two"])
    assert library.expand("__a__ __b__").text == "one only"
    assert [found.code for found in library.diagnostics] == ["shadowed"]


def test_a_file_shadows_later_roots_whatever_the_kind(tmp_path: Path) -> None:
    mine, bundled = tmp_path / "mine", tmp_path / "bundled"
    for root in (mine, bundled):
        (root / "sky").mkdir(parents=True)
    (mine / "sky" / "weather.txt").write_text("mine\n", "utf-8")
    (bundled / "sky" / "weather.yaml").write_text("calm: [theirs]\n", "utf-8")
    (bundled / "sky" / "weather.json").write_text('["theirs too"]', "utf-8")
    (bundled / "weather.yaml").write_text("[another address]\n", "utf-8")
    library = WildcardLibrary.load([mine, bundled])
    for template in ("__sky/weather__", "{sky/weather}"):
        found = library.expand(template)
        assert (found.text, found.diagnostics) == ("mine", ())
    assert [item.text for item in library.items("sky")] == ["mine"]
    assert library.expand("__sky/weather/calm__").text == "__sky/weather/calm__", "hidden whole, not merged"
    assert [(found.code, found.severity.value, found.message) for found in library.diagnostics] == [
        ("shadowed", "hint", "sky/weather.txt of an earlier root hides sky/weather.json of a later one"),
        ("shadowed", "hint", "sky/weather.txt of an earlier root hides sky/weather.yaml of a later one"),
    ]
    assert WildcardLibrary.load([bundled, mine]).expand("__sky/weather/calm__").text == "theirs"


def test_in_one_root_kinds_of_equal_address_are_ranked_not_hidden(tmp_path: Path) -> None:
    (tmp_path / "weather.txt").write_text("of the txt\n", "utf-8")
    (tmp_path / "weather.yaml").write_text("[of the yaml]\n", "utf-8")
    library = WildcardLibrary.load(tmp_path)
    found = library.expand("__weather__, __weather.txt__")
    assert found.text == "of the yaml, of the txt"
    assert [problem.code for problem in found.diagnostics] == ["ambiguous-ref"]
    assert library.diagnostics == ()


def test_a_removed_file_uncovers_what_it_hid(tmp_path: Path) -> None:
    mine, bundled = tmp_path / "mine", tmp_path / "bundled"
    mine.mkdir()
    bundled.mkdir()
    (mine / "weather.txt").write_text("mine\n", "utf-8")
    (bundled / "weather.yaml").write_text("[theirs]\n", "utf-8")
    library = WildcardLibrary.load([mine, bundled])
    assert library.expand("__weather__").text == "mine"
    (mine / "weather.txt").unlink()
    assert library.refresh()
    assert library.expand("__weather__").text == "theirs"
    assert library.diagnostics == ()


def test_a_packs_own_texts_find_what_a_users_file_hides(tmp_path: Path) -> None:
    """A user's weather.txt must not break the bundled {weather:sky}; where it offers an address it is taken."""
    mine, pack = tmp_path / "mine", tmp_path / "pack"
    mine.mkdir()
    (pack / "deep").mkdir(parents=True)
    (mine / "weather.txt").write_text("hail\n", "utf-8")
    (mine / "tide.yaml").write_text("high: [mine]\n", "utf-8")
    (pack / "weather.yaml").write_text("sky: [clear]\nrain: [drizzle]\n", "utf-8")
    (pack / "tide.yaml").write_text("high: [theirs]\nlow: [theirs]\n", "utf-8")
    (pack / "deep" / "scene.yaml").write_text(
        'paths: ["{weather:sky}, {weather}"]\nnames: ["__weather/rain__, __weather.yaml__"]\n'
        'inline: ["{weather: a [sky] over [rain]}"]\ntide: ["{tide:high}, {tide:low}, {tide: [high] and [high]}"]\n',
        "utf-8",
    )
    library = WildcardLibrary.load([mine, pack])
    for template, text in (
        ("{scene:paths}", "clear, hail"),
        ("{scene:inline}", "a clear over drizzle"),
        ("{scene:tide}", "mine, theirs, mine and mine"),
    ):
        found = library.expand(template)
        assert (found.text, found.diagnostics) == (text, ())
    found = library.expand("{scene:names}")
    assert found.text.split(", ")[0] == "drizzle"
    assert found.text.split(", ")[1] in {"clear", "drizzle"}
    assert [choice.file for choice in library.expand("{scene:paths}").choices[1:]] == ["weather.yaml", "weather.txt"]
    assert library.expand("{weather:sky}").text == "{weather:sky}", "the user's own text sees the user's file alone"
    assert {problem.code for problem in library.lint()} == {"shadowed"}


def test_a_change_of_a_hidden_file_changes_the_fingerprint_of_what_reads_it(tmp_path: Path) -> None:
    mine, pack = tmp_path / "mine", tmp_path / "pack"
    mine.mkdir()
    pack.mkdir()
    (mine / "weather.txt").write_text("hail\n", "utf-8")
    (pack / "weather.yaml").write_text("sky: [clear]\n", "utf-8")
    (pack / "scene.yaml").write_text('["{weather:sky}"]', "utf-8")
    library = WildcardLibrary.load([mine, pack])
    before = library.fingerprint("{scene}")
    assert before == library.fingerprint("{scene}")
    (pack / "weather.yaml").write_text("sky: [cloudy]\n", "utf-8")
    assert library.refresh()
    assert library.fingerprint("{scene}") != before
    assert library.expand("{scene}").text == "cloudy"


def test_a_root_read_as_dynamicprompts_reads_it(tmp_path: Path) -> None:
    (tmp_path / "moods.txt").write_text("soft\n2::grim\ncalm\nsoft\n", "utf-8")
    (tmp_path / "all.yaml").write_text("a: [pear, 3::fig]\nb: [fig, ash]\n", "utf-8")
    peer = WildcardLibrary.load(Root(tmp_path, profile=Profile.DYNAMICPROMPTS))
    assert [item.text for item in peer.items("moods")] == ["2::grim", "calm", "soft"]
    assert [item.text for item in peer.items("all")] == ["ash", "fig", "pear"]
    assert [choice.probability for choice in peer.expand("__all/a__", 4).choices] in ([0.75], [0.25])
    native = WildcardLibrary.load(tmp_path)
    assert [item.text for item in native.items("moods")] == ["soft", "grim", "calm", "soft"]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("a # rest\nb", "a \nb"),
        ("# line\na", "a"),
        ("a // rest\nb", "a \nb"),
        ("see http://x.y/z, a#b", "see http://x.y/z, a#b"),
        ("a /* in\nside */ b /* open", "a  b /* open"),
        ("/* " * 20_000, "/* " * 20_000),
        ("{a|a} /* x */ {b", "a  {b"),
    ],
)
def test_comments_as_dynamicprompts_writes_them(template: str, text: str) -> None:
    result = WildcardLibrary.load().expand(template, 1, profile="dynamicprompts")
    assert result.text == text


def test_places_behind_a_dropped_comment_stay_true() -> None:
    result = WildcardLibrary.load().expand("a /* x */\n /* y */ __nobody__", 1, profile="dynamicprompts")
    [found] = [one for one in result.diagnostics if one.code == "unknown-ref"]
    assert (found.line, found.column) == (2, 10)
