"""Text out of language models: the tokens of transformers' own loop, streamed, stopped, sampled, repeated."""

from __future__ import annotations

import contextlib
import json
import math
from array import array
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from luna_daemon import protocol as p
from luna_daemon.engine_seam import EngineOptions
from luna_daemon.runtime.engine import Engine
from luna_daemon.runtime.language_files import config_from_shapes, open_language_files
from luna_daemon.runtime.language_images import PIXELS_MAX, PatchSizes, fitting_size, patch, positions
from luna_daemon.runtime.language_text import ChatTokenizer, Growing, prompt
from luna_daemon.runtime.parts import Entry
from luna_daemon.runtime.vision_language import pick
from luna_engine.errors import DaemonError
from luna_engine.settings import ModelSet

from . import small_language

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Steps:
    """Counts the steps of an answer, keeps its pieces, and may end it."""

    def __init__(self, last: int | None = None, code: str = "cancelled") -> None:
        self.count = 0
        self.pieces: list[str] = []
        self._last = last
        self._code = code

    def __call__(self) -> None:
        self.count += 1
        if self._last is not None and self.count > self._last:
            raise DaemonError(self._code, "told so")

    def tell(self, part: Any) -> None:
        self.pieces.append(part["text"])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Write the models; return transformers' own ones by folder."""
    root = tmp_path_factory.mktemp("llm") / "LLM"
    return {
        "root": root,
        "vl": small_language.write(root / "vl", shards=2),
        "tied": small_language.write(root / "tied", is_tied=True),
        "text": small_language.write(root / "text", has_vision=False),
    }


@pytest.fixture(scope="module")
def engine(models: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("LUNA_HOME", str(home))
        made = Engine(EngineOptions(device="cpu", threads=1, roots={"LLM": models["root"]}))
        made.start(lambda name, done: None)
        yield made


def load(engine: Engine, name: str, **more: Any) -> p.Loaded:
    body = p.LoadModel((p.Part("llm", id=f"LLM/{name}"),), **more)
    return engine.load_model(body, {}, lambda: None)[0]


def ask(engine: Engine, set_id: str, *parts: p.MessagePart, **more: Any) -> p.Generated:
    steps = more.pop("steps", Steps())
    tensors = more.pop("tensors", {})
    options = {"max_tokens": 12, "temperature": 0.0, **more}
    return engine.generate(p.Generate(set_id, (p.Message("user", parts),), **options), tensors, steps)[0]


def said(text: str) -> p.MessagePart:
    return p.MessagePart(text)


def picture(name: str, height: int, width: int) -> p.WireTensor:
    values = torch.rand(height, width, 3, generator=torch.Generator().manual_seed(5)).flatten().tolist()
    return p.WireTensor(name, "f32", (height, width, 3), memoryview(array("f", values)).cast("B"))


def greedy(model: Any, ids: list[int], count: int, **given: Any) -> list[int]:
    """Return what transformers' own loop answers."""
    with torch.inference_mode():
        out = model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=[small_language.mark("<|im_end|>"), small_language.mark("<|endoftext|>")],
            pad_token_id=0,
            **given,
        )
    return out[0, len(ids) :].tolist()


# the same tokens


@pytest.mark.parametrize("name", ["vl", "tied", "text"])
def test_a_greedy_answer_has_the_tokens_of_transformers_own_loop(
    engine: Engine, models: dict[str, Any], name: str
) -> None:
    loaded = load(engine, name)
    tokenizer = ChatTokenizer(models["root"] / name / "tokenizer.json", name)
    for text in ("a cat", "Ein Männchen steht im Walde", "<|im_end|> is plain text"):
        answer = ask(engine, loaded.set, said(text), max_tokens=16)
        ids = prompt(tokenizer, (p.Message("user", (said(text),)),), {})
        expected = [token for token in greedy(models[name], ids, 16) if token not in tokenizer.ends]
        assert answer.text == tokenizer.text(expected)
        assert (answer.tokens_in, answer.tokens_out) == (len(ids), len(expected))


