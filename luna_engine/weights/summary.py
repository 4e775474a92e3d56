"""What the catalogue keeps of a file's header: as much of an inspection as a list shows, without the tensors."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luna_engine.weights import provenance
from luna_engine.weights.components import DIFFUSION, Form
from luna_engine.weights.kinds import Kind
from luna_engine.weights.verdicts import Confidence

if TYPE_CHECKING:
    from collections.abc import Mapping

    from luna_engine.weights.inspection import Inspection
    from luna_engine.weights.provenance import Provenance

CONVERTIBLE = frozenset({Kind.CHECKPOINT, Kind.DIFFUSION_MODEL})


@dataclass(frozen=True, slots=True)
class Summary:
    """A file's header in short. ``dtypes`` are parameters per element type of the diffusion part, else of all parts.

    ``luna`` are the header's ``luna.*`` strings: what `provenance.read` reads.
    """

    container: str
    kind: Kind
    family: str | None
    variant: str
    part: str
    precision: str
    form: Form
    prediction: str | None
    confidence: Confidence
    evidence: tuple[str, ...]
    name: str
    header_sha256: str
    diffusion_bytes: int
    dtypes: Mapping[str, int] = field(default_factory=dict)
    luna: Mapping[str, str] = field(default_factory=dict)

    @property
    def provenance(self) -> Provenance | None:
        """Return what the file says of its making; None if Luna did not make it."""
        return provenance.read(self.luna) if self.luna else None

    @property
    def is_convertible(self) -> bool:
        """Tell whether it has a diffusion part."""
        return self.kind in CONVERTIBLE

    def as_record(self) -> dict[str, Any]:
        """Return a JSON-safe record."""
        return dataclasses.asdict(self)


def summarise(found: Inspection) -> Summary:
    """Return an inspection in short."""
    diffusion = [part for part in found.components if part.name == DIFFUSION]
    dtypes: dict[str, int] = {}
    for part in diffusion or found.components:
        for dtype, count in part.dtypes.items():
            dtypes[dtype] = dtypes.get(dtype, 0) + count
    return Summary(
        found.container,
        found.kind,
        found.family,
        found.variant,
        found.part,
        found.precision,
        found.form,
        found.prediction,
        found.confidence,
        found.evidence,
        found.name,
        found.header.sha256 if found.header is not None else "",
        sum(part.size_bytes for part in diffusion),
        dtypes,
        {key: str(value).strip() for key, value in found.metadata.items() if key.startswith("luna.")},
    )


def from_record(record: Mapping[str, Any]) -> Summary:
    """Read back what `Summary.as_record` gave.

    Raises:
        KeyError, TypeError, ValueError: it is no such record.
    """
    return Summary(
        **{
            **record,
            "kind": Kind(record["kind"]),
            "form": Form(record["form"]),
            "confidence": Confidence(record["confidence"]),
            "evidence": tuple(record["evidence"]),
        }
    )
