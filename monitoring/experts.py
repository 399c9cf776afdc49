"""What each expert of each MoE layer was sent, over the curve of a run.

Like the times of ranks, nothing is read before it is first asked for, and then only what is new.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monitoring import compacted, layout
from monitoring.columns import Columns
from monitoring.compacted import Compacted
from monitoring.history import Attempt, History, undone
from monitoring.recorder import metric
from monitoring.tail import RecordTail

if TYPE_CHECKING:
    import pyarrow as pa

METRICS = ("entropy", "dropped")
_OLD_EVERY = 20  # reads between two looks at the files of attempts that have ended


@dataclass(frozen=True)
class ExpertLoads:
    """One layer's loads over the recorded steps of the curve; lost work is not in it."""

    steps: np.ndarray  # (S,) int64, ascending
    share: np.ndarray  # (S, E) float64: tokens of each expert over the fair number, which is 1; NaN where missing
    entropy: np.ndarray  # (S,) of the router, natural logarithm; NaN where missing
    dropped: np.ndarray  # (S,) rows beyond the experts' capacity; NaN where missing


@dataclass
class Loads(Columns):
    """One layer's loads in one attempt, in the order of the file; rows of as many values as there were experts.

    Its metrics are ``entropy`` and ``dropped``.
    """

    ends: array[int] = field(default_factory=lambda: array("q"))  # of each row in ``tokens``
    tokens: array[int] = field(default_factory=lambda: array("q"))

    def take(self, step: int, first: int, load: list[int], record: Mapping[str, Any]) -> None:
        """Take a line: one row, or a further part of the last one."""
        if first:
            begin = self.ends[-2] if len(self.ends) > 1 else 0
            if self.steps and self.steps[-1] == step and len(self.tokens) - begin == first:
                self.tokens.extend(load)
                self.ends[-1] = len(self.tokens)
            return  # else of a row whose beginning is lost
        self.steps.append(step)
        self.times.append(record["t"])
        self.tokens.extend(load)
        self.ends.append(len(self.tokens))
        for name in METRICS:
            if (value := metric(record.get(name))) is not None:
                self.metric(name).set(len(self.steps) - 1, value)

    def rows(self, keep: np.ndarray) -> np.ndarray:
        """(S, E) tokens of the rows that ``keep`` has; NaN beyond the experts of a row that has fewer."""
        ends = np.array(self.ends, np.int64)
        widths = np.diff(ends, prepend=0)
        tokens = np.array(self.tokens, np.float64)
        if not len(ends):
            return np.empty((0, 0))
        if (widths == widths[0]).all():
            return tokens.reshape(len(ends), -1)[keep]
        found = np.full((len(ends), int(widths.max())), np.nan)
        found[np.arange(found.shape[1]) < widths[:, None]] = tokens
        return found[keep]


class _Attempt:
    """The loads that one attempt recorded; of a compacted one, a layer is read when it is asked for."""

    def __init__(self, records: Attempt) -> None:
        self.tail = RecordTail(layout.experts_records(records.folder))
        self.over = False  # its supervisor has said the last word, and all was read after that
        self._layers: dict[int, Loads] = {}
        self._compacted: dict[int, tuple[Compacted, int]] = {}  # by layer: its row group

    def refresh(self, records: Attempt) -> None:
        over = records.info.get("action") is not None
        if over and not self.tail.offset and (found := compacted.opened(records.folder, layout.EXPERTS_COMPACTED)):
            self._compacted = {layer: (found, group) for group, layer in enumerate(found.meta["layers"])}
            self.tail.resume(found.sizes()[self.tail.path.name])
        for found in self.tail.read():
            if found.again:
                self._layers, self._compacted = {}, {}
            said = (record.get("layer") for record in found.items)
            for layer in {layer for layer in said if isinstance(layer, int)} & self._compacted.keys():
                self.loads(layer)  # before what comes after it
            take(found.items, self._layers)
        self.over = over

    def layers(self) -> set[int]:
        return self._layers.keys() | self._compacted.keys()

    def loads(self, layer: int) -> Loads | None:
        if layer in self._compacted:
            file, group = self._compacted[layer]
            try:
                self._layers[layer] = from_table(file.file.read_row_group(group))
                del self._compacted[layer]
            except (OSError, ValueError):  # damaged: the records have it all
                self._layers, self._compacted = {}, {}
                self.tail.resume(0)
                for found in self.tail.read():
                    take(found.items, self._layers)
        return self._layers.get(layer)


