"""DaemonCLIP and DaemonVAE against a real daemon process with real weights; ComfyUI is a stand-in of ten lines."""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from luna_daemon.client import DaemonClient
from luna_daemon.model_messages import Part, VaeFacts
from luna_daemon.proxy import DaemonCLIP, DaemonVAE, RemoteOnlyError
from luna_daemon.remote import RemoteSet
from luna_daemon.sources import SentParts, ServedSet
from luna_engine.errors import DaemonError, LunaError
from tests.nodes.processes import DaemonHandle, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

START, END = 49406, 49407


class Host:
    """What proxies ask of ComfyUI."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.is_cancelled = False

    def check_interrupt(self) -> None:
        if self.is_cancelled:
            raise KeyboardInterrupt

    def intermediate_device(self) -> torch.device:
        return torch.device("cpu")

    def notice(self, message: str) -> None:
        self.notices.append(message)


class LetterTokenizer:
    """One token per letter: the shape of ComfyUI's tokenizers without their vocabulary."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def tokenize_with_weights(self, text: str, _word_ids: object, **kw: Any) -> dict[str, Any]:
        self.calls.append(kw)
        ids = [START, *(ord(letter) for letter in text[:75]), END]
        return {"l": [[(token, 1.0) for token in ids + [END] * (77 - len(ids))]]}


WEIGHT = "clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"


@dataclass(frozen=True)
class Frame:
    """A keyframe of ComfyUI's hooks."""

    start: float
    strength: float


class Hook:
    """What a proxy sees of ComfyUI's weight hooks."""

    def __init__(self, *frames: Frame) -> None:
        self.frames = frames
        self.hook_ref = object()


class HookGroup:
    """What a proxy sees of ComfyUI's hook groups, of one hook."""

    def __init__(self, hook: Hook) -> None:
        self.hooks = [hook]

    def get_hooks_for_clip_schedule(self) -> list[tuple[tuple[float, float], list[tuple[Hook, Frame]]]]:
        (hook,) = self.hooks
        ends = [*(frame.start for frame in hook.frames[1:]), 1.0]
        return [((frame.start, end), [(hook, frame)]) for frame, end in zip(hook.frames, ends, strict=True)]


class Adapter:
    """What ComfyUI's adapters look like from outside."""

    def __init__(self, name: str, weights: tuple[Any, ...]) -> None:
        self.name = name
        self.weights = weights


def lora_patches(seed: int) -> dict[str, Adapter]:
    """Return a LoRA on one weight, as ComfyUI reads it from a file."""
    generator = torch.Generator().manual_seed(seed)
    up, down = (torch.randn(shape, generator=generator) * 0.1 for shape in ((768, 8), (8, 768)))
    return {WEIGHT: Adapter("lora", (up, down, 8.0, None, None, None))}


@pytest.fixture(scope="module")
def daemon(model_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonHandle]:
    home = tmp_path_factory.mktemp("proxy-home")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LUNA_", "COMFYUI"))}
    environment |= {"LUNA_HOME": str(home), "LUNA_DAEMON_PORT": str(free_port()), "LUNA_MODELS": str(model_root)}
    handle = DaemonHandle({**environment, "CUDA_VISIBLE_DEVICES": ""}, preload="vae/vae.safetensors")
    handle.start()
    yield handle
    handle.stop()


@pytest.fixture(scope="module")
def client(daemon: DaemonHandle) -> Iterator[DaemonClient]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUNA_HOME", daemon.environment["LUNA_HOME"])
        with DaemonClient.connect("127.0.0.1", daemon.port) as made:
            yield made


