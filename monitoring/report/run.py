"""The report of one run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np

from monitoring import energy, fields, goodput, layout, request
from monitoring.attempts import settled
from monitoring.curves import Curves
from monitoring.evaluations import evaluations
from monitoring.experts import Experts
from monitoring.goodput import Bucket
from monitoring.history import History
from monitoring.ranks import ALONE, Ranks, RankTimes
from monitoring.reader import Reader
from monitoring.report import plot
from monitoring.report.page import facts, folded, page, section, table
from monitoring.report.plot import COLOURS, Line
from monitoring.snapshot import JobState, Snapshot
from monitoring.terminal.plain import finish
from monitoring.terminal.plain import goodput as went_into
from monitoring.text import clean
from monitoring.words import count, duration, figure

POINTS = 700  # bins of a curve: about one for each pixel
LAYERS = 12  # whose experts are drawn
PIXELS = 400_000  # of all their pictures, at most: the document stays below a megabyte
LATE = 0.05  # of a step by which a rank is later than the median one
BUCKETS = {
    Bucket.queue: "#b9c2cf",
    Bucket.hold: "#d5dbe4",
    Bucket.startup: "#e3a83b",
    Bucket.training: "#2a9d5c",
    Bucket.evaluation: "#4a90d9",
    Bucket.checkpoint: "#7a5cc9",
    Bucket.repeated: "#c0392b",
    Bucket.ending: "#8a6d3b",
    Bucket.stopped: "#6b7480",
    Bucket.unknown: "#333a45",
}
# What is drawn together, and whether its axis is logarithmic.
PLOTS: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("Loss", ("loss", "validation_loss"), True),
    ("Gradient norm", ("grad_norm",), True),
    ("Learning rate", ("lr",), False),
    ("Tokens per second", ("tokens_per_s",), False),
    ("MFU", ("mfu",), False),
    ("Router", ("balance_loss", "router_entropy"), False),
    ("Memory, GiB", ("peak_memory_gib",), False),
)


def report(run: Path, job: JobState | None = None, now: float | None = None) -> str:
    """The whole document.

    Raises:
        FileNotFoundError: if there is no such folder or it is no run.
    """
    reader = Reader(run)
    snapshot = reader.read(job, now)
    curves = Curves(reader.history)
    title = f"{clean(snapshot.name)}/{clean(snapshot.id)}"
    body = [
        _head(snapshot, title, _co2(reader)),
        section("Curves", *_curves(curves, max(1, len(snapshot.attempts)))),
        section("Evaluations of checkpoints", _evaluations(run)),
        section("Where the time went", _time(snapshot), _attempts(snapshot)),
        section("Findings", _findings(snapshot)),
        section("Ranks", *_ranks(run, reader.history)),
        section("Experts", *_experts(Experts(run, reader.history))),
        section("What was asked for", *_request(run)),
    ]
    return page(title, body)


def _head(snapshot: Snapshot, title: str, co2_g_per_kwh: float | None) -> str:
    spans = snapshot.outlook.spans
    loss = snapshot.loss.values
    state = snapshot.state + (f": {snapshot.reason}" if snapshot.reason else "")
    rows = [
        ("state", clean(state)),
        ("cluster", clean(snapshot.cluster) + (" (EMULATED)" if snapshot.emulated else "")),
        ("asked for", _moment(spans[0].begin) if spans else ""),
        ("steps", f"{snapshot.step:,}" if snapshot.step is not None else ""),
        ("tokens", f"{snapshot.tokens:,}" if snapshot.tokens else ""),
        ("share of the target", f"{snapshot.share:.1%}" if snapshot.share is not None else ""),
        ("loss", f"{figure(float(loss[0]))} to {figure(float(loss[-1]))}" if len(loss) else ""),
        ("tokens per second", count(snapshot.tokens_per_s) if snapshot.tokens_per_s else ""),
        ("attempts", str(len(snapshot.attempts))),
        ("goodput", went_into(snapshot)),
        ("finish", finish(snapshot)),
        ("energy", _energy(snapshot.folder, co2_g_per_kwh)),
    ]
    made = f'<p class="dim">As of {_moment(snapshot.now)}.</p>'
    return f"<header><h1>{escape(title)}</h1>{facts(rows)}{made}</header>"


def _co2(reader: Reader) -> float | None:
    """Grams of CO2 for each kilowatt-hour, by the run's cluster."""
    return fields.number(fields.part(reader.config, "cluster").get("co2_g_per_kwh"))


def _energy(run: Path, co2_g_per_kwh: float | None) -> str:
    used = energy.of_run(run)
    if used is None:
        return ""
    co2 = f", {figure(energy.co2_kg(used, co2_g_per_kwh))} kg CO2" if co2_g_per_kwh is not None else ""
    return f"{figure(used)} kWh of its GPUs{co2}"


