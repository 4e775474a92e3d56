"""The LoRA commands: list, has, put, drop, validate. Bodies in, replies out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luna_daemon.lora_messages import (
    LISTED_MAX,
    LoraDropped,
    LoraFound,
    LoraMatch,
    LoraReport,
    LoraRow,
    Loras,
    LoraStored,
)
from luna_daemon.runtime import lora_files
from luna_daemon.runtime.patch_shapes import rank_of
from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from luna_daemon.engine_seam import Answer, Check
    from luna_daemon.frames import WireTensor
    from luna_daemon.lora_messages import LoraDrop, LoraHas, LoraPut, LoraValidate
    from luna_daemon.runtime.lora import LoraEntry, LoraRegistry
    from luna_daemon.runtime.lora_files import ReadLora
    from luna_daemon.runtime.models import ModelStore

    Segments = Mapping[str, WireTensor]


class LoraCommands:
    """Answers the LoRA commands.

    Args:
        registry: keeps the LoRAs.
        store: holds the sets and knows the files.
        device: where entries go.
    """

    def __init__(self, registry: LoraRegistry, store: ModelStore, device: torch.device) -> None:
        self._registry = registry
        self._store = store
        self._device = device

    def lora_list(self) -> Loras:
        """List what is kept."""
        return Loras(
            tuple(
                _row(entry, size, uses=uses, is_pinned=is_pinned)
                for entry, size, uses, is_pinned in self._registry.rows()
            )
        )

    def lora_has(self, body: LoraHas) -> LoraFound:
        """Tell which of the hashes are here."""
        present = self._registry.present(body.hashes)
        return LoraFound(
            tuple(name for name in body.hashes if name in present),
            tuple(name for name in body.hashes if name not in present),
        )

    def lora_put(self, body: LoraPut, segments: Segments, check: Check) -> Answer:
        """Take a LoRA in.

        Raises:
            DaemonError: ``lora-invalid``, also for one that does not fit a loaded set's weights; ``lora-too-large``;
                ``path-outside``, ``model-missing`` or ``wrong-type`` for a file id; ``tensor-invalid`` for a blob that
                is missing or that comes beside a file.
        """
        read = self._read(body, segments, check)
        sets = self._matches(read.entry)
        self._registry.put(read.entry)
        reply = LoraStored(
            entry=_row(read.entry, read.entry.nbytes),
            sets=sets,
            unknown=read.unknown[:LISTED_MAX],
            unknown_total=len(read.unknown),
        )
        return reply, []

    def _read(self, body: LoraPut, segments: Segments, check: Check) -> ReadLora:
        if (body.id is None) != ("blob" in segments):
            word = "missing" if body.id is None else "not expected beside a file id"
            raise DaemonError("tensor-invalid", f"segment 'blob' is {word}", details={"segment": "blob"})
        if body.id is None:
            return lora_files.from_blob(segments["blob"].data, body.hash or "", self._device)
        return self._from_file(body.id, body.hash, check)

    def _from_file(self, file_id: str, announced: str | None, check: Check) -> ReadLora:
        path = self._store.files.resolve(file_id)
        return lora_files.from_file(path, file_id, announced, self._registry.cap_bytes, self._device, check)

    def _matches(self, entry: LoraEntry) -> dict[str, LoraMatch]:
        found = {}
        for held in self._store.sets.values():
            if held.loaded is not None and held.facts.encoders:
                match = held.model.match_lora(entry)
                found[held.id] = LoraMatch(match.matched, match.unmatched[:LISTED_MAX], len(match.unmatched))
        return found

    def lora_drop(self, body: LoraDrop, segments: Segments, check: Check) -> Answer:  # noqa: ARG002 - the seam
        """Forget some or all."""
        freed, in_use = self._registry.drop(None if body.all else body.hashes)
        return LoraDropped(freed, in_use[:LISTED_MAX]), []

    def lora_validate(self, body: LoraValidate, segments: Segments, check: Check) -> Answer:  # noqa: ARG002 - the seam
        """Judge a LoRA against a set.

        Raises:
            DaemonError: ``lora-missing`` for an unknown hash, ``lora-invalid`` for a file that is none, and what
                naming a set or a file raises.
        """
        held = self._store.get(body.set, "text")
        if held.loaded is None:
            raise DaemonError("model-missing", f"set {held.id} had to leave memory", "load it again with load_model")
        if body.id is None:
            read = lora_files.ReadLora(self._registry.get(body.hash or ""))
        else:
            read = self._from_file(body.id, None, check)
        entry = read.entry
        problems = [f"{name} is for a text encoder and was not understood" for name in read.unknown]
        try:
            match = held.model.match_lora(entry)
        except DaemonError as error:
            return LoraReport(entry.hash, entry.form, 0, problems=(error.message, *problems)[:LISTED_MAX]), []
        if not match.matched:
            problems.insert(0, f"it changes nothing in {held.family} {held.id}")
        elif match.unmatched:
            problems.insert(0, f"{len(match.unmatched)} of its weights are not in {held.family} {held.id}")
        report = LoraReport(
            hash=entry.hash,
            form=entry.form,
            matched=match.matched,
            unmatched=match.unmatched[:LISTED_MAX],
            unmatched_total=len(match.unmatched),
            ranks=tuple(sorted({rank for patch in entry.patches if (rank := rank_of(patch)) is not None})),
            problems=tuple(problems[:LISTED_MAX]),
        )
        return report, []


def _row(entry: LoraEntry, size: int, *, uses: int = 0, is_pinned: bool = False) -> LoraRow:
    weights = len({patch.target for patch in entry.patches})
    return LoraRow(entry.hash, entry.form, size, weights, entry.source, uses, is_pinned)
