"""The promise named TransientLoRAContext: nothing of a LoRA survives a request, whatever fails or runs beside it."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING, Any

import pytest
import torch

from luna_daemon.encode_messages import LoraUse
from luna_daemon.runtime import merged, set_loras
from luna_daemon.runtime.lora import LoraRegistry, TransientLoRAContext
from luna_daemon.runtime.side_path import SidePath
from luna_engine.errors import DaemonError

from .small_loras import KINDS, LAYER, entry_of, item, lora, patch, shelf, small_set, use

if TYPE_CHECKING:
    from luna_daemon.runtime.backend import Encoded, EncodeItem
    from luna_daemon.runtime.backend_native import NativeSet

REQUESTS = 1000
PLAIN = item(320, 1125, 539)


def storages(model: NativeSet) -> dict[int, str]:
    """Return the digest of every weight storage, by where it is."""
    return {
        tensor.untyped_storage().data_ptr(): hashlib.blake2b(tensor.numpy().tobytes()).hexdigest()
        for encoder in model._encoders.values()
        for tensor in encoder.state().values()
    }


def encode(model: NativeSet, *items: EncodeItem, check: Any = lambda: None) -> list[Encoded]:
    with torch.inference_mode():
        return model.encode(items, check)


def assert_untouched(model: NativeSet, before: dict[int, str], plain: torch.Tensor) -> None:
    assert storages(model) == before
    assert torch.equal(encode(model, PLAIN)[0].cond, plain)
    for side in model._loras._sides.values():
        assert side._work == {}
        assert side._swapped == []
    assert not any(is_pinned for *_, is_pinned in model._loras.registry.rows())


def cancelled_at(count: int) -> Any:
    """Return a check that is content ``count`` times and then cancels."""
    left = iter(range(count))

    def check() -> None:
        if next(left, None) is None:
            raise DaemonError("cancelled", "no longer wanted")

    return check


def test_a_thousand_mixed_requests_leave_every_weight_as_it_was() -> None:
    """A tenth is cancelled before some pass, a twentieth is invalid; the rest is every kind, exact, hot and mixed."""
    drawn = random.Random(5)
    good = [lora(kind, rank=2) for kind in KINDS]
    wrong = entry_of(patch("lora", f"{LAYER}mlp.fc1.weight", (64, 64)))
    foreign = lora(prefix="clip_g.transformer.text_model.encoder.layers.0.")
    shared = shelf(*good, wrong, foreign, hot_uses=3, merged_bytes=4_000_000)
    model = small_set("sd15", shared)
    before, (first,) = storages(model), encode(model, PLAIN)
    outcomes = {"good": 0, "cancelled": 0, "lora-missing": 0, "lora-invalid": 0, "lora-no-match": 0}
    bad_uses = [LoraUse("0" * 64, 1.0), use(wrong), use(foreign)]
    for number in range(REQUESTS):
        loras = [
            use(entry, drawn.choice((0.5, 1.0, -0.3)), drawn.choice((1.0, 1.0, 0.9)))
            for entry in drawn.sample(good, drawn.choice((0, 1, 1, 2)))
        ]
        if number % 20 == 7:
            loras.append(drawn.choice(bad_uses))
        mixed = item(*drawn.sample(range(49000), 3), loras=loras, is_exact=drawn.random() < 0.1)
        check = cancelled_at(drawn.randrange(2)) if number % 10 == 3 else lambda: None
        try:
            _, plain = encode(model, mixed, PLAIN, check=check)
        except DaemonError as error:
            outcomes[error.code] += 1
        else:
            outcomes["good"] += 1
            assert torch.equal(plain.cond, first.cond)
    assert outcomes["cancelled"] >= 50
    assert outcomes["good"] >= 800
    assert all(outcomes[code] for code in ("lora-missing", "lora-invalid", "lora-no-match"))
    assert shared.merged.status().evictions
    assert_untouched(model, before, first.cond)


class InjectedError(Exception):
    """Thrown in the middle of a step."""


STEPS: dict[str, tuple[Any, str]] = {
    "finding": (LoraRegistry, "recipe"),
    "merging": (merged, "patched"),
    "pinning": (LoraRegistry, "pin"),
    "adding rows": (SidePath, "set_rows"),
    "swapping": (SidePath, "swap_in"),
    "entering": (TransientLoRAContext, "__enter__"),
    "saying": (set_loras.SetLoras, "did"),
}


WHOLE = {"pinning", "entering"}
"""Steps that are one step: they happen or they do not."""


@pytest.mark.parametrize(
    ("step", "is_after"), [(step, after) for step in STEPS for after in (False, True) if not (after and step in WHOLE)]
)
def test_an_exception_at_any_step_leaves_nothing(step: str, is_after: bool, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: FBT001 - a parameter
    """The step fails before it did its work, or just after."""
    entries = lora(), lora("loha")
    model = small_set("sd15", shelf(*entries))
    before, (plain,) = storages(model), encode(model, PLAIN)
    place, name = STEPS[step]
    real = getattr(place, name)

    def broken(*arguments: Any, **options: Any) -> Any:
        if is_after:
            real(*arguments, **options)
        raise InjectedError

    for entry in entries:
        with monkeypatch.context() as patched:
            patched.setattr(place, name, broken)
            if {step, entry.form} in ({"merging", "low_rank"}, {"swapping", "low_rank"}, {"adding rows", "merged"}):
                encode(model, item(1, loras=[use(entry)]))  # not a step of this path
                continue
            with pytest.raises(InjectedError):
                encode(model, item(1, loras=[use(entry)]))
        assert_untouched(model, before, plain.cond)


@pytest.mark.parametrize("kind", ["lora", "loha"])
def test_an_exception_inside_any_layer_leaves_nothing(kind: str) -> None:
    entry = lora(kind)
    model = small_set("sd15", shelf(entry))
    before, (plain,) = storages(model), encode(model, PLAIN)

    def fail(*_: object) -> None:
        raise InjectedError

    modules = {id(slot.module): slot.module for slot in model._encoders["l"].slots().values()}
    for module in modules.values():
        if module is getattr(model._encoders["l"], "_projection", None):
            continue  # sd15 does not project
        handle = module.register_forward_hook(fail)
        with pytest.raises(InjectedError):
            encode(model, item(1, loras=[use(entry)]))
        handle.remove()
        assert model._loras._sides["l"]._work == {}
    assert_untouched(model, before, plain.cond)
