"""The watch screen as a function: a snapshot and a size in, rows of styled text out.

Every row fits the width and there are never more rows than the height. All that came from outside went
through ``clean``, and rows are ``Text`` objects, which know no markup.
"""

from __future__ import annotations

import math
import textwrap

import numpy as np
from rich.cells import cell_len
from rich.text import Text

from monitoring.attempts import settled
from monitoring.findings import Severity, ordered
from monitoring.snapshot import GONE, Attempt, ExpertLoad, Snapshot
from monitoring.terminal import canvas
from monitoring.terminal.plain import SILENT
from monitoring.text import clean
from monitoring.words import clock, count, duration, figure, plural

DIM = "dim"  # and not bright black, which some themes paint in the background's colour
ACCENT = "cyan"
SIDE = 38  # columns of the side panel
WIDE = 112  # columns from which there is one
OLD = 60.0  # seconds after which the age of the last step is worth more than what stands beside it
LABEL = 8  # columns left of the curve, axis included
DOT = Text.assemble((" · ", DIM))
BARS = " ▁▂▃▄▅▆▇█"
STATE_STYLES = {
    "running": "black on green",
    "finished": "black on green",
    "completing": "black on green",
    "failed": "white on red",
    "cancelled": "white on red",
    "node_fail": "white on red",
    "timeout": "white on red",
}

SEVERITY_STYLES = {
    Severity.critical: "bold white on red",
    Severity.warning: "black on yellow",
    Severity.info: "black on cyan",
}


