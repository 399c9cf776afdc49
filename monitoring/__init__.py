"""Records of a run and what is made of them. Never imports torch, hpc, jobs or trainer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from monitoring.frames import Frames


def load(run: Path | str) -> Frames:
    """A run's records as pandas DataFrames: ``.history``, ``.lost``, ``.attempts``, ``.ranks``, ``.devices``,
    ``.experts``, ``.evaluations``."""
    # Imported here, for the recorder on each rank needs none of it.
    from monitoring import frames

    return frames.load(run)


def sql(run: Path | str | Frames, query: str) -> pd.DataFrame:
    """The answer to an SQL query over a run's ``history``, ``lost``, ``attempts``, ``ranks``, ``devices``,
    ``experts`` and ``evaluations``.

    Raises:
        FileNotFoundError: if there is no such folder.
        ImportError: where DuckDB is not installed.
    """
    from monitoring import frames

    return frames.sql(run, query)


def record(*, step: int, tokens: int | None = None, **metrics: Any) -> None:
    """Record a step of this program, which ``hpc submit job=command`` has started; elsewhere nothing happens.

    May be called by all processes of the program: only rank 0's is recorded. It costs microseconds and does not raise,
    whatever it is given and whatever the disk does.

    Args:
        step: optimizer step.
        tokens: consumed since the first attempt, this step's included.
        metrics: numbers such as ``loss=2.1``; what cannot be turned into a number is left out.
    """
    from monitoring import program

    program.record(step, tokens, metrics)


def finish(**summary: Any) -> None:
    """Say that this program's work is done, so that no attempt follows, even if it was just asked to stop.

    Not needed by a program that ends by itself, with status 0, when its work is done.

    Args:
        summary: kept in the run's FINISHED file, such as ``loss=2.1``.

    Raises:
        OSError: if that cannot be written down.
    """
    from monitoring import program

    program.finish(summary)
