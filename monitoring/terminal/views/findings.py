"""What is wrong with a run, or worth knowing: with evidence, and what to type. A person says here that it was seen."""

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
        Key("a", "seen", "Acknowledge the chosen one: quiet for a week unless it gets worse; or take it back."),
        Key("x", "silence", "Hear no more of the chosen one; or hear of it again."),
        Key("up", "before", "The finding before, after.", shown=False),
        Key("down", "next", shown=False),
    )

    def __init__(self, watched: Watched) -> None:
        super().__init__(watched)
        self._scroll = Scroll()
        self._chosen: str | None = None  # its key
        self._begins: list[tuple[int, str]] = []  # the row of each, and its key
        self._height = 1

    def body(self, snapshot: Snapshot, width: int, height: int, *, unicode: bool) -> list[Text]:
        found = ordered(snapshot.findings)
        if not found:
            return empty("nothing found: the records show no trouble", height)
        if self._chosen not in {finding.key for finding in found}:
            self._chosen = found[0].key
        rows: list[Text] = []
        self._begins, self._height = [], height
        for finding in found:
            self._begins.append((len(rows), finding.key))
            rows += _finding(finding, snapshot, width, chosen=finding.key == self._chosen)
        return self._scroll.part(rows, height)

    def press(self, key: str) -> Opens | None:
        place = next((n for n, (_, each) in enumerate(self._begins) if each == self._chosen), None)
        if key in ("up", "down") and place is not None:
            self._choose(max(0, min(len(self._begins) - 1, place + (1 if key == "down" else -1))))
        elif key in ("a", "x"):
            self._quieten(key)
        else:
            self._scroll.press(key)
        return None

    def _choose(self, place: int) -> None:
        """Choose one and bring it into sight."""
        begin, self._chosen = self._begins[place]
        end = self._begins[place + 1][0] if place + 1 < len(self._begins) else begin + 5
        self._scroll.first = max(min(self._scroll.first, begin), end - self._height + 1, 0)

    def _quieten(self, key: str) -> None:
        snapshot = self.watched.snapshot
        finding = next((f for f in snapshot.findings if f.key == self._chosen), None) if snapshot is not None else None
        if finding is not None:
            self.watched.quieten(finding, "speak" if finding.silenced else "acknowledge" if key == "a" else "silence")
            self.watched.refresh(again=True)

    def click(self, x: int, y: int, *, double: bool) -> Opens | None:
        row = self._scroll.first + y - self.top
        places = [n for n, (begin, _) in enumerate(self._begins) if begin <= row]
        if places and y >= self.top:
            self._chosen = self._begins[places[-1]][1]
        return None

    def scroll(self, x: int, y: int, by: int) -> None:
        self._scroll.by(3 * by)


def _finding(finding: Finding, snapshot: Snapshot, width: int, *, chosen: bool) -> list[Text]:
    """What it is, since when and where; the figures that show it; what to type."""
    now = snapshot.now
    row = Text(">" if chosen else " ", "bold")
    row.append(f" {finding.severity.value} ", DIM if finding.silenced else SEVERITY_STYLES[finding.severity])
    row.append(f" {clean(finding.title)}", DIM if finding.silenced else "bold")
    if finding.silenced:
        row.append(" (seen)" if finding.acknowledged else " (silenced)", DIM)
    who = [clean(finding.node)] if finding.node else []
    who += [f"rank {finding.rank}"] if finding.rank is not None else []
    since = f"since {clock(finding.since, now)}, {duration(now - finding.since)} ago"
    rows = [row, Text("   " + " · ".join([since, *who]), DIM)]
    rows += [Text(f"   {line}") for line in textwrap.wrap(clean(finding.evidence), max(20, width - 4))]
    if finding.do:
        typed = textwrap.wrap(
            f"type: {clean(finding.typed(snapshot.id))}", width - 4, subsequent_indent="      ", break_on_hyphens=False
        )
        rows += [Text(f"   {line}", "cyan") for line in typed]
    return [*rows, Text()]
