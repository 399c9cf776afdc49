"""What a run's records show that a person should know: a finding has its evidence, and says what to type."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, Literal

# What people say to a finding: they have seen it, want no more of it, or want to hear of it again.
Quiet = Literal["acknowledge", "silence", "speak"]


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
    silenced: bool = False  # a person wants to hear no more of it
    acknowledged: bool = False  # so it is silenced because somebody has seen it, until it gets worse

    @property
    def key(self) -> str:
        """The same for one finding at two moments, so that it is told, acknowledged and silenced once."""
        who = [self.node, "" if self.rank is None else f"rank-{self.rank}", self.about]
        return ":".join([self.kind, *(each for each in who if each)])

    @property
    def headline(self) -> str:
        """The title, with the node where that does not name it."""
        return self.title if not self.node or self.node in self.title else f"{self.title} on {self.node}"

    def typed(self, run: str) -> str:
        """What to type about it for the run with this id."""
        return re.sub(r"\bRUN\b", lambda _: run, self.do)

    def to_json(self) -> dict[str, Any]:
        return {"key": self.key, **asdict(self), "severity": self.severity.value}


def ordered(found: Iterable[Finding]) -> list[Finding]:
    """The worst first, and of those alike the newest; what was silenced at the end."""
    return sorted(found, key=lambda each: (each.silenced, -each.severity.rank, -each.since))


def worst(found: Iterable[Finding]) -> Severity | None:
    """The highest severity of those that were not silenced."""
    severities = (each.severity for each in found if not each.silenced)
    return max(severities, key=lambda severity: severity.rank, default=None)


def silenced(found: Iterable[Finding], known: Mapping[str, Any], now: float) -> list[Finding]:
    """The findings, ordered, those marked of which a person wants to hear no more.

    Args:
        known: what ``silenced.json`` of a run says: by key or kind ``{"until": unix seconds, or null for good}``; with
            ``"severity"`` somebody has acknowledged what was so bad, and only what got worse is told again.
    """

    def judged(finding: Finding) -> Finding:
        entries = [known[name] for name in (finding.key, finding.kind) if isinstance(known.get(name), dict)]
        holds = [entry for entry in entries if _holds(entry, finding, now)]
        return replace(finding, silenced=bool(holds), acknowledged=bool(holds) and all("severity" in e for e in holds))

    return ordered(judged(finding) for finding in found)


def _holds(entry: Mapping[str, Any], finding: Finding, now: float) -> bool:
    until, severity = entry.get("until"), entry.get("severity")
    if isinstance(until, int | float) and now >= until:
        return False
    return severity not in list(Severity) or finding.severity.rank <= Severity(severity).rank
