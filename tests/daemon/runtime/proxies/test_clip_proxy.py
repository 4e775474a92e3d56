"""DaemonCLIP against a real daemon: ComfyUI's structures, state per clone, what needs the weights."""

from __future__ import annotations

import pytest
import torch

from luna_daemon.proxy import DaemonCLIP, RemoteOnlyError
from luna_engine.errors import LunaError


class TestDaemonCLIP:
    def test_gives_comfyuis_structures_in_single_precision(self, clip: DaemonCLIP) -> None:
        tokens = clip.tokenize("a boat")
        cond, pooled = clip.encode_from_tokens(tokens, return_pooled=True)
        assert (cond.shape, cond.dtype) == ((1, 77, 768), torch.float32)
        assert (pooled.shape, pooled.dtype) == ((1, 768), torch.float32)
        as_dict = clip.encode_from_tokens(tokens, return_dict=True)
        assert torch.equal(as_dict["cond"], cond)
        assert torch.equal(as_dict["pooled_output"], pooled)
        assert torch.equal(clip.encode("a boat"), cond)
        ((scheduled, extra),) = clip.encode_from_tokens_scheduled(tokens, add_dict={"width": 64})
        assert torch.equal(scheduled, cond)
        assert extra["width"] == 64

    def test_results_are_the_callers_own_memory(self, clip: DaemonCLIP) -> None:
        first = clip.encode("a boat")
        before = first.clone()
        first.zero_()
        assert torch.equal(clip.encode("a boat"), before)

    def test_a_clones_layer_is_its_own_and_is_sent(self, clip: DaemonCLIP) -> None:
        skipped = clip.clone()
        skipped.clip_layer(-2)
        assert clip.layer_idx is None
        plain = clip.encode("a boat")
        assert not torch.allclose(skipped.encode("a boat"), plain, atol=1e-2)
        assert torch.equal(clip.encode("a boat"), plain)

    def test_weights_and_vectors_reach_the_encoder(self, clip: DaemonCLIP) -> None:
        tokens = clip.tokenize("a boat")
        plain = clip.encode_from_tokens(tokens)
        (chunk,) = tokens["l"]
        heavy = {"l": [[(token, 1.5 if index == 2 else weight) for index, (token, weight) in enumerate(chunk)]]}
        assert not torch.allclose(clip.encode_from_tokens(heavy), plain, atol=1e-3)
        vector = torch.full((768,), 0.1)
        inverted = {"l": [[chunk[0], (vector, 1.0), *chunk[2:]]]}
        assert not torch.allclose(clip.encode_from_tokens(inverted), plain, atol=1e-3)

    def test_glued_chunks_are_joined_along_the_tokens(self, clip: DaemonCLIP) -> None:
        tokens = {"l": clip.tokenize("a")["l"] + clip.tokenize("b")["l"]}
        joined = clip.encode_from_tokens(tokens)
        assert joined.shape == (1, 154, 768)
        assert torch.allclose(joined[:, :77], clip.encode("a"), atol=1e-5)

    def test_tokenizer_options_and_unknown_keywords_are_passed_on(self, clip: DaemonCLIP) -> None:
        changed = clip.clone()
        changed.set_tokenizer_option("l_min_length", 5)
        changed.tokenize("a", llama_template="x")
        assert clip.tokenizer.calls[-1] == {"llama_template": "x", "tokenizer_options": {"l_min_length": 5}}
        clip.tokenize("a")
        assert clip.tokenizer.calls[-1] == {}

    def test_what_needs_the_weights_raises_an_attribute_error_with_a_way_out(self, clip: DaemonCLIP) -> None:
        assert not hasattr(clip, "some_member_of_a_third_party_pack")
        assert getattr(clip.patcher, "memory_required", None) is None
        assert not hasattr(clip.cond_stage_model, "set_clip_options")
        for refuse in (clip.get_sd, clip.get_key_patches):
            with pytest.raises(RemoteOnlyError) as caught:
                refuse()
            assert isinstance(caught.value, LunaError)
            assert caught.value.code == "remote-only"
            assert clip.remote.set_id in caught.value.message

    def test_an_interrupt_goes_through_while_waiting(self, clip: DaemonCLIP) -> None:
        clip.remote.host.is_cancelled = True
        with pytest.raises(KeyboardInterrupt):
            clip.encode_from_tokens({"l": clip.tokenize("a boat")["l"] * 40})
