"""The recorded and the real ports have the same shape: what a screen can ask of one it can ask of the other."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from luna_tui.backend import fake, protocol
from luna_tui.backend.daemons import LocalDaemons
from luna_tui.backend.events import EventLog
from luna_tui.backend.fake_weights import FakeWeights
from luna_tui.backend.gpus import LocalGpus
from luna_tui.backend.links import LocalLinks
from luna_tui.backend.local import LocalBackend
from luna_tui.backend.weights import LocalWeights
from luna_tui.backend.weights_views import Weights

PORTS = [
    (protocol.Daemons, LocalDaemons, fake.FakeDaemons),
    (protocol.Gpus, LocalGpus, fake.FakeGpus),
    (protocol.Events, EventLog, fake.FakeEvents),
    (protocol.Links, LocalLinks, fake.FakeLinks),
    (Weights, LocalWeights, FakeWeights),
    (protocol.Backend, LocalBackend, fake.FakeBackend),
]


def verbs(port: type[Any]) -> dict[str, inspect.Signature]:
    return {
        name: inspect.signature(member)
        for name, member in vars(port).items()
        if inspect.isfunction(member) and not name.startswith("_")
    }


@pytest.mark.parametrize(("port", "real", "recorded"), PORTS, ids=lambda kind: kind.__name__)
def test_real_and_recorded_take_the_same_calls(port: type[Any], real: type[Any], recorded: type[Any]) -> None:
    wanted = verbs(port)
    assert wanted
    for kind in (real, recorded):
        found = verbs(kind)
        assert {name: found.get(name) for name in wanted} == wanted, kind


def test_every_scene_can_be_drawn_from() -> None:
    for scene in fake.SCENES:
        backend = fake.FakeBackend(scene)
        if scene == "error":  # its snapshots raise
            continue
        assert backend.daemons.snapshot().at == backend.gpus.snapshot().at