def _curves(curves: Curves, attempts: int) -> Iterator[str]:
    known = curves.names()
    for title, names, log in PLOTS:
        lines: list[Line] = []
        for name, colour in zip([n for n in names if n in known], COLOURS, strict=False):
            lines.append(Line(name, curves.view(name, most=POINTS), colour))
            ghosts = curves.ghosts(name, most=max(4, POINTS // 4 // attempts))
            lines += [Line("done again", ghost.curve, COLOURS[-1], ghost=True) for ghost in ghosts]
        if drawn := plot.curves(lines, title, "step", log=log):
            yield section(title, drawn, level=3)


def _evaluations(run: Path) -> str:
    rows = [
        (
            f"{each.step:,}",
            f"{each.trained_tokens:,}" if each.trained_tokens is not None else "",
            figure(each.loss),
            figure(each.perplexity),
            ", ".join(f"{clean(name)} {figure(loss)}" for name, loss in sorted(each.by_source.items())),
        )
        for each in evaluations(run)
    ]
    return table(("step", "tokens", "loss", "perplexity", "loss by source"), rows, numbers=(0, 1, 2, 3))


def _time(snapshot: Snapshot) -> str:
    found = snapshot.outlook
    wall = sum(found.seconds.values())
    if not wall:
        return ""
    drawn = [
        (span.begin, span.end, span.bucket.value, f"{span.bucket.value}, {duration(span.seconds)}")
        for span in goodput.drawn(found.spans)
    ]
    line = plot.spans(drawn, "where the time went, from left to right", {b.value: c for b, c in BUCKETS.items()})
    rows = [
        (bucket.value, duration(seconds), f"{seconds / wall:.1%}")
        for bucket, seconds in sorted(found.seconds.items(), key=lambda each: -each[1])
        if seconds
    ]
    more = facts(
        [
            ("failures", str(found.failures) if found.failures else ""),
            ("mean time between them", duration(found.mtbf) if found.mtbf else ""),
            ("training of the time on nodes", f"{found.ettr_on_nodes:.1%}" if found.ettr_on_nodes else ""),
            ("expected of it", f"{found.expected:.1%}" if found.expected else ""),
            ("best checkpoint interval", duration(found.best_interval) if found.best_interval else ""),
        ]
    )
    return line + _key(snapshot) + table(("", "time", "share"), rows, numbers=(1, 2)) + more


def _key(snapshot: Snapshot) -> str:
    used = [bucket for bucket, seconds in snapshot.outlook.seconds.items() if seconds]
    items = [
        f'<li><svg width="14" height="10" aria-hidden="true"><rect width="14" height="10" fill="{BUCKETS[bucket]}"/>'
        f"</svg> {bucket.value}</li>"
        for bucket in used
    ]
    return f'<ul class="legend">{"".join(items)}</ul>'


def _attempts(snapshot: Snapshot) -> str:
    rows = [
        (
            each.number,
            each.job_id or "",
            _moment(each.began) if each.began else "",
            duration(each.ended - each.began) if each.began and each.ended else "",
            (each.cause or "running").replace("_", " "),
            f"{each.first_step}-{each.last_step}" if each.first_step is not None else "",
            each.lost_steps or "",
            ", ".join(each.nodes[:8]) + (" ..." if len(each.nodes) > 8 else ""),
            clean(each.evidence)[:300],
        )
        for each in settled(snapshot)
    ]
    head = ("attempt", "job", "began", "lasted", "ended by", "steps", "lost", "nodes", "evidence")
    return table(head, rows, numbers=(0, 3, 6))


def _findings(snapshot: Snapshot) -> str:
    rows = [
        (each.severity.value, each.title, each.evidence, _moment(each.since))
        for each in snapshot.findings
        if not each.silenced
    ]
    return table(("severity", "what", "evidence", "since"), [[clean(str(cell)) for cell in row] for row in rows])


def _ranks(run: Path, history: History) -> Iterator[str]:
    """The steps of all ranks, and each part that they do alone in which one was slower than the others."""
    steps = Ranks(run, history).read()
    if len(steps.ranks) < 2 or not len(steps.steps):
        return
    yield _late(steps, "seconds of a step")
    for part in ALONE:
        found = Ranks(run, history, part).read()
        late = np.nanmedian(np.nan_to_num(found.late(), nan=1.0), axis=1)
        row = int(late.argmax())
        if late[row] - 1 > LATE:
            node = f" on {clean(found.nodes[row])}" if found.nodes[row] else ""
            yield _late(found, f"{part}: rank {found.ranks[row]}{node} takes {late[row] - 1:.2f} of a step longer")


def _late(found: RankTimes, what: str) -> str:
    label = f"{what}, by rank (rows) and step (columns): pale as the median rank, dark half a step more"
    return f'<p class="dim">{escape(label)}</p>' + plot.heat_map(found.late(), label, 1.0, 1.5, 60_000)


def _experts(experts: Experts) -> Iterator[str]:
    layers = experts.layers()
    layers = layers[:: max(1, -(-len(layers) // LAYERS))]
    for layer in layers:
        found = experts.read(layer)
        if not len(found.steps):
            continue
        last = found.share[-1]
        label = f"load of each expert (rows) over steps {found.steps[0]:,} to {found.steps[-1]:,}; fair is 1, dark is 2"
        words = f"at the end {figure(float(np.nanmin(last)))} to {figure(float(np.nanmax(last)))} of the fair share"
        picture = plot.heat_map(found.share.T, label, 0.0, 2.0, PIXELS // len(layers))
        yield section(f"Layer {layer}: {words}", picture, level=3)


def _request(run: Path) -> Sequence[str]:
    known = [(label, clean(text)) for label, text in request.told(run)]
    try:
        text = (run / layout.CONFIG).read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    lines = (clean(_public(line)) for line in text.splitlines())
    return facts(known), folded("the whole configuration", "\n".join(lines))


def _public(line: str) -> str:
    """A line of the configuration as it may be handed on."""
    name, colon, value = line.partition(": ")
    kept = value.strip() in ("", "null") or request.shown(name.strip(), value) == value
    return line if kept else f"{name}{colon}{request.shown(name.strip(), value)}"


def _moment(at: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
    except (OverflowError, ValueError, OSError):  # no calendar has it
        return "?"
