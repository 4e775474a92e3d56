"""Bad input that a library must bear: a diagnostic with its place, bounded memory, the rest alive, texts unchanged."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import pytest

from luna_engine.wildcards import WildcardLibrary

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MOST_BYTES = 400 * 1024 * 1024


@pytest.fixture
def bounded() -> Iterator[None]:
    """Hold what the test allocates under the limit of WILDCARDS section 7."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MOST_BYTES


def load(folder: Path, **files: bytes | str) -> WildcardLibrary:
    folder.mkdir(exist_ok=True)
    (folder / "fine.txt").write_text("fine\n", "utf-8")
    for name, data in files.items():
        path = folder / name.replace("__", "/").replace("_yaml", ".yaml").replace("_txt", ".txt")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return WildcardLibrary.load(folder)


@pytest.fixture(scope="module")
def poor(tmp_path_factory: pytest.TempPathFactory) -> WildcardLibrary:
    """A library of which every file but one is damaged."""
    return load(
        tmp_path_factory.mktemp("poor"),
        loop_yaml="a:\n- '{loop:b}'\nb: ['{loop:a}']\n",
        twice_yaml="a: [x]\nb: [y]\na: [z]\n",
        tabs_yaml="a:\n\t- x\n",
        bytes_yaml=b"a: [caf\xe9]\n",
        deep_yaml="a: " + "[" * 150 + "x" + "]" * 150,
    )


@pytest.mark.parametrize(
    ("template", "code", "line", "column"),
    [
        ("a {b|c and on", "syntax", 1, 3),
        ("first\nsecond {open {x|x}", "syntax", 2, 8),
        ("{" * 5_000, "syntax", 1, 1),
        ("a __nobody__ b", "unknown-ref", 1, 3),
        ("\n  {nofile:a.b} x", "unknown-ref", 2, 3),
        ("{loop:a}", "cycle", 3, 6),
        ("{0-1" + "0" * 40 + "}", "bad-range", 1, 1),
        ("{0-" + "9" * 31 + "}", "bad-range", 1, 1),
        ("x {1-9:0}", "bad-range", 1, 3),
        ("x {1-9:-2}", "bad-range", 1, 3),
        ("{../../etc/passwd}", "path-escape", 1, 1),
        ("see __../secret__", "path-escape", 1, 5),
        ("{fine:../secret}", "path-escape", 1, 1),
        ("{C:\\windows\\x}", "path-escape", 1, 1),
        ("{/etc/passwd}", "path-escape", 1, 1),
        ("x" * (1 << 20) + "{a|b}", "limit", 1, 1),
        ("{twice:a}", "duplicate-key", 3, 1),
        ("{tabs:a}", "yaml-syntax", 2, 1),
        ("{bytes:a}", "encoding", 1, 8),
        ("{deep:a}", "limit", 1, 103),
    ],
)
def test_bad_input_is_reported_at_its_place(
    poor: WildcardLibrary, template: str, code: str, line: int, column: int
) -> None:
    result = poor.expand(template, 1)
    assert (code, line, column) in [(found.code, found.line, found.column) for found in result.diagnostics]
    assert poor.expand("__fine__").text == "fine"
    if "{x|x}" in template:
        assert result.text == template.replace("{x|x}", "x")
    elif "0-" in template or code not in {"bad-range", "duplicate-key", "encoding"}:
        assert result.text == template


@pytest.mark.usefixtures("bounded")
def test_line_ends_marks_and_encodings_never_change_a_text(tmp_path: Path) -> None:
    library = load(
        tmp_path / "library",
        crlf_txt=b"one\r\ntwo\r\n",
        bom_txt=b"\xef\xbb\xbfone\n",
        bom_yaml=b"\xef\xbb\xbfa: [x]\r\nb:\r\n- y\r\n",
        wide_txt="one\nzwei\n".encode("utf-16"),
        latin_txt="caf\u00e9\n".encode("latin-1") + "\u2603\n".encode(),
        nul_txt=b"a\x00b\n",
    )

    def words(address: str) -> list[str]:
        return [item.text for item in library.items(address)]

    assert words("crlf") == ["one", "two"]
    assert words("bom.txt") == ["one"]
    assert words("bom:b") == ["y"]
    assert words("wide") == ["one", "zwei"]
    assert words("latin") == ["caf\u00e9", "\u2603"]
    assert words("nul") == ["ab"]
    places = {(one.code, one.file, one.line, one.column) for one in library.diagnostics}
    assert places == {
        ("encoding", "wide.txt", 1, 1),
        ("encoding", "latin.txt", 1, 4),
        ("encoding", "nul.txt", 1, 2),
    }


@pytest.mark.usefixtures("bounded")
def test_links_out_of_the_library_and_to_itself(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "word.txt").write_text("do not show\n", "utf-8")
    folder = tmp_path / "library"
    load(folder)
    try:
        (folder / "out").symlink_to(secret)
        (folder / "word.txt").symlink_to(secret / "word.txt")
        (folder / "again").symlink_to(folder)
    except OSError as error:
        pytest.skip(f"links cannot be made here: {error}")
    library = WildcardLibrary.load(folder)
    escapes = [one for one in library.diagnostics if one.code == "path-escape"]
    assert {one.file for one in escapes} == {"out", "word.txt"}
    assert not any("do not show" in one.as_text() for one in library.diagnostics)
    result = library.expand("__word__ {out} __out/word__ __again/fine__ __fine__")
    assert "do not show" not in result.text
    assert result.text.endswith("fine")
    assert len(library.items("fine")) == 1


@pytest.mark.usefixtures("bounded")
def test_many_options_and_a_huge_range_stay_small(tmp_path: Path) -> None:
    library = load(tmp_path / "library")
    template = "{" + "|".join(f"o{at}" for at in range(20_000)) + "} {0-5000000000:0.001}"
    result = library.expand(template, 5)
    assert result.diagnostics == ()
    assert library.count(template) == 20_000 * 5_000_000_000_001


def test_lists_that_multiply_stop_at_the_limit(tmp_path: Path) -> None:
    rows = "".join(f"k{at}: ['{{many:k{at + 1}}}{{many:k{at + 1}}}']\n" for at in range(24))
    library = load(tmp_path / "library", many_yaml=rows + "k24: [x]\n")
    result = library.expand("before {many:k0} after __fine__", 1)
    assert [one.code for one in result.diagnostics] == ["limit"]
    assert result.text.startswith("before ")
    assert result.text.endswith(" after __fine__")
    assert library.count("{many:k0}") == 1
