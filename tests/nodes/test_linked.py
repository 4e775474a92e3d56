"""Which outputs are linked is written into the prompt, for nodes that want to know it and no other."""

from __future__ import annotations

from typing import Any

import pytest

from comfy_nodes.linked import is_linked, write_linked_outputs

WANTING = frozenset({"Loader"})


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def test_linked_slots_are_written_in_order_and_each_once() -> None:
    prompt = {
        "1": node("Loader", ckpt_name="a"),
        "2": node("VAEDecode", vae=["1", 2], samples=["4", 0]),
        "3": node("Text", clip=["1", 1]),
        "4": node("KSampler", model=["1", 0], other=["1", 0]),
        "5": node("Loader"),
        "6": node("Other", thing=["5", 0], text="5"),
    }
    posted = write_linked_outputs({"prompt": prompt, "client_id": "x"}, WANTING)
    assert posted["prompt"]["1"]["inputs"] == {"ckpt_name": "a", "luna_linked": "0,1,2"}
    assert posted["prompt"]["5"]["inputs"] == {"luna_linked": "0"}
    assert "luna_linked" not in posted["prompt"]["4"]["inputs"]


def test_a_loader_that_nothing_follows_has_no_linked_output() -> None:
    posted = write_linked_outputs({"prompt": {"1": node("Loader")}}, WANTING)
    assert posted["prompt"]["1"]["inputs"]["luna_linked"] == ""


@pytest.mark.parametrize(
    "posted", [{}, {"prompt": None}, {"prompt": {"1": "no node"}}, {"prompt": {"1": {"class_type": "Loader"}}}]
)
def test_a_prompt_of_any_shape_passes(posted: dict[str, Any]) -> None:
    write_linked_outputs(posted, WANTING)


def test_without_the_hook_all_outputs_count_as_linked() -> None:
    assert is_linked(None, 2)
    assert is_linked("0,2", 2)
    assert not is_linked("0,2", 1)
    assert not is_linked("", 0)
