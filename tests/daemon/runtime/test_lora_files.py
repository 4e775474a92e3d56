"""LoRA files and blobs: every trainer's names mean the same weights, and what is unsound is refused by name."""

from __future__ import annotations

import contextlib
import dataclasses
import struct
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from luna_daemon.lora_naming import weight_of
from luna_daemon.patches import Patch, content_hash, pack, unpack
from luna_daemon.runtime.lora import LoraRegistry
from luna_daemon.runtime.lora_files import from_blob, from_file
from luna_engine.errors import DaemonError

from .small_loras import CPU, KINDS, LAYER, entry_of, lora, patch

if TYPE_CHECKING:
    from pathlib import Path

    from luna_daemon.runtime.lora_files import ReadLora

WEIGHT = f"{LAYER}mlp.fc1.weight"
UP, DOWN = torch.ones(256, 4), torch.ones(4, 64)


def read(path: Path, tensors: dict[str, torch.Tensor], **options: Any) -> ReadLora:
    save_file(tensors, path)
    cap = options.pop("cap_bytes", 2**30)
    return from_file(path, "loras/x.safetensors", options.pop("announced", None), cap, CPU, lambda: None)


def code_of(call: Any) -> str:
    with pytest.raises(DaemonError) as caught:
        call()
    assert caught.value.message
    return caught.value.code


L = "clip_l.transformer.text_model.encoder.layers."
G = "clip_g.transformer.text_model.encoder.layers."
T5 = "t5xxl.transformer.encoder.block."
QWEN = "qwen3_4b.transformer.model.layers."
NAMINGS = {
    "lora_te_text_model_encoder_layers_3_self_attn_q_proj": f"{L}3.self_attn.q_proj",
    "lora_te1_text_model_encoder_layers_11_mlp_fc2": f"{L}11.mlp.fc2",
    "lora_te2_text_model_encoder_layers_31_self_attn_out_proj": f"{G}31.self_attn.out_proj",
    "lora_te2_text_projection": "clip_g.transformer.text_projection",
    "text_encoder.text_model.encoder.layers.0.mlp.fc1": f"{L}0.mlp.fc1",
    "text_encoder_2.text_model.encoder.layers.0.mlp.fc1": f"{G}0.mlp.fc1",
    "text_encoder.base_model.model.text_model.encoder.layers.0.mlp.fc1": f"{L}0.mlp.fc1",
    "clip_g.text_model.encoder.layers.2.mlp.fc1": f"{G}2.mlp.fc1",
    "lora_te2_encoder_block_7_layer_1_DenseReluDense_wi_0": f"{T5}7.layer.1.DenseReluDense.wi_0",
    "lora_te3_encoder_block_0_layer_0_SelfAttention_q": f"{T5}0.layer.0.SelfAttention.q",
    "text_encoder_2.encoder.block.1.layer.1.DenseReluDense.wo": f"{T5}1.layer.1.DenseReluDense.wo",
    "text_encoder_3.encoder.block.1.layer.0.SelfAttention.o": f"{T5}1.layer.0.SelfAttention.o",
    "t5.encoder.block.1.layer.0.SelfAttention.k": f"{T5}1.layer.0.SelfAttention.k",
    "lora_te1_model_layers_35_self_attn_q_proj": f"{QWEN}35.self_attn.q_proj",
    "lora_te_layers_2_mlp_down_proj": f"{QWEN}2.mlp.down_proj",
    "text_encoder.model.layers.2.mlp.gate_proj": f"{QWEN}2.mlp.gate_proj",
    "text_encoders.qwen3_4b.transformer.model.layers.0.mlp.up_proj": f"{QWEN}0.mlp.up_proj",
    "lora_te3_text_model_encoder_layers_0_mlp_fc1": None,
    "lora_te1_text_model_encoder_layers_0_mlp_fc3": None,
}


@pytest.mark.parametrize("stem", NAMINGS)
def test_every_naming_means_its_weight(stem: str) -> None:
    assert weight_of(stem) == NAMINGS[stem]


