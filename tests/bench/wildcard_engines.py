"""One engine on one corpus in a process of its own; prints one JSON object. Called by `bench_wildcards`.

`python -m tests.bench.wildcard_engines ENGINE FOLDER TEMPLATE SECONDS [--memory | --warm]`

ENGINE is luna, dynamicprompts, dynamicprompts-batch, or impact (its module is loaded from the checkout that
IMPACT_PACK_PATH names, with ComfyUI's modules, which the engine itself does not use, left empty).
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import os
import sys
import time
import tracemalloc
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def luna(folder: Path, template: str, *, cache: bool = False) -> Callable[[int], str]:
    """Load Luna's library, cold unless told otherwise."""
    from luna_engine.wildcards import WildcardLibrary

    library = WildcardLibrary.load(folder, cache=cache)
    return lambda seed: library.expand(template, seed).text


def dynamicprompts(folder: Path, template: str) -> Callable[[int], str]:
    """Load dynamicprompts' manager; one prompt a call."""
    from dynamicprompts.generators import RandomPromptGenerator  # type: ignore[import-not-found,unused-ignore]
    from dynamicprompts.wildcards import WildcardManager  # type: ignore[import-not-found,unused-ignore]

    generator = RandomPromptGenerator(wildcard_manager=WildcardManager(folder), seed=0)
    return lambda seed: str(generator.generate(template, 1, seeds=seed)[0])


def impact(folder: Path, template: str) -> Callable[[int], str]:
    """Load the engine of ComfyUI-Impact-Pack from a checkout."""
    module = impact_module()
    module.read_wildcard_dict(str(folder))
    return lambda seed: str(module.process(template, seed))


def impact_module() -> Any:
    """Import ``modules/impact/wildcards.py`` alone."""
    path = Path(os.environ["IMPACT_PACK_PATH"]) / "modules" / "impact" / "wildcards.py"
    for name in ("nodes", "folder_paths", "impact", "impact.utils", "impact.config"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["impact"].utils = sys.modules["impact.utils"]  # type: ignore[attr-defined]
    sys.modules["impact"].config = sys.modules["impact.config"]  # type: ignore[attr-defined]
    spec = importlib.util.spec_from_file_location("impact_wildcards", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def batch(folder: Path, template: str) -> Callable[[int], str]:
    """Load dynamicprompts' manager; prompts are made a hundred at a time."""
    from dynamicprompts.generators import RandomPromptGenerator  # type: ignore[import-not-found,unused-ignore]
    from dynamicprompts.wildcards import WildcardManager  # type: ignore[import-not-found,unused-ignore]

    generator = RandomPromptGenerator(wildcard_manager=WildcardManager(folder), seed=0)
    waiting: list[str] = []

    def draw(seed: int) -> str:
        del seed
        if not waiting:
            waiting.extend(str(text) for text in generator.generate(template, 100))
        return waiting.pop()

    return draw


ENGINES = {"luna": luna, "dynamicprompts": dynamicprompts, "dynamicprompts-batch": batch, "impact": impact}


def warm_imports(engine: str) -> None:
    """Import what an engine needs, so that its load time is that of the corpus alone."""
    if engine == "luna":
        importlib.import_module("luna_engine.wildcards")
    elif engine == "impact":
        impact_module()
    else:
        importlib.import_module("dynamicprompts.generators")
        importlib.import_module("dynamicprompts.wildcards")


def measure(engine: str, folder: Path, template: str, seconds: float) -> dict[str, float]:
    """Return load seconds, first prompt ms, and prompts per second."""
    make = ENGINES[engine]
    gc.collect()
    started = time.process_time()
    draw = make(folder, template)
    load_s = time.process_time() - started
    started = time.process_time()
    first = draw(1)
    first_s = time.process_time() - started
    if "__" in first:
        raise SystemExit(f"{engine} left a wildcard in {first!r}")
    draw(2)
    count, began = 0, time.process_time()
    while not count or time.process_time() - began < seconds:
        draw(count)
        count += 1
    speed = count / (time.process_time() - began)
    return {"load_s": load_s, "first_ms": first_s * 1000, "prompts_s": speed}


def memory(engine: str, folder: Path, template: str) -> dict[str, float]:
    """Return MB held after loading, and after the first prompt, by tracemalloc."""
    tracemalloc.start()
    draw = ENGINES[engine](folder, template)
    gc.collect()
    loaded = tracemalloc.get_traced_memory()[0] / 1e6
    draw(1)
    gc.collect()
    held, peak = (size_bytes / 1e6 for size_bytes in tracemalloc.get_traced_memory())
    return {"loaded_mb": loaded, "held_mb": held, "peak_mb": peak}


def warm(folder: Path, template: str) -> dict[str, float]:
    """Return the seconds of a load from the parsed cache, which a load before it has filled."""
    luna(folder, template, cache=True)
    gc.collect()
    started = time.process_time()
    draw = luna(folder, template, cache=True)
    load_s = time.process_time() - started
    draw(1)
    return {"load_s": load_s}


def main() -> None:
    """Measure one engine and print."""
    engine, folder, template, seconds, *more = sys.argv[1:]
    warm_imports(engine)
    if more == ["--memory"]:
        result = memory(engine, Path(folder), template)
    elif more == ["--warm"]:
        result = warm(Path(folder), template)
    else:
        result = measure(engine, Path(folder), template, float(seconds))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
