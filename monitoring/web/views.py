"""What each page shows, as plain values: pure functions of what was read."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monitoring.attempts import settled
from monitoring.goodput import Span, drawn
from monitoring.snapshot import Snapshot
from monitoring.web.source import Member, Row, Sweep, key


def line(name: str, row: Row, more: Mapping[str, Any]) -> dict[str, Any]:
    """A run in the overview; ``more`` is what ``details`` found, where somebody had time to look."""
    found = {
        "key": name,
        "state": row.state,
        "reason": row.reason,
        "cluster": row.cluster,
        "emulated": row.emulated,
        "attempt": row.attempt,
        "step": row.step,
        "tokens": row.tokens,
        "target_tokens": row.target_tokens,
        "share": _share(row),
        "loss": row.loss,
        "tokens_per_s": row.tokens_per_s,
        "tags": row.tags,
        "note": row.note.partition("\n")[0],
    }
    return found | {name: value for name, value in more.items() if value is not None}


def _share(row: Row) -> float | None:
    if not row.target_tokens or row.tokens is None:
        return None
    return min(1.0, row.tokens / row.target_tokens)


def details(snapshot: Snapshot) -> dict[str, Any]:
    """What the overview shows of a run whose records were read."""
    return {
        "tokens_per_s": snapshot.tokens_per_s,
        "share": snapshot.share,
        "eta_s": snapshot.eta_s,
        "ettr": snapshot.outlook.ettr,
        "updated": snapshot.updated,
        "findings": [
            {"severity": each.severity, "title": each.title} for each in snapshot.findings if not each.silenced
        ],
        "loss": float(snapshot.loss.values[-1]) if len(snapshot.loss.values) else None,
        "spark": sparkline(snapshot.loss.values),
    }


def sparkline(values: np.ndarray, most: int = 48) -> list[float]:
    """A curve as few numbers; what is not finite is left out."""
    finite = values[np.isfinite(values)]
    if len(finite) <= most:
        return finite.tolist()
    return [float(np.median(part)) for part in np.array_split(finite, most)]


def run(
    name: str,
    snapshot: Snapshot,
    row: Row,
    metrics: Sequence[str],
    sweep: str | None,
) -> dict[str, Any]:
    """The sections of a run's page, each sent when it has changed."""
    outlook, job = snapshot.outlook, snapshot.job
    finite = snapshot.loss.values[np.isfinite(snapshot.loss.values)]
    return {
        "head": {
            "key": name,
            "name": snapshot.name,
            "id": snapshot.id,
            "folder": snapshot.folder,
            "state": row.state,
            "reason": row.reason or snapshot.reason,
            "cluster": snapshot.cluster,
            "emulated": snapshot.emulated,
            "done": snapshot.done,
            "job_id": snapshot.job_id,
            "job": None if job is None or snapshot.done else job,
            "sweep": sweep,
            "tags": row.tags,
            "note": row.note,
        },
        "progress": {
            "step": snapshot.step,
            "target_steps": snapshot.target_steps,
            "tokens": snapshot.tokens,
            "target_tokens": snapshot.target_tokens,
            "share": snapshot.share,
            "tokens_per_s": snapshot.tokens_per_s,
            "eta_s": snapshot.eta_s,
            "left": outlook.left,
            "updated": snapshot.updated,
            "loss": float(snapshot.loss.values[-1]) if len(snapshot.loss.values) else None,
            "loss_min": float(finite.min()) if len(finite) else None,
            "lost_steps": snapshot.lost_steps,
        },
        "findings": [each.to_json() for each in snapshot.findings],
        "attempts": settled(snapshot),
        "goodput": {
            "seconds": {bucket.value: seconds for bucket, seconds in outlook.seconds.items()},
            "spans": timeline(outlook.spans),
            "ettr": outlook.ettr,
            "ettr_on_nodes": outlook.ettr_on_nodes,
            "failures": outlook.failures,
            "mtbf": outlook.mtbf,
            "expected": outlook.expected,
            "restart": outlook.restart,
            "interval": outlook.interval,
            "best_interval": outlook.best_interval,
        },
        "metrics": snapshot.metrics,
        "names": metrics,
        "layers": [load.layer for load in snapshot.experts],
        "end": {"sample": snapshot.sample, "summary": {k: v for k, v in snapshot.summary.items() if _flat(v)}},
        "problems": snapshot.problems,
    }


def timeline(spans: Sequence[Span]) -> list[tuple[str, float, float, int | None]]:
    """Bucket, begin, end and attempt of each span that the bar shows."""
    return [(each.bucket.value, round(each.begin, 2), round(each.end, 2), each.attempt) for each in drawn(spans)]


def _flat(value: Any) -> bool:
    return isinstance(value, str | int | float)


def sweep_line(name: str, sweep: Sweep, runs: Collection[Path]) -> dict[str, Any]:
    """A sweep in the overview; ``runs`` are the folders that there are."""
    begun = sum(member.folder in runs for member in sweep.members)
    return {"key": name, "id": sweep.folder.name, "runs": len(sweep.members), "begun": begun}


def member(member: Member, row: Row | None, last: Mapping[str, float | None], *, cancelled: bool) -> dict[str, Any]:
    """A run of a sweep; one that has not begun has no figures."""
    return {
        "number": member.number,
        "key": key(member.folder) if row else None,
        "name": member.name,
        "settings": member.settings,
        "state": row.state if row else "cancelled" if cancelled else "not begun",
        "step": row.step if row else None,
        "tokens": row.tokens if row else None,
        "loss": last.get("loss"),
        "validation_loss": last.get("validation_loss"),
        "tokens_per_s": row.tokens_per_s if row else None,
    }


def tail(x: np.ndarray, first: float | None, since: float | None, place: int | None) -> int:
    """From which bin on a curve is to be sent to somebody who has ``place`` bins of it before the one at ``since``.

    0 where what they have is binned otherwise, and all is to be sent.
    """
    if first is None or since is None or place is None or not 0 < place < len(x):
        return 0
    return place if math.isclose(x[0], first) and math.isclose(x[place], since) else 0
