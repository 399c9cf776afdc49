"""Records of a run and what is made of them. Never imports torch, hpc, jobs or trainer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from monitoring.history import Frames


def load(run: Path | str) -> Frames:
    """A run's records as pandas DataFrames: ``.history``, ``.lost``, ``.attempts``, ``.ranks``, ``.experts``."""
    # Imported here, for the recorder on each rank needs none of it.
    from monitoring import history

    return history.load(run)