def screen(snapshot: Snapshot, width: int, height: int, *, unicode: bool = True) -> list[Text]:
    """The rows of the whole screen, at most ``height`` of at most ``width`` cells."""
    width, height = max(20, width), max(4, height)
    rows = [*header(snapshot, width), *progress(snapshot, width), *findings(snapshot, width, height // 16)]
    room = height - len(rows)
    side = SIDE if width >= WIDE and room >= 12 else 0
    main = width - side - (2 if side else 0)
    layers = snapshot.experts
    expert_rows = min(len(layers), 3 if height < 30 else max(3, height // 6)) + 1 if layers and room >= 16 else 0
    log_rows = max(3, room // 4) if room >= 8 else 0
    curve_rows = room - expert_rows - log_rows
    body = loss(snapshot, main, curve_rows, unicode=unicode)
    if expert_rows:
        body += experts(layers, main, expert_rows)
    if side:
        body = _beside(body, sidebar(snapshot, SIDE, len(body)), main)
    rows += body
    rows += log(snapshot, width, height - len(rows))
    for row in rows:
        row.no_wrap = True
        row.truncate(width, overflow="ellipsis")
    return rows[:height]


def header(snapshot: Snapshot, width: int) -> list[Text]:
    """Which run, where, in which state; then the job and the attempt in words, and a reason that is long."""
    left = Text()
    left.append(f" {clean(snapshot.name)}", style=f"bold {ACCENT}")
    left.append(f"/{clean(snapshot.id)}", style=DIM)
    state = shown_state(snapshot)
    right = Text(f" {clean(snapshot.cluster)} ")
    if snapshot.emulated:
        right.append(" EMULATED ", style="bold black on yellow")
        right.append(" ")
    right.append(f" {state} ", style="bold " + STATE_STYLES.get(state.lower(), "black on yellow"))
    rows = [_between(left, right, width)]
    words, reason = situation(snapshot), clean(snapshot.reason)
    style = "" if snapshot.done else "yellow"
    row = Text(" ") + DOT.join([*words, Text(reason, style)] if reason else words)
    if row.cell_len <= width or not reason:
        return [*rows, row]
    folded = [Text(f" {part}", style) for part in textwrap.wrap(reason, width - 2)[:3]]
    return [*rows, Text(" ") + DOT.join(words), *folded]


def findings(snapshot: Snapshot, width: int, most: int) -> list[Text]:
    """The worst of what was found, a row each."""
    found = [finding for finding in ordered(snapshot.findings) if not finding.silenced]
    rows = []
    for finding in found[:most]:
        more = f" · {len(found) - most} more" if len(found) > most and finding is found[most - 1] else ""
        style = SEVERITY_STYLES[finding.severity]
        left = Text.assemble(" ", (f" {finding.severity.value} ", style), f" {clean(finding.headline)}")
        rows.append(_between(left, Text(more, DIM), width))
    return rows


def shown_state(snapshot: Snapshot) -> str:
    """The run's own word once it ended; before that Slurm's where there is one."""
    if not snapshot.done and snapshot.state != GONE and snapshot.job is not None and snapshot.job.state:
        return clean(snapshot.job.state)
    return clean(snapshot.state).upper()


def situation(snapshot: Snapshot) -> list[Text]:
    """What the job waits for, which attempt this is and what was lost, when and where it runs: a few words each.

    What may be long stands last, where a narrow screen cuts it.
    """
    job, now = snapshot.job, snapshot.now
    found: list[Text] = []
    if snapshot.attempts:
        lost = f", {plural(snapshot.lost_steps, 'lost step')}" if snapshot.lost_steps else ""
        found.append(Text(f"attempt {snapshot.attempts[-1].number}{lost}"))
    if snapshot.done:
        return found or [Text("no attempt was made", DIM)]
    if snapshot.state == GONE:
        return [*found, Text(f"job {clean(snapshot.job_id or '')}")]
    if job is None:
        return (
            [*found, Text(f"job {clean(snapshot.job_id)}")]
            if snapshot.job_id
            else found or [Text("no attempt yet", DIM)]
        )
    if job.seen is not None and now - job.seen > SILENT:
        found.insert(0, Text(f"Slurm silent for {duration(now - job.seen)}", "yellow"))
    if job.state == "PENDING":
        soon = "no expected start yet"
        if job.started is not None:
            soon = f"expected {clock(job.started, now)}"
            soon += f", in {duration(job.started - now)}" if job.started > now else ""
        reason = clean(job.reason) or "no reason given"
        return [Text(f"job {clean(job.job_id)} waits ({reason})", "yellow"), Text(soon), *found]
    if job.ends is not None and job.ends > now:
        found.append(Text(f"time limit in {duration(job.ends - now)}"))
    return [*found, Text(f"job {clean(job.job_id)}" + (f" on {clean(job.nodes)}" if job.nodes else ""))]


def progress(snapshot: Snapshot, width: int) -> list[Text]:
    """Two rows: a bar of tokens, and the figures that people ask for first."""
    share = snapshot.share
    tail = Text()
    if share is not None:
        # Rounded down, so that 100 % means the end.
        tail.append(f" {math.floor(share * 1000) / 10:.1f} %", style="bold")
    if snapshot.tokens or snapshot.target_tokens:
        tail.append(f"  {count(snapshot.tokens or 0)}")
        target = f" of {count(snapshot.target_tokens)}" if snapshot.target_tokens else ""
        tail.append(f"{target} tokens ", style=DIM)
    bar = _bar(share or 0.0, width - tail.cell_len - 2)
    return [Text(" ") + bar + tail, _figures(snapshot, width)]


def _figures(snapshot: Snapshot, width: int) -> Text:
    """Step, speed, time left, loss, and the age of the last step, which comes to the front when it is old."""
    steps = f"{snapshot.step or 0:,}" + (f" of {snapshot.target_steps:,}" if snapshot.target_steps else "")
    parts = [("step ", steps, "bold")]
    if snapshot.tokens_per_s:
        parts.append(("tokens/s ", count(snapshot.tokens_per_s), "bold"))
    if snapshot.eta_s is not None:
        running = snapshot.job.state == "RUNNING" if snapshot.job else snapshot.state == "running"
        parts.append(("ETA " if running else "to train ", duration(snapshot.eta_s), "bold"))
    values = snapshot.loss.values
    if len(values):
        finite = values[np.isfinite(values)]
        bad = not math.isfinite(values[-1])
        parts.append(("loss ", figure(float(values[-1])), "bold red" if bad else "bold"))
        if len(finite):
            parts.append(("min ", figure(float(finite.min())), "bold"))
    if snapshot.updated is not None and not snapshot.done:
        age = snapshot.now - snapshot.updated
        part = ("last step ", f"{duration(age)} ago", "yellow" if age > OLD else DIM)
        parts.insert(1 if age > OLD else len(parts), part)
    row = Text()
    for label, value, style in parts:
        part = Text.assemble("   " if row else " ", (label, DIM), (value, style))
        if row and row.cell_len + part.cell_len > width:
            break
        row += part
    return row


def loss(snapshot: Snapshot, width: int, height: int, *, unicode: bool = True) -> list[Text]:
    """The loss over steps: a title, the curve with its axes, the starts of later attempts marked below it."""
    if height < 1:
        return []
    rows = [rule("loss", width)]
    plot_height, plot_width = height - 3, width - LABEL - 1
    series = snapshot.loss
    if plot_height < 2 or plot_width < 10:
        return rows + [Text()] * (height - 1)
    if not len(series.steps):
        waiting = Text("no step yet", style=DIM)
        waiting.pad_left((width - 11) // 2)
        return [*rows, *[Text()] * ((height - 1) // 2), waiting, *[Text()] * (height - 2 - (height - 1) // 2)]
    drawn = canvas.curve(series.steps, series.values, plot_width, plot_height, braille=unicode)
    labels = canvas.y_labels(drawn.low, drawn.high, plot_height)
    for number, cells in enumerate(drawn.rows):
        label = labels.get(number, "")
        row = Text.assemble((label.rjust(LABEL - 1), DIM))  # the style of the whole row would dim the curve
        row.append("┤" if label else "│", style=DIM)
        row.append(cells, style=ACCENT)
        rows.append(row)
    for column in drawn.bad:  # what is not finite has no height: it is marked at the top
        top = rows[1]
        place = LABEL + column
        rows[1] = Text.assemble(top[:place], ("×" if unicode else "x", "bold red"), top[place + 1 :])
    first, last = float(series.steps[0]), float(series.steps[-1])
    marks = {a.resumed_from: str(a.number) for a in snapshot.attempts[1:] if a.resumed_from is not None}
    line = canvas.axis(first, last, plot_width, marks)
    rows.append(Text(" " * (LABEL - 1) + "└" + line, style=DIM))
    rows.append(Text(" " * LABEL + canvas.x_labels(first, last, plot_width), style=DIM))
    return rows


def experts(layers: tuple[ExpertLoad, ...], width: int, height: int) -> list[Text]:
    """A title and a row of bars per MoE layer: full height is twice the fair share, a red × gets nothing."""
    rows = [rule(f"experts · tokens over the fair share, step {layers[-1].step:,}", width)]
    shown = layers[: height - 1]
    if len(layers) > len(shown):
        shown = layers[: height - 2]
    for load in shown:
        shares = load.shares
        row = Text.assemble((f"layer {load.layer}".rjust(LABEL + 1) + " ", DIM))
        tail = f" max {shares.max():.2f}  min {shares.min():.2f} "
        row.append_text(_bars(shares, width - row.cell_len - len(tail)))
        row.append(tail, style="yellow" if shares.max() > 2 or shares.min() <= 0 else DIM)
        rows.append(row)
    if rest := layers[len(shown) :]:
        worst = max(rest, key=lambda load: float(load.shares.max()))
        text = f" ... {len(rest)} more layers, most uneven: layer {worst.layer}, max {worst.shares.max():.2f}"
        rows.append(Text(text, style=DIM))
    return rows


def sidebar(snapshot: Snapshot, width: int, height: int) -> list[Text]:
    """The newest value of each metric, then the last attempts."""
    past = settled(snapshot)[-max(1, height // 3) :]
    room = height - len(past) - 2
    rows = [rule("metrics", width)]
    for name, value in list(snapshot.metrics.items())[:room]:
        shown = Text(figure(value), style="bold" if math.isfinite(value) else "bold red")
        rows.append(_between(Text(f" {clean(name)}", style=DIM), shown + Text(" "), width))
    rows += [Text()] * (height - len(rows) - len(past) - 1)
    rows.append(rule("attempts", width))
    rows += [_attempt(attempt, width) for attempt in past]
    return rows[:height]


def _attempt(attempt: Attempt, width: int) -> Text:
    row = Text.assemble((f" {attempt.number:>2} ", DIM))
    if attempt.first_step is None:
        row.append("no step".ljust(11), style=DIM)
    else:
        row.append(f"{attempt.first_step:,}–{attempt.last_step:,}".ljust(11))
    cause = clean(attempt.cause or "running").replace("_", " ")
    row.append(f" {cause}", style="green" if cause in ("running", "finished") else "yellow")
    if attempt.lost_steps:
        return _between(row, Text(f"{attempt.lost_steps:,} lost ", style="red"), width)
    return row


def log(snapshot: Snapshot, width: int, height: int) -> list[Text]:
    """A title and the last lines of the log; where something could not be read, that comes first."""
    if height < 2:
        return []
    rows = [rule(clean(snapshot.log_name), width)]
    rows += [Text(f" {clean(problem)}", style="yellow") for problem in snapshot.problems[-2:]][: height - 1]
    lines = snapshot.log[-(height - len(rows)) :] if height > len(rows) else ()
    return rows + [Text(f" {clean(line)}") for line in lines]


def _bars(shares: np.ndarray, width: int) -> Text:
    """A bar per expert, as wide as there is room for; of more experts than columns, neighbours share one."""
    row = Text()
    width = max(1, width)
    size = -(-len(shares) // width)
    wide = min(4, width // -(-len(shares) // size))
    for begin in range(0, len(shares), size):
        group = shares[begin : begin + size]
        value = float(group.max())
        if group.min() <= 0:
            char, style = "×", "bold red"
        else:
            char = BARS[min(8, max(1, math.ceil(value / 2 * 8)))]
            style = "red" if value > 2 else "yellow" if value > 1.5 else "green"
        row.append(char * max(1, wide - 1), style)
        row.append(" " * (wide > 1))
    row.pad_right(max(0, width - row.cell_len))
    return row


def _bar(share: float, width: int) -> Text:
    width = max(1, width)
    halves = round(share * width * 2)
    full, half = divmod(halves, 2)
    row = Text("━" * full, style="green")
    if half:
        row.append("╸", style="green")
    row.append("─" * (width - full - half), style=DIM)
    return row


def rule(title: str, width: int) -> Text:
    """A title on a line."""
    row = Text.assemble(("─ ", DIM))
    row.append(title, style="bold")
    row.append(" " + "─" * max(0, width - cell_len(title) - 3), style=DIM)
    return row


def _between(left: Text, right: Text, width: int) -> Text:
    """``left`` at the left, ``right`` at the right; where both do not fit, ``left`` gives way."""
    left = left.copy()
    left.truncate(max(0, width - right.cell_len), overflow="ellipsis", pad=True)
    return left + right


def _beside(left: list[Text], right: list[Text], width: int) -> list[Text]:
    rows = []
    for number, row in enumerate(left):
        row = row.copy()
        row.truncate(width, overflow="ellipsis", pad=True)
        rows.append(row + Text("  ") + (right[number] if number < len(right) else Text()))
    return rows
