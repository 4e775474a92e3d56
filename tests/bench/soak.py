"""Eight mixed clients for a long time: memory flat, nothing piles up, the last round's results are the first one's.

`python -m tests.bench.soak [--requests N] [--write]`. The daemon is the product's with small models. The clients
encode tokens (skips, weights, LoRAs, with and without the cache), encode text, decode and encode images, ask wrongly,
cancel, load, drop their LoRAs, subscribe, and hang up and come back.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tempfile
import threading
import time
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna_daemon.client import DaemonClient
from luna_daemon.encode_messages import LoraUse
from luna_daemon.protocol import DaemonStatus, Part, TextItem, TokenItem, TokenRows, VaeDecode, WireTensor
from luna_engine.errors import DaemonError
from tests.bench import footprint
from tests.bench.report import RELIABILITY, load, publish
from tests.bench.tiny_daemon import PART_ID, WIDTH, TinyDaemon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.bench.footprint import Footprint

CLIENTS = 8
PROMPTS = 40
LORAS = 4
WARM_SHARE = 0.2
LEAST_BETWEEN = 1_000  # requests between two readings
RECONNECT_EVERY = 500
PAUSE_S = 120.0
TOLERANCE = 1e-5
LAYER = "clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"


class GivenUpError(Exception):
    """The client changed its mind."""


@dataclass(slots=True)
class Soak:
    """What all clients share and find."""

    set_id: str
    blobs: dict[str, bytes]
    goal: int
    done: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    references: dict[Any, bytes] = field(default_factory=dict)
    compared: int = 0
    equal: int = 0
    largest_difference: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)
    working: int = 0
    is_paused: bool = False
    turn: threading.Condition = field(default_factory=threading.Condition)

    @contextlib.contextmanager
    def request(self) -> Iterator[bool]:
        """Count one request, in its time; False when there were enough."""
        with self.turn:
            self.turn.wait_for(lambda: not self.is_paused)
            self.done += 1
            self.working += 1
        try:
            yield self.done <= self.goal
        finally:
            with self.turn:
                self.working -= 1
                self.turn.notify_all()

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Hold all clients between two requests."""
        with self.turn:
            self.is_paused = True
            if not self.turn.wait_for(lambda: not self.working, PAUSE_S):
                self.failures.append(f"a request took longer than {PAUSE_S:g} s")
        try:
            yield
        finally:
            with self.turn:
                self.is_paused = False
                self.turn.notify_all()

    def compare(self, key: Any, data: memoryview) -> None:
        """Compare a result with the first one of its kind.

        Bit for bit, or within the tolerance that batching with strangers costs in fp32.
        """
        raw = bytes(data)
        with self.lock:
            first = self.references.setdefault(key, raw)
            self.compared += 1
            if raw == first:
                self.equal += 1
                return
        now, then = memoryview(raw).cast("f"), memoryview(first).cast("f")
        difference = max((abs(a - b) for a, b in zip(now, then, strict=True)), default=0.0)
        with self.lock:
            self.largest_difference = max(self.largest_difference, difference)
            if not difference <= TOLERANCE and len(self.failures) < 20:
                self.failures.append(f"{key}: differs by {difference}")


