"""What a run's records show that a person should know: a finding has its evidence, and says what to type."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Severity(StrEnum):
    """How soon a person should look."""

    info = "info"  # worth knowing
    warning = "warning"  # costs time, or will cost the run
    critical = "critical"  # computes in vain, or does not compute

    @property
    def rank(self) -> int:
        return list(Severity).index(self)


@dataclass(frozen=True)
class Finding:
    """Something about one run, by one detector."""

    kind: str  # which detector, such as ``loss_spike``
    severity: Severity
    title: str  # in one line
    evidence: str  # the figures that show it
    since: float  # unix seconds
    node: str = ""
    rank: int | None = None
    do: str = ""  # what to type
    about: str = ""  # what of several alike it is about: an expert, a file system

    @property
    def key(self) -> str:
        """The same for one finding at two moments, so that it is told, acknowledged and silenced once."""
        who = [self.node, "" if self.rank is None else f"rank-{self.rank}", self.about]
        return ":".join([self.kind, *(each for each in who if each)])

    def to_json(self) -> dict[str, Any]:
        return {"key": self.key, **asdict(self), "severity": self.severity.value}


def ordered(found: Iterable[Finding]) -> list[Finding]:
    """The worst first, and of those alike the newest."""
    return sorted(found, key=lambda each: (-each.severity.rank, -each.since))


def worst(found: Iterable[Finding]) -> Severity | None:
    return max((each.severity for each in found), key=lambda severity: severity.rank, default=None)
