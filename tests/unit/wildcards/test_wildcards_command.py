"""`luna wildcards`: what it prints, where, and how it exits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from luna_tui.cli import luna
from luna_tui.frame import run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def luna_run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = run(luna, ["wildcards", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_expand_prints_the_texts_that_every_machine_prints(luna_run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = luna_run("expand", "{characters}", "--seed", 7, "--count", 5, "--json")
    records = json.loads(out)
    assert code == 0
    assert len(records) == 5
    assert records[1]["text"] == "a nervous beekeeper at work, steady hands, blue hour"
    assert [record["seed"] for record in records[:2]] == [7, 3162781167611607]
    assert set(records[0]) == {"text", "parts", "seed", "index", "choices", "loras", "embeddings", "diagnostics"}


def test_expand_again_gives_the_same_bytes(luna_run: Callable[..., tuple[int, str, str]]) -> None:
    call = ("expand", "{scenes}", "--seed", -3, "--count", 4, "--json")
    assert luna_run(*call) == luna_run(*call)


def test_random_seeds_are_reported(luna_run: Callable[..., tuple[int, str, str]], folder: Path) -> None:
    code, out, err = luna_run("expand", "{1-1000000}", "--seed", "random", "--root", folder)
    seed = err.split("seed ", 1)[1].split()[0]
    assert code == 0
    assert luna_run("expand", "{1-1000000}", "--seed", seed, "--root", folder)[1] == out


def test_templates_come_from_files_and_a_missing_one_is_exit_4(
    luna_run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    template = tmp_path / "prompt.txt"
    template.write_text("# note\n{a|a} from file\n", "utf-8")
    assert luna_run("expand", f"@{template}")[1] == "a from file\n\n"
    assert luna_run("expand", f"@{tmp_path / 'gone.txt'}")[0] == 4
    template.write_bytes(b"\xff\xfe\xfa")
    assert luna_run("expand", f"@{template}")[0] == 4


def test_lenient_is_zero_and_strict_is_one(luna_run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = luna_run("expand", "{nofile}")
    assert (code, out) == (0, "{nofile}\n")
    assert "<template>:1:1: error unknown-ref" in err
    assert luna_run("expand", "{nofile}", "--strict")[0] == 1
    assert luna_run("expand", "{nofile}", "--missing", "drop")[1] == "\n"


def test_an_exhausted_space_is_exit_one_under_unique(luna_run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = luna_run("expand", "{a|b}", "--count", 5, "--unique")
    assert code == 1
    assert sorted(out.split()) == ["a", "b"]
    assert "space-exhausted" in err


def test_wrong_usage_is_exit_two(luna_run: Callable[..., tuple[int, str, str]], folder: Path) -> None:
    assert luna_run("expand", "x", "--seed", "seven")[0] == 2
    assert luna_run("expand", "x", "--var", "novalue")[0] == 2
    assert luna_run("expand")[0] == 2
    assert luna_run("expand", "x", "--root", folder / "gone")[0] == 4


def test_variables_and_negative_share_a_draw(luna_run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = luna_run("expand", "${x}", "--var", "x=red", "--negative", "not ${x}", "--json")
    assert code == 0
    assert json.loads(out)[0]["parts"] == {"": "red", "negative": "not red"}


def test_count_is_exact(luna_run: Callable[..., tuple[int, str, str]], folder: Path) -> None:
    assert luna_run("count", "{harbor}", "--root", folder)[1] == "19\n"
    assert json.loads(luna_run("count", "{0-9}", "--json")[1])["count"] == 10
    assert luna_run("count", "${x=!{0-1000000}}${if x=3: a|b}")[0] == 1


def test_tree_lists_addresses(luna_run: Callable[..., tuple[int, str, str]], folder: Path) -> None:
    code, out, _ = luna_run("tree", "--root", folder, "--json")
    addresses = {entry["address"]: entry for entry in json.loads(out)["addresses"]}
    assert code == 0
    assert addresses["coast/harbor:boats.tall"]["items"] == 2
    assert "tall" in luna_run("tree", "coast/harbor:boats", "--root", folder)[1]
    assert luna_run("tree", "nowhere", "--root", folder)[0] == 1


def test_lint_fails_on_what_it_was_told_to(luna_run: Callable[..., tuple[int, str, str]], folder: Path) -> None:
    assert luna_run("lint", folder)[0] == 0
    (folder / "a.yaml").write_text("x: [red, Red]\n", "utf-8")
    assert luna_run("lint", folder)[0] == 0
    code, out, _ = luna_run("lint", folder, "--fail-on", "warning", "--format", "github")
    assert code == 1
    assert out.startswith("::warning file=a.yaml,line=1,col=10,title=duplicate-item::")
    (folder / "b.yaml").write_text("x: [red\n", "utf-8")
    code, out, _ = luna_run("lint", folder, "--json")
    assert code == 1
    assert {found["code"] for found in json.loads(out)} == {"duplicate-item", "yaml-syntax"}


def test_watch_prints_again_after_a_change(
    luna_run: Callable[..., tuple[int, str, str]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luna_engine.wildcards import Change, WildcardLibrary

    real = WildcardLibrary.watch

    def watch_and_save(library: WildcardLibrary, on_event: Callable[[Change], None]) -> object:
        watch = real(library, on_event)
        (folder / "coast" / "mood.txt").write_text("stormy\n", "utf-8")
        return watch

    monkeypatch.setattr(WildcardLibrary, "watch", watch_and_save)
    code, out, _ = luna_run("watch", "__mood__", "--root", folder, "--changes", 1, "--count", 2, "--json")
    last = json.loads(out.splitlines()[-1])
    assert code == 0
    assert last["changed"] == ["coast/mood.txt"]
    assert [sample["text"] for sample in last["samples"]] == ["stormy", "stormy"]


def test_add_shows_the_change_and_writes_only_when_told(
    luna_run: Callable[..., tuple[int, str, str]], folder: Path
) -> None:
    file = folder / "coast" / "harbor.yaml"
    before = file.read_text("utf-8")
    code, out, err = luna_run("add", "harbor:boats.small", "raft", "skiff", "--root", folder)
    assert (code, file.read_text("utf-8")) == (0, before)
    assert "+  small: [skiff, dinghy, raft]" in out
    assert "already there: skiff" in err
    assert luna_run("--readonly", "add", "harbor:boats.small", "raft", "--root", folder, "--write")[0] == 1
    code, out, _ = luna_run(
        "add", "harbor:boats.small", "a raft, a raft", "--split", "--root", folder, "--write", "--json"
    )
    assert json.loads(out)["skipped"] == ["a raft"]
    assert file.read_text("utf-8") == before.replace("dinghy]", "dinghy, a raft]")


def test_add_makes_a_new_list(luna_run: Callable[..., tuple[int, str, str]], folder: Path) -> None:
    args = ("add", "harbor", "gull", "tern", "--key", "birds.sea", "--root", folder, "--write")
    assert luna_run(*args)[0] == 0
    assert luna_run("expand", "{2$$ $$__harbor/birds/sea__}", "--root", folder)[1] in {"gull tern\n", "tern gull\n"}
    assert luna_run("add", "harbor:boats", "x", "--root", folder)[0] == 1


def test_rules_are_a_switch_and_what_was_relaxed_is_said(
    luna_run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    (tmp_path / "boat.txt").write_text("brig\nraft\n", "utf-8")
    (tmp_path / "sea.txt").write_text("storm\n", "utf-8")
    (tmp_path / "constraints_sea.yaml").write_text("sea: {boat: {incompatible: [raft]}}\n", "utf-8")
    call = ("expand", "{sea} {boat}", "--count", 30, "--root", tmp_path)
    assert set(luna_run(*call)[1].split("\n")[:-1]) == {"storm brig", "storm raft"}
    assert set(luna_run(*call, "--rules")[1].split("\n")[:-1]) == {"storm brig"}
    code, out, err = luna_run("expand", "{sea} {boat:raft}", "--root", tmp_path, "--rules")
    assert (code, out) == (0, "storm raft\n")
    assert "constraints_sea.yaml:1:29: warning rule-relaxed: sea with boat: incompatible raft" in err
    (record,) = json.loads(luna_run("expand", "{sea} {boat:raft}", "--root", tmp_path, "--rules", "--json")[1])
    assert record["links"] == {"loras": [], "embeddings": [], "trigger_words": []}
    assert luna_run(*call, "--rules", "--mode", "cycle")[0] == 2


def test_odds_of_a_template_and_of_an_address(luna_run: Callable[..., tuple[int, str, str]], folder: Path) -> None:
    code, out, _ = luna_run("odds", "a {3::oak|elm} {1-4}", "--root", folder, "--top", 2, "--json")
    sites = json.loads(out)["sites"]
    assert code == 0
    assert [(share["text"], share["probability"]) for share in sites[0]["shares"]] == [("oak", 0.75), ("elm", 0.25)]
    assert sites[1]["rest"] == 0.5
    code, out, _ = luna_run("odds", "harbor:boats.small", "--root", folder)
    assert out.splitlines() == ["{harbor:boats.small}", "  skiff    50.000 %", "  dinghy   50.000 %"]


def test_uses_of_an_address_in_files_and_prompts(
    luna_run: Callable[..., tuple[int, str, str]], folder: Path, tmp_path: Path
) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("x {harbor:boats}", "utf-8")
    code, out, _ = luna_run("uses", "harbor:boats.small", "--root", folder, "--templates", prompt)
    assert code == 0
    assert out.splitlines() == [
        f"{prompt}:1:3: {{harbor:boats}}  (holds it: coast/harbor:boats)",
        "coast/harbor.yaml:2:11: [boats.small]",
    ]
    code, _, err = luna_run("uses", "nothing", "--root", folder)
    assert code == 1
    assert "unknown-ref" in err


def test_steps_begin_with_the_template_and_end_with_the_text(
    luna_run: Callable[..., tuple[int, str, str]], folder: Path
) -> None:
    template = "{oak|elm} __mood__"
    code, out, _ = luna_run("steps", template, "--seed", 5, "--root", folder, "--json")
    record = json.loads(out)
    assert code == 0
    assert record["steps"][0]["text"] == template
    assert record["steps"][-1]["text"] == luna_run("expand", template, "--seed", 5, "--root", folder)[1].strip()
    assert len(record["steps"]) == 3
    lines = luna_run("steps", template, "--seed", 5, "--root", folder)[1].splitlines()
    assert len(lines) == 5


def test_lint_shows_fixes_and_writes_them_when_told(
    luna_run: Callable[..., tuple[int, str, str]], folder: Path
) -> None:
    file = folder / "traps.yaml"
    before = "a:\n- {red|blue}\n- foggy: very  # note\n- fine\n"
    file.write_text(before, "utf-8")
    (folder / "broken.yaml").write_text("a:\n- @home\n", "utf-8")
    code, out, err = luna_run("lint", folder, "--fix")
    assert (code, file.read_text("utf-8")) == (1, before)
    assert "unquoted-braces" not in err
    assert "+- '{red|blue}'" in err
    assert "yaml-syntax" in out
    code, out, err = luna_run("lint", folder, "--fix", "--write")
    assert code == 0
    assert file.read_text("utf-8") == "a:\n- '{red|blue}'\n- 'foggy: very'  # note\n- fine\n"
    assert (folder / "broken.yaml").read_text("utf-8") == "a:\n- '@home'\n"
    assert "unquoted" not in out
    assert luna_run("lint", folder, "--write")[0] == 2
    assert luna_run("--readonly", "lint", folder, "--fix", "--write")[0] == 1


def test_import_shows_its_plan_writes_it_and_takes_it_back(
    luna_run: Callable[..., tuple[int, str, str]], folder: Path, tmp_path: Path
) -> None:
    pack = tmp_path / "beasts"
    pack.mkdir()
    (pack / "sea.txt").write_text("whale\nWhale\n{calm} kraken\n", "utf-8")
    before = sorted(folder.rglob("*"))
    code, out, err = luna_run("import", pack, "--root", folder)
    assert code == 0
    assert out.splitlines()[0].startswith("+ beasts/sea.txt")
    assert "sea.txt: 1 of 1 dropped (lines 2)" in out
    assert "{calm} kraken" in out
    assert "--write" in err
    assert sorted(folder.rglob("*")) == before

    code, out, _ = luna_run("import", pack, "--root", folder, "--write", "--json")
    record = json.loads(out)
    assert (code, record["schema"], record["written"]) == (0, "luna.wildcards.import/1", True)
    assert record["counts"]["duplicates_dropped"] == 1
    assert record["files"][0]["differing"][0]["profiles"] == ["dynamicprompts", "impact"]
    assert luna_run("expand", "__beasts/sea__", "--root", folder)[1].strip() in {"whale", "{calm} kraken"}

    assert luna_run("import", "beasts", "--undo", "--root", folder)[1] == "- sea.txt\n"
    assert luna_run("import", "beasts", "--undo", "--write", "--root", folder)[0] == 0
    assert sorted(folder.rglob("*")) == before


def test_import_says_what_it_could_not_read_with_exit_4(
    luna_run: Callable[..., tuple[int, str, str]], folder: Path, tmp_path: Path
) -> None:
    pack = tmp_path / "half"
    pack.mkdir()
    (pack / "bad.yaml").write_text("a: [open\n", "utf-8")
    code, _, err = luna_run("import", pack, "--root", folder)
    assert code == 4
    assert "bad.yaml:" in err
    assert luna_run("import", tmp_path / "gone.zip", "--root", folder)[0] == 4
    assert luna_run("import", pack, "--root", folder, "--on-conflict", "overwrite")[0] == 2


def test_import_never_goes_into_the_bundled_library_unasked(
    luna_run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("one\n", "utf-8")
    code, _, err = luna_run("import", tmp_path, "--write")
    assert code == 1
    assert "--root" in err
