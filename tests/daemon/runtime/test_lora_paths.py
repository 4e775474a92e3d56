"""LoRAs on a shared encoder: every path gives the merged weights' numbers, and no row sees another row's LoRA."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from luna_daemon.patches import Patch
from luna_daemon.runtime.backend_native import NativeSet
from luna_daemon.runtime.clip_text import ClipTextEncoder
from luna_daemon.runtime.patch_weights import patched
from luna_engine.errors import DaemonError

from .small_loras import CPU, KINDS, LAYER, SHAPE, entry_of, item, lora, patch, shelf, small_set, use, weights

if TYPE_CHECKING:
    from luna_daemon.runtime.backend import Encoded, EncodeItem
    from luna_daemon.runtime.lora import LoraEntry

PROMPT = (320, 1125, 539, 320, 2368)


def run(model: NativeSet, *items: EncodeItem) -> list[Encoded]:
    with torch.inference_mode():
        return model.encode(items, lambda: None)


def by_hand(*applied: tuple[LoraEntry, float]) -> NativeSet:
    """Return a set whose weights were patched before it was built, in fp32 and never rounded."""
    model = small_set("sd15", shelf())
    slots = {f"clip_l.transformer.{name}": slot for name, slot in model._encoders["l"].slots().items()}
    for target in {one.target for entry, _ in applied for one in entry.patches}:
        made = [(one, strength, 1.0) for entry, strength in applied for one in entry.patches if one.target == target]
        setattr(
            slots[target].module,
            slots[target].name,
            torch.nn.Parameter(patched(slots[target].weight, made, torch.float32), requires_grad=False),
        )
    return model


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return bool((a - b).norm() <= tolerance * b.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_equals_weights_patched_before_loading(kind: str) -> None:
    entry = lora(kind)
    model = small_set("sd15", shelf(entry))
    (plain,) = run(model, item(*PROMPT))
    (made,) = run(model, item(*PROMPT, loras=[use(entry, 0.7)]))
    (wanted,) = run(by_hand((entry, 0.7)), item(*PROMPT))
    assert made.loras[0].path == ("side" if kind == "lora" else "merged")
    assert close(made.cond, wanted.cond)
    assert close(made.pooled, wanted.pooled)
    assert not close(made.cond, plain.cond, 1e-3)


def test_chained_loras_add_up_in_order() -> None:
    first, second, third = lora(seed=1), lora("loha", seed=2), lora(seed=3, rank=2)
    model = small_set("sd15", shelf(first, second, third))
    (chained,) = run(model, item(*PROMPT, loras=[use(first, 0.5), use(third, -0.25)]))
    assert [one.path for one in chained.loras] == ["side", "side"]
    assert close(chained.cond, run(by_hand((first, 0.5), (third, -0.25)), item(*PROMPT))[0].cond)
    (mixed,) = run(model, item(*PROMPT, loras=[use(first), use(second), use(third)]))
    assert close(mixed.cond, run(by_hand((first, 1.0), (second, 1.0), (third, 1.0)), item(*PROMPT))[0].cond)


def test_rows_with_different_loras_share_a_batch_and_rows_without_are_bit_equal() -> None:
    entries = [lora(seed=seed, rank=rank) for seed, rank in ((1, 4), (2, 8), (3, 2))]
    model = small_set("sd15", shelf(*entries))
    prompts = [PROMPT, (1, 2, 3), (4, 5), (6,), (7, 8)]
    plain = run(model, *(item(*tokens) for tokens in prompts))
    recipes = [[use(entries[0])], [], [use(entries[1], 0.5)], [use(entries[2]), use(entries[0])], []]
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    handle = model._encoders["l"].slots()["text_model.final_layer_norm.weight"].module.register_forward_hook(count)
    mixed = run(model, *(item(*tokens, loras=loras) for tokens, loras in zip(prompts, recipes, strict=True)))
    handle.remove()
    assert passes == 1
    for index, loras in enumerate(recipes):
        alone = run(model, item(*prompts[index], loras=loras))[0]
        assert close(mixed[index].cond, alone.cond, 1e-6)
        assert torch.equal(mixed[index].cond, plain[index].cond) == (not loras)


def test_the_projection_and_the_norms_are_reached_for_their_own_prompt_alone() -> None:
    prefix = "clip_g.transformer."
    entry = entry_of(
        patch("lora", f"{prefix}text_projection.weight", (64, 64)),
        Patch(f"{prefix}text_model.final_layer_norm.weight", "diff", {"weight": torch.full((64,), 0.3)}),
    )
    projection = entry_of(patch("lora", f"{prefix}text_projection.weight", (64, 64), seed=5))
    model = small_set("sdxl", shelf(entry, projection), ("l", "g"))
    both = ("l", "g")
    plain, mixed, projected = run(
        model,
        item(*PROMPT, roles=both),
        item(*PROMPT, roles=both, loras=[use(entry)]),
        item(*PROMPT, roles=both, loras=[use(projection)]),
    )
    assert [one.path for one in (*mixed.loras, *projected.loras)] == ["merged", "side"]
    assert not close(mixed.pooled, plain.pooled, 1e-3)
    assert not close(projected.pooled, plain.pooled, 1e-3)
    assert torch.equal(projected.cond, plain.cond)
    assert torch.equal(run(model, item(*PROMPT, roles=both))[0].pooled, plain.pooled)


def test_the_strength_of_the_weight_itself_goes_the_merged_way() -> None:
    entry = lora()
    model = small_set("sd15", shelf(entry))
    (made,) = run(model, item(*PROMPT, loras=[use(entry, 0.5, 0.9)]))
    assert made.loras[0].path == "merged"
    assert not close(made.cond, run(model, item(*PROMPT, loras=[use(entry, 0.5)]))[0].cond, 1e-3)


def test_exact_weights_are_rounded_as_they_are_kept() -> None:
    entry = lora()
    model = small_set("sd15", shelf(entry))
    (exact,) = run(model, item(*PROMPT, loras=[use(entry)], is_exact=True))
    assert exact.loras[0].path == "exact"
    tensors = weights(0)
    for one in entry.patches:
        name = one.target.removeprefix("clip_l.transformer.")
        tensors[name] = patched(tensors[name], [(one, 1.0, 1.0)], torch.float32).half()
    rounded = NativeSet("sd15", {"l": ClipTextEncoder(SHAPE, tensors, CPU)}, None, CPU, shelf())
    assert torch.equal(exact.cond, run(rounded, item(*PROMPT))[0].cond)


def test_the_third_use_is_merged_and_changes_nothing() -> None:
    entry = lora()
    shared = shelf(entry, hot_uses=3)
    model = small_set("sd15", shared)
    made = [run(model, item(*PROMPT, loras=[use(entry)]))[0] for _ in range(4)]
    assert [one.loras[0].path for one in made] == ["side", "side", "merged", "merged"]
    assert close(made[3].cond, made[0].cond)
    assert shared.merged.status().entries == 1
    assert shared.merged.status().hits == 1
    del model
    assert shared.merged.status().entries == 0  # the copies went with their set


def test_a_hot_recipe_that_has_no_room_stays_on_the_side_path() -> None:
    entry = lora()
    model = small_set("sd15", shelf(entry, hot_uses=1, merged_bytes=1000))
    assert run(model, item(*PROMPT, loras=[use(entry)]))[0].loras[0].path == "side"
    only_merged = lora("loha")
    model = small_set("sd15", tight := shelf(only_merged, merged_bytes=1000))
    assert run(model, item(*PROMPT, loras=[use(only_merged)]))[0].loras[0].path == "merged"
    assert tight.merged.status().entries == 0


def test_a_lora_for_other_models_is_refused_and_a_partial_one_counted() -> None:
    foreign = lora(prefix="clip_g.transformer.text_model.encoder.layers.0.")
    partial = entry_of(*lora().patches, patch("lora", "clip_g.transformer.text_projection.weight", (64, 64)))
    model = small_set("sd15", shelf(foreign, partial))
    with pytest.raises(DaemonError) as caught:
        run(model, item(*PROMPT, loras=[use(foreign)]))
    assert caught.value.code == "lora-no-match"
    assert run(model, item(*PROMPT, loras=[use(partial)]))[0].loras[0].unmatched == 1


def test_a_patch_of_another_shape_than_its_weight_is_refused() -> None:
    wrong = entry_of(patch("lora", f"{LAYER}mlp.fc1.weight", (64, 64)))
    model = small_set("sd15", shelf(wrong))
    with pytest.raises(DaemonError) as caught:
        model.find_loras(item(*PROMPT, loras=[use(wrong)]))
    assert caught.value.code == "lora-invalid"
    assert "[256, 64]" in caught.value.message
