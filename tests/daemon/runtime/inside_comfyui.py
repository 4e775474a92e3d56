"""What only the comfy backend does: video VAEs and text encoders of families that Luna does not know.

Run by `test_comfy_backend.py` in ComfyUI's interpreter; pytest does not find it by its name.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib
import itertools
import os
import queue
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from luna_daemon.encode_messages import Tile
from luna_daemon.runtime import images
from luna_daemon.runtime.backend import EncodeItem
from luna_daemon.runtime.checkout import Comfy
from luna_daemon.runtime.files import ModelFiles
from luna_daemon.runtime.models import ModelStore, WantedPart
from luna_daemon.runtime.residency import Residency
from luna_daemon.runtime.uploads import UploadStore
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from luna_daemon.runtime.backend import ModelBackend

CPU = torch.device("cpu")
DEADLINE_S = 120.0


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def comfy(backend: ModelBackend) -> Comfy:
    assert backend.name == "comfy"
    return Comfy(Path(os.environ["COMFYUI_PATH"]), CPU)


@pytest.fixture
def store(backend: ModelBackend, tmp_path: Path) -> ModelStore:
    return ModelStore(backend, ModelFiles({"root": tmp_path}), UploadStore(), Residency(CPU, CPU))


@pytest.fixture
def own_thread_again() -> Iterator[None]:
    yield
    Comfy(Path(os.environ["COMFYUI_PATH"]), CPU)


def random_weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    return {
        name: torch.randn(tensor.shape, generator=generator) * 0.05 + float("gamma" in name or "norm" in name)
        for name, tensor in module.state_dict().items()
    }


def load(store: ModelStore, family: str, role: str, path: Path) -> Any:
    return store.load(family, [WantedPart(role, path, f"root/{path.name}")], "auto", lambda: None).held.model


def test_a_video_vae_computes_comfyuis_very_numbers(comfy: Comfy, store: ModelStore, tmp_path: Path) -> None:
    import comfy.ldm.wan.vae as wan

    if tuple(map(int, comfy.version.split(".")[:2])) < (0, 8):
        pytest.skip("this ComfyUI builds Wan's VAE in its full width only")
    narrow = wan.WanVAE(dim=32, z_dim=16, temperal_downsample=[False, True, True])
    save_file(random_weights(narrow), tmp_path / "wan.safetensors")
    model = load(store, "wan", "vae", tmp_path / "wan.safetensors")
    reference = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(tmp_path / "wan.safetensors")), device=CPU)
    facts = model.vae
    assert (facts.latent_channels, facts.latent_dim, facts.spatial, facts.temporal) == (16, 3, 8, 4)
    frames = torch.rand(5, 32, 40, 3, generator=torch.Generator().manual_seed(1))
    pixels = images.prepare_pixels(frames[None], facts).tensor
    latent = model.vae_encode(pixels, lambda: None)
    assert latent.shape == (1, 16, 2, 4, 5)
    assert torch.equal(latent, reference.encode(frames))
    assert torch.equal(model.vae_decode(latent, lambda: None), reference.decode(latent))
    tile = Tile(4, 4, 1, t=2, overlap_t=1)
    tiled = reference.decode_tiled(latent, tile_x=4, tile_y=4, overlap=1, tile_t=2, overlap_t=1)
    assert torch.equal(model.vae_decode(latent, lambda: None, tile), tiled)


def test_text_of_a_family_that_luna_does_not_know(comfy: Comfy, store: ModelStore, tmp_path: Path) -> None:
    from comfy.text_encoders import sa_t5

    module = sa_t5.T5BaseModel(dtype=torch.float16).transformer
    weights = {name: tensor.half() for name, tensor in random_weights(module).items()}
    save_file(weights, tmp_path / "t5base.safetensors")
    model = load(store, "stable_audio", "t5base", tmp_path / "t5base.safetensors")
    path = str(tmp_path / "t5base.safetensors")
    reference = comfy.sd.load_clip([path], None, comfy.sd.CLIPType.STABLE_AUDIO)
    assert list(model.encoders) == ["t5base"]
    text = "a (red:1.3) cat"
    (found,) = model.encode([EncodeItem(model.tokenize(text))], lambda: None)
    assert torch.equal(found.cond, reference.encode(text))
    assert found.pooled is None
    assert found.cond.shape == (1, 128, 768)


def test_a_role_that_the_file_is_not_for_is_refused(store: ModelStore, model_root: Path) -> None:
    """ComfyUI would load it as what it is; the client would then tokenize for something else."""
    with pytest.raises(DaemonError) as caught:
        load(store, "wan", "umt5xxl", model_root / "clip/l.safetensors")
    assert caught.value.code == "wrong-type"
    with pytest.raises(DaemonError) as caught:
        load(store, "wan", "vae", model_root / "clip/l.safetensors")
    assert caught.value.code == "wrong-type"


@pytest.mark.usefixtures("own_thread_again")
def test_a_request_is_answered_in_the_middle_of_a_load(
    backend: ModelBackend, model_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loader stands still inside ComfyUI's own building until the device's thread, this one, has encoded a prompt.

    Built on the device's thread, the set would fail the first assertion.
    """
    calls: queue.Queue[tuple[Callable[[], Any], concurrent.futures.Future[Any]]] = queue.Queue()
    is_building, may_go_on = threading.Event(), threading.Event()

    def on_device(work: Callable[[], Any]) -> Any:
        if threading.current_thread() is threading.main_thread():
            return work()
        asked: concurrent.futures.Future[Any] = concurrent.futures.Future()
        calls.put((work, asked))
        return asked.result(DEADLINE_S)

    comfy_sd = importlib.import_module("comfy.sd")
    build = comfy_sd.load_text_encoder_state_dicts

    def build_at_leisure(*args: Any, **kwargs: Any) -> Any:
        assert threading.current_thread() is not threading.main_thread()
        is_building.set()
        assert may_go_on.wait(DEADLINE_S)
        return build(*args, **kwargs)

    def serve_until(is_true: Callable[[], bool]) -> None:
        """Run what is asked of the device's thread."""
        deadline = time.monotonic() + DEADLINE_S
        while not is_true():
            assert time.monotonic() < deadline
            with contextlib.suppress(queue.Empty):
                work, asked = calls.get(timeout=0.05)
                asked.set_result(work())

    held = ModelStore(backend, ModelFiles({"root": tmp_path}), UploadStore(), Residency(CPU, CPU))
    model = load(held, "sd15", "l", model_root / "clip/l.safetensors")
    store = ModelStore(backend, ModelFiles({"root": tmp_path}), UploadStore(), Residency(CPU, CPU), on_device=on_device)
    wanted = [WantedPart(role, model_root / "checkpoints/parts.safetensors", "root/parts") for role in ("l", "vae")]
    Comfy(Path(os.environ["COMFYUI_PATH"]), CPU, on_device)
    monkeypatch.setattr(comfy_sd, "load_text_encoder_state_dicts", build_at_leisure)
    with concurrent.futures.ThreadPoolExecutor(1) as loader:
        loading = loader.submit(store.load, "sd15", wanted, "fp32", lambda: None)
        serve_until(lambda: is_building.is_set() or loading.done())
        assert is_building.is_set(), loading.exception()
        (found,) = model.encode([EncodeItem(model.tokenize("a cat"))], lambda: None)
        assert not loading.done()
        may_go_on.set()
        serve_until(loading.done)
    made = loading.result().held.model
    with torch.inference_mode():
        (again,) = made.encode([EncodeItem(made.tokenize("a cat"))], lambda: None)
    assert torch.equal(again.cond, found.cond)


def test_running_out_of_memory_is_told_and_not_turned_into_tiles(store: ModelStore, model_root: Path) -> None:
    model = load(store, "sd15", "vae", model_root / "vae/vae.safetensors")
    latent = torch.zeros(1, 4, 4, 4)
    expected = model.vae_decode(latent, lambda: None, Tile(4, 4, 1))

    checks = itertools.count()

    def no_room() -> None:
        if next(checks) > 3:  # in the middle of the run, where memory runs out
            raise torch.cuda.OutOfMemoryError("no room")

    with pytest.raises(MemoryError, match="without tiles"):
        model.vae_decode(latent, no_room)
    assert torch.equal(model.vae_decode(latent, lambda: None, Tile(4, 4, 1)), expected)
