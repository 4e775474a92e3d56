"""Any bytes as a file: an answer with diagnostics, never a traceback; the rest of the library lives."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luna_engine.wildcards import WildcardLibrary

VALID = {
    ".yaml": (
        "templates:\n  view: ['[boats.small] {x|y}', \"__mood__ at dawn\"]\n"
        "boats: &b\n  small: [skiff, 'a: b']\n  tall:\n"
        "    - 3::schooner\n    - {value: brig, weight: 0.5, tags: [sail], id: b-1}\n"
        "more:\n  <<: *b\ntext: |\n  block\n"
    ),
    ".json": '{"templates": ["{a|b}"], "x": [1.50, "caf\\u00e9", null, '
    '{"value": "v", "weight": "2"}], "y": {"z": true}}',
    ".txt": "one\n2::two __mood__\n# comment\n{a|b}\r\nthree\n",
}
POISON = st.sampled_from(
    [bytes([sign]) for sign in b"\t\0\xff{}[]'\"-:%\r#?|>"]
    + [b"&a ", b"*a ", b"*b", b"!!x ", b"<<: ", b"-1::", b"\n---\n", b"\n...\n", b"\xef\xbb\xbf", b"\\ud800"]
)


@pytest.mark.parametrize("suffix", VALID)
@given(data=st.data())
@settings(max_examples=120, deadline=None)
def test_a_mutated_file_gives_an_answer(suffix: str, data: st.DataObject) -> None:
    text = VALID[suffix].encode()
    at = data.draw(st.integers(0, len(text)))
    cut = data.draw(st.integers(0, 4))
    poison = data.draw(POISON | st.binary(max_size=4))
    with tempfile.TemporaryDirectory() as name:
        Path(name, f"odd{suffix}").write_bytes(text[:at] + poison + text[at + cut :])
        Path(name, "mood.txt").write_bytes(b"calm\n")
        library = WildcardLibrary.load(name)
        library.lint()
        library.tree(combinations=True)
        assert library.expand("__mood__").text == "calm"
        result = library.expand("{odd} {odd:boats.small} __odd__", 1)
        for choice in result.choices:
            if choice.span is not None:
                assert result.text[slice(*choice.span)] == choice.value
        for problem in library.diagnostics:
            assert problem.line is None or problem.line >= 1
            assert problem.column is None or problem.column >= 1


@pytest.mark.parametrize("suffix", VALID)
def test_the_unmutated_files_are_clean(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"odd{suffix}").write_text(VALID[suffix], "utf-8")
    (tmp_path / "mood.txt").write_text("calm\n", "utf-8")
    assert [problem for problem in WildcardLibrary.load(tmp_path).lint() if problem.severity.value == "error"] == []


def test_a_file_without_permission_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.yaml").write_text("x: [1]\n", "utf-8")
    (tmp_path / "b.txt").write_text("fine\n", "utf-8")
    real = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "a.yaml":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    library = WildcardLibrary.load(tmp_path)
    assert [(problem.code, problem.file) for problem in library.diagnostics] == [("unreadable", "a.yaml")]
    assert library.expand("__b__").text == "fine"
