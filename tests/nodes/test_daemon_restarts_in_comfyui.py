"""The daemon goes, comes back or stays away in the middle of a prompt; dropped proxies give their sets back."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from tests.nodes.processes import poll_until
from tests.nodes.workflows import Prompt, node, succeeds, tensors, workflow

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.nodes.processes import ComfyServer, DaemonHandle, Run

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(900)]


def gated(variant: str, name: str, seed: int) -> Prompt:
    """Build the workflow with a gate between the encodes and the decode: behind the sampler."""
    prompt = workflow(variant, name, seed=seed)
    prompt["gate"] = node("LunaTestGate", value=["sampler", 0], name=name)
    prompt["decode"]["inputs"]["samples"] = ["gate", 0]
    return prompt


def run_with_gate(server: ComfyServer, prompt: Prompt, name: str, meanwhile: Callable[[], None]) -> Run:
    """Run a prompt and do something while it waits at its gate."""
    ended: list[Run] = []
    runner = threading.Thread(target=lambda: ended.append(server.run(prompt)))
    runner.start()
    poll_until("the prompt reached its gate", 240, server.output(f"{name}.reached").exists)
    try:
        meanwhile()
    finally:
        server.output(f"{name}.open").touch()
        runner.join(300)
    (run,) = ended
    return run


@pytest.mark.parametrize("variant", ["tunnel", "shared"])
def test_a_daemon_restarted_between_encode_and_decode_is_found_again(
    comfy_server: ComfyServer, daemon: DaemonHandle, variant: str
) -> None:
    """The tunnel's VAE is loaded again, from the checkpoint that ComfyUI holds if need be."""
    plain = workflow(variant, f"unbroken-{variant}", seed=21)
    succeeds(comfy_server.run(plain))

    def restart() -> None:
        daemon.kill()
        daemon.start()

    name = f"broken-{variant}"
    run = run_with_gate(comfy_server, gated(variant, name, 21), name, restart)
    succeeds(run)
    before, after = (tensors(comfy_server, which)["image"] for which in (f"unbroken-{variant}", name))
    assert bool((before == after).all())


@pytest.mark.parametrize("variant", ["tunnel", "shared"])
def test_a_daemon_that_stays_away_is_an_error_at_the_decode_with_the_command(
    comfy_server: ComfyServer, daemon: DaemonHandle, variant: str
) -> None:
    name = f"away-{variant}"
    run = run_with_gate(comfy_server, gated(variant, name, 22), name, daemon.kill)
    try:
        assert run.error["node_id"] == "decode"
        assert "daemon-unreachable" in run.error["exception_message"]
        assert "luna_daemon/server.py --service-type" in run.error["exception_message"]
    finally:
        daemon.start()
    succeeds(comfy_server.run(workflow(variant, f"{name}-again", seed=22)))


def test_freeing_comfyuis_memory_gives_the_sets_back_and_the_next_run_works(
    comfy_server: ComfyServer, daemon: DaemonHandle
) -> None:
    """ComfyUI drops its cached outputs, proxies among them, and no connection holds the daemon's models any more."""
    prompt = workflow("tunnel", "held", seed=23)
    succeeds(comfy_server.run(prompt))
    assert daemon.leases("sd15") > 0
    comfy_server.request("/free", {"unload_models": True, "free_memory": True})
    poll_until("the leases were given back", 60, lambda: daemon.leases("sd15") == 0)
    before = tensors(comfy_server, "held")["image"]
    succeeds(comfy_server.run(prompt))
    assert bool((tensors(comfy_server, "held")["image"] == before).all())
