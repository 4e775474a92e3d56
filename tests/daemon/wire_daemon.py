"""A daemon process with a small engine of its own: everything of the wire is real, the models are arithmetic.

Run by path like the product's `server.py`. The requests themselves tell the engine how to behave, so that tests need
no side channel: ``error:CODE`` in place of a set, a part or a content gives that error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path[0] = str(Path(__file__).resolve().parents[2])

from luna_daemon import process  # noqa: E402 - the path comes first
from luna_daemon import protocol as p  # noqa: E402 - likewise
from luna_daemon.arenas import NoDeviceMemory  # noqa: E402 - likewise
from luna_daemon.device_memory import DeviceTensor  # noqa: E402 - likewise
from luna_daemon.engine_seam import Ran, SetOnDiskError, here  # noqa: E402 - likewise
from luna_daemon.progress import advance, counting  # noqa: E402 - likewise
from luna_daemon.runtime.leases import Leases  # noqa: E402 - likewise
from luna_engine.errors import DaemonError  # noqa: E402 - likewise
from tests.contract.pages_memory import PagesMemory  # noqa: E402 - likewise

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from luna_daemon.engine_seam import Answer, Check, EngineOptions, OnDevice, OnPhase

    Segments = dict[str, p.WireTensor]

FACTS = p.ModelFacts("sd15", "native", "fp32", {"l": p.EncoderFacts(12, 768, 77, 49408)}, p.VaeFacts(4, 8, "f32"))
BIG = 4 << 20


def floats(name: str, shape: tuple[int, ...], values: list[float]) -> p.WireTensor:
    return p.WireTensor(name, "f32", shape, memoryview(array("f", values)).cast("B"))


def obey(told: str | None) -> None:
    """Raise the error that a request asks for."""
    if told is not None and told.startswith("error:"):
        raise DaemonError(told.removeprefix("error:"), "told so")


def card(options: EngineOptions) -> PagesMemory | NoDeviceMemory:
    """Return the card that a test gives this daemon: shared pages with a card's manners."""
    uuid = os.environ.get("LUNA_TEST_CARD")
    if uuid is None or not options.shares_card:
        return NoDeviceMemory("told to have none")
    return PagesMemory(uuid, os.environ.get("LUNA_TEST_CARD_FAULT"))


class Prompt:
    """A prepared request: one row."""

    rows, row_bytes = 1, 1

    def __init__(self, body: p.EncodeTokens, tensors: Segments) -> None:
        self.body, self.tensors = body, tensors
        self.key = body.set
        self.told = body.items[0].aux.get("told")


