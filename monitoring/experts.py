"""What each expert of each MoE layer was sent, over the curve of a run.

Like the times of ranks, nothing is read before it is first asked for, and then only what is new.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from monitoring import layout
from monitoring.history import Attempt, History, undone
from monitoring.recorder import metric
from monitoring.tail import RecordTail

_OLD_EVERY = 20  # reads between two looks at the files of attempts that have ended


@dataclass(frozen=True)
class ExpertLoads:
    """One layer's loads over the recorded steps of the curve; lost work is not in it."""

    steps: np.ndarray  # (S,) int64, ascending
    share: np.ndarray  # (S, E) float64: tokens of each expert over the fair number, which is 1; NaN where missing
    entropy: np.ndarray  # (S,) of the router, natural logarithm; NaN where missing
    dropped: np.ndarray  # (S,) rows beyond the experts' capacity; NaN where missing


@dataclass
class Loads:
    """One layer's loads in one attempt, in the order of the file; rows of as many values as there were experts."""

    steps: array[int] = field(default_factory=lambda: array("q"))
    ends: array[int] = field(default_factory=lambda: array("q"))  # of each row in ``tokens``
    tokens: array[int] = field(default_factory=lambda: array("q"))
    entropy: array[float] = field(default_factory=lambda: array("d"))
    dropped: array[float] = field(default_factory=lambda: array("d"))

    def add(self, step: int, first: int, load: list[int], record: dict[str, Any]) -> None:
        """Take a line: one row, or a further part of the last one."""
        if first:
            begin = self.ends[-2] if len(self.ends) > 1 else 0
            if not self.steps or self.steps[-1] != step or len(self.tokens) - begin != first:
                return  # of a row whose beginning is lost
            self.tokens.extend(load)
            self.ends[-1] = len(self.tokens)
            return
        entropy, dropped = metric(record.get("entropy")), metric(record.get("dropped"))
        self.steps.append(step)
        self.tokens.extend(load)
        self.ends.append(len(self.tokens))
        self.entropy.append(np.nan if entropy is None else entropy)
        self.dropped.append(np.nan if dropped is None else dropped)

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
    """The loads that one attempt recorded."""

    def __init__(self, records: Attempt) -> None:
        self.tail = RecordTail(layout.experts_records(records.folder))
        self.layers: dict[int, Loads] = {}
        self.over = False  # its supervisor has said the last word, and all was read after that

    def refresh(self, records: Attempt) -> None:
        over = records.info.get("action") is not None
        for found in self.tail.read():
            if found.again:
                self.layers = {}
            take(found.items, self.layers)
        self.over = over


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
        loads.add(step, first, load, record)


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
        return sorted({layer for attempt in self._attempts.values() for layer in attempt.layers})

    def read(self, layer: int) -> ExpertLoads:
        """One layer over the curve; empty for one of which there are no records."""
        self._refresh()
        parts = []
        for number, attempt in self._attempts.items():
            if (loads := attempt.layers.get(layer)) is not None:
                parts.append((loads, ~undone(np.array(loads.steps), self._history.cut(number))))
        rows = [loads.rows(keep) for loads, keep in parts]
        width = max((each.shape[1] for each in rows), default=0)
        tokens = [np.pad(each, ((0, 0), (0, width - each.shape[1])), constant_values=np.nan) for each in rows]
        return ExpertLoads(
            steps=np.concatenate([np.empty(0, np.int64), *(np.array(each.steps)[keep] for each, keep in parts)]),
            share=_shares(np.concatenate([np.empty((0, width)), *tokens])),
            entropy=np.concatenate([np.empty(0), *(np.array(each.entropy)[keep] for each, keep in parts)]),
            dropped=np.concatenate([np.empty(0), *(np.array(each.dropped)[keep] for each, keep in parts)]),
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
