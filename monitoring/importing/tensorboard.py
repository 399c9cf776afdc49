"""TensorBoard's event files: the scalars of one folder's files are one run, in the order of their names.

A tag that goes back to an earlier step, or a ``SessionLog`` START, begins a new attempt. Tags may lag behind others:
steps are held back until a thousand later ones have come. Files that follow each other and have no tag in common are of
writers side by side, of the training and its evaluations, say: they are read together, by step.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from pathlib import Path

from monitoring.importing import Begin, End, Item, Step, Tally, Unreadable, files_of, name_of
from monitoring.tfevents import Event, EventFile

_FIRST = 1000  # events of a file that show its tags
_SIDE_BY_SIDE = 64  # files that are read together, at most
WINDOW = 1000  # steps that wait for what other tags say of them
_OTHER_UNITS = (" vs samples", " vs tokens", " vs gflops")  # Megatron's tags whose steps are none


def read(paths: list[Path], tally: Tally, to: str) -> Iterator[Item]:
    """The attempts in event files."""
    files = [file for file in files_of(paths, ["*tfevents*"]) if not file.parent.name.startswith("lost-attempt-")]
    folders = sorted({file.parent for file in files})
    if not files:
        raise Unreadable(f"no event file (*tfevents*) in {', '.join(map(str, paths))}")
    if len(folders) > 1:
        several = ", ".join(map(str, folders[:5])) + (" ..." if len(folders) > 5 else "")
        raise Unreadable(f"{len(folders)} runs of TensorBoard's: {several}. Import each by itself")
    events = Events(tally)
    for writers in _side_by_side(files):
        yield from events.of(writers)
    yield from events.close()
    if not events.begun:
        raise Unreadable(f"no scalar in {', '.join(file.name for file in files[:5])}")


@dataclass(frozen=True)
class _Writer:
    file: EventFile
    names: frozenset[str]  # of its metrics, as far as its first events show them

    def events(self) -> Iterator[tuple[int, _Writer, Event]]:
        return ((event.step, self, event) for event in self.file)


def _side_by_side(files: Sequence[Path]) -> Iterator[list[_Writer]]:
    found: list[_Writer] = []
    for path in files:
        first = islice(EventFile(path), _FIRST)
        writer = _Writer(EventFile(path), frozenset(name for event in first for name in _values(event)))
        if found and (len(found) == _SIDE_BY_SIDE or any(writer.names & other.names for other in found)):
            yield found
            found = []
        found.append(writer)
    yield found


def _values(event: Event) -> dict[str, float]:
    if event.step < 0:
        return {}
    return {name_of(tag): value for tag, value in event.scalars.items() if not tag.lower().endswith(_OTHER_UNITS)}


class Events:
    """Scalars that come tag by tag, as steps."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self.begun = False
        self._reset()

    def _reset(self) -> None:
        self.open = False
        self.waiting: dict[int, tuple[float, dict[str, float]]] = {}
        self.order: list[int] = []  # a heap of the steps that wait
        self.newest: dict[str, int] = {}  # step of each tag
        self.written = -1
        self.t = getattr(self, "t", 0.0)
        self.tokens: int | None = None

    def of(self, writers: Sequence[_Writer]) -> Iterator[Item]:
        for step, writer, event in heapq.merge(*(writer.events() for writer in writers), key=itemgetter(0)):
            if event.starts and self.open and step <= max(map(self._newest_of, writer.names), default=-1):
                yield from self.close()
            values = _values(event)
            if any(step < self._newest_of(name) for name in values):
                yield from self.close()
            for name, value in values.items():
                yield from self._take(event.t, step, name, value, writer.file.path)
        for writer in writers:
            for _ in range(writer.file.bad):
                self.tally.bad(writer.file.path.name)

    def _newest_of(self, name: str) -> int:
        return self.newest.get(name, -1)

    def _take(self, t: float, step: int, name: str, value: float, path: Path) -> Iterator[Item]:
        if not self.open:
            self.open = self.begun = True
            yield Begin(t, path.name)
        self.t = max(self.t, t)
        self.newest[name] = step
        if step <= self.written:
            self.tally.bad(f"{path.name}: {name} of step {step} came more than {WINDOW} steps late")
            return
        if step not in self.waiting:
            self.waiting[step] = (t, {})
            heapq.heappush(self.order, step)
        self.waiting[step][1][name] = value
        if len(self.order) > WINDOW:
            yield self._next()

    def _next(self) -> Step:
        step = heapq.heappop(self.order)
        t, metrics = self.waiting.pop(step)
        self.written = step
        tokens = metrics.pop("tokens", None)
        if tokens is not None and 0 <= tokens < 1 << 62:
            self.tokens = int(tokens)
        return Step(step, t, metrics, self.tokens)

    def close(self) -> Iterator[Item]:
        """The steps that wait, and the attempt's end."""
        while self.order:
            yield self._next()
        if self.open:
            yield End(self.t)
        self._reset()
