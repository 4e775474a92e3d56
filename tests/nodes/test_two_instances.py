"""Two ComfyUI instances on one daemon: the second sends nothing, and each gets its own results at the same time."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from tests.nodes.workflows import Prompt, node, succeeds, tensors, workflow, written

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    import torch

    from tests.nodes.processes import ComfyServer, Run

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def second_server(start_comfy: Callable[[], AbstractContextManager[ComfyServer]]) -> Iterator[ComfyServer]:
    with start_comfy() as server:
        yield server


def with_lora(name: str, strength: float) -> Prompt:
    prompt = workflow("tunnel", name, seed=31)
    prompt["lora"] = node(
        "LoraLoader",
        model=["tunnel", 0],
        clip=["tunnel", 1],
        lora_name="demo-lora_sd15.safetensors",
        strength_model=1.0,
        strength_clip=strength,
    )
    for role in ("positive", "negative"):
        prompt[role]["inputs"]["clip"] = ["lora", 1]
    prompt["cond"] = node("LunaTestProbe", value=["positive", 0], name=f"{name}-cond")
    return prompt


def both_at_once(servers: tuple[ComfyServer, ComfyServer], prompts: tuple[Prompt, Prompt]) -> list[Run]:
    ended: dict[int, Run] = {}

    def run(index: int) -> None:
        ended[index] = servers[index].run(prompts[index])

    threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [ended[index] for index in range(2)]


def results(server: ComfyServer, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    return tensors(server, name)["image"], tensors(server, f"{name}-cond")["0.cond"]


def test_the_second_instance_shares_what_the_first_brought(
    comfy_server: ComfyServer, second_server: ComfyServer
) -> None:
    succeeds(comfy_server.run(workflow("tunnel", "first", seed=30)))
    succeeds(second_server.run(workflow("tunnel", "second", seed=30)))
    assert written(second_server, "second-status").startswith("[sd15] CLIP shared | VAE shared | ")
    image, other = tensors(comfy_server, "first")["image"], tensors(second_server, "second")["image"]
    assert float((image - other).abs().max()) <= 1 / 255


def test_two_loras_at_the_same_time_do_not_mix(comfy_server: ComfyServer, second_server: ComfyServer) -> None:
    servers = (comfy_server, second_server)
    strengths = (1.0, -0.7)
    for server, strength in zip(servers, strengths, strict=True):
        succeeds(server.run(with_lora("alone", strength)))
    for run in both_at_once(servers, (with_lora("together", strengths[0]), with_lora("together", strengths[1]))):
        succeeds(run)
    for server in servers:
        alone, together = results(server, "alone"), results(server, "together")
        assert float((alone[0] - together[0]).abs().max()) <= 1 / 255
        assert float((alone[1] - together[1]).abs().max()) <= 1e-5
    ours, theirs = (results(server, "together")[1] for server in servers)
    assert float((ours - theirs).abs().max()) > 0.01
