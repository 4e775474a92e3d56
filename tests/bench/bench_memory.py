"""What four clients of one daemon hold together, over four processes with a copy each.

`python -m tests.bench.bench_memory [--write]`. Real CLIP-L shapes with random weights. PSS: memory that processes share
counts once. The model part is what loading added.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.bench_clients import CLIENTS, daemon, workers
from tests.bench.bench_encode import write_model
from tests.bench.clients_worker import pss_bytes
from tests.bench.report import publish

if TYPE_CHECKING:
    from tests.bench.bench_clients import Worker

RUN = "run 0.1 shared 1"


@dataclass
class Held:
    """Bytes before and after the model was loaded and used."""

    before: int
    after: int

    @property
    def model(self) -> int:
        """What the model added."""
        return self.after - self.before


def held(clients: list[Worker], server: int | None = None) -> Held:
    """Load and use the model in all clients; a server is counted with them."""

    def total() -> int:
        own = sum(int(one.do("memory")) for one in clients)
        return own + (0 if server is None else pss_bytes(server))

    before = total()
    for order in ("load", RUN):
        for one in clients:
            one.do(order)
    return Held(before, total())


def main() -> None:
    """Measure and print, or publish."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["LUNA_HOME"] = str(folder / "home")
        write_model(folder)
        with daemon(folder) as (place, server), workers("daemon", place) as clients:
            shared = held(clients, server.pid)
        with workers("own", str(folder)) as clients:
            alone = held(clients)
    rows = (
        (f"one daemon and {CLIENTS} clients", shared),
        (f"{CLIENTS} processes with a copy each", alone),
    )
    lines = [f"| {name} | {one.after / 2**20:,.0f} | {one.model / 2**20:,.0f} |" for name, one in rows]
    whole, model = shared.after / alone.after, shared.model / alone.model
    table = "\n".join(
        [
            "| CLIP-L, fp32, CPU | PSS, MiB | of that the model, MiB |",
            "|---|---|---|",
            *lines,
            f"| ratio (bars ≤ 0.60 and ≤ 0.30, stretch 0.26) | **{whole:.2f}** | **{model:.2f}** |",
        ]
    )
    publish("memory", "Memory of four clients", table, write=given.write)


if __name__ == "__main__":
    main()
