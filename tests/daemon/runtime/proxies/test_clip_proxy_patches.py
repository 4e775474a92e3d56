"""Patches and hooks on a DaemonCLIP: what a LoRA hits, that it travels with one clone, what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from luna_daemon.client import DaemonClient
from luna_engine.errors import DaemonError
from tests.daemon.runtime.proxies.stand_ins_of_comfyui import (
    WEIGHT,
    Adapter,
    Frame,
    Hook,
    HookGroup,
    lora_patches,
)

if TYPE_CHECKING:
    from luna_daemon.proxy import DaemonCLIP


class TestPatches:
    def test_names_decide_what_a_lora_hits_without_weights_here(
        self, clip: DaemonCLIP, clip_tensors: dict[str, torch.Tensor]
    ) -> None:
        state = clip.cond_stage_model.state_dict()
        assert {name for name in clip_tensors if "layers" in name} <= state.keys()
        assert all(tensor.is_meta for tensor in state.values())
        child = clip.cond_stage_model.clip_l.state_dict()
        assert "transformer.text_model.final_layer_norm.weight" in child

    def test_a_hooks_lora_follows_the_schedule_behind_those_that_were_added(self, clip: DaemonCLIP) -> None:
        """One entry per range, each as if the LoRA had been added with the strength of its keyframe."""
        hook = Hook(Frame(0.0, 1.0), Frame(0.4, -0.5))
        hooked = clip.clone()
        hooked.add_patches(lora_patches(1), 0.25)
        expected = []
        for frame in hook.frames:
            one = hooked.clone()
            one.add_patches(lora_patches(2), 2.0 * frame.strength)
            expected.append(one.encode("a boat"))
        assert hooked.patcher.add_hook_patches(hook, lora_patches(2), 2.0) == [WEIGHT]
        hooked.patcher.forced_hooks = HookGroup(hook)
        hooked.use_clip_schedule = True
        (first, facts), (second, _) = hooked.encode_from_tokens_scheduled(hooked.tokenize("a boat"), add_dict={"x": 1})
        assert torch.allclose(first, expected[0], atol=1e-5)
        assert torch.allclose(second, expected[1], atol=1e-5)
        assert not torch.allclose(first, second, atol=1e-2)
        assert (facts["clip_start_percent"], facts["clip_end_percent"], facts["x"]) == (0.0, 0.4, 1)
        ((only, _),) = hooked.encode_from_tokens_scheduled(hooked.tokenize("a boat"), add_dict={"start_percent": 0.5})
        assert torch.allclose(only, second, atol=1e-5)
        hooked.use_clip_schedule = False
        assert torch.allclose(hooked.encode("a boat"), expected[0], atol=1e-5)
        assert hooked.get_ram_usage() > clip.get_ram_usage() == 0

    def test_added_patches_travel_with_this_clone_alone(self, clip: DaemonCLIP) -> None:
        plain = clip.encode("a boat")
        patched = clip.clone()
        before = patched.patcher.patches_uuid
        patches = lora_patches(1)
        assert patched.add_patches({**patches, "diffusion_model.something": object()}, 0.8) == list(patches)
        assert patched.patcher.patches_uuid != before
        assert patched.get_ram_usage() > clip.get_ram_usage() == 0
        made = patched.encode("a boat")
        assert not torch.allclose(made, plain, atol=1e-2)
        assert torch.equal(clip.encode("a boat"), plain)
        assert torch.equal(patched.clone().encode("a boat"), made)

    def test_three_patches_in_a_chain_and_none_at_strength_0(self, clip: DaemonCLIP) -> None:
        chained = clip.clone()
        for seed, strength in enumerate((0.5, -0.4, 0.3)):
            chained = chained.clone()
            chained.add_patches(lora_patches(seed), strength)
        assert [lora.strength for lora in chained.patcher.recipe] == [0.5, -0.4, 0.3]
        assert len(chained.patcher.patches[WEIGHT]) == 3
        again = clip.clone()
        for seed, strength in enumerate((0.5, -0.4)):
            again.add_patches(lora_patches(seed), strength)
        assert not torch.allclose(chained.encode("a boat"), again.encode("a boat"), atol=1e-3)
        unchanged = clip.clone()
        assert unchanged.add_patches(lora_patches(1), 0.0) == [WEIGHT]
        assert unchanged.patcher.recipe == ()

    def test_a_weight_can_be_scaled_with_nothing_added(
        self, clip: DaemonCLIP, clip_tensors: dict[str, torch.Tensor]
    ) -> None:
        """CLIPAttentionMultiply gives None in place of a patch, strength 0, and the strength of the weight itself."""
        bias = WEIGHT.replace(".weight", ".bias")
        scaled, added = clip.clone(), clip.clone()
        for name in (WEIGHT, bias):
            assert scaled.add_patches({name: (None,)}, 0.0, 0.5) == [name]
            added.add_patches({name: ("diff", (clip_tensors[name].float() * -0.5,))}, 1.0)
        assert torch.allclose(scaled.encode("a boat"), added.encode("a boat"), atol=1e-4)
        assert not torch.allclose(scaled.encode("a boat"), clip.encode("a boat"), atol=1e-2)
        assert scaled.get_ram_usage() < 20_000

    def test_what_only_scales_is_gathered_and_keeps_its_place_where_that_matters(
        self, clip: DaemonCLIP, clip_tensors: dict[str, torch.Tensor]
    ) -> None:
        names = sorted(name for name in clip_tensors if ".self_attn." in name)
        scaled = clip.clone()
        for name in names:
            scaled.add_patches({name: (None,)}, 0.0, 0.5 if "q_proj" in name else 2.0)
        assert sorted(len(lora.patches) for lora in scaled.patcher.recipe) == [len(names) // 4, 3 * len(names) // 4]
        scaled.encode("a boat")

        before, after = clip.clone(), clip.clone()
        for one, steps in ((before, ("scale", "add")), (after, ("add", "scale"))):
            one.add_patches({names[0]: (None,)}, 0.0, 0.25)
            for step in steps:
                if step == "add":
                    one.add_patches({WEIGHT: ("diff", (torch.ones(768, 768),))}, 0.05)
                else:
                    one.add_patches({WEIGHT: (None,)}, 0.0, 0.25)
        assert len(before.patcher.recipe) == 2
        assert len(after.patcher.recipe) == 3
        assert not torch.allclose(before.encode("a boat"), after.encode("a boat"), atol=1e-3)

    def test_a_lora_is_sent_once_and_again_when_the_daemon_has_dropped_it(
        self, clip: DaemonCLIP, client: DaemonClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sent_hashes = []
        put = DaemonClient.lora_put

        def counted(self: DaemonClient, *arguments: Any, **options: Any) -> Any:
            sent_hashes.append(options["hash"])
            return put(self, *arguments, **options)

        monkeypatch.setattr(DaemonClient, "lora_put", counted)
        client.lora_drop(all=True)
        patched = clip.clone()
        patched.add_patches(lora_patches(7), 1.0)
        first = patched.encode("a boat")
        patched.encode("a ship")
        assert len(sent_hashes) == 1
        client.lora_drop(all=True)
        patched.encode("a sail")
        assert sent_hashes == [patched.patcher.recipe[0].hash] * 2
        assert torch.equal(patched.encode("a boat"), first)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("plain", object()),
            ("plain", ("sorcery", (torch.ones(1),))),
            ("plain", [("diff", (torch.ones(1),))]),
            ("plain", ("diff", (torch.ones(1), {"pad_weight": True}))),
            ("mid", None),
            ("function", ("diff", (torch.ones(768, 768),))),
        ],
    )
    def test_a_patch_that_cannot_be_applied_raises_where_it_is_added(
        self, clip: DaemonCLIP, key: str, value: Any
    ) -> None:
        adapter = Adapter("lora", (torch.ones(768, 4), torch.ones(4, 768), None, torch.ones(4, 4, 1, 1), None, None))
        patches = {(WEIGHT, (0, 0, 768), abs) if key == "function" else WEIGHT: value or adapter}
        with pytest.raises(DaemonError) as caught:
            clip.clone().add_patches(patches)
        assert caught.value.code == "patch-unsupported"
        assert "before the tunnel" in (caught.value.hint or "")

    def test_a_lora_of_another_shape_is_the_daemon_s_typed_error_and_harms_nobody(self, clip: DaemonCLIP) -> None:
        plain = clip.encode("a boat")
        wrong = clip.clone()
        wrong.add_patches({WEIGHT: Adapter("lora", (torch.ones(768, 4), torch.ones(4, 700), 4.0, None, None, None))})
        with pytest.raises(DaemonError) as caught:
            wrong.encode("a boat")
        assert caught.value.code == "lora-invalid"
        assert torch.equal(clip.encode("a boat"), plain)
