"""What recognition found, and how sure it is."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum


class Confidence(str, Enum):
    """How far keys and shapes decide: see the words in docs/weights.md."""

    CERTAIN = "certain"
    LIKELY = "likely"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A family and its variant. ``possible`` lists what the header cannot tell apart."""

    family: str
    variant: str
    confidence: Confidence
    evidence: tuple[str, ...] = ()
    possible: tuple[str, ...] = ()

    def of(self, family: str, key: str) -> Verdict:
        """Return this verdict for a family that ``key`` decided."""
        return dataclasses.replace(self, family=family, evidence=tuple(dict.fromkeys((key, *self.evidence))))

    def behind(self, family: str, key: str) -> Verdict:
        """Return this verdict with the table row's family, unless a closer look named another."""
        if self.family:
            return dataclasses.replace(self, evidence=tuple(dict.fromkeys((key, *self.evidence))))
        return self.of(family, key)


def certain(variant: str, *evidence: str, possible: tuple[str, ...] = ()) -> Verdict:
    """Return a verdict whose keys leave one answer; ``possible`` are lines of models that share it."""
    return Verdict("", variant, Confidence.CERTAIN, evidence, possible)


def likely(variant: str, possible: tuple[str, ...], *evidence: str) -> Verdict:
    """Return a verdict that takes a documented default among ``possible``."""
    return Verdict("", variant, Confidence.LIKELY, evidence, possible)
