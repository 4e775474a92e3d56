"""LunaYAMLWildcardBatch: lists, seeds that reproduce, exact exhaustion, cancel."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from comfy_nodes import comfy
from comfy_nodes.wildcards import LunaYAMLWildcard, LunaYAMLWildcardBatch
from luna_engine.errors import WildcardError
from tests.nodes.hosts import FolderHost

if TYPE_CHECKING:
    from pathlib import Path

SIX = "{testboat:kinds} {red|blue}"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderHost:
    (tmp_path / "testboat.yaml").write_text("kinds: [skiff, dinghy, brig]\n")
    found = FolderHost(tmp_path)
    monkeypatch.setattr(comfy, "current_host", lambda: found)
    return found


def batch(template: str, count: int, seed: int = 1, **more: Any) -> tuple[list[str], list[int], list[str], str]:
    result: tuple[list[str], list[int], list[str], str] = LunaYAMLWildcardBatch().expand(template, count, seed, **more)[
        "result"
    ]
    return result


@pytest.mark.usefixtures("host")
def test_each_seed_gives_its_prompt_again_in_the_single_node() -> None:
    prompts, seeds, choices, _ = batch(SIX, 20, 7, unique_only=False)
    assert seeds[0] == 7
    assert len(set(seeds)) == len(prompts) == len(choices) == 20
    for prompt, seed, picks in zip(prompts, seeds, choices, strict=True):
        again = LunaYAMLWildcard().expand(SIX, seed)["result"]
        assert (again[0], json.loads(again[2])) == (prompt, json.loads(picks))


@pytest.mark.usefixtures("host")
def test_neighbouring_base_seeds_do_not_overlap() -> None:
    seeds = [seed for base in range(50) for seed in batch("x", 20, base, unique_only=False)[1]]
    assert len(set(seeds)) == len(seeds)


def test_unique_tops_up_to_the_last_and_then_says_how_many_there_are(host: FolderHost) -> None:
    assert len(set(batch(SIX, 6)[0])) == 6
    with pytest.raises(WildcardError) as caught:
        batch(SIX, 7)
    assert caught.value.code == "space-exhausted"
    assert " 6 " in caught.value.message
    prompts, _, _, report = batch(SIX, 7, exhausted="fewer")
    assert len(set(prompts)) == len(prompts) == 6
    assert "space-exhausted" in report
    assert any("6" in notice for notice in host.notices)


@pytest.mark.usefixtures("host")
def test_enumerate_walks_in_a_fixed_order_from_anywhere() -> None:
    prompts, numbers, _, _ = batch(SIX, 6, mode="enumerate")
    assert prompts[:3] == ["skiff red", "skiff blue", "dinghy red"]
    assert numbers == [0, 1, 2, 3, 4, 5]
    assert batch(SIX, 2, 99, mode="enumerate", start_index=4)[:2] == (prompts[4:], [4, 5])


def test_progress_is_told_and_cancel_ends_it(host: FolderHost) -> None:
    batch("{1-1000000}", 120, unique_only=False)
    assert host.steps == [(50, 120), (100, 120), (120, 120)]
    host.is_cancelled = True
    with pytest.raises(KeyboardInterrupt):
        batch("{1-1000000}", 120)
    with pytest.raises(KeyboardInterrupt):
        batch("{1-1000000}", 120, mode="enumerate", start_index=500_000)


def test_problems_of_all_prompts_are_told_once(host: FolderHost) -> None:
    report = batch("{1-9} {testbaot}", 5)[3]
    assert report.count("testbaot") == report.count("warning:") == 1
    assert len(host.notices) == 1
    with pytest.raises(WildcardError, match="wildcard-syntax"):
        batch("an open { brace", 2, exhausted="fewer")
    with pytest.raises(WildcardError, match="wildcard-unresolved"):
        batch("{testbaot}", 2, missing="error")


def test_only_a_file_that_the_template_reaches_changes_the_fingerprint(host: FolderHost) -> None:
    first = LunaYAMLWildcardBatch.IS_CHANGED(prompt_template=SIX, seed=3)
    (host.folder / "other.txt").write_text("x\n")
    assert LunaYAMLWildcardBatch.IS_CHANGED(prompt_template=SIX) == first
    (host.folder / "testboat.yaml").write_text("kinds: [raft]\n")
    assert LunaYAMLWildcardBatch.IS_CHANGED(prompt_template=SIX) != first
