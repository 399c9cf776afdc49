"""How long the steps of each rank took, over the curve of a run: what names a straggler and its node.

All ranks of a synchronous training take the same time for a step, as they wait for each other. Who is waited for shows
in a part of the step that a rank does alone, so each part that ranks tell of can be looked at like the whole.

Reads the records of all ranks, hundreds of megabytes in a long run. So nothing is read before it is first asked for,
and then only what is new.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from monitoring import compacted, layout
from monitoring.columns import Columns, Samples
from monitoring.findings import Finding
from monitoring.history import Attempt, History, undone, unwritten
from monitoring.problems import Trouble
from monitoring.tail import RecordTail

if TYPE_CHECKING:
    import pyarrow as pa

STEP = "step_s"
ALONE = ("data_s", "optimizer_s")  # in which a rank waits for no other
PARTS = (STEP, "data_s", "forward_s", "backward_s", "communication_s", "optimizer_s")
_OLD_EVERY = 20  # reads between two looks at the files of attempts that have ended


@dataclass(frozen=True)
class RankTimes:
    """Seconds of steps, or of a part of them, by rank over the steps of the curve that ranks told of.

    Lost work is not in it.
    """

    steps: np.ndarray  # (S,) int64, ascending
    ranks: tuple[int, ...]  # R of them, ascending; also one that never wrote
    nodes: tuple[str, ...]  # of each rank in the newest attempt; "" where nobody said it
    seconds: np.ndarray  # (R, S) float64, NaN where it is missing
    attempts: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # (S,) who made the step
    part: str = STEP  # of PARTS: what took the seconds
    step_s: np.ndarray = field(default_factory=lambda: np.empty(0))  # (S,) seconds of the whole step, by rank 0

    def late(self, *, of_run: bool = False) -> np.ndarray:
        """(R, S): how much later a rank is done than the median rank, in steps, and 1: what 0.2 of a step costs is 1.2.

        Of the whole step that is its time over the median.

        Args:
            of_run: against the median of all steps; else against that of the same step.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a step, or a part, of which no rank told
            usual = np.nanmedian(self.seconds) if of_run else np.nanmedian(self.seconds, axis=0)
            whole = usual if self.part == STEP else np.nanmedian(self.step_s) if of_run else self.step_s
            return 1 + (self.seconds - usual) / whole

    def recent(self, most: int = 20) -> tuple[np.ndarray, np.ndarray]:
        """((R,) seconds, (R,) how late): the median of the newest attempt's last steps, by which ranks are judged."""
        of_newest = np.flatnonzero(self.attempts == self.attempts[-1])[-most:] if len(self.attempts) else []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a rank that recorded nothing
            seconds, late = (np.nanmedian(each[:, of_newest], axis=1) for each in (self.seconds, self.late()))
        return seconds, late


class RankFile:
    """The ``rank`` records of one rank in one attempt.

    Args:
        only: the metrics that are kept; None: all.
    """

    kind, parquet = "rank", layout.RANKS_COMPACTED
    make: type[Columns] = Columns

    def __init__(self, path: Path, only: Collection[str] | None = None) -> None:
        self.tail = RecordTail(path, kinds=(self.kind, "dropped"))
        self.columns = self.make(only=only)
        self.dropped = 0  # records that the rank could not write
        self._unread = 0

    @property
    def bad(self) -> int:
        """Lines that could not be read as records."""
        return self.tail.bad + self._unread

    @property
    def trouble(self) -> Trouble:
        return Trouble(self.tail.newer, self.tail.error, self.bad, self.dropped)

    def refresh(self) -> bool:
        """Take what is new; whether there was anything."""
        changed = False
        for found in self.tail.read():
            if found.again:
                self.columns, self.dropped, self._unread = self.make(only=self.columns.only), 0, 0
            records = [record for record in found.items if record["kind"] == self.kind]
            if len(records) < len(found.items):
                self.dropped += sum(unwritten(record) for record in found.items if record["kind"] == "dropped")
            self._unread += self.columns.extend(records)
            changed |= found.again or bool(records)
        return changed


class DeviceFile(RankFile):
    """The ``device`` records of one rank in one attempt."""

    kind, parquet = "device", layout.DEVICES_COMPACTED
    make = Samples