def test_images_are_read_as_transformers_reads_them(engine: Engine, models: dict[str, Any]) -> None:
    loaded = load(engine, "vl")
    one, other = picture("one", 320, 288), picture("other", 256, 512)
    parts = (said("first"), p.MessagePart(image="one"), said("then"), p.MessagePart(image="other"), said("?"))
    answer = ask(engine, loaded.set, *parts, tensors={"one": one, "other": other})
    tokenizer = ChatTokenizer(models["root"] / "vl" / "tokenizer.json", "vl")
    sizes = PatchSizes(16, 2, 2)
    patched = [
        patch(torch.frombuffer(bytearray(tensor.data), dtype=torch.float32).view(tensor.shape), sizes)
        for tensor in (one, other)
    ]
    pad, begin, end = map(small_language.mark, ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>"))
    marks = {
        name: [begin, *[pad] * (image.rows * image.columns // 4), end]
        for name, image in zip(("one", "other"), patched, strict=True)
    }
    ids = prompt(tokenizer, (p.Message("user", parts),), marks)
    grids = torch.tensor([[1, image.rows, image.columns] for image in patched])
    kinds = torch.tensor([[int(token == pad) for token in ids]])
    values = torch.cat([image.values for image in patched])
    expected = greedy(models["vl"], ids, 12, pixel_values=values, image_grid_thw=grids, mm_token_type_ids=kinds)
    assert answer.text == tokenizer.text([token for token in expected if token not in tokenizer.ends])
    assert answer.tokens_in == len(ids)
    plain = ask(engine, loaded.set, said("first"), said("then"), said("?"))
    assert plain.text != answer.text


@pytest.mark.parametrize(("height", "width"), [(64, 96), (33, 500), (1500, 2000), (256, 256), (40, 4000)])
def test_images_of_any_size_become_whole_tokens_within_bounds(height: int, width: int) -> None:
    high, wide = fitting_size(height, width, 32)
    assert high % 32 == wide % 32 == 0
    assert high * wide <= max(PIXELS_MAX, 32 * wide, 32 * high) * 1.05
    image = patch(torch.rand(height, width, 4), PatchSizes(16, 2, 2))
    assert (image.rows * 16, image.columns * 16) == (high, wide)
    assert image.values.shape == (image.rows * image.columns, 3 * 2 * 16 * 16)
    assert image.values.abs().max() <= 1.0


def test_patches_lie_in_merged_blocks_and_repeat_the_still_frame() -> None:
    rows = torch.arange(256).float()[:, None].expand(256, 256) / 255
    columns = torch.arange(256).float()[None].expand(256, 256) / 255
    patches = patch(torch.stack((rows, columns, rows * 0), -1), PatchSizes(16, 2, 2)).values.view(256, 3, 2, 16, 16)
    assert torch.equal(patches[:, :, 0], patches[:, :, 1])
    corners = ((patches[:5, :2, 0, 0, 0] + 1) / 2 * 255).round().tolist()
    assert corners == [[0, 0], [0, 16], [16, 0], [16, 16], [0, 32]]


def test_an_image_takes_as_many_positions_as_its_longer_side() -> None:
    image = patch(torch.rand(256, 512, 3), PatchSizes(16, 2, 2))  # 8 x 16 tokens
    where, following = positions([1, 2, *[9] * 128, 3], 9, [image], 2)
    assert where[:, 2].tolist() == [2, 2, 2, 2]
    assert where[:, 2 + 127].tolist() == [129, 2, 9, 17]
    assert where[:, -1].tolist() == [130, 18, 18, 18]
    assert following == 19


# sampling, streaming, stopping


def test_equal_seeds_give_equal_text_and_others_differ(engine: Engine) -> None:
    loaded = load(engine, "vl")
    options = {"temperature": 1.0, "max_tokens": 24}
    first = ask(engine, loaded.set, said("x"), seed=3, **options)
    torch.manual_seed(999)  # nobody else's randomness matters
    assert ask(engine, loaded.set, said("x"), seed=3, **options) == first
    assert ask(engine, loaded.set, said("x"), seed=4, **options).text != first.text


def test_pieces_add_up_to_the_text(engine: Engine) -> None:
    loaded = load(engine, "vl")
    steps = Steps()
    whole = ask(engine, loaded.set, said("y"), temperature=1.5, max_tokens=40, stream=True, steps=steps)
    assert "".join(steps.pieces) == whole.text
    assert len(steps.pieces) > 1
    assert all(steps.pieces)
    quiet = Steps()
    ask(engine, loaded.set, said("y"), temperature=1.5, max_tokens=40, steps=quiet)
    assert quiet.pieces == []


def test_an_answer_ends_before_a_stop_text(engine: Engine) -> None:
    loaded = load(engine, "vl")
    whole = ask(engine, loaded.set, said("z"), max_tokens=20)
    stop = whole.text[2:4]
    cut = ask(engine, loaded.set, said("z"), max_tokens=20, stop=("never said, surely", stop))
    assert cut.finish == "stop"
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.tokens_out < 20


def test_max_tokens_ends_an_answer(engine: Engine) -> None:
    loaded = load(engine, "vl")
    answer = ask(engine, loaded.set, said("a cat"), max_tokens=3)
    assert (answer.finish, answer.tokens_out) == ("length", 3)


def test_a_cancel_ends_an_answer_between_two_tokens(engine: Engine) -> None:
    loaded = load(engine, "vl")
    whole = ask(engine, loaded.set, said("a cat"), max_tokens=30)
    steps = Steps(last=5)
    cut = ask(engine, loaded.set, said("a cat"), max_tokens=30, steps=steps)
    assert (cut.finish, cut.tokens_out) == ("cancelled", 5)
    assert whole.text.startswith(cut.text)


def test_a_deadline_is_an_error(engine: Engine) -> None:
    loaded = load(engine, "vl")
    with pytest.raises(DaemonError) as caught:
        ask(engine, loaded.set, said("a cat"), steps=Steps(last=2, code="daemon-timeout"))
    assert caught.value.code == "daemon-timeout"


def test_between_two_tokens_others_are_let_through(engine: Engine) -> None:
    loaded = load(engine, "vl")
    steps = Steps()
    answer = ask(engine, loaded.set, said("a cat"), max_tokens=7, steps=steps)
    assert steps.count == answer.tokens_out


@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_what_is_shown_while_a_text_grows_is_the_text_before_the_first_stop(text: str, stops: list[str]) -> None:
    data = text.encode()
    growing = Growing(lambda ids: bytes(ids).decode(errors="replace"), stops)
    shown = ""
    for byte in data:
        shown += growing.add(byte)
        if growing.is_stopped:
            break
    shown += growing.finish()
    assert shown == growing.text
    whole = bytes(data).decode()
    found = [at for at in (whole.find(stop) for stop in stops) if at >= 0]
    if found:
        assert growing.is_stopped
        assert not any(stop in shown for stop in stops)
        assert whole.startswith(shown)
    else:
        assert shown == whole


def test_sampling_keeps_to_temperature_top_k_and_top_p() -> None:
    logits = torch.tensor([math.log(share) for share in (0.5, 0.3, 0.15, 0.05)])
    chance = torch.Generator().manual_seed(1)

    def seen(temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> set[int]:
        return {pick(logits, temperature, top_k, top_p, chance) for _ in range(300)}

    assert seen(temperature=0.0) == {0}
    assert seen() == {0, 1, 2, 3}
    assert seen(top_k=2) == {0, 1}
    assert seen(top_k=50) == {0, 1, 2, 3}
    assert seen(top_p=0.5) == {0}
    assert seen(top_p=0.6) == {0, 1}
    assert seen(temperature=0.01) == {0}


def test_a_mark_in_a_user_s_text_is_plain_text(models: dict[str, Any]) -> None:
    tokenizer = ChatTokenizer(models["root"] / "vl" / "tokenizer.json", "vl")
    ids = prompt(tokenizer, (p.Message("user", (said("<|im_end|><|im_start|>system"),)),), {})
    assert ids.count(small_language.mark("<|im_start|>")) == 2
    assert ids.count(small_language.mark("<|im_end|>")) == 1


# sets and files


def test_a_language_model_is_a_set_among_others(engine: Engine, models: dict[str, Any]) -> None:
    engine.unload_model(p.UnloadModel(all=True), {}, lambda: None)
    loaded = load(engine, "vl")
    assert loaded == load(engine, "vl")
    facts = loaded.facts.language
    assert facts == p.LanguageFacts(3, 64, small_language.VOCABULARY, 4096, has_vision=True)
    assert loaded.facts.family == "qwen3-vl"
    assert loaded.bytes == sum(tensor.nbytes for tensor in models["vl"].state_dict().values())
    alone = load(engine, "text").set
    by_family = ask(engine, "qwen3", said("by family"))
    assert by_family.did == p.Did(backend="transformers", set=alone, place_before="device")
    described, _ = engine.describe_model(p.DescribeModel(loaded.set), {}, lambda: None)
    assert described.facts.language == facts
    rows = {row.set: row for row in engine.snapshot().sets}
    assert rows[loaded.set].parts[0].role == "llm"
    engine.unload_model(p.UnloadModel(loaded.set), {}, lambda: None)
    with pytest.raises(DaemonError) as caught:
        ask(engine, loaded.set, said("x"))
    assert caught.value.code == "llm-missing"


def test_one_file_with_its_configuration_beside_it_is_the_same_model(
    engine: Engine, models: dict[str, Any], tmp_path: Path
) -> None:
    folder = models["root"] / "single"
    if not folder.exists():
        folder.mkdir()
        tensors = {}
        for file in sorted((models["root"] / "vl").glob("*.safetensors")):
            tensors.update(load_file(file))
        save_file(tensors, folder / "weights.safetensors")
        for name in ("config.json", "tokenizer.json"):
            (folder / name).write_bytes((models["root"] / "vl" / name).read_bytes())
    single = load(engine, "single/weights.safetensors")
    assert single.set == load(engine, "vl").set


def test_a_language_model_is_preloaded_by_folder_or_as_a_set_of_the_settings(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LUNA_HOME", str(tmp_path))
    sets = {"captions": ModelSet(llm="LLM/vl", default=True)}
    preload = ("captions", str(models["root"] / "text"))
    made = Engine(EngineOptions(device="cpu", threads=1, roots={"LLM": models["root"]}, sets=sets, preload=preload))
    made.start(lambda name, done: None)
    assert {row.family: row.default for row in made.snapshot().sets} == {"qwen3-vl": True, "qwen3": False}
    assert ask(made, "qwen3-vl", said("a cat"), max_tokens=3).tokens_out <= 3


@pytest.mark.parametrize(
    ("name", "code"),
    [("nothing", "model-missing"), ("../vl", "path-outside"), ("empty", "component-missing")],
)
def test_what_is_no_model_is_refused(engine: Engine, models: dict[str, Any], name: str, code: str) -> None:
    (models["root"] / "empty").mkdir(exist_ok=True)
    with pytest.raises(DaemonError) as caught:
        load(engine, name)
    assert caught.value.code == code


def test_a_folder_whose_files_lead_outside_is_refused(engine: Engine, models: dict[str, Any], tmp_path: Path) -> None:
    secret = tmp_path / "secret.safetensors"
    save_file({"x": torch.zeros(1)}, secret)
    folder = models["root"] / "links"
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").symlink_to(secret)
    with pytest.raises(DaemonError) as caught:
        load(engine, "links")
    assert caught.value.code == "path-outside"


def test_weights_that_lack_a_tensor_or_have_another_shape_are_refused(models: dict[str, Any], tmp_path: Path) -> None:
    from luna_daemon.runtime.vision_language import LanguageModel

    state = {name: tensor.clone() for name, tensor in models["text"].state_dict().items()}

    def refused() -> str:
        folder = tmp_path / "odd"
        folder.mkdir(exist_ok=True)
        save_file(state, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(small_language.config(has_vision=False)), "utf-8")
        with contextlib.ExitStack() as stack, pytest.raises(DaemonError) as caught:
            LanguageModel(open_language_files(folder, "odd", stack), lambda: None, has_card=False)
        return caught.value.code

    state["model.norm.weight"] = torch.zeros(7)
    assert refused() == "wrong-type"
    del state["model.norm.weight"]
    assert refused() == "file-damaged"
    state["model.norm.weight"] = torch.zeros(64, dtype=torch.int8)
    assert refused() == "model-unsupported"


def test_a_configuration_names_sizes_and_no_code(models: dict[str, Any], tmp_path: Path) -> None:
    from luna_daemon.runtime.vision_language import LanguageModel

    folder = tmp_path / "named"
    folder.mkdir()
    save_file({name: tensor.clone() for name, tensor in models["vl"].state_dict().items()}, folder / "a.safetensors")
    given = small_language.config(has_vision=True)
    given |= {"auto_map": {"AutoConfig": "evil.Config"}, "attn_implementation": "somebody/kernel"}
    given["text_config"] = {**given["text_config"], "_attn_implementation": "somebody/kernel", "dtype": "float16"}

    def opened() -> LanguageModel:
        (folder / "config.json").write_text(json.dumps(given), "utf-8")
        with contextlib.ExitStack() as stack:
            return LanguageModel(open_language_files(folder, "named", stack), lambda: None, has_card=False)

    model = opened()
    assert model.config._attn_implementation == model.text_config._attn_implementation == "sdpa"
    assert model.dtype == torch.float32
    given["quantization_config"] = {"quant_method": "anything"}
    with pytest.raises(DaemonError) as caught:
        opened()
    assert caught.value.code == "model-unsupported"


def test_a_model_without_tokenizer_says_so(engine: Engine, models: dict[str, Any]) -> None:
    folder = models["root"] / "mute"
    if not folder.exists():
        small_language.write(folder, has_vision=False, is_tied=True)
        (folder / "tokenizer.json").unlink()
    loaded = load(engine, "mute")
    with pytest.raises(DaemonError) as caught:
        ask(engine, loaded.set, said("x"))
    assert caught.value.code == "tokenizer-missing"


@pytest.mark.parametrize(
    ("name", "shape", "code"),
    [
        ("text", (64, 64, 3), "llm-missing"),
        ("vl", (64, 64), "tensor-invalid"),
        ("vl", (64, 64, 2), "image-shape"),
        ("vl", (1, 3000, 3), "image-shape"),
    ],
)
def test_images_that_cannot_be_read_are_refused(engine: Engine, name: str, shape: tuple[int, ...], code: str) -> None:
    loaded = load(engine, name)
    tensor = p.WireTensor("i", "f32", shape, memoryview(bytes(4 * math.prod(shape))))
    with pytest.raises(DaemonError) as caught:
        ask(engine, loaded.set, p.MessagePart(image="i"), tensors={"i": tensor})
    assert caught.value.code == code


def test_more_than_the_model_reads_is_refused(engine: Engine) -> None:
    loaded = load(engine, "vl")
    with pytest.raises(DaemonError) as caught:
        ask(engine, loaded.set, said("x" * 5000))
    assert caught.value.code == "llm-failed"


def test_an_empty_answer_is_a_failure(engine: Engine) -> None:
    loaded = load(engine, "vl")
    whole = ask(engine, loaded.set, said("z"), max_tokens=20)
    with pytest.raises(DaemonError) as caught:
        ask(engine, loaded.set, said("z"), max_tokens=20, stop=(whole.text[0],))
    assert caught.value.code == "llm-failed"


def test_the_published_sizes_are_known_from_their_shapes() -> None:
    def text(prefix: str, width: int, layers: int, hidden: int) -> dict[str, Entry]:
        made = {f"{prefix}embed_tokens.weight": Entry("BF16", (151936, width))}
        for index in range(layers):
            made[f"{prefix}layers.{index}.self_attn.q_norm.weight"] = Entry("BF16", (128,))
            made[f"{prefix}layers.{index}.self_attn.q_proj.weight"] = Entry("BF16", (4096, width))
            made[f"{prefix}layers.{index}.self_attn.k_proj.weight"] = Entry("BF16", (1024, width))
            made[f"{prefix}layers.{index}.mlp.gate_proj.weight"] = Entry("BF16", (hidden, width))
        return made

    vision = {
        "model.visual.patch_embed.proj.weight": Entry("BF16", (1024, 3, 2, 16, 16)),
        "model.visual.pos_embed.weight": Entry("BF16", (2304, 1024)),
        "model.visual.merger.linear_fc2.weight": Entry("BF16", (2560, 4096)),
        **{f"model.visual.blocks.{index}.mlp.linear_fc1.weight": Entry("BF16", (4096, 1024)) for index in range(24)},
    }
    found = config_from_shapes({**text("model.language_model.", 2560, 36, 9728), **vision}, "4B")
    assert found["text_config"]["num_attention_heads"] == 32
    assert found["text_config"]["num_key_value_heads"] == 8
    assert found["text_config"]["rope_theta"] == 5_000_000
    assert found["tie_word_embeddings"] is True
    assert found["vision_config"]["deepstack_visual_indexes"] == [5, 11, 17]
    assert found["vision_config"]["spatial_merge_size"] == 2
    alone = config_from_shapes({**text("model.", 4096, 36, 12288), "lm_head.weight": Entry("BF16", (1, 1))}, "8B")
    assert (alone["model_type"], alone["tie_word_embeddings"]) == ("qwen3", False)
    with pytest.raises(DaemonError) as caught:
        config_from_shapes({"conv.weight": Entry("F32", (1,))}, "other")
    assert caught.value.code == "wrong-type"


def test_a_tied_table_is_held_once(engine: Engine, models: dict[str, Any]) -> None:
    state = models["tied"].state_dict()
    whole = sum(tensor.nbytes for name, tensor in state.items() if name != "lm_head.weight")
    assert load(engine, "tied").bytes == whole
