"""What is wrong with a run, or worth knowing: with evidence, and what to type."""

from __future__ import annotations

import textwrap

from rich.text import Text

from monitoring.findings import Finding, ordered
from monitoring.snapshot import Snapshot
from monitoring.terminal.screen import DIM, SEVERITY_STYLES
from monitoring.terminal.scroll import Scroll
from monitoring.terminal.view import Key, Opens, RunView, empty
from monitoring.terminal.watched import Watched
from monitoring.text import clean
from monitoring.words import clock, duration


class Findings(RunView):
    title = "findings"
    keys = (
        Key("up", "before", "The finding before, after.", shown=False),
        Key("down", "next", shown=False),
    )

    def __init__(self, watched: Watched) -> None:
        super().__init__(watched)
        self._scroll = Scroll()

    def body(self, snapshot: Snapshot, width: int, height: int, *, unicode: bool) -> list[Text]:
        found = ordered(snapshot.findings)
        if not found:
            return empty("nothing found: the records show no trouble", height)
        rows: list[Text] = []
        for finding in found:
            rows += _finding(finding, snapshot, width)
        return self._scroll.part(rows, height)

    def press(self, key: str) -> Opens | None:
        self._scroll.press(key)
        return None

    def scroll(self, x: int, y: int, by: int) -> None:
        self._scroll.by(3 * by)


def _finding(finding: Finding, snapshot: Snapshot, width: int) -> list[Text]:
    """What it is, since when and where; the figures that show it; what to type."""
    now = snapshot.now
    row = Text(" ")
    row.append(f" {finding.severity.value} ", DIM if finding.silenced else SEVERITY_STYLES[finding.severity])
    row.append(f" {clean(finding.title)}", "" if finding.silenced else "bold")
    row.append(" (silenced)" if finding.silenced else "", DIM)
    who = [clean(finding.node)] if finding.node else []
    who += [f"rank {finding.rank}"] if finding.rank is not None else []
    since = f"since {clock(finding.since, now)}, {duration(now - finding.since)} ago"
    rows = [row, Text("   " + " · ".join([since, *who]), DIM)]
    rows += [Text(f"   {line}") for line in textwrap.wrap(clean(finding.evidence), max(20, width - 4))]
    if finding.do:
        rows += [Text(f"   type: {line}", "cyan") for line in map(clean, finding.do.splitlines())]
    if not finding.silenced:
        quiet = f"hpc findings {snapshot.id} --silence {finding.key}"
        rows.append(Text(f"   to hear no more of it: {clean(quiet)}", DIM))
    return [*rows, Text()]