def every_rank(
    attempt: Path, kind: type[RankFile] = RankFile, only: Collection[str] | None = None
) -> Iterator[tuple[int, Columns]]:
    """Each rank of the attempt in a folder and what it recorded, lost work included."""
    known = _compacted(attempt, kind, only)
    for rank in layout.recorded_ranks(attempt):
        file = known.get(rank) or kind(layout.rank_records(attempt, rank), only)
        file.refresh()
        yield rank, file.columns


def _compacted(attempt: Path, kind: type[RankFile], only: Collection[str] | None = None) -> dict[int, RankFile]:
    """Files of ranks that hold what of them was compacted, and go on behind it; empty where nothing was."""
    if (found := compacted.opened(attempt, kind.parquet)) is None:
        return {}
    wanted = None if only is None else ("rank", "step", "t", *only)
    try:
        columns = dict(from_table(table, kind.make(only=only)) for table in compacted.groups(found, wanted))
    except (OSError, ValueError):  # damaged: the records have it all
        return {}
    files, sizes = dict[int, RankFile](), found.sizes()
    for rank in layout.recorded_ranks(attempt):
        path = layout.rank_records(attempt, rank)
        if path.name in sizes:  # also of a rank without a row: nothing of the kind is in so much of its file
            files[rank] = file = kind(path, only)
            file.columns = columns.get(rank, file.columns)
            file.dropped, file.tail.bad = (found.meta.get(each, {}).get(str(rank), 0) for each in ("dropped", "bad"))
            file.tail.resume(sizes[path.name])
    return files


def from_table(table: pa.Table, columns: Columns) -> tuple[int, Columns]:
    """The rank of a row group, and ``columns`` with what is in it."""
    compacted.fill(columns, table.drop_columns(["rank"]))
    return table.column("rank")[0].as_py(), columns


@dataclass(frozen=True)
class _Part:
    """What one attempt has to show."""

    steps: np.ndarray
    seconds: dict[int, np.ndarray]  # rank -> a value for each of the steps
    step_s: np.ndarray  # of the whole step, by rank 0


class _Attempt:
    """The files of all ranks but 0 of one attempt, and what of them is on the curve."""

    def __init__(self, part: str) -> None:
        self.ranks: dict[int, RankFile] = {}
        self._shown = (part,)
        self.over = False  # its supervisor has said the last word, and all was read after that
        self._made: tuple[object, _Part] | None = None

    def refresh(self, records: Attempt) -> None:
        over = records.info.get("action") is not None
        if over and not self.ranks:
            known = _compacted(records.folder, RankFile, self._shown)
            self.ranks = {rank: file for rank, file in known.items() if rank}
        for rank in layout.recorded_ranks(records.folder):
            if rank and rank not in self.ranks:
                self.ranks[rank] = RankFile(layout.rank_records(records.folder, rank), only=self._shown)
        changed = [rank.refresh() for rank in self.ranks.values()]
        if any(changed):
            self._made = None
        records.troubles = {rank: file.trouble for rank, file in self.ranks.items()}
        self.over = over

    def part(self, records: Attempt, cut: int | None) -> _Part:
        own = [stretch for stretch in records.stretches if stretch.kept]
        key = (cut, [(id(stretch), stretch.kept) for stretch in own])
        if self._made is None or self._made[0] != key:
            self._made = key, self._make(records, cut)
        return self._made[1]

    def _make(self, records: Attempt, cut: int | None) -> _Part:
        kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for rank, found in self.ranks.items():
            steps, seconds = np.array(found.columns.steps, np.int64), found.columns.column(*self._shown)
            rows = ~undone(steps, cut)
            if rows.any():
                kept[rank] = steps[rows], seconds[rows]
        zero = _of_rank_0(records, *self._shown)
        if kept:
            steps = _union([steps for steps, _ in kept.values()])
        else:
            steps = zero[0]
        placed = {rank: _placed(steps, *each) for rank, each in kept.items()}
        whole = _placed(steps, *_of_rank_0(records, STEP))
        return _Part(steps, {0: _placed(steps, *zero), **placed}, whole)


