"""A snapshot as plain text for pipes, as a summary at the end of a run, and as values for ``--json``."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from typing import Any

import numpy as np

from monitoring.attempts import settled
from monitoring.findings import Finding
from monitoring.goodput import Bucket
from monitoring.outlook import Outlook
from monitoring.recorder import number
from monitoring.snapshot import Attempt, Snapshot
from monitoring.text import clean
from monitoring.words import clock, duration, figure, plural

LOG_LINES = 10
SILENT = 15.0  # seconds after which Slurm's last word is shown with its age

_SAME_IN_JSON = (
    *(
        "name",
        "id",
        "now",
        "state",
        "reason",
        "cluster",
        "emulated",
        "job_id",
        "step",
        "tokens",
        "target_tokens",
    ),
    *("target_steps", "tokens_per_s", "eta_s", "updated", "lost_steps", "done", "sample"),
)


def plain(snapshot: Snapshot) -> str:
    """The whole snapshot in lines of a label and a value, without control characters."""
    rows = [
        ("run", title(snapshot)),
        ("state", _state(snapshot)),
        *([("job", _job(snapshot))] if snapshot.job is not None and not snapshot.done else []),
        ("progress", _progress(snapshot)),
        ("speed", _speed(snapshot)),
        ("loss", _loss(snapshot)),
    ]
    others = [f"{clean(name)} {figure(value)}" for name, value in snapshot.metrics.items() if name != "loss"]
    if others:
        rows.append(("metrics", "  ".join(others)))
    for load in snapshot.experts:
        shares = load.shares
        text = f"layer {load.layer}: max {shares.max():.2f}, min {shares.min():.2f} of the fair share"
        rows.append(("experts", f"{text} at step {load.step}"))
    rows += [("attempt", _attempt(attempt)) for attempt in settled(snapshot)]
    rows += [(label, text) for label, text in (("goodput", goodput(snapshot)), ("finish", finish(snapshot))) if text]
    rows += [("finding", _finding(finding, snapshot.id)) for finding in snapshot.findings if not finding.silenced]
    rows += [("problem", clean(problem)) for problem in snapshot.problems]
    rows.append(("folder", clean(str(snapshot.folder))))
    if snapshot.log:
        rows.append(("log", clean(snapshot.log_name)))
    lines = [f"{label:<9} {value}" for label, value in rows]
    return "\n".join(lines + [f"  {clean(line)}" for line in snapshot.log[-LOG_LINES:]])


def line(snapshot: Snapshot) -> str:
    """The run in one line."""
    parts = [title(snapshot), _state(snapshot), _progress(snapshot)]
    if len(snapshot.loss.values):
        parts.append(f"loss {figure(float(snapshot.loss.values[-1]))}")
    if snapshot.tokens_per_s and not snapshot.done:
        parts.append(_speed(snapshot))
    return ", ".join(parts)


def summary(snapshot: Snapshot, width: int = 80) -> str:
    """What is worth knowing when a run has ended."""
    causes = ", ".join(clean(attempt.cause or "running").replace("_", " ") for attempt in settled(snapshot))
    attempts = f"{len(snapshot.attempts)} ({causes})" if causes else "none"
    if snapshot.attempts:
        attempts += f", {plural(snapshot.lost_steps, 'lost step')}"
    rows = [
        ("loss", _loss_way(snapshot)),
        ("tokens", f"{snapshot.tokens or 0:,} in {plural(snapshot.step or 0, 'step')}"),
        ("tokens/s", f"{snapshot.tokens_per_s:,.0f}" if snapshot.tokens_per_s else "unknown"),
        ("attempts", attempts),
    ]
    if text := goodput(snapshot):
        rows.append(("goodput", text))
    if snapshot.sample:
        rows.append(("sample", _folded(snapshot.sample, width)))
    rows += [("problem", clean(problem)) for problem in snapshot.problems]
    rows.append(("folder", clean(str(snapshot.folder))))
    lines = [f"  {label:<9} {value}" for label, value in rows]
    return "\n".join([f"{title(snapshot)}: {_state(snapshot)}", *lines])


def to_json(snapshot: Snapshot) -> dict[str, Any]:
    """The snapshot as values that JSON has. What is not finite is "NaN", "Infinity" or "-Infinity", as in
    records.

    Of the loss only its first, last and least values: the whole curve is in the records.
    """
    values = snapshot.loss.values
    finite = values[np.isfinite(values)]
    found = {name: getattr(snapshot, name) for name in _SAME_IN_JSON}
    return found | {
        "folder": str(snapshot.folder),
        "job": None if snapshot.job is None else asdict(snapshot.job),
        "attempts": [asdict(attempt) for attempt in snapshot.attempts],
        "loss": {
            "first": number(values[0]) if len(values) else None,
            "last": number(values[-1]) if len(values) else None,
            "min": number(finite.min()) if len(finite) else None,
        },
        "metrics": {name: number(value) for name, value in snapshot.metrics.items()},
        "experts": [{"layer": x.layer, "step": x.step, "tokens": list(x.tokens)} for x in snapshot.experts],
        "log": {"name": snapshot.log_name, "lines": list(snapshot.log[-LOG_LINES:])},
        "findings": [finding.to_json() for finding in snapshot.findings],
        "goodput": _goodput_json(snapshot.outlook),
        "summary": dict(snapshot.summary),
        "problems": list(snapshot.problems),
    }


def _goodput_json(found: Outlook) -> dict[str, Any]:
    names = ("ettr", "ettr_on_nodes", "failures", "mtbf", "restart", "save", "interval", "expected", "best_interval")
    return {name: getattr(found, name) for name in names} | {
        "seconds": {bucket.value: spent for bucket, spent in found.seconds.items()},
        "left": None if found.left is None else found.left._asdict(),
    }


def _finding(finding: Finding, run: str) -> str:
    text = f"{finding.severity.value}: {finding.headline} ({finding.evidence})"
    return clean(text + (f"; {finding.typed(run)}" if finding.do else ""))


def goodput(snapshot: Snapshot) -> str:
    """The share of the wall clock that was training, and what the rest went into, most of it first."""
    found = snapshot.outlook
    if found.ettr is None or not found.seconds[Bucket.training]:
        return ""
    wall = sum(found.seconds.values())
    others = {bucket: spent / wall for bucket, spent in found.seconds.items() if bucket is not Bucket.training}
    most = sorted((each for each in others.items() if each[1] >= 0.005), key=lambda each: -each[1])
    rest = ", ".join(f"{bucket.value} {share:.0%}" for bucket, share in most)
    return f"{found.ettr:.1%} training" + (f"; {rest}" if rest else "")


def finish(snapshot: Snapshot) -> str:
    """When the token target is likely to be reached."""
    left = snapshot.outlook.left
    if left is None:
        return ""
    # What is left was counted when the outlook was made, some seconds ago at most.
    low, likely, high = (clock(snapshot.now + seconds, snapshot.now) for seconds in left)
    return likely if low == high else f"{likely} (between {low} and {high})"


def title(snapshot: Snapshot) -> str:
    return clean(f"{snapshot.name}/{snapshot.id}")


def _state(snapshot: Snapshot) -> str:
    text = clean(snapshot.state)
    if snapshot.cluster:
        text += f" on {clean(snapshot.cluster)}"
    if snapshot.emulated:
        text += " (EMULATED)"
    return text + (f": {clean(snapshot.reason)}" if snapshot.reason else "")


def _job(snapshot: Snapshot) -> str:
    job, now = snapshot.job, snapshot.now
    assert job is not None
    text = clean(f"{job.job_id} {job.state}")
    if job.state == "PENDING":
        text += f" ({clean(job.reason) or 'no reason given'}), "
        text += "no expected start yet" if job.started is None else f"expected start {clock(job.started, now)}"
    else:
        text += f" on {clean(job.nodes)}" if job.nodes else ""
        text += f", time limit in {duration(job.ends - now)}" if job.ends is not None and job.ends > now else ""
    if job.seen is not None and now - job.seen > SILENT:
        text += f", as Slurm said {duration(now - job.seen)} ago"
    return text


def _progress(snapshot: Snapshot) -> str:
    steps = f"step {snapshot.step or 0:,}" + (f" of {snapshot.target_steps:,}" if snapshot.target_steps else "")
    if snapshot.share is None:
        return f"{steps}, {snapshot.tokens or 0:,} tokens"
    share = int(snapshot.share * 1000) / 10
    if not snapshot.target_tokens:
        return f"{steps} ({share} %)" + (f", {snapshot.tokens:,} tokens" if snapshot.tokens else "")
    return f"{steps}, {snapshot.tokens or 0:,} of {snapshot.target_tokens:,} tokens ({share} %)"


def _speed(snapshot: Snapshot) -> str:
    text = f"{snapshot.tokens_per_s:,.0f} tokens/s" if snapshot.tokens_per_s else "no speed yet"
    if snapshot.eta_s is not None:
        text += f", ETA {duration(snapshot.eta_s)}"
    if snapshot.updated is not None and not snapshot.done:
        text += f", last step {duration(snapshot.now - snapshot.updated)} ago"
    return text


def _loss(snapshot: Snapshot) -> str:
    values = snapshot.loss.values
    if not len(values):
        return "none yet"
    finite = values[np.isfinite(values)]
    least = f", min {figure(float(finite.min()))}" if len(finite) else ""
    strange = f", {len(values) - len(finite)} not finite" if len(finite) < len(values) else ""
    return f"{figure(float(values[-1]))} (first {figure(float(values[0]))}{least}{strange})"


def _loss_way(snapshot: Snapshot) -> str:
    values = snapshot.loss.values
    if not len(values):
        return "none"
    return f"{figure(float(values[0]))} -> {figure(float(values[-1]))}"


def _attempt(attempt: Attempt) -> str:
    text = f"{attempt.number}: "
    text += f"job {clean(attempt.job_id)}, " if attempt.job_id else ""
    text += f"steps {attempt.first_step}-{attempt.last_step}, " if attempt.first_step is not None else "no step, "
    text += clean(attempt.cause or "running").replace("_", " ")
    text += f", {plural(attempt.lost_steps, 'lost step')}" if attempt.lost_steps else ""
    return text + (f", on {clean(','.join(attempt.nodes))}" if attempt.nodes else "")


def _folded(text: str, width: int) -> str:
    words = " ".join(clean(part) for part in text.splitlines())
    return textwrap.fill(words, width, subsequent_indent=" " * 12, initial_indent=" " * 12).strip()
