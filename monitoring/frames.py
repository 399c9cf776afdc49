"""Everything that a run recorded as pandas DataFrames, and as tables for SQL."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monitoring.columns import Columns, Metric, Samples
from monitoring.evaluations import evaluations
from monitoring.experts import Loads, every_layer
from monitoring.history import History, attempt_row
from monitoring.ranks import STEP, DeviceFile, RankFile, every_rank
from monitoring.snapshot import Attempt

if TYPE_CHECKING:
    import pandas as pd

_NONE = Metric()
_OWN = ("attempt", "rank")  # columns that the frames add to the fields of records


@dataclass(frozen=True)
class Frames:
    """Everything a run recorded, as pandas DataFrames, each made when it is first asked for."""

    source: History

    @cached_property
    def history(self) -> pd.DataFrame:
        """The curve; see ``History.frame``."""
        return self.source.frame()

    @cached_property
    def lost(self) -> pd.DataFrame:
        """The steps that were done again."""
        return self.source.lost_frame()

    @cached_property
    def attempts(self) -> pd.DataFrame:
        """One row for each attempt: number, job_id, cause, began, ended, first_step, last_step, lost_steps
        ..."""
        import pandas as pd

        rows = [attempt_row(attempt) for attempt in self.source.attempts]
        return pd.DataFrame(rows, columns=[field.name for field in fields(Attempt)])

    @cached_property
    def ranks(self) -> pd.DataFrame:
        """The summary lines of all ranks: attempt, rank, step, t, step_s and other metrics; lost work is in it.

        A missing metric is ``pd.NA``; NaN stays a value of its own.
        """
        return self._by_rank(RankFile, Columns(metrics={STEP: Metric()}))

    @cached_property
    def devices(self) -> pd.DataFrame:
        """What GPUs, processes and nodes did: attempt, rank, t and metrics (``monitoring/devices.py`` names them)."""
        return self._by_rank(DeviceFile, Samples())

    def _by_rank(self, kind: type[RankFile], none: Columns) -> pd.DataFrame:
        """The records of a kind of all ranks; where there are none, the columns of ``none``."""
        import pandas as pd

        parts = [
            (attempt.number, rank, found)
            for attempt in self.source.attempts
            for rank, found in every_rank(attempt.folder, kind)
            if found.size
        ]
        return pd.DataFrame(
            {
                "attempt": _integers(np.full(found.size, number) for number, _, found in parts),
                "rank": _integers(np.full(found.size, rank) for _, rank, found in parts),
                **{
                    name: _integers(np.array(found.integers()[name]) for *_, found in parts) for name in none.integers()
                },
                "t": np.concatenate([np.empty(0), *(np.array(found.times) for *_, found in parts)]),
                **_metrics([found for *_, found in parts] or [none]),
            }
        )

    @cached_property
    def experts(self) -> pd.DataFrame:
        """Tokens per expert: attempt, step, layer, expert, tokens; one row for each expert, lost work included."""
        import pandas as pd

        parts = [
            (attempt.number, layer, found)
            for attempt in self.source.attempts
            for layer, found in every_layer(attempt.folder)
        ]
        return pd.DataFrame(
            {
                "attempt": _integers(np.full(len(found.tokens), number) for number, _, found in parts),
                "step": _integers(np.repeat(np.array(found.steps), _widths(found)) for *_, found in parts),
                "layer": _integers(np.full(len(found.tokens), layer) for _, layer, found in parts),
                "expert": _integers(_places(found) for *_, found in parts),
                "tokens": _integers(np.array(found.tokens) for *_, found in parts),
            }
        )

    @cached_property
    def evaluations(self) -> pd.DataFrame:
        """What ``hpc evaluate`` measured: step, trained_tokens, tokens, loss, perplexity; ``loss/<source>`` of each."""
        import pandas as pd

        rows = evaluations(self.source.run)
        sources = sorted({name for row in rows for name in row.by_source})
        columns = {"loss": [row.loss for row in rows], "perplexity": [row.perplexity for row in rows]}
        columns |= {f"loss/{name}": [row.by_source.get(name) for row in rows] for name in sources}
        return pd.DataFrame(
            {
                "step": np.array([row.step for row in rows], np.int64),
                "trained_tokens": pd.array([row.trained_tokens for row in rows], "Int64"),
                "tokens": pd.array([row.tokens for row in rows], "Int64"),
                **{name: _floats(values) for name, values in columns.items()},
            }
        )


def _floats(values: Sequence[float | None]) -> Any:
    import pandas as pd

    missing = np.array([value is None for value in values], bool)
    return pd.arrays.FloatingArray(np.array([value or 0.0 for value in values], float), missing)


def _integers(pieces: Iterable[np.ndarray]) -> np.ndarray:
    """A column, which is there also where there is no row."""
    return np.concatenate([np.empty(0, np.int64), *pieces])


def _metrics(parts: Sequence[Columns]) -> dict[str, Any]:
    import pandas as pd

    found = {}
    for name in dict.fromkeys(name for part in parts for name in part.metrics if name not in _OWN):
        pieces = [part.metrics.get(name, _NONE).dense(0, part.size) for part in parts]
        values, missing = (np.concatenate(each) for each in zip(*pieces, strict=True))
        found[name] = pd.arrays.FloatingArray(values, missing)
    return found


def _widths(loads: Loads) -> np.ndarray:
    return np.diff(np.array(loads.ends, np.int64), prepend=0)


def _places(loads: Loads) -> np.ndarray:
    """The number of each expert within its row."""
    widths = _widths(loads)
    return np.arange(len(loads.tokens)) - np.repeat(np.array(loads.ends, np.int64) - widths, widths)


def load(run: Path | str) -> Frames:
    """All records of the run in folder ``run``.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    if not Path(run).is_dir():
        raise FileNotFoundError(f"{run} is no run folder")
    history = History(Path(run))
    history.refresh()
    return Frames(history)


TABLES = ("history", "lost", "attempts", "ranks", "devices", "experts", "evaluations")


def sql(run: Path | str | Frames, query: str) -> pd.DataFrame:
    """The answer to an SQL query over a run: the frames are its tables.

    Only the tables that the query names are read. NaN is a value there too, and a missing metric is NULL.

    Raises:
        FileNotFoundError: if there is no such folder.
        ImportError: where DuckDB is not installed.
    """
    try:
        import duckdb
    except ImportError:
        raise ImportError("SQL over a run needs DuckDB; type: pip install duckdb") from None
    import pyarrow as pa

    frames = run if isinstance(run, Frames) else load(run)
    with duckdb.connect(":memory:", config={"enable_external_access": False}) as connection:
        for name in TABLES:
            if re.search(rf"\b{name}\b", query, re.IGNORECASE):
                frame = getattr(frames, name)
                connection.register(name, pa.table({key: _arrow(frame[key]) for key in frame}))
        return connection.execute(query).df()


def _arrow(column: Any) -> Any:
    import pandas as pd
    import pyarrow as pa

    if isinstance(column.array, pd.arrays.FloatingArray):
        return pa.array(column.array._data, mask=column.array._mask)
    return pa.Array.from_pandas(column)