@pytest.mark.parametrize(
    ("up", "down"),
    [
        (".lora_up.weight", ".lora_down.weight"),
        (".lora_B.weight", ".lora_A.weight"),
        (".lora_B.default.weight", ".lora_A.default.weight"),
        (".lora.up.weight", ".lora.down.weight"),
        ("_lora.up.weight", "_lora.down.weight"),
        (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
    ],
)
def test_every_spelling_of_a_factor_is_read_and_alpha_may_be_missing(tmp_path: Path, up: str, down: str) -> None:
    stem = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    found = read(
        tmp_path / "a.safetensors", {stem + up: UP, stem + down: DOWN, "lora_unet_x.lora_up.weight": UP.clone()}
    )
    (one,) = found.entry.patches
    assert (one.target, one.kind, one.alpha, found.unknown) == (WEIGHT, "lora", None, ())
    assert set(one.tensors) == {"up", "down"}


def test_dora_diffs_norms_and_blocks_of_a_file_become_patches(tmp_path: Path) -> None:
    stem = "lora_te_text_model_encoder_layers_0_"
    found = read(
        tmp_path / "a.safetensors",
        {
            f"{stem}mlp_fc1.lora_up.weight": UP,
            f"{stem}mlp_fc1.lora_down.weight": DOWN,
            f"{stem}mlp_fc1.alpha": torch.tensor(2.0),
            f"{stem}mlp_fc1.dora_scale": torch.ones(256, 1),
            f"{stem}mlp_fc2.diff": torch.ones(64, 256),
            f"{stem}mlp_fc2.diff_b": torch.ones(64),
            f"{stem}layer_norm1.w_norm": torch.ones(64),
            f"{stem}layer_norm1.b_norm": torch.ones(64),
            f"{stem}self_attn_q_proj.oft_blocks": torch.zeros(2, 8, 8, 8),
            f"{stem}self_attn_k_proj.oft_blocks": torch.zeros(8, 8, 8),
            f"{stem}mlp_fc1.made_up": torch.ones(1),
        },
    )
    made = {one.target.removeprefix(LAYER): (one.kind, one.alpha) for one in found.entry.patches}
    assert made == {
        "mlp.fc1.weight": ("lora", 2.0),
        "mlp.fc2.weight": ("diff", None),
        "mlp.fc2.bias": ("diff", None),
        "layer_norm1.weight": ("diff", None),
        "layer_norm1.bias": ("diff", None),
        "self_attn.q_proj.weight": ("boft", None),
        "self_attn.k_proj.weight": ("oft", None),
    }
    assert found.entry.form == "merged"
    assert found.unknown == (f"{stem}mlp_fc1.made_up",)


def test_peft_s_magnitudes_are_dora_by_row(tmp_path: Path) -> None:
    stem = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    tensors = {
        f"{stem}.lora_B.weight": UP,
        f"{stem}.lora_A.weight": DOWN,
        f"{stem}.lora_magnitude_vector": torch.ones(256),
    }
    (one,) = read(tmp_path / "a.safetensors", tensors).entry.patches
    assert one.tensors["dora_scale"].shape == (256, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_blob_brings_back_every_kind_under_the_same_hash(kind: str) -> None:
    entry = lora(kind)
    back = from_blob(memoryview(pack(entry.patches)), entry.hash, CPU).entry
    assert back.hash == entry.hash
    assert {one.target for one in back.patches} == {one.target for one in entry.patches}


def test_slices_of_one_weight_stay_apart() -> None:
    parts = [dataclasses.replace(patch("lora", WEIGHT, (64, 64), seed), part=(0, 64 * seed, 64)) for seed in range(3)]
    back = unpack(memoryview(pack(parts)))
    assert sorted(one.part or () for one in back) == [(0, 0, 64), (0, 64, 64), (0, 128, 64)]
    assert content_hash(back) == content_hash(reversed(parts))


def test_the_hash_covers_every_fact() -> None:
    one = Patch(WEIGHT, "lora", {"up": UP, "down": DOWN}, 4.0)
    changed = DOWN.clone()
    changed[-1, -1] = 2
    others = [
        dataclasses.replace(one, target=WEIGHT.replace("clip_l", "clip_g")),
        dataclasses.replace(one, alpha=None),
        dataclasses.replace(one, part=(0, 0, 256)),
        dataclasses.replace(one, kind="loha"),
        dataclasses.replace(one, tensors={"up": UP, "down": changed}),
        dataclasses.replace(one, tensors={"up": UP, "down": DOWN.half()}),
        dataclasses.replace(one, tensors={"up": UP, "down": DOWN.reshape(8, 32)}),
    ]
    assert len({content_hash([entry]) for entry in [one, *others]}) == len(others) + 1


def refused(**changes: Any) -> str:
    """Return the code that a blob of one changed patch is answered with."""
    one = dataclasses.replace(Patch(WEIGHT, "lora", {"up": UP, "down": DOWN}, 4.0), **changes)
    return code_of(lambda: from_blob(memoryview(pack([one])), content_hash([one]), CPU))


# DAEMON S13
@pytest.mark.parametrize(
    "changes",
    [
        {"tensors": {"up": torch.ones(256, 0), "down": torch.ones(0, 64)}},
        {"tensors": {"up": UP, "down": torch.full((4, 64), torch.nan)}},
        {"tensors": {"up": UP, "down": torch.full((4, 64), torch.inf)}},
        {"tensors": {"up": UP, "down": torch.ones(5, 64)}},
        {"tensors": {"up": UP}},
        {"tensors": {"up": UP, "down": DOWN, "mid": DOWN}},
        {"tensors": {"up": UP.to(torch.int32), "down": DOWN.to(torch.int32)}},
        {"alpha": 1e9},
        {"alpha": float("inf")},
        {"kind": "sorcery"},
        {"kind": "loha", "tensors": {"w1_a": UP, "w1_b": DOWN, "w2_a": UP, "w2_b": torch.ones(4, 65)}},
        {"kind": "lokr", "tensors": {"w1": torch.ones(4, 4)}},
        {"kind": "boft", "tensors": {"blocks": torch.zeros(4, 2, 6, 6)}},
        {"kind": "oft", "tensors": {"blocks": torch.zeros(4, 6, 5)}},
        {"kind": "glora", "tensors": {"a1": UP, "a2": DOWN, "b1": UP, "b2": DOWN}},
    ],
)
def test_an_unsound_patch_is_refused_before_anything_is_queued(changes: dict[str, Any]) -> None:
    assert refused(**changes) == "lora-invalid"


def test_lycoris_marks_a_full_factor_with_an_alpha_that_means_nothing() -> None:
    one = Patch(WEIGHT, "lokr", {"w1": torch.ones(4, 4), "w2": torch.ones(64, 16)}, 1e10)
    assert from_blob(memoryview(pack([one])), content_hash([one]), CPU).entry.form == "merged"


# DAEMON S14
def test_a_body_of_another_hash_or_no_safetensors_is_refused() -> None:
    blob = pack(lora().patches)
    assert code_of(lambda: from_blob(memoryview(blob), "0" * 64, CPU)) == "lora-invalid"
    for broken in (b"", blob[:100], blob[:-1], b"\0" * 64, struct.pack("<Q", 2**60) + blob[8:]):
        assert code_of(lambda blob=broken: from_blob(memoryview(blob), "0" * 64, CPU)) == "lora-invalid"
    assert code_of(lambda: from_blob(memoryview(save({"odd": UP})), "0" * 64, CPU)) == "lora-invalid"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_blob_with_any_bytes_changed_is_read_or_refused_by_name(data: st.DataObject) -> None:
    entry = entry_of(patch("lora", WEIGHT, (256, 64)), patch("diff", WEIGHT.replace("fc1", "fc2"), (64, 256)))
    blob = bytearray(pack(entry.patches))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(blob) - 1, 600)))
        blob[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(blob)) | st.just(len(blob)))
    with contextlib.suppress(DaemonError):
        from_blob(memoryview(blob[:cut]), entry.hash, CPU)  # any other exception fails the test