class Ranks:
    """The times of all ranks of a run; ``read`` takes in what was written since it was last called.

    Args:
        run: the run's folder.
        history: of the same run, where somebody reads it anyway and keeps it fresh; None: one of its own.
        part: of ``PARTS``, what is asked for.
    """

    def __init__(self, run: Path, history: History | None = None, part: str = STEP) -> None:
        self.part = part
        self._own = history is None
        self._history = History(run) if history is None else history
        self._attempts: dict[int, _Attempt] = {}
        self._reads = 0

    def read(self) -> RankTimes:
        history = self._history
        if self._own:
            history.refresh()
        old = self._reads % _OLD_EVERY == 0
        self._reads += 1
        self._attempts = {
            each.number: self._attempts.get(each.number) or _Attempt(self.part) for each in history.attempts
        }
        parts: list[tuple[int, _Part]] = []
        for records in history.attempts:
            files = self._attempts[records.number]
            if old or not files.over:
                files.refresh(records)
            parts.append((records.number, files.part(records, history.cut(records.number))))
        return _joined(self.part, parts, history.attempts[-1] if history.attempts else None)


def parts_told(history: History) -> list[str]:
    """Of which parts of a step the ranks of a run tell."""
    known = history.names()
    return [part for part in PARTS if part == STEP or part in known]


def straggling(findings: Iterable[Finding]) -> str | None:
    """The part of a step in which a straggler was found; None where there is none."""
    found = (f"{each.about}_s" for each in findings if each.kind == "straggler" and not each.silenced)
    return next((part for part in found if part in PARTS), None)


def _joined(shown: str, parts: list[tuple[int, _Part]], newest: Attempt | None) -> RankTimes:
    size = world_size(newest) if newest else 0
    ranks = sorted({*range(size), *(rank for _, part in parts for rank in part.seconds)})
    found = np.full((len(ranks), sum(len(part.steps) for _, part in parts)), np.nan)
    row, begin = {rank: i for i, rank in enumerate(ranks)}, 0
    for _, part in parts:
        end = begin + len(part.steps)
        for rank, seconds in part.seconds.items():
            found[row[rank], begin:end] = seconds
        begin = end
    nothing = np.empty(0, np.int64)
    return RankTimes(
        steps=np.concatenate([nothing, *(part.steps for _, part in parts)]),
        ranks=tuple(ranks),
        nodes=tuple(node_of(newest, rank) for rank in ranks),
        seconds=found,
        attempts=np.concatenate([nothing, *(np.full(len(part.steps), number) for number, part in parts)]),
        part=shown,
        step_s=np.concatenate([np.empty(0), *(part.step_s for _, part in parts)]),
    )


def world_size(attempt: Attempt) -> int:
    """How many ranks an attempt has; 0 where nobody said it."""
    return attempt.info.get("world_size") or attempt.header.get("world_size") or 0


def node_of(attempt: Attempt | None, rank: int) -> str:
    """Where a rank runs: each node has as many ranks as the others, and they are counted node by node."""
    nodes = attempt.info.get("nodes") if attempt else None
    if attempt is None or not nodes:
        return ""
    each = world_size(attempt) // len(nodes)
    return nodes[rank // each] if each and rank // each < len(nodes) else ""


def _of_rank_0(records: Attempt, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Its steps on the curve and their seconds, which it records with every step."""
    own = [stretch for stretch in records.stretches if stretch.kept]
    steps = [np.array(stretch.steps[: stretch.kept]) for stretch in own]
    seconds = [stretch.column(part)[: stretch.kept] for stretch in own]
    return np.concatenate([np.empty(0, np.int64), *steps]), np.concatenate([np.empty(0), *seconds])


def _union(found: list[np.ndarray]) -> np.ndarray:
    first = found[0]
    if all(steps is first or np.array_equal(steps, first) for steps in found):
        return first
    return np.unique(np.concatenate(found))


def _placed(steps: np.ndarray, own: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A value for each of ``steps``, NaN where ``own`` has none."""
    if np.array_equal(steps, own):
        return values
    found = np.full(len(steps), np.nan)
    if len(own):
        place = np.minimum(np.searchsorted(own, steps), len(own) - 1)
        hit = own[place] == steps
        found[hit] = values[place[hit]]
    return found
