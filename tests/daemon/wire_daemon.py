"""A daemon process with a small engine of its own: everything of the wire is real, the models are arithmetic.

Run by path like the product's `server.py`. The engine's behaviour is told by the requests themselves, so that tests
need no side channel.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from array import array
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from luna_daemon import process
from luna_daemon import protocol as wire
from luna_engine.errors import DaemonError

FACTS = wire.ModelFacts(
    "sd15", "native", "fp32", {"l": wire.EncoderFacts(12, 768, 77, 49408)}, wire.VaeFacts(4, 8, "f32")
)


def floats(name, shape, values):
    return wire.WireTensor(name, "f32", shape, memoryview(array("f", values)).cast("B"))


class SmallEngine:
    """Conditioning is the token id as a float; a set is its name. Certain set names misbehave on purpose."""

    def __init__(self, options):
        self.options = options
        self.sets = {}
        self.threads = set()
        self.uploads = {}

    def start(self, on_phase):
        on_phase("models", 0.5)
        failure = os.environ.get("LUNA_TEST_START", "")
        if failure == "slow":
            gate = Path(os.environ["LUNA_TEST_GATE"])
            while not gate.exists():
                time.sleep(0.01)
        elif failure == "crash":
            raise RuntimeError("no such luck")
        elif failure:
            raise DaemonError(failure, f"told to fail with {failure}")

    def snapshot(self):
        rows = tuple(
            wire.SetStatus(name, "sd15", (wire.PartStatus("l", name, None, 10),), "fp32", "host", 10)
            for name in self.sets
        )
        return wire.EngineSnapshot(wire.DeviceStatus("cpu"), "native", "told so", rows)

    def _set(self, name):
        if name not in self.sets:
            raise DaemonError("model-missing", f"no set {name}")

    def list_models(self, body, tensors, check):
        rows = tuple(wire.SetRow(name, "sd15", "fp32", {"l": name}, "host", 10) for name in self.sets)
        files = (
            ()
            if body.loaded
            else tuple(wire.FileRow(f"models/{n}.safetensors", "checkpoint", "sd15", ("clip",), n) for n in range(2000))
        )
        return wire.ModelList(rows, files), []

    def describe_model(self, body, tensors, check):
        self._set(body.set)
        names = json.dumps({"a.weight": {"shape": [2], "dtype": "f32"}}).encode()
        return wire.Description(body.set, FACTS, {"l": "x"}), [wire.WireTensor.of_bytes("names", names)]

    def load_model(self, body, tensors, check):
        name = body.parts[0].id or body.parts[0].content
        if name.startswith("error:"):
            raise DaemonError(name.removeprefix("error:"), "told so")
        if name.startswith("slow:"):
            time.sleep(float(name.split(":")[1]))
        self.sets[name] = True
        return wire.Loaded(name, FACTS, {"l": "x"}, 10, "host", did=wire.Did(set=name)), []

    def put_model(self, body, tensors, check):
        if body.step == "begin":
            if body.content == "error:payload-too-large":
                raise DaemonError("payload-too-large", "told so")
            self.uploads["u1"] = bytearray(body.nbytes)
            return wire.PutReply(upload="u1", chunk_bytes=1000), []
        if body.upload not in self.uploads:
            raise DaemonError("request-invalid", "no such upload")
        if body.step == "chunk":
            data = tensors["bytes"].data
            self.uploads[body.upload][body.offset : body.offset + data.nbytes] = data
        if body.step == "commit":
            if self.uploads.pop(body.upload).count(0):
                raise DaemonError("file-damaged", "there are holes")
            return wire.PutReply(id="content:done"), []
        return wire.PutReply(), []

    def unload_model(self, body, tensors, check):
        if body.set == "pinned" and not body.force:
            raise DaemonError("model-in-use", "it is pinned")
        freed = 10 * len(self.sets) if body.all else 10
        self.sets = {}
        return wire.Unloaded(freed), []

    def encode_tokens(self, body, tensors, check):
        self.threads.add(threading.current_thread().name)
        if body.set.startswith("error:"):
            raise DaemonError(body.set.removeprefix("error:"), "told so")
        if body.set == "bug":
            raise ZeroDivisionError("a secret prompt")
        if body.set == "until-cancelled":
            while True:
                check()
                time.sleep(0.002)
        if body.set == "exit":
            os._exit(int(body.items[0].aux.get("code", 9)))
        if body.set.startswith("sleep:"):
            time.sleep(float(body.set.removeprefix("sleep:")))
        if body.set == "big":
            return wire.Encoded((wire.EncodedItem("cond"),)), [floats("cond", (1, 4 << 20, 1), [1.0] * (4 << 20))]
        out, items = [], []
        for index, item in enumerate(body.items):
            rows = next(iter(item.encoders.values()))
            ids = memoryview(tensors[rows.ids].data).cast("i")
            if any(not -1000 < value < 49408 for value in ids):
                raise DaemonError("token-invalid", "an id is out of the vocabulary")
            out.append(floats(f"cond.{index}", (1, len(ids), 1), [float(value) for value in ids]))
            items.append(wire.EncodedItem(f"cond.{index}"))
        return wire.Encoded(tuple(items), wire.Did("native", body.set, "host", len(items), 1)), out

    def encode_text(self, body, tensors, check):
        if body.set.startswith("error:"):
            raise DaemonError(body.set.removeprefix("error:"), "told so")
        text = body.items[0].text
        return wire.Encoded((wire.EncodedItem("cond", tokens={"l": len(text)}),)), [
            floats("cond", (1, 1, 1), [float(len(text))])
        ]

    def vae_encode(self, body, tensors, check):
        if body.set.startswith("error:"):
            raise DaemonError(body.set.removeprefix("error:"), "told so")
        return wire.Latent(wire.Did("native")), [floats("latent", (1, 1, 1, 1), [float(tensors["pixels"].nbytes)])]

    def vae_decode(self, body, tensors, check):
        if body.set.startswith("error:"):
            raise DaemonError(body.set.removeprefix("error:"), "told so")
        latent = tensors["latent"]
        return wire.Image(wire.Did("native")), [wire.WireTensor("image", latent.dtype, latent.shape, latent.data)]


if __name__ == "__main__":
    process.main(SmallEngine)