def test_a_file_that_is_cut_off_a_pickle_or_too_large_is_refused(tmp_path: Path) -> None:
    stem = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    good = {f"{stem}.lora_up.weight": UP, f"{stem}.lora_down.weight": DOWN}
    path = tmp_path / "a.safetensors"
    assert code_of(lambda: read(path, good, cap_bytes=100)) == "lora-too-large"
    assert code_of(lambda: read(path, good, announced="0" * 64)) == "lora-invalid"
    read(path, good)
    path.write_bytes(path.read_bytes()[:-10])
    load = lambda: from_file(path, "loras/a", None, 2**30, CPU, lambda: None)  # noqa: E731 - once
    assert code_of(load) == "lora-invalid"
    path.write_bytes(b"\x80\x02}q\0.")
    assert code_of(load) == "lora-invalid"
    for broken in (
        {f"{stem}.alpha": torch.ones(1)},
        {**good, f"{stem}.alpha": torch.ones(2)},
        {**good, f"{stem}.lora_mid.weight": DOWN.clone()},
    ):
        assert code_of(lambda tensors=broken: read(path, tensors)) == "lora-invalid"


class TestRegistry:
    def test_the_longest_unused_goes_and_what_is_in_use_stays(self) -> None:
        entries = [lora(seed=seed) for seed in range(3)]
        size = entries[0].nbytes
        registry = LoraRegistry(2 * size)
        for entry in entries[:2]:
            registry.put(entry)
        from luna_daemon.encode_messages import LoraUse

        recipe = registry.recipe([LoraUse(entries[0].hash, 1.0)])
        registry.put(entries[2])
        assert registry.present(entry.hash for entry in entries) == {entries[0].hash, entries[2].hash}
        assert registry.status().bytes == 2 * size
        registry.pin([recipe])
        assert registry.drop() == (size, (entries[0].hash,))
        registry.put(entries[1])
        registry.put(entries[2])
        assert entries[0].hash in registry.present([entries[0].hash])
        registry.unpin([recipe])
        assert registry.drop()[1] == ()
        with pytest.raises(DaemonError) as caught:
            registry.recipe([LoraUse(entries[0].hash, 1.0)])
        assert caught.value.code == "lora-missing"
        assert caught.value.details == {"hashes": [entries[0].hash]}

    def test_what_cannot_fit_is_too_large(self) -> None:
        entry = lora()
        assert code_of(lambda: LoraRegistry(entry.nbytes - 1).put(entry)) == "lora-too-large"
