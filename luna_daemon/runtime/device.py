"""The one device of a daemon: chosen before torch is imported, so that torch sees that card only."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import MutableMapping

_DEFAULT_CARD = {"full": 1, "clip": 1, "vae": 0}


@dataclass(frozen=True, slots=True)
class Card:
    """An NVIDIA card by its UUID, in PCI order."""

    uuid: str
    name: str


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """Where a daemon computes and why; ``card`` is None on a CPU."""

    card: Card | None
    reason: str


def find_cards() -> list[Card]:
    """Ask the driver for its cards; none without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [
            Card(_text(pynvml.nvmlDeviceGetUUID(handle)), _text(pynvml.nvmlDeviceGetName(handle))) for handle in handles
        ]
    finally:
        pynvml.nvmlShutdown()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def choose_device(asked: str | None, service_type: str, cards: list[Card]) -> DeviceChoice:
    """Decide where to compute.

    Args:
        asked: ``cpu``, ``cuda``, ``cuda:N``, ``GPU-<uuid>`` or None for the default of the service type.
        service_type: ``full`` and ``clip`` take the second card, so that the first stays the sampler's.
        cards: what the driver has.

    Raises:
        DaemonError: ``device-unusable`` for a card that is not there, ``request-invalid`` for no device name.
    """
    if asked is None or asked == "auto":
        return _default(service_type, cards)
    if asked == "cpu":
        return DeviceChoice(None, "asked for")
    if asked.startswith("GPU-"):
        named = [card for card in cards if card.uuid == asked]
        index = cards.index(named[0]) if named else len(cards)
    else:
        kind, _, number = asked.partition(":")
        if kind != "cuda" or not (number or "0").isdecimal():
            raise DaemonError("request-invalid", f"{asked!r} is no device", "use cpu, cuda:N or GPU-<uuid>")
        index = int(number or "0")
    if index >= len(cards):
        there = ", ".join(f"cuda:{place} {card.name}" for place, card in enumerate(cards)) or "no card"
        raise DaemonError(
            "device-unusable", f"there is no device {asked}; the driver shows {there}", "use --device cpu"
        )
    return DeviceChoice(cards[index], "asked for")


def _default(service_type: str, cards: list[Card]) -> DeviceChoice:
    if not cards:
        return DeviceChoice(None, "no NVIDIA card is there")
    index = min(_DEFAULT_CARD[service_type], len(cards) - 1)
    why = "the only card" if len(cards) == 1 else f"card {index} of {len(cards)}, the default of {service_type} daemons"
    return DeviceChoice(cards[index], why)


def show_only(card: Card | None, environ: MutableMapping[str, str] = os.environ) -> None:
    """Set what torch reads at import: one context on one card, the plain allocator. The user's own values stay.

    CPU threads sleep while they wait for each other instead of spinning: beside other work on the same cores spinning
    multiplied the time of an encode.
    """
    environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    environ.setdefault("PYTORCH_ALLOC_CONF", "backend:native")
    environ["CUDA_VISIBLE_DEVICES"] = card.uuid if card is not None else ""
