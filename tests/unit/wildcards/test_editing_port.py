"""What the editor of screen 4 asks of its port: sections of large files, drafts, definitions, odds and steps."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luna_engine.errors import InputFileError, LunaError
from luna_engine.settings import Settings, WildcardSettings
from luna_tui.backend.drafts import Drafts
from luna_tui.backend.wildcard_files import MOST_EDIT_BYTES, MOST_EDIT_LINES, open_file, save_file
from luna_tui.backend.wildcards import LocalWildcards
from luna_tui.external import editor_command
from luna_tui.fuzzy import rank
from luna_tui.screens.wildcard_rows import reference_to
from luna_tui.widgets.wrapping import clean_offset, clean_text, wrap

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def port(folder: Path) -> Iterator[LocalWildcards]:
    made = LocalWildcards(Settings(wildcards=WildcardSettings(roots=(str(folder),), bundled=False)))
    yield made
    made.close()


def big_yaml(keys: int = 300, items: int = 30) -> str:
    return "# head\n" + "".join(
        f"key{key}:\n" + "".join(f"  - item {key} {item}  # note\n" for item in range(items)) for key in range(keys)
    )


# -- sections


def test_of_a_large_yaml_the_keys_round_the_line_are_opened_and_spliced_back(tmp_path: Path) -> None:
    path = tmp_path / "big.yaml"
    text = big_yaml().replace("\n", "\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    line = text.split("\r\n").index("key150:") + 10
    file = open_file(path, "big.yaml", 0, line)
    assert file.section is not None
    assert file.text.startswith("key")
    assert file.first_line <= line <= file.last_line
    assert "item 150 7" in file.text
    assert file.text.count("\n") <= MOST_EDIT_LINES
    saved = save_file(file, file.text.replace("item 150 7 ", "another "))
    assert path.read_bytes() == b"\xef\xbb\xbf" + text.replace("item 150 7 ", "another ").encode()
    assert save_file(saved, saved.text + "\n  - more").section is not None
    assert path.read_text("utf-8-sig").count("more") == 1


def test_of_a_large_text_file_the_lines_round_the_line_are_opened(tmp_path: Path) -> None:
    path = tmp_path / "big.txt"
    path.write_text("".join(f"line {number}\n" for number in range(1, 50_001)), "utf-8")
    file = open_file(path, "big.txt", 0, 25_000)
    assert file.text.split("\n")[25_000 - file.first_line] == "line 25000"
    assert file.text.count("\n") <= MOST_EDIT_LINES
    assert file.section is not None
    assert file.section.total_lines == 50_001
    first, last = open_file(path, "big.txt", 0, 1), open_file(path, "big.txt", 0, 10**9)
    assert first.first_line == 1
    assert last.last_line == 50_001


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_splicing_changes_the_section_and_no_other_byte(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("splice") / "x.yaml"
    lines = data.draw(
        st.lists(st.sampled_from(["key:", "  - item", "# note", "", "'a': [b]", "  deep:"]), min_size=1, max_size=40)
    )
    text = "\n".join(lines * (2 + MOST_EDIT_LINES // len(lines)))
    path.write_bytes(text.encode())
    file = open_file(path, "x.yaml", 0, data.draw(st.integers(1, text.count("\n") + 1)))
    assert file.whole(file.text) == text
    new = data.draw(st.text(st.sampled_from("ab \n#é"), max_size=60))
    save_file(file, new)
    assert file.section is not None
    assert path.read_text("utf-8") == file.section.before + new + file.section.after


def test_one_huge_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "wide.txt"
    path.write_text("x" * (MOST_EDIT_BYTES + 1), "utf-8")
    with pytest.raises(InputFileError, match="limit"):
        open_file(path, "wide.txt", 0)


@pytest.mark.parametrize(("data", "is_normalised"), [(b"a\nb\n", 0), (b"a\r\nb\n", 1), (b"caf\xe9\n", 1)])
def test_what_saving_would_even_out_is_told(tmp_path: Path, data: bytes, is_normalised: int) -> None:
    (tmp_path / "x.txt").write_bytes(data)
    assert open_file(tmp_path / "x.txt", "x.txt", 0).is_normalised is bool(is_normalised)


# -- drafts


def test_a_draft_of_a_process_that_is_gone_is_offered_and_a_running_ones_is_not(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("a\n", "utf-8")
    (tmp_path / "drafts").mkdir()
    drafts = Drafts(tmp_path / "drafts")
    drafts.keep(open_file(tmp_path / "x.txt", "x.txt", 0), "mine\n")
    (file,) = (tmp_path / "drafts").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    record = json.loads(file.read_text())
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        import psutil

        record["process"] = [other.pid, psutil.Process(other.pid).create_time()]
        file.write_text(json.dumps(record))
        assert drafts.left_behind() == ()
    finally:
        other.communicate(b"\n")
    (draft,) = drafts.left_behind()
    assert (draft.path, draft.text, draft.base, draft.first_line) == (tmp_path / "x.txt", "mine\n", "a\n", 1)
    drafts.forget(draft)
    assert drafts.left_behind() == ()


def test_a_damaged_draft_is_left_and_the_others_are_offered(tmp_path: Path) -> None:
    drafts = Drafts(tmp_path)
    for name, text in (("a", "{"), ("b", "[]"), ("c", '{"schema": "luna.draft/9"}')):
        (tmp_path / f"{name}.json").write_text(text)
    assert drafts.left_behind() == ()
    assert len(list(tmp_path.iterdir())) == 3


def test_saving_forgets_the_draft(port: LocalWildcards) -> None:
    file = port.open(0, "coast/mood.txt")
    port.keep_draft(file, "mine\n")
    assert [draft.text for draft in port.drafts()] == ["mine\n"]  # this process's own: it could only be from before
    port.save(file, "mine\n")
    assert port.drafts() == ()


# -- references


@pytest.mark.parametrize(
    ("text", "at", "address"),
    [
        ("a {harbor:boats.small} b", 12, "coast/harbor:boats.small"),
        ("a __mood__ b", 4, "coast/mood"),
        ("{harbor: a [boats.tall] off}", 14, "coast/harbor:boats.tall"),
        ("{harbor: a [boats.tall] off __mood__}", 31, "coast/mood"),
        ("{oak|{harbor:piers}|elm}", 9, "coast/harbor:piers"),
        ("plain {oak|elm} text", 8, None),
        ("{nofile} x", 3, None),
    ],
)
def test_a_definition_is_found_from_any_place_in_a_reference(
    port: LocalWildcards, text: str, at: int, address: str | None
) -> None:
    found = port.definition(text, at, None)
    assert (found.address if found else None) == address


def test_a_files_own_path_in_brackets_leads_into_the_file(port: LocalWildcards, folder: Path) -> None:
    line = '  view: ["[boats.small] near the [piers]"]'
    found = port.definition(line, line.index("piers"), folder / "coast" / "harbor.yaml")
    assert found is not None
    assert (found.address, found.file) == ("coast/harbor:piers", "coast/harbor.yaml")
    lines = (folder / "coast" / "harbor.yaml").read_text("utf-8").splitlines()
    assert lines[found.line - 1].startswith("piers")


@pytest.mark.parametrize(
    ("address", "home", "profile", "wanted"),
    [
        ("coast/harbor:boats.tall", "coast/harbor", "native", "[boats.tall]"),
        ("coast/harbor:boats.tall", "coast/mood", "native", "{coast/harbor:boats.tall}"),
        ("coast/harbor:boats.tall", None, "native", "{coast/harbor:boats.tall}"),
        ("coast/harbor", "coast/harbor", "native", "{coast/harbor}"),
        ("coast/harbor:boats.tall", None, "impact", "__boats/tall__"),
        ("coast/harbor:boats.tall", None, "dynamicprompts", "__coast/boats/tall__"),
        ("mood:calm", None, "dynamicprompts", "__calm__"),
        ("coast/mood", None, "impact", "__coast/mood__"),
    ],
)
def test_a_reference_is_written_in_the_form_that_fits(
    address: str, home: str | None, profile: str, wanted: str
) -> None:
    assert reference_to(address, home, profile) == wanted


# -- samples


def test_pins_and_rerolls_reach_the_samples(port: LocalWildcards) -> None:
    template = "__mood__ {harbor:boats.small}"
    first = port.preview(template, 8, 3)
    site = first.samples[0].choices[0].site
    pinned = port.preview(template, 8, 3, pins={site: "odd"})
    assert [sample.text.split()[0] for sample in pinned.samples] == ["odd"] * 8
    assert [sample.text.split()[1] for sample in pinned.samples] == [one.text.split()[1] for one in first.samples]
    rerolled = port.preview(template, 8, 3, reroll={site: 1})
    assert [one.text.split()[1] for one in rerolled.samples] == [one.text.split()[1] for one in first.samples]
    assert [one.text.split()[0] for one in rerolled.samples] != [one.text.split()[0] for one in first.samples]


def test_the_steps_of_a_sample_end_in_the_sample(port: LocalWildcards) -> None:
    sample = port.preview("{@a|b|c} __mood__", 5, 3).samples[4]
    steps = port.steps("{@a|b|c} __mood__", sample.seed, sample.index)
    assert steps[0].text == "{@a|b|c} __mood__"
    assert steps[-1].text == sample.text


def test_a_profile_reads_the_template_as_its_engine_does(port: LocalWildcards) -> None:
    assert port.preview("{k 1}", 1, 0, profile="dynamicprompts").samples[0].text == "k 1"
    assert port.preview("{k 1}", 1, 0).samples[0].text == "{k 1}"


# -- small parts


@pytest.mark.parametrize(
    ("variable", "wanted"),
    [
        ("vim -u NONE", ["vim", "-u", "NONE", "+7", "/x/a b.yaml"]),
        ("code --wait", ["code", "--wait", "--goto", "/x/a b.yaml:7"]),
        ("hx", ["hx", "/x/a b.yaml:7"]),
        ("other", ["other", "/x/a b.yaml"]),
    ],
)
def test_an_editor_is_told_the_line_in_its_own_way(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, wanted: list[str]
) -> None:
    program = tmp_path / variable.split(maxsplit=1)[0]
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", variable)
    from pathlib import PurePosixPath

    assert editor_command(PurePosixPath("/x/a b.yaml"), 7) == wanted  # type: ignore[arg-type]


def test_no_editor_is_an_error_with_a_hint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("VISUAL", "EDITOR"):
        monkeypatch.delenv(name, raising=False)
    for setting in (None, "nowhere-ed", "'"):
        with pytest.raises(LunaError) as caught:
            editor_command(tmp_path, 1, setting)
        assert caught.value.code == "no-editor"


def test_ranking_puts_starts_before_middles_and_words_before_letters() -> None:
    names = ["x/harbor:boats", "harbor", "coast/harbor:piers", "has a raw bone"]
    assert rank("harbor", names) == ["harbor", "x/harbor:boats", "coast/harbor:piers"]
    assert rank("hr boats", names) == ["x/harbor:boats"]
    assert rank("hbr", names)[0] == "harbor"
    assert rank("zzz", names) == []


@given(st.text(max_size=60), st.integers(2, 20))
def test_wrapped_lines_hold_every_character_once_and_fit(text: str, width: int) -> None:
    from rich.cells import cell_len

    clean = clean_text(text)
    lines = wrap(clean, width)
    assert "".join(clean[start:end] for start, end in lines) == clean.replace("\n", "")
    assert all(cell_len(clean[start:end]) <= width or end - start == 1 for start, end in lines)
    assert clean_offset(text, len(text)) == len(clean)
