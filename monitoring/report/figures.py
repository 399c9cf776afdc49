"""Plots for papers, by matplotlib."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monitoring.bins import Envelope
from monitoring.curves import Curves
from monitoring.history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 4000
WIDTH, HEIGHT = 6.4, 3.6  # inches, without the names
LETTERS = 84  # of small print beside each other
COLOURS = 10  # of matplotlib's cycle; curves beyond them are told apart by their dashes
DASHES = ("-", "--", ":", "-.")
MARK: dict[str, Any] = {"marker": "x", "markersize": 4, "linestyle": "none"}


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

    figure, axes = pyplot.subplots(figsize=(WIDTH, HEIGHT), layout="constrained")
    try:
        drawn, known, bad = 0, dict[str, None](), False
        for number, (name, folder) in enumerate(runs):
            history = History(folder)
            history.refresh()
            known |= dict.fromkeys(history.names())
            if len(curve := Curves(history).view(metric, most=POINTS)):
                bad |= _curve(axes, curve, number, "\n".join(textwrap.wrap(name, LETTERS)))
                drawn += 1
        if not drawn:
            raise NoCurve(f"--metric {metric}: not recorded. Recorded are: {', '.join(known) or 'none'}")
        axes.set(xlabel="step", ylabel=metric)
        axes.locator_params(axis="x", integer=True)
        axes.grid(alpha=0.25)
        if bad:
            axes.plot([], [], **MARK, color="black", label="NaN or infinite")
        if bad or len(runs) > 1:
            _key(figure, axes)
        _save(figure, output)
    finally:
        pyplot.close(figure)


def _curve(axes: Axes, curve: Envelope, number: int, name: str) -> bool:
    """Draw one; returns whether any of its values is not finite, which is marked at the top."""
    colour, dash = f"C{number % COLOURS}", DASHES[number // COLOURS % len(DASHES)]
    ends = np.stack([curve.low, curve.high], axis=1).ravel()
    axes.plot(np.repeat(curve.x, 2), ends, linewidth=0.8, color=colour, linestyle=dash, label=name)
    bad = curve.x[curve.nan]
    axes.plot(bad, np.full(len(bad), 0.97), **MARK, color=colour, transform=axes.get_xaxis_transform())
    return len(bad) > 0


def _key(figure: Figure, axes: Axes) -> None:
    """Names below the plot, side by side as far as they are short, the picture higher by as much as they take."""
    lines, names = axes.get_legend_handles_labels()
    columns = max(1, min(4, LETTERS // (max(len(line) for name in names for line in name.splitlines()) + 6)))
    rows = sum(name.count("\n") + 1 for name in names) / columns
    figure.set_size_inches(WIDTH, HEIGHT + 0.18 * math.ceil(rows) + 0.1)
    figure.legend(lines, names, loc="outside lower left", ncols=columns, fontsize="small", frameon=False)


def _save(figure, output: Path) -> None:
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    dated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(output.suffix, {})
    try:
        figure.savefig(temporary, format=output.suffix[1:], dpi=200, metadata=dated)
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)
