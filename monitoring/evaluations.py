"""What was measured of a run's checkpoints, from ``evaluations/step-<n>.json`` of its folder; ``hpc evaluate`` writes
these."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from monitoring import fields, layout
from monitoring.history import Series, read_json
from monitoring.recorder import metric

MOST = 700.0  # the exponential of more is no float
LOSS = "checkpoint_loss"  # the series of them; ``checkpoint_loss/<source>`` that of one source


@dataclass(frozen=True)
class Evaluation:
    """A checkpoint on held-out text; losses are mean cross-entropies of a token, natural logarithm."""

    step: int
    loss: float
    tokens: int | None = None  # that were predicted
    trained_tokens: int | None = None
    by_source: Mapping[str, float] = field(default_factory=dict)  # the loss of each

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if not self.loss > MOST else math.inf


class Evaluations:
    """Those of one run; ``refresh`` reads the files that are new or others than before."""

    def __init__(self, run: Path) -> None:
        self.run = Path(run)
        self._known: dict[int, tuple[tuple[int, ...], Evaluation | None]] = {}

    def refresh(self) -> list[Evaluation]:
        """All of them, by step. What cannot be read is left out."""
        found = {}
        for step in layout.evaluated_steps(self.run):
            path = layout.evaluation(self.run, step)
            try:
                about = path.stat()
            except OSError:
                continue
            same = (about.st_ino, about.st_size, about.st_mtime_ns)  # they are replaced, never written to
            known = self._known.get(step)
            found[step] = known if known is not None and known[0] == same else (same, read(path, step))
        self._known = found
        return [each for _, each in found.values() if each is not None]


def evaluations(run: Path) -> list[Evaluation]:
    """All that was measured of the checkpoints of the run in a folder, by step."""
    return Evaluations(run).refresh()


def read(path: Path, step: int) -> Evaluation | None:
    """What was measured of one checkpoint; None where it cannot be read."""
    known = read_json(path)
    if known is None or (loss := _loss(known)) is None:
        return None
    sources = fields.part(known, "by_source")
    by_source = {name: value for name in sources if (value := _loss(fields.part(sources, name))) is not None}
    tokens, trained = fields.whole(known.get("tokens")), fields.whole(known.get("trained_tokens"))
    return Evaluation(step, loss, tokens, trained, by_source)


def _loss(said: Mapping[str, Any]) -> float | None:
    try:
        return metric(said.get("loss"))
    except OverflowError:  # no float is so large
        return None


def series(found: list[Evaluation]) -> dict[str, Series]:
    """As curves over steps."""
    points: dict[str, list[tuple[int, float]]] = {}
    for each in found:
        points.setdefault(LOSS, []).append((each.step, each.loss))
        for name, loss in each.by_source.items():
            points.setdefault(f"{LOSS}/{name}", []).append((each.step, loss))
    return {
        name: Series(np.array([step for step, _ in rows], np.int64), np.array([loss for _, loss in rows]))
        for name, rows in points.items()
    }
