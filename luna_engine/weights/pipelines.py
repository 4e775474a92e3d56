"""Folders of the diffusers library: a `model_index.json`, and a folder for each part with its weights in it.

Resolves such a folder, or the folder of one part, to the weight file that is to be read.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from luna_engine.errors import InputFileError
from luna_engine.weights.shards import shard_set, stem_of

if TYPE_CHECKING:
    from pathlib import Path

MODEL_INDEX = "model_index.json"
DIFFUSION_PARTS = ("transformer", "unet")
# Weight files as diffusers and transformers call them. The first is what they load when asked for nothing else.
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_OTHERS = (".bin", ".ckpt", ".msgpack")


def is_pipeline(folder: Path) -> bool:
    """Tell whether a folder is a diffusers model."""
    return (folder / MODEL_INDEX).is_file()


def weight_file(path: Path) -> Path:
    """Return the file to read for a path that may be a diffusers folder, a part's folder, or a file already.

    Raises:
        InputFileError: ``wrong-type`` (a folder without a model, several diffusion parts), ``file-missing`` (no
            weights), ``pickle-refused`` (only pickled weights), ``file-damaged`` (an index).
    """
    if not path.is_dir():
        return path
    if is_pipeline(path):
        return _weights_in(_diffusion_part(path))
    if (path / "config.json").is_file():
        return _weights_in(path)
    raise InputFileError(
        "wrong-type", f"{path} is a folder, and no diffusers model", "name a file in it, or the folder with "
        f"{MODEL_INDEX}", file=str(path),
    )  # fmt: skip


def part_files(pipeline: Path) -> dict[str, Path]:
    """Return the weight file of every part of a diffusers folder that has one, by the part's name."""
    found: dict[str, Path] = {}
    for folder in sorted(entry for entry in pipeline.iterdir() if (entry / "config.json").is_file()):
        if (file := _preferred(folder)) is not None:
            found[folder.name] = file
    return found


def pipeline_class(pipeline: Path) -> str | None:
    """Return the class that `model_index.json` names; None if it does not say."""
    try:
        record = json.loads((pipeline / MODEL_INDEX).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    name = record.get("_class_name") if isinstance(record, dict) else None
    return name if isinstance(name, str) else None


def source_stem(path: Path) -> str:
    """Return what files made from a source are called: the pipeline's name where the weights' own says nothing."""
    stem = stem_of(path)
    if stem.partition(".")[0] not in _STEMS:
        return stem
    variant = stem.partition(".")[2]
    part = path.absolute().parent
    if is_pipeline(part.parent):
        name = part.parent.name if part.name in DIFFUSION_PARTS else f"{part.parent.name}_{part.name}"
    else:
        name = part.name
    return f"{name}.{variant}" if variant else name


def _diffusion_part(pipeline: Path) -> Path:
    parts = [
        folder
        for folder in sorted(pipeline.iterdir())
        if folder.name.startswith(DIFFUSION_PARTS) and (folder / "config.json").is_file()
    ]
    if not parts:
        raise InputFileError(
            "component-missing", f"{pipeline} has neither of {', '.join(DIFFUSION_PARTS)}", "download the whole model",
            file=str(pipeline),
        )  # fmt: skip
    if len(parts) > 1:
        names = ", ".join(folder.name for folder in parts)
        raise InputFileError(
            "wrong-type", f"{pipeline} has several diffusion models: {names}", f"name one, such as {parts[0]}",
            file=str(pipeline),
        )  # fmt: skip
    return parts[0]


def _weights_in(folder: Path) -> Path:
    if (file := _preferred(folder)) is not None:
        return file
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in _OTHERS)
    if pickled:
        raise InputFileError(
            "pickle-refused", f"{folder} has its weights as {pickled[0]} only", "download the safetensors version",
            file=str(folder / pickled[0]),
        )  # fmt: skip
    raise InputFileError("file-missing", f"{folder} holds no weights", "download the whole model", file=str(folder))


def _preferred(folder: Path) -> Path | None:
    """Return the weights that are loaded by default: plain names before variants such as fp16."""
    files = [file for file in folder.iterdir() if file.suffix.lower() == ".safetensors"]
    named = [file for file in files if stem_of(file).partition(".")[0] in _STEMS]
    ranked = sorted(named or files, key=lambda file: (stem_of(file).count("."), file.name))
    if not ranked:
        indexes = sorted(folder.glob("*.safetensors.index*.json"))
        return indexes[0] if indexes else None
    found = shard_set(ranked[0])
    return ranked[0] if found is None else found.path