@pytest.fixture(autouse=True)
def daemons_home(daemon: DaemonHandle, luna_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUNA_HOME", daemon.environment["LUNA_HOME"])


@pytest.fixture(scope="module")
def clip_tensors(model_root: Path) -> dict[str, torch.Tensor]:
    """CLIP-L under the names of ComfyUI's state dict."""
    alone = load_file(model_root / "clip/l.safetensors")
    return {f"clip_l.transformer.{name}": tensor for name, tensor in alone.items()}


def sent(tensors: Callable[[], Any], role: str = "l") -> SentParts:
    return SentParts("sd15", (role,), tensors, lambda: None)


@pytest.fixture
def clip(client: DaemonClient, clip_tensors: dict[str, torch.Tensor]) -> DaemonCLIP:
    return DaemonCLIP(RemoteSet(lambda: client, sent(lambda: clip_tensors), Host()), LetterTokenizer())


@pytest.fixture
def vae(client: DaemonClient) -> DaemonVAE:
    loaded = client.load_model([Part("vae", id="vae/vae.safetensors")], family="sd15")
    return DaemonVAE(RemoteSet(lambda: client, ServedSet(loaded.set), Host()))


class TestSending:
    def test_weights_are_sent_once_and_known_by_content_afterwards(
        self, client: DaemonClient, clip_tensors: dict[str, torch.Tensor]
    ) -> None:
        client.unload_model(all=True, force=True)
        first, second = sent(lambda: clip_tensors), sent(lambda: {**clip_tensors})
        assert RemoteSet(lambda: client, first, Host()).set_id == RemoteSet(lambda: client, second, Host()).set_id
        assert first.was_sent
        assert not second.was_sent

    def test_a_part_that_a_larger_set_holds_is_shared_from_there(self, client: DaemonClient, model_root: Path) -> None:
        vae_tensors = load_file(model_root / "vae/vae.safetensors")
        file = "checkpoints/parts.safetensors"
        whole = client.load_model([Part("l", id=file), Part("vae", id=file)], family="sd15")
        source = sent(lambda: vae_tensors, "vae")
        assert RemoteSet(lambda: client, source, Host()).set_id == whole.set
        assert not source.was_sent
        client.unload_model(whole.set)

    def test_tensors_that_are_no_such_part_are_refused(self, client: DaemonClient) -> None:
        with pytest.raises(DaemonError) as caught:
            RemoteSet(lambda: client, sent(lambda: {"something": torch.zeros(2)}), Host())
        assert caught.value.code == "wrong-type"

    def test_a_part_nobody_can_send_yet_is_unsupported(self, client: DaemonClient) -> None:
        with pytest.raises(DaemonError) as caught:
            RemoteSet(lambda: client, sent(dict, "gemma2_2b"), Host())
        assert caught.value.code == "model-unsupported"

    def test_an_interrupt_in_the_upload_leaves_nothing_behind(
        self, client: DaemonClient, clip_tensors: dict[str, torch.Tensor]
    ) -> None:
        before = client.status().caches["uploads"].entries
        changed = {name: tensor + 1 for name, tensor in clip_tensors.items()}
        calls = iter(range(10**6))
        total = 3 * len(changed) // 2  # past the hashing, into the sending

        def check() -> None:
            if next(calls) > total:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            RemoteSet(lambda: client, SentParts("sd15", ("l",), lambda: changed, check), Host())
        assert client.status().caches["uploads"].entries == before


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


class TestDaemonVAE:
    def test_a_video_vae_counts_frames_as_comfyuis_do(self, vae: DaemonVAE, monkeypatch: pytest.MonkeyPatch) -> None:
        assert (vae.downscale_ratio, vae.temporal_compression_decode()) == (8, None)
        facts = replace(vae.remote.facts, vae=VaeFacts(16, 8, "fp32", latent_dim=3, temporal=4))
        monkeypatch.setattr(vae.remote, "facts", facts)
        video = DaemonVAE(vae.remote)
        frames, *sides = video.downscale_ratio
        assert [frames(count) for count in (1, 2, 5, 6, 9)] == [1, 1, 2, 2, 3]
        back, *_ = video.upscale_ratio
        assert [back(count) for count in (0, 1, 2, 3)] == [0, 1, 5, 9]
        assert sides == [8, 8]
        assert video.upscale_index_formula == (4, 8, 8)
        assert (video.spacial_compression_encode(), video.temporal_compression_decode()) == (8, 4)

    def test_says_what_comfyui_asks_of_a_vae(self, vae: DaemonVAE) -> None:
        assert (vae.latent_channels, vae.downscale_ratio, vae.upscale_ratio, vae.latent_dim) == (4, 8, 8, 2)
        assert (vae.spacial_compression_encode(), vae.spacial_compression_decode()) == (8, 8)
        assert vae.temporal_compression_decode() is None
        assert vae.vae_dtype == torch.float32
        assert vae.memory_used_decode((1, 4, 8, 8), torch.float32) == 0
        vae.throw_exception_if_invalid()
        assert torch.equal(vae.process_output(vae.process_input(torch.tensor([0.0, 1.0]))), torch.tensor([0.0, 1.0]))

    def test_encodes_and_decodes_batches_and_crops_with_a_notice(self, vae: DaemonVAE) -> None:
        pixels = torch.rand(3, 20, 27, 4, generator=torch.Generator().manual_seed(1))
        before = pixels.clone()
        latent = vae.encode(pixels)
        assert (latent.shape, latent.dtype) == ((3, 4, 2, 3), torch.float32)
        assert torch.equal(pixels, before)
        assert vae.remote.host.notices == ["the image of 27x20 was cropped to 24x16 (a multiple of 8)"]
        image = vae.decode(latent)
        assert (image.shape, image.dtype) == ((3, 16, 24, 3), torch.float32)
        assert 0 <= float(image.min()) <= float(image.max()) <= 1

    def test_refuses_latents_of_another_kind_and_its_weights(self, vae: DaemonVAE) -> None:
        with pytest.raises(DaemonError) as caught:
            vae.decode(torch.zeros(1, 16, 2, 2))
        assert caught.value.code == "latent-mismatch"
        with pytest.raises(RemoteOnlyError):
            vae.get_sd()
        assert not hasattr(vae.first_stage_model, "per_channel_statistics")
        assert "decoder.conv_in.weight" in vae.first_stage_model.state_dict()


def test_a_set_is_held_until_the_last_proxy_of_the_process_is_gone(
    client: DaemonClient, clip_tensors: dict[str, torch.Tensor]
) -> None:
    first = RemoteSet(lambda: client, sent(lambda: clip_tensors), Host())
    second = RemoteSet(lambda: client, ServedSet(first.set_id), Host())
    name, clone = first.set_id, DaemonCLIP(first, LetterTokenizer())

    def leases() -> int:
        return next(row.leases for row in client.status().sets if row.set == name)

    gc.collect()
    client.ping()
    assert leases() == 1
    del first, second
    gc.collect()
    assert leases() == 1
    del clone
    gc.collect()
    assert leases() == 0


def test_a_restarted_daemon_gets_the_weights_again_while_they_are_there(
    daemon: DaemonHandle, clip: DaemonCLIP, client: DaemonClient, clip_tensors: dict[str, torch.Tensor]
) -> None:
    before = clip.encode("a boat")
    held: dict[str, Any] = {"tensors": clip_tensors}
    lost = DaemonCLIP(RemoteSet(lambda: client, sent(lambda: held.get("tensors")), Host()), LetterTokenizer())
    daemon.kill()
    daemon.start()
    del held["tensors"]
    with pytest.raises(DaemonError) as caught:
        lost.encode("a boat")
    assert caught.value.code == "daemon-model-changed"
    assert torch.equal(clip.encode("a boat"), before)
    assert torch.equal(lost.encode("a boat"), before)  # the daemon has the set again, whoever sent it