class SmallEngine:
    """Conditioning is the token id as a float; a set is the name of its first part."""

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self.sets: dict[str, bool] = {}
        self.uploads: dict[str, bytearray] = {}
        self.leases = Leases()
        self.device_memory = card(options)
        self.on_disk: set[str] = set()

    def start(self, on_phase: OnPhase, on_device: OnDevice = here) -> None:
        on_phase("models", 0.5)
        told = os.environ.get("LUNA_TEST_START", "")
        if told == "slow":
            gate = Path(os.environ["LUNA_TEST_GATE"])
            while not gate.exists():
                time.sleep(0.01)
        elif told == "crash":
            raise RuntimeError("no such luck")
        elif told:
            raise DaemonError(told, f"told to fail with {told}")

    def bring(self, set_id: str, check: Check) -> None:
        obey(set_id.removeprefix("disk:"))
        self.on_disk.discard(set_id)

    def free(self, body: p.Free, tensors: Segments, check: Check) -> Answer:
        obey(body.what)
        self.on_disk = {name for name in self.sets if name.startswith("disk:")}
        return p.Freed({body.what: body.bytes or 10}, tuple(sorted(self.on_disk))), []

    def recall(self, body: Any, tensors: Mapping[str, p.WireTensor]) -> Answer | None:
        if getattr(body, "set", "") == "recall-bug":
            raise ZeroDivisionError("a secret prompt")
        if getattr(body, "set", "") == "recalled":
            return p.Encoded((p.EncodedItem("cond", cached=True),)), [floats("cond", (1, 1, 1), [7.0])]
        return None

    def snapshot(self) -> p.EngineSnapshot:
        part = (p.PartStatus("l", "a", None, 10),)
        rows = tuple(p.SetStatus(name, "sd15", part, "fp32", "host", 10) for name in list(self.sets))
        return p.EngineSnapshot(p.DeviceStatus("cpu"), "native", "told so", rows)

    def list_models(self, body: p.ListModels, tensors: Segments, check: Check) -> Answer:
        rows = tuple(p.SetRow(name, "sd15", "fp32", {"l": name}, "host", 10) for name in list(self.sets))
        many = tuple(p.FileRow(f"models/{n}.safetensors", "checkpoint", "sd15", ("clip",), n) for n in range(2000))
        return p.ModelList(rows, () if body.loaded else many), []

    def describe_model(self, body: p.DescribeModel, tensors: Segments, check: Check) -> Answer:
        obey(body.set)
        if body.set not in self.sets:
            raise DaemonError("model-missing", f"no set {body.set}")
        names = json.dumps({"a.weight": {"shape": [2], "dtype": "f32"}}).encode()
        return p.Description(body.set, FACTS, {"l": "x"}), [p.WireTensor.of_bytes("names", names)]

    def load_model(self, body: p.LoadModel, tensors: Segments, check: Check) -> Answer:
        name = body.parts[0].id or "put"
        obey(name)
        if name.startswith("slow:"):
            time.sleep(float(name.removeprefix("slow:")))
        if name.startswith("steps:"):
            steps = int(name.removeprefix("steps:"))
            with counting(steps, "bytes"):
                for _ in range(steps):
                    advance(1)
        self.sets[name] = True
        return p.Loaded(name, FACTS, {"l": "x"}, 10, "host", did=p.Did(set=name)), []

    def put_model(self, body: p.PutModel, tensors: Segments, check: Check) -> Answer:
        obey(body.content)
        if body.step == "begin":
            self.uploads["u1"] = bytearray(body.nbytes or 0)
            return p.PutReply(upload="u1", chunk_bytes=1000), []
        if body.upload not in self.uploads:
            raise DaemonError("request-invalid", "no such upload")
        if body.step == "chunk":
            data, offset = tensors["bytes"].data, body.offset or 0
            self.uploads[body.upload][offset : offset + data.nbytes] = data
        if body.step == "commit":
            if self.uploads.pop(body.upload).count(0):
                raise DaemonError("file-damaged", "there are holes")
            return p.PutReply(id="content:done"), []
        return p.PutReply(), []

    def unload_model(self, body: p.UnloadModel, tensors: Segments, check: Check) -> Answer:
        obey(body.set)
        freed = 10 * len(self.sets) if body.all else 10
        self.sets = {}
        return p.Unloaded(freed), []

    def encode_tokens(self, body: p.EncodeTokens, tensors: Segments, check: Check) -> Answer:
        if body.set in self.on_disk:
            raise SetOnDiskError(body.set)
        obey(body.set)
        self._misbehave(body, check)
        if body.set == "big":
            return p.Encoded((p.EncodedItem("cond"),)), [p.WireTensor("cond", "u8", (BIG,), memoryview(bytes(BIG)))]
        out, items = [], []
        for index, item in enumerate(body.items):
            ids = tensors[next(iter(item.encoders.values())).ids].data.cast("i")
            if any(not -1000 < value < 49408 for value in ids):
                raise DaemonError("token-invalid", "an id is out of the vocabulary")
            out.append(floats(f"cond.{index}", (1, len(ids), 1), [float(value) for value in ids]))
            items.append(p.EncodedItem(f"cond.{index}"))
        return p.Encoded(tuple(items), p.Did("native", body.set, "host", rows=len(items), requests=1)), out

    @staticmethod
    def _misbehave(body: p.EncodeTokens, check: Check) -> None:
        if body.set == "bug":
            raise ZeroDivisionError("a secret prompt")
        if body.set == "exit":
            os._exit(int(body.items[0].aux["code"]))
        if body.set.startswith("sleep:"):
            time.sleep(float(body.set.removeprefix("sleep:")))
        while body.set == "until-cancelled":
            check()
            time.sleep(0.002)

    def group(self, body: Any) -> Hashable | None:
        return body.set if isinstance(body, p.EncodeTokens) and body.set.startswith("batch") else None

    def prepare(self, body: p.EncodeTokens, tensors: Segments, check: Check) -> Prompt:
        return Prompt(body, tensors)

    def row_cap(self, encoding: Prompt) -> int:
        return 16

    def encode(self, batch: Sequence[Prompt], check: Check) -> Ran:
        time.sleep(0.02)
        answers = []
        for one in batch:
            obey(one.told)
            reply, tensors = self.encode_tokens(one.body, one.tensors, check)
            did = p.Did("native", one.body.set, "host", rows=len(batch), requests=len(batch))
            answers.append((p.Encoded(reply.items, did), tensors))
        return Ran(tuple(answers))

    def encode_text(self, body: p.EncodeText, tensors: Segments, check: Check) -> Answer:
        obey(body.set)
        length = len(body.items[0].text)
        return p.Encoded((p.EncodedItem("cond", tokens={"l": length}),)), [floats("cond", (1, 1, 1), [float(length)])]

    def lora_list(self, body: p.LoraList, tensors: Segments, check: Check) -> Answer:
        return p.Loras(tuple(p.LoraRow(f"h{n}", "low_rank", n, 1) for n in range(500))), []

    def lora_has(self, body: p.LoraHas, tensors: Segments, check: Check) -> Answer:
        here = tuple(name for name in body.hashes if name.startswith("h"))
        return p.LoraFound(here, tuple(name for name in body.hashes if name not in here)), []

    def lora_put(self, body: p.LoraPut, tensors: Segments, check: Check) -> Answer:
        obey(body.hash)
        nbytes = tensors["blob"].nbytes if "blob" in tensors else 0
        return p.LoraStored(p.LoraRow(body.hash or "h", "low_rank", nbytes, 1, body.id), {"s": p.LoraMatch(1)}), []

    def lora_drop(self, body: p.LoraDrop, tensors: Segments, check: Check) -> Answer:
        return p.LoraDropped(10, body.hashes), []

    def lora_validate(self, body: p.LoraValidate, tensors: Segments, check: Check) -> Answer:
        obey(body.set)
        return p.LoraReport(body.hash or "h", "mixed", 3, ("a",), 1, (4, 16), ("one is not there",)), []

    def generate(self, body: p.Generate, tensors: Segments, check: Any) -> Answer:
        obey(body.set)
        said = "".join(part.text or f"<{tensors[part.image].nbytes}>" for part in body.messages[-1].parts)
        text = ""
        for index, word in enumerate(said.split(" ")[: body.max_tokens]):
            if body.set == "slow":
                time.sleep(0.02)
            try:
                check()
            except DaemonError as error:
                if error.code != "cancelled":
                    raise
                return p.Generated(text, "cancelled", len(said), index), []
            piece = word if not text else f" {word}"
            text += piece
            if body.stream:
                check.tell({"text": piece})
        return p.Generated(text, "stop", len(said), len(text.split(" ")), p.Did(set=body.set)), []

    def vae_encode(self, body: p.VaeEncode, tensors: Segments, check: Check) -> Answer:
        obey(body.set)
        return p.Latent(p.Did("native")), [floats("latent", (1, 1, 1, 1), [float(tensors["pixels"].nbytes)])]

    def vae_decode(self, body: p.VaeDecode, tensors: Segments, check: Check) -> Answer:
        obey(body.set)
        latent = tensors["latent"]
        if isinstance(latent, DeviceTensor):
            return p.Image(p.Did("native")), [DeviceTensor("image", latent.dtype, latent.shape, latent.buffer.own())]
        return p.Image(p.Did("native")), [p.WireTensor("image", latent.dtype, latent.shape, latent.data)]


def main() -> Any:
    process.main(SmallEngine)


if __name__ == "__main__":
    main()
