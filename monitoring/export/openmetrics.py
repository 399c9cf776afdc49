"""Where runs stand, as OpenMetrics text, for Prometheus and what reads its format. Pure.

Gauges and counters only, so that the text collector of node_exporter takes it too. Names end in their unit. What is not
known has no sample.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from monitoring.findings import Severity
from monitoring.snapshot import Snapshot

TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"  # the Content-Type to serve it with
QUIET_STATES = ("queued", "pending", "requeued", "submitting")


@dataclass(frozen=True)
class Family:
    """One metric: its samples differ in their labels. A counter's samples end in ``_total``."""

    name: str
    kind: str  # gauge or counter
    help: str
    unit: str = ""


_FAMILIES = (
    Family("hpc_run_up", "gauge", "1 while ranks of the run compute, 0 otherwise."),
    Family("hpc_run_state", "gauge", "1 for the state the run is in."),
    Family("hpc_run_attempt", "gauge", "Number of the newest attempt, from 0."),
    Family("hpc_run_ranks", "gauge", "Ranks of the newest attempt."),
    Family("hpc_run_step", "gauge", "Optimizer steps on the curve; goes back where steps are lost."),
    Family("hpc_run_target_steps", "gauge", "Steps at which the run is done."),
    Family("hpc_run_tokens", "gauge", "Tokens consumed on the curve."),
    Family("hpc_run_target_tokens", "gauge", "Tokens at which the run is done."),
    Family("hpc_run_loss", "gauge", "The newest training loss."),
    Family("hpc_run_metric", "gauge", "The newest value of every metric that the run records."),
    Family("hpc_run_tokens_per_second", "gauge", "Median speed over the recent steps of the newest attempt."),
    Family("hpc_run_ettr_ratio", "gauge", "Productive time over wall-clock time, queueing included.", "ratio"),
    Family("hpc_run_time_seconds", "gauge", "Wall clock by what it was spent on.", "seconds"),
    Family("hpc_run_left_seconds", "gauge", "Until the token target: the least, the likely, the most.", "seconds"),
    Family("hpc_run_last_step_age_seconds", "gauge", "Since the newest step was recorded.", "seconds"),
    Family("hpc_run_attempts_ended", "counter", "Attempts that have ended, by cause."),
    Family("hpc_run_lost_steps", "gauge", "Steps done more than once, or to be done again."),
    Family("hpc_run_findings", "gauge", "Findings that nobody has silenced, by severity."),
    Family("hpc_run_read_problems", "gauge", "Files of the run that could not be read in full."),
)


def render(snapshots: Iterable[Snapshot]) -> str:
    """The whole text. Of several snapshots of one run the last counts.

    Where something in one cannot be told, the run has one sample alone, by which it counts as one with problems.
    """
    runs = {(each.name, each.id): each for each in snapshots}
    found: dict[str, list[tuple[str, str]]] = {family.name: [] for family in _FAMILIES}
    for snapshot in runs.values():
        own = _labels(snapshot)
        try:
            told = [(name, _sample({**own, **labels}, value)) for name, labels, value in samples(snapshot)]
        except Exception:  # the others are told whatever is wrong with one
            told = [("hpc_run_read_problems", _sample(own, 1))]
        for name, sample in told:
            if sample is not None:
                found[name].append(sample)
    return "".join(_family(family, found[family.name]) for family in _FAMILIES) + "# EOF\n"


def samples(snapshot: Snapshot) -> Iterator[tuple[str, Mapping[str, str], float | None]]:
    """(family, labels beside the run's own, value; None: not known)."""
    newest = snapshot.attempts[-1] if snapshot.attempts else None
    age = None if snapshot.updated is None else max(0.0, snapshot.now - snapshot.updated)
    outlook = snapshot.outlook
    yield "hpc_run_up", {}, float(_up(snapshot))
    yield "hpc_run_state", {"state": snapshot.state}, 1.0
    yield "hpc_run_attempt", {}, None if newest is None else newest.number
    yield "hpc_run_ranks", {}, None if newest is None else newest.world_size
    yield "hpc_run_step", {}, snapshot.step
    yield "hpc_run_target_steps", {}, snapshot.target_steps
    yield "hpc_run_tokens", {}, snapshot.tokens
    yield "hpc_run_target_tokens", {}, snapshot.target_tokens
    yield "hpc_run_loss", {}, snapshot.metrics.get("loss")
    for name, value in snapshot.metrics.items():
        yield "hpc_run_metric", {"metric": name}, value
    yield "hpc_run_tokens_per_second", {}, snapshot.tokens_per_s
    yield "hpc_run_ettr_ratio", {}, outlook.ettr
    for bucket, seconds in outlook.seconds.items():
        yield "hpc_run_time_seconds", {"spent": bucket.value}, seconds
    if outlook.left is not None:
        for name, value in zip(("least", "likely", "most"), outlook.left, strict=True):
            yield "hpc_run_left_seconds", {"estimate": name}, value
    yield "hpc_run_last_step_age_seconds", {}, age
    causes = Counter(each.cause for each in snapshot.attempts if each.cause is not None)
    for cause, count in causes.items():
        yield "hpc_run_attempts_ended", {"cause": cause}, count
    yield "hpc_run_lost_steps", {}, snapshot.lost_steps
    severities = Counter(each.severity for each in snapshot.findings if not each.silenced)
    for severity in Severity:
        yield "hpc_run_findings", {"severity": severity.value}, severities[severity]
    yield "hpc_run_read_problems", {}, len(snapshot.problems)


def _up(snapshot: Snapshot) -> bool:
    if snapshot.done or snapshot.state in QUIET_STATES:
        return False
    if snapshot.job is not None:
        return snapshot.job.state in ("RUNNING", "COMPLETING")
    return snapshot.state == "running"


def _labels(snapshot: Snapshot) -> dict[str, str]:
    return {"run": snapshot.id, "name": snapshot.name, "cluster": snapshot.cluster}


def _sample(labels: Mapping[str, str], value: float | None) -> tuple[str, str] | None:
    """Labels and value as text; None for what is not known."""
    return None if value is None else (_set(labels), number(value))


def _family(family: Family, found: Sequence[tuple[str, str]]) -> str:
    if not found:
        return ""
    lines = [f"# TYPE {family.name} {family.kind}"]
    if family.unit:
        lines.append(f"# UNIT {family.name} {family.unit}")
    lines.append(f"# HELP {family.name} {escaped(family.help)}")
    name = family.name + ("_total" if family.kind == "counter" else "")
    lines += [f"{name}{labels} {value}" for labels, value in found]
    return "".join(f"{line}\n" for line in lines)


def _set(labels: Mapping[str, str]) -> str:
    pairs = (f'{name}="{escaped(value)}"' for name, value in labels.items() if value)
    return "{" + ",".join(pairs) + "}"


def escaped(text: str) -> str:
    """A label's value between its quotes: nothing in it ends the quotes or the line."""
    whole = text.encode("utf-8", "replace").decode()  # a name of a folder may hold bytes that are no text
    return whole.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def number(value: float) -> str:
    """A value as the format spells it."""
    value = float(value)
    if math.isfinite(value):
        return repr(value)
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