def every_layer(attempt: Path) -> Iterator[tuple[int, Loads]]:
    """Each layer of the attempt in a folder and what its experts were sent, lost work included."""
    tail, layers = RecordTail(layout.experts_records(attempt)), dict[int, Loads]()
    if (found := compacted.opened(attempt, layout.EXPERTS_COMPACTED)) is not None:
        with contextlib.suppress(OSError, ValueError):  # damaged: the records have it all
            tables = [from_table(table) for table in compacted.groups(found)]
            layers = dict(zip(found.meta["layers"], tables, strict=True))
            tail.resume(found.sizes()[tail.path.name])
    for increment in tail.read():
        if increment.again:
            layers.clear()
        take(increment.items, layers)
    yield from sorted(layers.items())


def from_table(table: pa.Table) -> Loads:
    """A layer's row group of ``experts.parquet``."""
    import pyarrow as pa

    loads = Loads()
    compacted.fill(loads, table.drop_columns(["layer", "tokens"]))
    for rows in table.column("tokens").chunks:
        before = len(loads.tokens)
        tokens, _ = compacted.present(pa.chunked_array([rows.flatten()]))
        ends, _ = compacted.present(pa.chunked_array([rows.offsets[1:]]))
        loads.tokens.frombytes(tokens.tobytes())
        loads.ends.frombytes((ends.astype(np.int64) - rows.offsets[0].as_py() + before).tobytes())
    return loads


def take(items: list[dict[str, Any]], layers: dict[int, Loads]) -> None:
    """Add records of experts to the loads of their layers."""
    for record in items:
        if record["kind"] != "experts":
            continue
        step, layer, first = (record.get(name) for name in ("step", "layer", "first"))
        load = record.get("load")
        if not (isinstance(load, list) and load and set(map(type, load)) == {int}):
            continue
        if not all(type(n) is int and 0 <= n < 1 << 62 for n in (step, layer, first, min(load), max(load))):
            continue
        assert isinstance(layer, int) and isinstance(step, int) and isinstance(first, int)
        if (loads := layers.get(layer)) is None:
            loads = layers[layer] = Loads()
        loads.take(step, first, load, record)


class Experts:
    """The loads of all experts of a run; each call takes in what was written since the last one.

    Args:
        run: the run's folder.
        history: of the same run, where somebody reads it anyway and keeps it fresh; None: one of its own.
    """

    def __init__(self, run: Path, history: History | None = None) -> None:
        self._own = history is None
        self._history = History(run) if history is None else history
        self._attempts: dict[int, _Attempt] = {}
        self._reads = 0

    def layers(self) -> list[int]:
        """The layers of which there are records, ascending."""
        self._refresh()
        return sorted({layer for attempt in self._attempts.values() for layer in attempt.layers()})

    def read(self, layer: int) -> ExpertLoads:
        """One layer over the curve; empty for one of which there are no records."""
        self._refresh()
        parts = []
        for number, attempt in self._attempts.items():
            if (loads := attempt.loads(layer)) is not None:
                parts.append((loads, ~undone(np.array(loads.steps, np.int64), self._history.cut(number))))
        rows = [loads.rows(keep) for loads, keep in parts]
        width = max((each.shape[1] for each in rows), default=0)
        tokens = [np.pad(each, ((0, 0), (0, width - each.shape[1])), constant_values=np.nan) for each in rows]
        return ExpertLoads(
            steps=np.concatenate(
                [np.empty(0, np.int64), *(np.array(each.steps, np.int64)[keep] for each, keep in parts)]
            ),
            share=_shares(np.concatenate([np.empty((0, width)), *tokens])),
            entropy=np.concatenate([np.empty(0), *(each.column("entropy")[keep] for each, keep in parts)]),
            dropped=np.concatenate([np.empty(0), *(each.column("dropped")[keep] for each, keep in parts)]),
        )

    def _refresh(self) -> None:
        if self._own:
            self._history.refresh()
        old = self._reads % _OLD_EVERY == 0
        self._reads += 1
        attempts = self._history.attempts
        self._attempts = {each.number: self._attempts.get(each.number) or _Attempt(each) for each in attempts}
        for records in attempts:
            found = self._attempts[records.number]
            if old or not found.over:
                found.refresh(records)


def _shares(tokens: np.ndarray) -> np.ndarray:
    """Each expert's tokens over the mean of its row; 0 where nothing was sent at all."""
    if not tokens.size:
        return tokens
    fair = np.nansum(tokens, axis=1, keepdims=True) / np.maximum(1, (~np.isnan(tokens)).sum(axis=1, keepdims=True))
    return np.divide(tokens, fair, out=np.where(np.isnan(tokens), np.nan, 0.0), where=fair > 0)