class Client(threading.Thread):
    """One client; its own connection, its own chance."""

    def __init__(self, number: int, port: int, soak: Soak) -> None:
        super().__init__(name=f"client-{number}", daemon=True)
        self._number = number
        self._port = port
        self._soak = soak
        self._chance = random.Random(number)
        self._client = self._connect()
        self._kinds: list[tuple[Callable[[], None], int]] = [
            (self._encode_tokens, 50), (self._encode_with_lora, 15), (self._encode_text, 8), (self._decode, 8),
            (self._encode_image, 4), (self._ask_wrongly, 6), (self._cancel, 4), (self._look, 3), (self._drop_lora, 1),
            (self._load, 1),
        ]  # fmt: skip

    def _connect(self) -> DaemonClient:
        way = "tcp" if self._number % 4 == 0 else "auto"
        client = DaemonClient.connect("127.0.0.1", self._port, transport=way, name=f"soak-{self._number}")
        if self._number == 1:
            client.subscribe(["request", "queue", "memory", "log"])  # and never reads most of them
        return client

    def run(self) -> None:
        """Work until there were enough requests."""
        methods, weights = zip(*self._kinds, strict=True)
        count = 0
        try:
            while True:
                method = self._chance.choices(methods, weights)[0]
                with self._soak.request() as is_wanted:
                    if not is_wanted:
                        return
                    method()
                self._soak.kinds[method.__name__.strip("_")] += 1
                count += 1
                if count % RECONNECT_EVERY == 0:
                    self._client.close()
                    self._client = self._connect()
        except Exception as error:  # noqa: BLE001 - border of the thread; the run reports it
            self._soak.failures.append(f"{self.name} after {count}: {type(error).__name__}: {error}")
        finally:
            self._client.close()

    def _item(self, prompt: int, loras: tuple[LoraUse, ...] = ()) -> tuple[TokenItem, list[WireTensor]]:
        chance = random.Random(prompt)
        ids = array("i", [49406, *(chance.randrange(1, 49000) for _ in range(75)), 49407])
        tensors = [WireTensor("ids", "i32", (77,), memoryview(ids).cast("B"))]
        if prompt % 3 == 0:
            weights = array("d", [1.0, *(chance.choice((1.0, 1.2, 0.7)) for _ in range(75)), 1.0])
            tensors.append(WireTensor("weights", "f64", (77,), memoryview(weights).cast("B")))
        rows = TokenRows((77,), "ids", "weights" if len(tensors) == 2 else None)
        layer = (None, -1, -2)[prompt % 3] if prompt % 5 == 0 else None
        return TokenItem({"l": rows}, layer=layer, loras=loras), tensors

    def _encode(self, key: Any, item: TokenItem, tensors: list[WireTensor], cache: str) -> None:
        body, found = self._client.encode_tokens(
            set=self._soak.set_id, items=[item], tensors=tensors, cache=cache, timeout_s=120
        )
        self._soak.compare(key, found[body.items[0].cond].data)

    def _encode_tokens(self) -> None:
        prompt = self._chance.randrange(PROMPTS)
        item, tensors = self._item(prompt)
        self._encode(("tokens", prompt), item, tensors, self._chance.choice(("use", "bypass", "bypass", "refresh")))

    def _encode_with_lora(self) -> None:
        prompt = self._chance.randrange(PROMPTS)
        number = self._chance.randrange(LORAS)
        hash_ = list(self._soak.blobs)[number]
        item, tensors = self._item(prompt, (LoraUse(hash_, 0.5),))
        for _ in range(20):  # another client may drop it at any moment: put and ask again
            try:
                self._encode(("lora", number, prompt), item, tensors, "bypass")
            except DaemonError as error:
                if error.code != "lora-missing":
                    raise
                self._client.lora_put(self._soak.blobs[hash_], hash=hash_)
            else:
                return
        raise RuntimeError("a LoRA was missing 20 times in a row")

    def _encode_text(self) -> None:
        prompt = self._chance.randrange(PROMPTS)
        text = TextItem(f"a (photo:1.{prompt % 9}) of {prompt} cats")
        body, found = self._client.encode_text(set=self._soak.set_id, items=[text], timeout_s=120)
        self._soak.compare(("text", prompt), found[body.items[0].cond].data)

    def _decode(self) -> None:
        number = self._chance.randrange(6)
        values = array("f", [((index * (number + 3)) % 17) / 8 - 1 for index in range(4 * 64)])
        latent = WireTensor("latent", "f32", (1, 4, 8, 8), memoryview(values).cast("B"))
        _, image = self._client.vae_decode(set=self._soak.set_id, latent=latent, timeout_s=120)
        self._soak.compare(("decode", number), image.data)

    def _encode_image(self) -> None:
        number = self._chance.randrange(4)
        values = array("f", [((index * (number + 5)) % 11) / 10 for index in range(64 * 64 * 3)])
        pixels = WireTensor("pixels", "f32", (1, 64, 64, 3), memoryview(values).cast("B"))
        _, latent = self._client.vae_encode(set=self._soak.set_id, pixels=pixels, timeout_s=120)
        self._soak.compare(("encode", number), latent.data)

    def _ask_wrongly(self) -> None:
        item, tensors = self._item(0)
        bad = WireTensor("ids", "i32", (77,), memoryview(array("i", [10**6] * 77)).cast("B"))
        try:
            wrong = self._chance.randrange(3)
            if wrong == 0:
                self._client.encode_tokens(set=self._soak.set_id, items=[item], tensors=[bad, *tensors[1:]])
            elif wrong == 1:
                self._client.encode_tokens(set="nonsense", items=[item], tensors=tensors)
            else:
                self._client.load_model([Part("l", id="checkpoints/none.safetensors")])
        except DaemonError as error:
            if error.code not in {"token-invalid", "model-missing"}:
                raise
        else:
            raise RuntimeError("nonsense was accepted")

    def _cancel(self) -> None:
        def poll() -> None:
            raise GivenUpError

        latent = WireTensor("latent", "f32", (1, 4, 8, 8), memoryview(array("f", [0.1] * 256)).cast("B"))
        try:
            self._client.call("vae_decode", VaeDecode(self._soak.set_id), [latent], poll=poll)
        except GivenUpError:
            return
        raise RuntimeError("a poll that raises was not heard")

    def _look(self) -> None:
        self._client.ping()
        self._client.status()
        self._client.metrics()

    def _drop_lora(self) -> None:
        self._client.lora_drop([self._chance.choice(list(self._soak.blobs))])

    def _load(self) -> None:
        loaded = self._client.load_model([Part("l", id=PART_ID), Part("vae", id=PART_ID)])
        if loaded.set != self._soak.set_id:
            raise RuntimeError("the same file is another set now")


