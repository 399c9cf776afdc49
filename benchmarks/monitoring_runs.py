"""Run folders for benchmarks/monitoring.py: long ones, as a training of many ranks leaves them, and many short ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from monitoring import layout
from monitoring.recorder import PROTOCOL, encode
from trainer.config import TrainConfig

BATCH = 4_194_304  # tokens of a step
BEGIN = 1_763_800_000.0  # unix seconds
STEP_S = 0.41
ATTEMPTS = 4
LOST = 400  # steps that each attempt but the last loses
LAYERS, EXPERTS = 4, 32
RANKS_EVERY = TrainConfig.ranks_every
EXPERTS_EVERY = TrainConfig.experts_every
# What a training records with each step, and each rank of its own.
PARTS = ("step_s", "data_s", "forward_s", "backward_s", "communication_s", "optimizer_s", "peak_memory_gib")
METRICS = (
    *("loss", "lr", "grad_norm", "balance_loss", "z_loss", "router_entropy", "dropped_share"),
    *("tokens_per_s", "flops_per_s", *PARTS),
)


def stretches(steps: int) -> list[tuple[int, int]]:
    """Each attempt's first and last step: all but the last lose ``LOST`` steps."""
    ends = [steps * (k + 1) // ATTEMPTS for k in range(ATTEMPTS)]
    return [(1 if not k else ends[k - 1] - min(LOST, steps // 10) + 1, end) for k, end in enumerate(ends)]


def values(count: int, seed: int) -> np.ndarray:
    """(count, metrics): noise with all its digits, as measured values have them."""
    random = np.random.default_rng(seed)
    found = random.random((count, len(METRICS)))
    found[:, METRICS.index("step_s")] = STEP_S * (1 + 0.02 * found[:, METRICS.index("step_s")])
    found[:, 0] = 2.2 + 8 * np.exp(-np.arange(count) / 3000) + 0.1 * found[:, 0]
    return found


def long_run(folder: Path, steps: int, ranks: int, *, alone: bool = False) -> Path:
    """A run of several attempts, the last of which is still going on; ``alone``: over, and without experts."""
    nodes = [f"n2gpu{1201 + n}" for n in range(max(1, ranks // 4))]
    for number, (first, last) in enumerate(stretches(steps)):
        attempt = layout.attempt_folder(folder, number)
        attempt.mkdir(parents=True)
        began = BEGIN + first * STEP_S + 300 * number
        live = number == ATTEMPTS - 1 and not alone
        info = {
            **{"number": number, "job_id": "17", "restart_count": number, "cluster": "noctua2", "emulated": False},
            **{"nodes": nodes, "world_size": ranks, "began": began - 40, "host": nodes[0], "pid": 1},
            **{"ended": None if live else began + (last - first + 1) * STEP_S + 20, "evidence": ""},
            **{"cause": None if live else "time_limit", "action": None if live else "requeue", "exit_code": 0},
            **{"resumed_from": first - 1 if number else None},
        }
        layout.attempt_info(attempt).write_text(json.dumps(info))
        for rank in range(ranks):
            _rank(attempt, number, rank, ranks, first, last, began)
        if not alone:
            _experts(attempt, number, ranks, first, last, began)
        layout.rank_log(attempt, 0).write_text("step\n" * 100)
    target = {"tokens": steps * BATCH * 2, "batch_tokens": BATCH}
    (folder / layout.CONFIG).write_text(f"name: long\ncluster: {{name: noctua2}}\ntrain: {json.dumps(target)}\n")
    (folder / layout.STATE).write_text(json.dumps({"state": "running", "reason": "", "job_id": "17"}))
    (folder / layout.MANIFEST).write_text(json.dumps({"submitted": BEGIN - 600}))
    return folder


def _header(number: int, rank: int, ranks: int, began: float) -> list[bytes]:
    fields = {"run": "long", "attempt": number, "rank": rank, "world_size": ranks, "host": "n2gpu1201", "pid": 1}
    return encode(0, began, "header", {"protocol": PROTOCOL, **fields, "start": began})


def _rank(attempt: Path, number: int, rank: int, ranks: int, first: int, last: int, began: float) -> None:
    """One rank's file; rank 0's has all steps too, and what happened."""
    made = _header(number, rank, ranks, began)
    own = {"seq": 0, "t": 0.0, "kind": "rank", "step": 0}
    steps = range(first, last + 1) if not rank else [s for s in range(first, last + 1) if s % RANKS_EVERY == 0]
    for step, row in zip(steps, values(len(steps), 1000 * number + rank).tolist(), strict=True):
        t = began + (step - first + 1) * STEP_S
        if step % RANKS_EVERY == 0:
            parts = dict(zip(PARTS, row[-len(PARTS) :], strict=True))
            made.append(orjson.dumps({**own, "seq": len(made), "t": t, "step": step, **parts}) + b"\n")
        if not rank:
            made += step_lines(len(made), t, step, row)
    layout.rank_records(attempt, rank).write_bytes(b"".join(made))


def step_lines(seq: int, t: float, step: int, row: list[float]) -> list[bytes]:
    """What rank 0 writes of a step, and of the checkpoint after each thousandth."""
    fields: dict[str, Any] = {"seq": seq, "t": t, "kind": "step", "step": step, "tokens": step * BATCH}
    made = [orjson.dumps({**fields, **dict(zip(METRICS, row, strict=True))}) + b"\n"]
    if step % 1000 == 0:
        sources = {f"{unit}/language-{n}": step * n for n in range(10) for unit in ("tokens", "epochs")}
        for event in ({"event": "sources", **sources}, {"event": "checkpoint", "seconds": 9.0, "blocked_s": 0.2}):
            made.append(orjson.dumps({"seq": seq + len(made), "t": t, "kind": "event", **event, "step": step}) + b"\n")
        evaluated = {**fields, "seq": seq + len(made), "validation_loss": row[0] + 0.1}
        made.append(orjson.dumps(evaluated) + b"\n")
    return made


def _experts(attempt: Path, number: int, ranks: int, first: int, last: int, began: float) -> None:
    made = _header(number, 0, ranks, began)
    random = np.random.default_rng(number)
    for step in range(first, last + 1):
        if step % EXPERTS_EVERY:
            continue
        loads = random.integers(100_000, 200_000, (LAYERS, EXPERTS)).tolist()
        for layer, load in enumerate(loads, 1):
            fields = {"kind": "experts", "step": step, "layer": layer, "first": 0, "load": load}
            made.append(orjson.dumps({"seq": len(made), "t": began, **fields, "entropy": 3.1, "dropped": 0}) + b"\n")
    layout.experts_records(attempt).write_bytes(b"".join(made))


def many_runs(root: Path, count: int) -> None:
    """Runs of a sweep that have ended, with some thousand steps each."""
    steps = b"".join(
        line
        for step, row in enumerate(values(2000, 1).tolist(), 1)
        for line in step_lines(4 * step, BEGIN + step, step, row)  # a thousandth step takes four lines
    )
    config = (
        "name: sweep\ncluster:\n  name: noctua2\ntrain:\n  batch_tokens: 2048\n  tokens: 4096000\n"
        "job:\n  _target_: jobs.train.Train\n"
    )
    for number in range(count):
        folder = root / "sweep" / f"20261122-{100000 + number}-{number:04x}"
        attempt = layout.attempt_folder(folder, 0)
        attempt.mkdir(parents=True)
        state = ("finished", "failed", "cancelled")[number % 3]
        (folder / layout.CONFIG).write_text(config)
        (folder / layout.STATE).write_text(json.dumps({"state": state, "reason": "", "job_id": str(number)}))
        (folder / layout.MANIFEST).write_text(json.dumps({"submitted": BEGIN}))
        info = {
            **{"number": 0, "job_id": str(number), "restart_count": 0, "cluster": "noctua2", "emulated": False},
            **{"host": "n", "pid": 1, "nodes": ["n"], "world_size": 4, "began": BEGIN, "ended": BEGIN + 3000},
            **{"cause": "finished", "action": "end", "exit_code": 0},
        }
        layout.attempt_info(attempt).write_text(json.dumps(info))
        layout.rank_records(attempt, 0).write_bytes(b"".join(_header(0, 0, 4, BEGIN)) + steps)
        if state == "finished":
            (folder / layout.FINISHED).write_text(json.dumps({"step": 2000, "tokens": 4096000}))
