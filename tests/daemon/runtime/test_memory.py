"""Where sets are, what goes first when room is needed, and each step of the ladder when memory runs out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from luna_daemon.encode_messages import EncodeText, TextItem, Tile, VaeDecode, VaeEncode
from luna_daemon.engine_seam import EngineOptions, SetOnDiskError
from luna_daemon.memory_messages import Free
from luna_daemon.model_messages import LoadModel, Part, UnloadModel
from luna_daemon.runtime.backend import Place
from luna_daemon.runtime.effort import Effort
from luna_daemon.runtime.engine import Engine
from luna_daemon.runtime.held import HeldSet, SetFacts
from luna_daemon.runtime.ladder import Ladder
from luna_daemon.runtime.leases import FADE_S, Leases
from luna_daemon.runtime.residency import RESERVE_BYTES, Residency
from luna_daemon.status_messages import PartStatus
from luna_daemon.tensors import from_torch, to_torch
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytest.importorskip("instant_clip_tokenizer", reason="no wheel for this Python")

CARD, CPU = torch.device("cuda"), torch.device("cpu")


def never() -> None:
    return


class Weights:
    """A model of ten bytes that knows where it is."""

    def __init__(self, place: Place = Place.DEVICE) -> None:
        self.place = place

    def move(self, place: Place) -> None:
        self.place = place


def held(name: str, last_used: float, place: Place = Place.DEVICE, **more: Any) -> HeldSet:
    weights: Any = None if place is Place.DISK else Weights(place)
    parts = (PartStatus("l", "a/b", None, 10),)
    return HeldSet(name, "sd15", "fp16", parts, (), SetFacts({}, None, ()), weights, last_used=last_used, **more)


def residency(device: torch.device, budget: int, host_budget: int | None = None, **more: Any) -> Residency:
    return Residency(device, CPU, budget, host_budget, **{"free_bytes": lambda _: 10**12, **more})


def places(*sets: HeldSet) -> dict[str, str]:
    return {one.id: one.place.value for one in sets}


def test_the_longest_unused_goes_first_and_only_as_many_as_must() -> None:
    sets = [held("new", 3.0), held("old", 1.0), held("mid", 2.0)]
    assert residency(CPU, 30).make_room(sets, 15) == ("old", "mid")
    assert places(*sets) == {"new": "device", "old": "disk", "mid": "disk"}


def test_beside_a_card_idle_sets_go_to_the_host_and_from_there_to_disk() -> None:
    sets = [held("first", 1.0), held("second", 2.0), held("third", 3.0)]
    where = residency(CARD, 30, 10)
    assert where.make_room(sets, 10) == ("first",)
    assert places(*sets) == {"first": "host", "second": "device", "third": "device"}
    assert where.make_room(sets, 20) == ("second",)
    assert places(*sets) == {"first": "disk", "second": "host", "third": "device"}


def test_what_runs_stays_and_leased_and_pinned_ones_go_last() -> None:
    leases = {"leased": 1}
    sets = [
        held("busy", 0.0, users=1),
        held("pinned", 1.0, is_pinned=True),
        held("leased", 2.0),
        held("idle", 3.0),
    ]
    where = residency(CARD, 40, leases=lambda name: leases.get(name, 0))
    assert where.make_room(sets, 30) == ("idle", "leased", "pinned")
    assert places(*sets) == {"busy": "device", "pinned": "host", "leased": "host", "idle": "host"}


def test_a_pinned_set_never_goes_to_disk_and_the_refusal_names_who_holds() -> None:
    sets = [held("pinned", 1.0, is_pinned=True), held("idle", 0.0)]
    with pytest.raises(DaemonError) as caught:
        residency(CPU, 20).make_room(sets, 15)
    assert caught.value.code == "out-of-memory"
    assert caught.value.details == {"needed_bytes": 15, "free_bytes": 10**12, "holders": {"pinned": 10}}
    assert places(*sets) == {"pinned": "device", "idle": "disk"}


def test_free_is_the_drivers_number_less_the_reserve_and_merged_weights_go_before_sets() -> None:
    free = [RESERVE_BYTES + 5]
    dropped: list[int] = []

    def drop() -> int:
        dropped.append(1)
        free[0] += 5
        return 5

    sets = [held("idle", 1.0)]
    where = Residency(CARD, CPU, None, None, drop, free_bytes=lambda device: free[0] if device is CARD else 10**12)
    assert where.make_room(sets, 5) == ()
    assert dropped == []
    assert where.make_room(sets, 10) == ()
    assert dropped == [1]
    assert places(*sets) == {"idle": "device"}


def test_a_set_comes_back_to_the_device_and_does_not_count_against_itself() -> None:
    here, waiting, gone = held("here", 1.0), held("waiting", 0.0, Place.HOST), held("gone", 0.0, Place.DISK)
    where = residency(CARD, 10)
    assert where.promote(here, [here, waiting]) == 0.0
    assert where.promote(waiting, [here, waiting]) > 0.0
    assert places(here, waiting) == {"here": "host", "waiting": "device"}
    with pytest.raises(SetOnDiskError) as caught:
        where.promote(gone, [here, waiting, gone])
    assert (caught.value.code, caught.value.set_id) == ("daemon-loading", "gone")


def test_a_lease_lasts_until_it_is_given_back_or_a_minute_after_its_holder() -> None:
    now = [0.0]
    leases = Leases(lambda: now[0])
    leases.take("a", "s")
    leases.take("a", "s")
    leases.take("b", "s")
    leases.take("b", "t")
    assert (leases.count("s"), leases.count("t"), leases.count("u")) == (2, 1, 0)
    leases.give_back("a", "s")
    leases.give_back("a", "t")
    leases.end("b")
    now[0] = FADE_S - 1
    assert (leases.count("s"), leases.count("t")) == (1, 1)
    now[0] = FADE_S + 1
    assert (leases.count("s"), leases.count("t")) == (0, 0)


class Short:
    """Work that runs out of memory a number of times, and notes what it was allowed each time."""

    def __init__(self, failures: int, message: str = "CUDA out of memory. Tried to allocate 1.50 GiB.") -> None:
        self.failures = failures
        self.message = message
        self.tries: list[tuple[int | None, Tile | None]] = []

    def __call__(self, effort: Effort) -> str:
        self.tries.append((effort.rows, effort.tile))
        if len(self.tries) <= self.failures:
            raise torch.cuda.OutOfMemoryError(self.message)
        return "done"


TILE = Tile(64, 64, 16)


def ladder(merged: int = 7, moved: tuple[str, ...] = ("a",)) -> Ladder:
    left = [merged]
    return Ladder(left.pop if merged else lambda: 0, lambda keep: [name for name in moved if name != keep])


def refused(needed: int | None) -> DaemonError:
    return DaemonError("out-of-memory", str(needed))


STEPS = [
    "cache emptied",
    "merged weights dropped",
    "batch halved",
    "batch halved",
    "tiled",
    "idle sets moved",
]


@pytest.mark.parametrize("failures", range(len(STEPS) + 1))
def test_each_step_of_the_ladder_may_be_the_one_that_helps(failures: int) -> None:
    climbed, work, effort = ladder(), Short(failures), Effort(rows=4, spare_tile=TILE)
    assert climbed.run("testing", work, effort, refused) == "done"
    assert [step for step, count in climbed.steps.items() for _ in range(count)] == STEPS[:failures]
    allowed = [(4, None), (4, None), (4, None), (2, None), (1, None), (1, TILE), (1, TILE)]
    assert work.tries == allowed[: failures + 1]
    assert len(effort.downgraded) == sum(failures > place for place in (1, 2, 5))
    assert all(entry.reason == "out-of-memory" for entry in effort.downgraded)


def test_when_nothing_helps_the_refusal_knows_what_could_not_be_had() -> None:
    with pytest.raises(DaemonError, match=str(1536 * 2**20)):
        ladder().run("testing", Short(99), Effort(rows=2), refused)
    with pytest.raises(DaemonError, match="None"):
        ladder().run("testing", Short(99, "no number here"), Effort(), refused)


def test_a_step_that_changes_nothing_is_left_out_and_other_errors_pass() -> None:
    climbed = ladder(merged=0, moved=("own",))
    with pytest.raises(DaemonError):
        climbed.run("testing", Short(99), Effort(set_id="own"), refused)
    assert climbed.steps == {"cache emptied": 1, "refused": 1}

    def broken(_: Effort) -> str:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        climbed.run("testing", broken, Effort(), refused)


@pytest.fixture
def starved(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], list[Any]]:
    """Let a method of the loaded model run out of memory that many times; give what it was called with."""

    def starve(method: str, failures: int) -> list[Any]:
        (one,) = engine._store.sets.values()
        original, calls = getattr(one.loaded, method), []

        def short(*arguments: Any) -> Any:
            calls.append(arguments)
            if len(calls) <= failures:
                torch.empty(1 << 60, dtype=torch.uint8)
            return original(*arguments)

        monkeypatch.setattr(one.loaded, method, short)
        return calls

    return starve


def test_a_vae_that_ran_out_of_memory_works_in_tiles_and_says_so(engine: Engine, starved: Any) -> None:
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    _, (plain,) = engine.vae_decode(VaeDecode("sd15"), {"latent": from_torch("latent", latent)}, never)
    calls = starved("vae_decode", 2)
    reply, (image,) = engine.vae_decode(VaeDecode("sd15"), {"latent": from_torch("latent", latent)}, never)
    assert [call[2] for call in calls] == [None, None, TILE]
    assert reply.did.tiled == "oom"
    # smaller than a tile: three plain passes and their mean
    assert torch.allclose(to_torch(image), to_torch(plain), rtol=0, atol=1e-5)
    asked = VaeDecode("sd15", Tile(8, 8, 2))
    reply, _ = engine.vae_decode(asked, {"latent": from_torch("latent", latent)}, never)
    assert reply.did.tiled == "asked"


def test_an_encode_that_ran_out_of_memory_is_tiled_in_pixels(engine: Engine, starved: Any) -> None:
    calls = starved("vae_encode", 2)
    pixels = {"pixels": from_torch("pixels", torch.rand(1, 16, 16, 3))}
    reply, _ = engine.vae_encode(VaeEncode("sd15"), pixels, never)
    assert (reply.did.tiled, calls[-1][2]) == ("oom", Tile(512, 512, 64))


def test_a_batch_that_ran_out_of_memory_is_halved_and_gives_the_same(engine: Engine, starved: Any) -> None:
    body = EncodeText("sd15", tuple(TextItem(f"cat number {number}") for number in range(4)), cache="bypass")
    _, expected = engine.encode_text(body, {}, never)
    calls = starved("encode", 3)
    reply, tensors = engine.encode_text(body, {}, never)
    assert [call[2] for call in calls] == [16, 16, 8, 4]
    (entry,) = reply.did.downgraded
    assert (entry.asked, entry.did, entry.reason) == ("passes of 16 rows", "passes of 4 rows", "out-of-memory")
    for mine, theirs in zip(tensors, expected, strict=True):
        assert torch.allclose(to_torch(mine), to_torch(theirs), rtol=0, atol=1e-5)


def test_when_nothing_helps_it_is_typed_and_the_engine_goes_on(engine: Engine, starved: Any) -> None:
    latent = {"latent": from_torch("latent", torch.zeros(1, 4, 2, 2))}
    calls = starved("vae_decode", 3)
    with pytest.raises(DaemonError) as caught:
        engine.vae_decode(VaeDecode("sd15"), latent, never)
    (one,) = engine._store.sets.values()
    assert caught.value.code == "out-of-memory"
    assert caught.value.details is not None
    assert caught.value.details["needed_bytes"] == 1 << 60
    assert caught.value.details["holders"] == {one.id: one.size_bytes}
    assert caught.value.details["free_bytes"] > 0
    assert len(calls) == 3
    assert one.users == 0
    engine.vae_decode(VaeDecode("sd15"), latent, never)


@pytest.fixture
def tight(roots: dict[str, Path]) -> Engine:
    """An engine with room for one of the two parts of the demo checkpoint."""
    made = Engine(EngineOptions(device="cpu", roots=roots, threads=1, ram_budget_bytes=600_000_000))
    made.start(lambda phase, done: None)
    return made


def load(engine: Engine, role: str, name: str, **more: Any) -> Any:
    return engine.load_model(LoadModel((Part(role, id=name),), **more), {}, never)[0]


def test_a_set_that_had_to_go_is_known_answers_from_memory_and_comes_back(tight: Engine) -> None:
    vae, text = load(tight, "vae", "vae/vae.safetensors"), EncodeText("sd15", (TextItem("a cat"),))
    clip = load(tight, "l", "clip/l.safetensors")
    assert clip.evicted == (vae.set,)
    _, before = tight.encode_text(text, {}, never)
    latent = {"latent": from_torch("latent", torch.zeros(1, 4, 2, 2))}
    with pytest.raises(SetOnDiskError) as caught:
        tight.vae_decode(VaeDecode("sd15"), latent, never)
    tight.bring(caught.value.set_id, never)
    reply, _ = tight.vae_decode(VaeDecode("sd15"), latent, never)
    assert reply.did.set == vae.set
    assert {row.set: row.place for row in tight.snapshot().sets} == {vae.set: "device", clip.set: "disk"}
    again, after = tight.encode_text(text, {}, never)
    assert (again.did.cached, again.did.place_before) == (True, "disk")
    assert [bytes(one.data) for one in after] == [bytes(one.data) for one in before]
    tight.unload_model(UnloadModel(set=clip.set), {}, never)
    with pytest.raises(DaemonError) as unknown:
        tight.bring(clip.set, never)
    assert unknown.value.code == "model-missing"


def test_what_is_free_to_go_goes_on_demand_and_is_counted_by_class(tight: Engine) -> None:
    clip = load(tight, "l", "clip/l.safetensors")
    tight.encode_text(EncodeText("sd15", (TextItem("a cat"), TextItem("a dog"))), {}, never)
    kept = tight.snapshot().caches["results"].bytes
    freed, _ = tight.free(Free("all", bytes=kept // 2), {}, never)
    assert kept / 2 <= freed.freed_bytes["results"] < kept
    assert set(freed.freed_bytes) == {"results"}
    freed, _ = tight.free(Free("idle_models"), {}, never)
    assert (freed.freed_bytes, freed.moved) == ({"idle_models": clip.bytes}, (clip.set,))
    freed, _ = tight.free(Free("all"), {}, never)
    assert list(freed.freed_bytes) == ["results", "merged", "loras", "idle_models"]
    assert freed.freed_bytes["idle_models"] == 0
    assert tight.snapshot().caches["results"].entries == 0


def test_pinned_sets_stay_when_idle_ones_are_freed(tight: Engine) -> None:
    clip = load(tight, "l", "clip/l.safetensors", pin=True)
    freed, _ = tight.free(Free("idle_models"), {}, never)
    assert (freed.freed_bytes, freed.moved) == ({"idle_models": 0}, ())
    assert tight.snapshot().sets[0].place == "device"
    assert clip.place == "device"


def test_a_leased_set_is_unloaded_by_force_only(tight: Engine) -> None:
    clip = load(tight, "l", "clip/l.safetensors")
    tight.leases.take("another", clip.set)
    assert tight.snapshot().sets[0].leases == 1
    with pytest.raises(DaemonError, match="held by 1") as caught:
        tight.unload_model(UnloadModel(set=clip.set), {}, never)
    assert caught.value.code == "model-in-use"
    kept, _ = tight.unload_model(UnloadModel(all=True), {}, never)
    assert kept.kept == (clip.set,)
    freed, _ = tight.unload_model(UnloadModel(set=clip.set, force=True), {}, never)
    assert freed.freed_bytes == clip.bytes