def lora_blobs() -> dict[str, bytes]:
    """Return packed LoRAs of rank 4 for the small encoder, by content hash."""
    import torch

    from luna_daemon.patches import Patch, content_hash, pack

    blobs = {}
    for number in range(LORAS):
        generator = torch.Generator().manual_seed(number)
        factors = {
            "up": torch.randn(WIDTH, 4, generator=generator) * 0.2,
            "down": torch.randn(4, WIDTH, generator=generator) * 0.2,
        }
        patches = [Patch(LAYER, "lora", factors, alpha=4.0)]
        blobs[content_hash(patches)] = pack(patches)
    return blobs


@dataclass(slots=True)
class Finding:
    """The whole run."""

    soak: Soak
    before: Footprint
    warm: Footprint | None
    end: Footprint | None
    status: DaemonStatus | None
    seconds: float


def run(daemon: TinyDaemon, requests: int, tell: Callable[[str], None] = print, clients: int = CLIENTS) -> Finding:
    """Run and watch."""
    began = time.monotonic()
    with DaemonClient.connect("127.0.0.1", daemon.port, name="watch") as watch:
        set_id = watch.load_model([Part("l", id=PART_ID), Part("vae", id=PART_ID)]).set
        soak, before = Soak(set_id, lora_blobs(), requests), daemon.footprint()
        threads = [Client(number, daemon.port, soak) for number in range(clients)]
        for thread in threads:
            thread.start()
        warm: Footprint | None = None
        due = step = max(LEAST_BETWEEN, requests // 20)
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.05)
            if soak.done < (min(due, WARM_SHARE * requests) if warm is None else due):
                continue
            held = _settled(daemon, watch, soak)
            tell(f"{soak.done:,} requests, {time.monotonic() - began:.0f} s, {held}")
            if warm is None and soak.done >= WARM_SHARE * requests:
                warm = held
            due = soak.done + step
        deadline = time.monotonic() + 30
        while (status := watch.status()).queue["device"].depth + status.queue["device"].running:
            if time.monotonic() > deadline:
                soak.failures.append("requests of clients that are gone are still there")
                break
            time.sleep(0.1)
        return Finding(soak, before, warm, _settled(daemon, watch, soak), status, time.monotonic() - began)


def _settled(daemon: TinyDaemon, watch: DaemonClient, soak: Soak) -> Footprint:
    """Measure at a point like all others: nobody asks, results, LoRAs and merged sets are given back."""
    with soak.pause():
        for what in ("results", "merged"):
            watch.free(what)
        watch.lora_drop(all=True)
        return daemon.footprint()


def verdict(finding: Finding, growth: float = 0.01) -> list[str]:
    """Return what is wrong; nothing if all is well."""
    wrong = list(finding.soak.failures)
    warm, end, status = finding.warm, finding.end, finding.status
    if warm is None or end is None or status is None:
        return [*wrong, "the run did not reach its end"]
    if end.rss_bytes > (1 + growth) * warm.rss_bytes:
        wrong.append(f"resident memory grew by {100 * (end.rss_bytes / warm.rss_bytes - 1):.2f} %")
    before = finding.before
    if end.threads > before.threads + 2:  # torch's and the event board's begin with the first use
        wrong.append(f"threads grew from {before.threads} to {end.threads}")
    if end.descriptors > before.descriptors:
        wrong.append(f"descriptors grew from {before.descriptors} to {end.descriptors}")
    wrong += [
        f"cache {name} holds {cache.bytes:,} of {cache.cap_bytes:,} bytes"
        for name, cache in status.caches.items()
        if cache.bytes > cache.cap_bytes
    ]
    return wrong


def table(finding: Finding, wrong: list[str]) -> str:
    """Return the Markdown table."""
    soak = finding.soak
    rows = [
        ("requests of 8 clients", f"{sum(soak.kinds.values()):,}"),
        ("of kinds", ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in soak.kinds.most_common())),
        (
            "results compared with the first of their kind",
            f"{soak.compared:,}; equal bit for bit {soak.equal:,}",
        ),
        ("largest difference of the others", f"{soak.largest_difference:.1e} (bar 1e-5)"),
        ("readings, nobody asking, caches given back", "after a fifth of the requests → at the end; bar 1 %"),
        *footprint.rows(finding.warm, finding.end),
        ("descriptors; threads before the clients came", f"{finding.before.descriptors}; {finding.before.threads}"),
        ("time", f"{finding.seconds:.0f} s, load {load()}"),
        ("verdict", "held" if not wrong else "; ".join(wrong)),
    ]
    return "\n".join(["| what | found |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--write", action="store_true", help="into docs/reliability.md")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        daemon = TinyDaemon(Path(folder))
        try:
            finding = run(daemon, given.requests, lambda line: print(line, flush=True))
        finally:
            daemon.close()
    wrong = verdict(finding)
    made_by = f"python -m tests.bench.soak --requests {given.requests}"
    publish("soak", "Soak", table(finding, wrong), write=given.write, page=RELIABILITY, command=made_by)
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
