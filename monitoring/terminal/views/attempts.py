"""Where a run's time went: a bar of all of it, each attempt with its cause, and what the past lets expect."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Sequence

import numpy as np
from rich.text import Text

from monitoring.attempts import settled
from monitoring.goodput import Bucket, Span
from monitoring.snapshot import Attempt, Snapshot
from monitoring.terminal.plain import finish, goodput
from monitoring.terminal.screen import DIM
from monitoring.terminal.view import Key, Opens, RunView, empty
from monitoring.terminal.watched import Watched
from monitoring.text import clean
from monitoring.words import clock, duration, plural

# A letter for those who see no colour.
LOOKS = {
    Bucket.queue: ("Q", "black on yellow"),
    Bucket.hold: ("H", "black on bright_yellow"),
    Bucket.startup: ("S", "black on cyan"),
    Bucket.training: ("T", "black on green"),
    Bucket.evaluation: ("E", "black on bright_cyan"),
    Bucket.checkpoint: ("C", "white on blue"),
    Bucket.repeated: ("R", "white on red"),
    Bucket.ending: ("G", "white on magenta"),
    Bucket.stopped: ("X", "reverse"),
    Bucket.unknown: ("?", "dim"),
}
GOOD = ("running", "finished")


class Attempts(RunView):
    title = "attempts"
    keys = (
        Key("up", "before", "The attempt before, after: its evidence is shown in full.", shown=False),
        Key("down", "next", shown=False),
        Key("z", "zoom", "The bar shows the chosen attempt alone, or the whole run."),
    )

    def __init__(self, watched: Watched) -> None:
        super().__init__(watched)
        self._chosen: int | None = None  # an attempt's number; None: the newest
        self._zoomed = False
        self._listed: tuple[int, list[int]] = (0, [])  # the first row of the list, the attempts in it

    def body(self, snapshot: Snapshot, width: int, height: int, *, unicode: bool) -> list[Text]:
        spans = snapshot.outlook.spans
        attempts = settled(snapshot)
        if not spans and not attempts:
            return empty("no attempt yet", height)
        chosen = next((a for a in attempts if a.number == self._chosen), None) or next(reversed(attempts), None)
        seen = spans
        if self._zoomed and chosen is not None:
            seen = tuple(span for span in spans if span.attempt == chosen.number) or spans
        rows = [Text(), *bar(seen, snapshot.now, width), *legend(seen, width), Text()]
        judged = [("goodput", goodput(snapshot)), ("finish", finish(snapshot)), ("expected", _expected(snapshot))]
        for label, text in judged:
            if text:
                lines = textwrap.wrap(text, max(20, width - 12))
                rows += [Text.assemble((f" {label if not n else '':<10}", DIM), line) for n, line in enumerate(lines)]
        rows.append(Text())
        detail = _detail(chosen, snapshot.now, width) if chosen is not None else []
        room = max(2, height - len(rows) - len(detail) - 1)
        listed = _around(attempts, chosen, room)
        rows.append(Text(f"  {'n':>3} {'job':<10}{'began':<13}{'lasted':>9}  {'steps':<16}cause", "bold"))
        self._listed = (len(rows), [attempt.number for attempt in listed])
        rows += [_row(attempt, snapshot.now, attempt is chosen, width) for attempt in listed]
        return [*rows, *detail]

    def press(self, key: str) -> Opens | None:
        snapshot = self.watched.snapshot
        if key == "z":
            self._zoomed = not self._zoomed
        elif key in ("up", "down") and snapshot is not None and snapshot.attempts:
            numbers = [attempt.number for attempt in snapshot.attempts]
            place = numbers.index(self._chosen) if self._chosen in numbers else len(numbers) - 1
            self._chosen = numbers[max(0, min(len(numbers) - 1, place + (1 if key == "down" else -1)))]
        return None

    def click(self, x: int, y: int, *, double: bool) -> Opens | None:
        first, numbers = self._listed
        if 0 <= (place := y - self.top - first) < len(numbers):
            self._chosen = numbers[place]
        return None

    def scroll(self, x: int, y: int, by: int) -> None:
        self.press("down" if by > 0 else "up")


def bar(spans: Sequence[Span], now: float, width: int) -> list[Text]:
    """The time from left to right: of each column the bucket that took most of it."""
    if not spans or spans[-1].end <= spans[0].begin:
        return []
    cells = max(10, width - 2)
    begin, end = spans[0].begin, spans[-1].end
    edges = np.linspace(begin, end, cells + 1)
    buckets = list(LOOKS)
    taken = np.zeros((len(buckets), cells))
    for span in spans:
        taken[buckets.index(span.bucket)] += np.clip(
            np.minimum(edges[1:], span.end) - np.maximum(edges[:-1], span.begin), 0, None
        )
    row = Text(" ")
    for most in taken.argmax(axis=0).tolist():
        row.append(*LOOKS[buckets[most]])
    left, right = clock(begin, now), clock(end, now)
    return [row, Text(f" {left}{right.rjust(cells - len(left))}", DIM)]


def legend(spans: Sequence[Span], width: int) -> list[Text]:
    """Each bucket that took any time, with how much."""
    total = sum(span.seconds for span in spans)
    rows, row = [], Text()
    for bucket, (letter, style) in LOOKS.items():
        spent = sum(span.seconds for span in spans if span.bucket is bucket)
        if spent <= 0:
            continue
        part = Text(" ")
        part.append(letter, style)
        part.append(f" {bucket.value} {duration(spent)} ")
        part.append(f"{spent / total:.0%} ", DIM)
        if row.cell_len + part.cell_len > width:
            rows, row = [*rows, row], Text()
        row += part
    return [*rows, row]


def _expected(snapshot: Snapshot) -> str:
    """What failures and checkpoints so far let expect."""
    found = snapshot.outlook
    parts = [plural(found.failures, "failure")] if found.failures else []
    parts += [f"one each {duration(found.mtbf)} on nodes"] if found.mtbf is not None else []
    parts += [f"{duration(found.restart)} to start again"] if found.restart is not None else []
    parts += [f"a checkpoint each {duration(found.interval)}"] if found.interval is not None else []
    if found.best_interval is not None and found.failures:
        parts.append(f"each {duration(found.best_interval)} would lose least")
    if found.expected is not None:
        parts.append(f"training {found.expected:.1%} of the time on nodes")
    return ", ".join(parts)


def _row(attempt: Attempt, now: float, chosen: bool, width: int) -> Text:
    row = Text(">" if chosen else " ")
    row.append(f" {attempt.number:>3} {clean(attempt.job_id or '')[:9]:<10}")
    began = "" if attempt.began is None else time.strftime("%m-%d %H:%M", time.localtime(attempt.began))
    lasted = (
        "" if attempt.began is None else duration((now if attempt.ended is None else attempt.ended) - attempt.began)
    )
    row.append(f"{began:<13}{lasted:>9}  ")
    steps = "no step" if attempt.first_step is None else f"{attempt.first_step:,}-{attempt.last_step:,}"
    row.append(f"{steps:<16}")
    cause = _cause(attempt)
    row.append(cause, "green" if cause in GOOD else "yellow")
    if attempt.lost_steps:
        row.append(f", {plural(attempt.lost_steps, 'step')} lost", "red")
    if chosen:
        row.stylize("bold")
    return row


def _cause(attempt: Attempt) -> str:
    return clean(attempt.cause or "running").replace("_", " ")


def _detail(attempt: Attempt, now: float, width: int) -> list[Text]:
    """One attempt in full."""
    lines = [f"attempt {attempt.number}: {_cause(attempt)}"]
    if attempt.resumed_from:
        lines[0] += f", went on from step {attempt.resumed_from:,}"
    if attempt.world_size:
        lines[0] += f", {plural(attempt.world_size, 'rank')}"
    if attempt.nodes:
        lines.append(f"on {', '.join(map(clean, attempt.nodes))}")
    if attempt.evidence:
        lines.append(" ".join(clean(line) for line in attempt.evidence.splitlines()))
    folded = [part for line in lines for part in textwrap.wrap(line, max(20, width - 2))[:4]]
    return [Text(), *(Text(f" {line}") for line in folded)]


def _around(attempts: Sequence[Attempt], chosen: Attempt | None, room: int) -> Sequence[Attempt]:
    """As many as there is room for, the chosen one among them."""
    place = attempts.index(chosen) if chosen is not None else 0
    first = max(0, min(place - room // 2, len(attempts) - room))
    return attempts[first : first + room]
