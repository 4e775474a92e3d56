"""The hook for connections: picks, and which links take them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from luna_engine.errors import LunaError
from luna_engine.wildcards import read_link_keys, resolved_categories

if TYPE_CHECKING:
    from luna_engine.wildcards import WildcardLibrary


def test_a_link_takes_what_is_at_or_below_its_address_or_names(library: WildcardLibrary) -> None:
    seed = next(seed for seed in range(99) if library.expand("{harbor:boats}", seed).text == "brig")
    (key,) = library.expand("{harbor:boats}", seed).link_keys()
    assert (key.address, key.item_id, key.value, key.tags) == (
        "coast/harbor:boats.tall",
        "brig-1",
        "brig",
        ("sail", "old"),
    )
    for link in ("coast", "coast/harbor", "coast/harbor:boats", "coast/harbor:boats.tall", "Coast/harbor/boats/tall"):
        assert key.is_taken_by(link)
    for item in ("coast/harbor:boats.tall.brig-1", "coast/harbor:boats.tall.brig"):
        assert key.is_taken_by(item)
    for other in ("coast/harbor:boats.small", "coast/harbor:boat", "coast/harbor:boats.tall.schooner", "coast/harb"):
        assert not key.is_taken_by(other)


def test_nested_picks_have_keys_of_their_own(library: WildcardLibrary) -> None:
    result = library.expand("{harbor}", 0)
    keys = result.link_keys()
    assert keys[0].address == "coast/harbor:templates.view"
    assert {key.address for key in keys[1:]} == {
        "coast/harbor:boats.small",
        "coast/harbor:piers",
        "coast/weather:sky.calm",
    }
    assert [result.choices[key.choice or 0].value for key in keys] == [key.value for key in keys]


def test_choices_come_back_and_older_forms_are_read_and_written(library: WildcardLibrary) -> None:
    result = library.expand("{harbor} {1-3}", 0)
    keys = result.link_keys()
    assert read_link_keys(json.dumps(result.choices_json())) == keys
    older = resolved_categories(keys)
    assert list(older) == ["resolved_categories"]
    for text in (json.dumps(older), json.dumps(older["resolved_categories"])):
        read = read_link_keys(text)
        assert [key.address for key in read] == older["resolved_categories"]
        assert all(key.choice is None for key in read)
    assert read_link_keys("") == ()


@pytest.mark.parametrize(
    "text", ["{", "3", '{"a": 1}', "[3]", '[{"path": 3}]', '[{"path": "a", "tags": 3}]', "[" * 9999]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(LunaError) as caught:
        read_link_keys(text)
    assert caught.value.code == "list-format"
