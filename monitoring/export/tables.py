"""The tables that stand beside a run's curve."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from monitoring.frames import Frames
from monitoring.history import History

if TYPE_CHECKING:
    import pandas as pd


def tables(history: History, *, lost: bool) -> Iterator[tuple[str, pd.DataFrame]]:
    """(name, frame) of attempts, ranks, devices, experts and, if wanted, lost steps; without empty ones."""
    frames = Frames(history)
    for name in ("attempts", "ranks", "devices", "experts", *(["lost"] if lost else [])):
        frame = getattr(frames, name)
        if len(frame):
            if name == "attempts":
                frame = frame.assign(nodes=[" ".join(map(str, nodes)) for nodes in frame["nodes"]])
            yield name, frame
