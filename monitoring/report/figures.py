"""Plots for papers, by matplotlib."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from monitoring.curves import Curves
from monitoring.history import History

POINTS = 4000


class Missing(Exception):
    """matplotlib is not there; says what to type."""


class NoCurve(Exception):
    """Nobody recorded the metric; says which were."""


def draw(runs: Sequence[tuple[str, Path]], metric: str, output: Path) -> None:
    """Draw a metric of one or several runs over steps into a file whose suffix says the format.

    Text in an SVG or PDF stays text, and no moment of making is in it: the same runs give the same file.

    Args:
        runs: what to call each, and its folder.

    Raises:
        Missing, NoCurve: see there.
        OSError: if it cannot be written; what was there before stays.
    """
    try:
        import matplotlib
    except ImportError:
        raise Missing("plots for papers are drawn by matplotlib. Type: pip install matplotlib") from None
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "pdf.fonttype": 42, "svg.hashsalt": "hpc"})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    try:
        drawn, known = 0, dict[str, None]()
        for name, folder in runs:
            history = History(folder)
            history.refresh()
            known |= dict.fromkeys(history.names())
            curve = Curves(history).view(metric, most=POINTS)
            if len(curve):
                x = np.repeat(curve.x, 2)
                axes.plot(x, np.stack([curve.low, curve.high], axis=1).ravel(), linewidth=0.8, label=name)
                drawn += 1
        if not drawn:
            raise NoCurve(f"--metric {metric}: not recorded. Recorded are: {', '.join(known) or 'none'}")
        axes.set(xlabel="step", ylabel=metric)
        axes.grid(alpha=0.25)
        if len(runs) > 1:
            axes.legend(fontsize="small")
        _save(figure, output)
    finally:
        pyplot.close(figure)


def _save(figure, output: Path) -> None:
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    dated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(output.suffix, {})
    try:
        figure.savefig(temporary, format=output.suffix[1:], dpi=200, metadata=dated)
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)
