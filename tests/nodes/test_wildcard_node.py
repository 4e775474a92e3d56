"""LunaYAMLWildcard over real files, with a stand-in for the few things it asks of ComfyUI."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from comfy_nodes import comfy
from comfy_nodes.wildcards import LunaYAMLWildcard
from luna_engine.errors import InputFileError, WildcardError
from luna_engine.wildcards import WildcardLibrary
from tests.nodes.hosts import FolderHost

if TYPE_CHECKING:
    from pathlib import Path

HARBOUR = """\
boats:
  small: [skiff, dinghy]
  tall: [schooner, brig]
views: ["a [boats.small] at dawn"]
"""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderHost:
    folder = tmp_path / "wildcards"
    folder.mkdir()
    (folder / "testharbour.yaml").write_text(HARBOUR)
    (folder / "testskies.txt").write_text("fog\nrain\nsun\n")
    found = FolderHost(folder)
    monkeypatch.setattr(comfy, "current_host", lambda: found)
    return found


def expand(template: str, seed: int = 1, **more: Any) -> tuple[str, str, list[dict[str, Any]], str]:
    prompt, negative, choices, report = LunaYAMLWildcard().expand(template, seed, **more)["result"]
    return prompt, negative, json.loads(choices), report


def fingerprint(**widgets: Any) -> str:
    return LunaYAMLWildcard.IS_CHANGED(
        **{"prompt_template": "{testskies}", "negative_template": "", "seed": 1, **widgets}
    )


@pytest.mark.parametrize("seed", [0, 1, 7, 2**64 - 1])
def test_the_text_is_that_of_the_engine_for_every_seed(host: FolderHost, seed: int) -> None:
    template = "{testharbour:boats.small} in {testskies}, {1-9} of them"
    library = WildcardLibrary.load([host.folder])
    assert expand(template, seed)[0] == library.expand(template, seed).text


def test_the_text_is_shown_on_the_node_and_what_was_picked_is_told(host: FolderHost) -> None:
    answer = LunaYAMLWildcard().expand("{testskies}", 3, negative_template="dull")
    prompt, negative, choices, report = answer["result"]
    assert answer["ui"]["text"] == [prompt, "dull"]
    assert negative == "dull"
    (pick,) = json.loads(choices)
    assert pick["text"] == prompt
    assert pick["file"] == "testskies.txt"
    assert {"reference", "path", "file", "line", "text", "weight", "tags"} <= pick.keys()
    assert report == "seed 3: 1 choices from 1 files"


def test_both_templates_share_their_variables(host: FolderHost) -> None:
    prompt, negative, *_ = expand("${sky=!{testskies}}${sky}", negative_template="no ${sky}")
    assert negative == f"no {prompt}"


def test_text_outside_braces_stays_as_written(host: FolderHost) -> None:
    text = "(a:1.2),\n\n  two  spaces // no comment /* nor this */ \\(x\\)"
    assert expand(text)[0] == text


def test_an_unknown_reference_is_kept_and_reported_by_default(host: FolderHost) -> None:
    prompt, _, _, report = expand("a {testskis}")
    assert prompt == "a {testskis}"
    assert "warning: <template>:1:3: unknown-ref" in report
    assert "testskies" in report
    assert any("testskis" in notice for notice in host.notices)


def test_an_unknown_reference_is_dropped_or_an_error_if_asked(host: FolderHost) -> None:
    assert expand("a {testskis}", missing="drop")[0].strip() == "a"
    with pytest.raises(WildcardError) as caught:
        expand("a {testskis}", missing="error")
    assert caught.value.code == "wildcard-unresolved"
    assert "testskies" in str(caught.value)


def test_a_syntax_error_names_line_and_column_with_a_caret(host: FolderHost) -> None:
    with pytest.raises(WildcardError) as caught:
        expand("first line\na {testskies")
    assert caught.value.code == "wildcard-syntax"
    assert (caught.value.line, caught.value.column) == (2, 3)
    assert caught.value.message.splitlines()[1:] == ["  a {testskies", "    ^"]


def test_a_given_folder_replaces_the_usual_ones_for_its_kind_alone(host: FolderHost, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "testharbour.yaml").write_text("boats: {small: [raft]}\n")
    (other / "testskies.txt").write_text("hail\n")
    prompt, *_ = expand("{testharbour:boats.small} {testskies}", yaml_directory=str(other))
    assert prompt.split()[0] == "raft"
    assert prompt.split()[1] in {"fog", "rain", "sun"}
    prompt, *_ = expand("{testharbour:boats.small} {testskies}", txt_wildcard_directory=str(other))
    assert prompt.split()[0] in {"skiff", "dinghy"}
    assert prompt.split()[1] == "hail"


def test_a_folder_that_is_none_is_file_missing(host: FolderHost, tmp_path: Path) -> None:
    with pytest.raises(InputFileError) as caught:
        expand("{testskies}", yaml_directory=str(tmp_path / "nowhere"))
    assert caught.value.code == "file-missing"


def test_a_comfyui_on_the_network_reads_only_its_own_folders(host: FolderHost, tmp_path: Path) -> None:
    host.roots = (host.folder.resolve(),)
    assert expand("{testskies}", txt_wildcard_directory=str(host.folder))[0] in {"fog", "rain", "sun"}
    (host.folder / "link").symlink_to(tmp_path)
    for outside in (str(tmp_path), str(host.folder / ".."), str(host.folder / "link")):
        with pytest.raises(InputFileError) as caught:
            expand("{testskies}", txt_wildcard_directory=outside)
        assert caught.value.code == "path-outside"


def test_a_changed_file_is_used_at_once_and_changes_the_fingerprint_only_if_reached(host: FolderHost) -> None:
    assert expand("{testskies}")[0] in {"fog", "rain", "sun"}
    first = fingerprint()
    assert fingerprint() == first
    (host.folder / "testharbour.yaml").write_text("boats: {small: [raft]}\n")
    assert fingerprint() == first
    (host.folder / "testskies.txt").write_text("hail\n")
    assert fingerprint() != first
    assert expand("{testskies}")[0] == "hail"


def test_a_template_over_a_link_is_fingerprinted_by_all_files(host: FolderHost) -> None:
    first = fingerprint(prompt_template=None)
    assert fingerprint(prompt_template=None) == first
    (host.folder / "testharbour.yaml").write_text("boats: {small: [raft]}\n")
    assert fingerprint(prompt_template=None) != first


def test_a_fingerprint_never_raises(host: FolderHost, tmp_path: Path) -> None:
    assert fingerprint(yaml_directory=str(tmp_path / "nowhere")).startswith("unreadable")
