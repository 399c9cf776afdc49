"""Makes run folders as a real run leaves them, for tests and for looking at the screen.

    python tests/monitoring/generate.py FOLDER            a run of three attempts, in the middle of the third
    python tests/monitoring/generate.py FOLDER --watch    the same, going on live in the watch screen

A loss is a pure function of its step, as in a run that resumes exactly: a step done again gives the same.
"""

from __future__ import annotations

import argparse
import json
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from monitoring import layout
from monitoring.findings import Finding, Quiet
from monitoring.reader import Reader
from monitoring.recorder import PROTOCOL, Recorder, encode
from monitoring.snapshot import JobState, Snapshot
from monitoring.terminal.source import Entry

BATCH = 4096  # tokens of a step
START = 1_763_800_000.0  # unix seconds


@dataclass(frozen=True)
class Try:
    """One attempt to generate: from the checkpoint at ``resumed_from`` up to step ``last``."""

    resumed_from: int
    last: int
    cause: str | None = None  # None: it is still running
    job_id: str = "17"
    nodes: tuple[str, ...] = ("n2gpu1201", "n2gpu1202")


@dataclass(frozen=True)
class Shape:
    """What the run is like."""

    tries: Sequence[Try] = (
        Try(0, 120, "time_limit"),
        Try(120, 201, "node_failure"),
        Try(150, 290, nodes=("n2gpu1201", "n2gpu1205")),
    )
    steps: int = 500  # of the target
    step_s: float = 0.85
    experts: int = 16
    layers: Sequence[int] = (2, 4)
    world_size: int = 4
    name: str = "tiny_moe"
    log: Sequence[str] = field(default_factory=tuple)  # lines at the end of rank 0's log
    files: bool = True  # config.yaml and the like; False: records only


def loss(step: int) -> float:
    """A plausible curve: a fast fall, a slow one, noise, and one spike at step 80."""
    noise = math.sin(step * 12.9898) * 43758.5453 % 1 - 0.5
    return 2.9 + 6.1 * math.exp(-step / 40) + 1.4 * math.exp(-step / 300) + 0.25 * noise + 2.5 * (step == 80)


def metrics(step: int, steps: int) -> dict[str, float]:
    warm = min(1.0, step / 30)
    lr = 3e-4 * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
    grad_norm = 1 / (1 + step / 50) + 0.3
    found = {
        "loss": loss(step),
        "lr": lr,
        "grad_norm": grad_norm,
        "balance_loss": 1.02 + 0.5 / step,
        "step_s": 0.85,
    }
    if step % 50 == 0:
        found["validation_loss"] = loss(step) + 0.1
    return found


def load(step: int, layer: int, experts: int) -> list[int]:
    """Tokens per expert, evening out with time."""
    random = np.random.default_rng(layer * 1000 + step // 10)
    weights = np.exp(random.normal(0, 0.35 + 1 / (1 + step / 20), experts))
    return [int(count) for count in weights / weights.sum() * BATCH * 2]


def generate(folder: Path, shape: Shape = Shape()) -> Path:
    """Write a whole run into ``folder``; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    now = START
    for number, tried in enumerate(shape.tries):
        attempt = layout.attempt_folder(folder, number)
        attempt.mkdir(parents=True)
        began, now = now, now + 8.0
        now = _records(attempt, number, tried, shape, now)
        info = {
            **{"number": number, "job_id": tried.job_id, "restart_count": number, "cluster": "noctua2"},
            **{"emulated": True, "nodes": list(tried.nodes), "world_size": shape.world_size, "began": began},
            **{"ended": now if tried.cause else None, "cause": tried.cause, "evidence": "", "exit_code": 0},
            "action": "requeue" if tried.cause not in (None, "finished") else None,
        }
        layout.attempt_info(attempt).write_text(json.dumps(info))
        now += 12.0
    if shape.files:
        _run_files(folder, shape)
    return folder


def _records(attempt: Path, number: int, tried: Try, shape: Shape, now: float) -> float:
    header = {
        **{
            "protocol": PROTOCOL,
            "run": shape.name,
            "attempt": number,
            "rank": 0,
            "world_size": shape.world_size,
        },
        **{"host": tried.nodes[0], "pid": 4711, "start": now},
    }
    written = encode(0, now, "header", header)
    counted = encode(0, now, "header", header)
    if tried.resumed_from:
        event = {"event": "resumed", "fields": {"step": tried.resumed_from}}
        written += encode(len(written), now, "event", event)
    log = [f"rank 0 of {shape.world_size} on {tried.nodes[0]}"]
    for step in range(tried.resumed_from + 1, tried.last + 1):
        now += shape.step_s * (1 + 0.05 * math.sin(step))
        fields = {"step": step, "tokens": step * BATCH, **metrics(step, shape.steps)}
        written += encode(len(written), now, "step", fields)
        if step % 10 == 0:
            layers = {layer: load(step, layer, shape.experts) for layer in shape.layers}
            counted += encode(len(counted), now, "experts", {"step": step, "layers": layers})
            log.append(f"step {step} of {shape.steps}  loss {loss(step):.4f}")
        if step % 50 == 0:
            log.append(f"checkpoint at step {step} complete in 0.4 s")
            now += 0.4
    layout.rank_records(attempt, 0).write_bytes(b"".join(written))
    if shape.layers:
        layout.experts_records(attempt).write_bytes(b"".join(counted))
    for rank in range(1, shape.world_size):
        _other_rank(attempt, rank, {**header, "rank": rank}, tried, shape)
    layout.rank_log(attempt, 0).write_text("".join(f"{line}\n" for line in [*log, *shape.log]))
    return now


def _other_rank(attempt: Path, rank: int, header: dict[str, Any], tried: Try, shape: Shape) -> None:
    written = encode(0, header["start"], "header", header)
    for step in range(tried.resumed_from + 1, tried.last + 1):
        if step % 10 == 0:
            fields = {"step": step, "step_s": shape.step_s + 0.01 * rank}
            written += encode(len(written), header["start"] + step, "rank", fields)
    layout.rank_records(attempt, rank).write_bytes(b"".join(written))


def _run_files(folder: Path, shape: Shape) -> None:
    last = shape.tries[-1]
    (folder / layout.CONFIG).write_text(
        f"name: {shape.name}\ncluster: {{name: noctua2}}\n"
        f"train: {{tokens: {shape.steps * BATCH}, batch_tokens: {BATCH}}}\n"
    )
    state = last.cause if last.cause in ("finished", "failed", "cancelled") else "running"
    known = {"state": state, "reason": "", "job_id": last.job_id, "cluster": "noctua2", "emulated": True}
    (folder / layout.STATE).write_text(json.dumps({**known, "updated": START}))
    (folder / layout.JOB_LOG).write_text("".join(f"attempt {n}\n" for n in range(len(shape.tries))))
    if state == "finished":
        finish(folder, shape)


def finish(folder: Path, shape: Shape) -> None:
    """Write what a run leaves when its work is done."""
    (folder / layout.SAMPLE).write_text("The installer asks for the name of the disk.\nDas Installationsprogramm")
    summary = {"step": shape.steps, "tokens": shape.steps * BATCH}
    (folder / layout.FINISHED).write_text(json.dumps(summary))


def _go_on(folder: Path, shape: Shape, pause: float) -> None:
    """Continue the last attempt with the real recorder, one step per ``pause`` seconds, to the end."""
    number, tried = len(shape.tries) - 1, shape.tries[-1]
    attempt = layout.attempt_folder(folder, number)
    recorder = Recorder(attempt, 0, shape.world_size, shape.name, number)
    with layout.rank_log(attempt, 0).open("a", buffering=1) as log:
        for step in range(tried.last + 1, shape.steps + 1):
            recorder.step(step=step, tokens=step * BATCH, **metrics(step, shape.steps))
            if step % 10 == 0:
                recorder.experts(step=step, layers={la: load(step, la, shape.experts) for la in shape.layers})
                log.write(f"step {step} of {shape.steps}  loss {loss(step):.4f}\n")
            time.sleep(pause)
    recorder.close()
    finish(folder, shape)


def slow(run: Path, rank: int, times: float) -> None:
    """Let a rank of the third attempt take longer."""
    attempt = layout.attempt_folder(run, 2)
    path = layout.rank_records(attempt, rank)
    head = path.read_bytes().split(b"\n")[0] + b"\n"
    lines = [encode(n, START + n, "rank", {"step": 150 + 10 * n, "step_s": 0.85 * times}) for n in range(1, 15)]
    path.write_bytes(head + b"".join(b"".join(each) for each in lines))


def waits_for_data(run: Path, rank: int, seconds: float) -> None:
    """Let all steps of the first attempt take as long on each rank, and one of them so long for its data."""
    attempt = layout.attempt_folder(run, 0)
    for each in layout.recorded_ranks(attempt):
        path = layout.rank_records(attempt, each)
        lines = []
        for line in path.read_bytes().splitlines(keepends=True):
            known = json.loads(line)
            if "step_s" in known:
                known |= {"step_s": 1.0, "data_s": seconds if each == rank else 0.01}
            lines.append(json.dumps(known, separators=(",", ":")).encode() + b"\n")
        path.write_bytes(b"".join(lines))


def devices(run: Path) -> None:
    """Add what was read of two GPUs and a node in the third attempt; one is hot, and held down by it."""
    for rank in (0, 1):
        gpu = {"gpu_util": 0.97 - 0.9 * rank, "gpu_memory_gib": 61.25, "gpu_memory_total_gib": 80.0, "power_w": 402.0}
        heat = {"temperature_c": 61.0 + 27 * rank, "clock_mhz": 1410.0, "throttled": float(rank), "energy_j": 1e6}
        process = {"cpu_cores": 1.25, "memory_gib": 14.5}
        node = {"host_cpu_util": 0.2, "host_memory_gib": 120.0, "host_memory_total_gib": 503.0} if rank == 0 else {}
        with layout.rank_records(layout.attempt_folder(run, 2), rank).open("ab") as file:
            file.write(b"".join(encode(900, START + 340, "device", {**gpu, **heat, **process, **node})))


def hours_of_devices(run: Path, hours: float = 9.0) -> None:
    """Let all ranks of three attempts, half an hour apart, tell of their devices each minute: one gets hotter and is
    held down in the end, one idles for an hour, one takes more and more memory."""
    each, ranks = hours * 60 / 3, len(layout.recorded_ranks(layout.attempt_folder(run, 0)))
    for number in range(3):
        for rank in range(ranks):
            lines = []
            for minute in range(int(each)):
                at = number * (each + 30) + minute
                idle, heat = rank == 2 and 120 < at < 180, 30 * at / (hours * 60) if rank == 1 else 0.0
                wave = 0.03 * math.sin(at / 7 + rank)
                gpu = {"gpu_util": 0.02 if idle else 0.94 + wave, "power_w": 90.0 if idle else 390 + 200 * wave}
                held = {"throttled": float(heat > 28), "temperature_c": round(61 + heat + 40 * wave)}
                clock = {"clock_mhz": 1100.0 if heat > 28 else 1410.0, "energy_j": 24e3 * at}
                memory = {"gpu_memory_gib": 61.25, "gpu_memory_total_gib": 80.0}
                process = {"cpu_cores": 1.25 + wave, "memory_gib": 14.5 + (at / 60 if rank == 3 else 0.0)}
                node = {"host_cpu_util": 0.2 + wave, "host_memory_gib": 120.0, "host_memory_total_gib": 503.0}
                fields = {**gpu, **held, **clock, **memory, **process, **(node if rank % 2 == 0 else {})}
                lines += encode(900 + minute, START + 60 * at + 30, "device", fields)
            with layout.rank_records(layout.attempt_folder(run, number), rank).open("ab") as file:
                file.write(b"".join(lines))


class Folders:
    """Runs by their folders as the watch screen takes them, with what Slurm says of each of them."""

    title, trouble = "generated runs", ""

    def __init__(self, folders: Sequence[Path], said: JobState | None = None) -> None:
        self.folders = folders
        self.said = said

    def entries(self) -> list[Entry]:
        return [_entry(Reader(folder).read(self.said)) for folder in self.folders if folder.is_dir()]

    def job(self, folder: Path) -> JobState | None:
        return self.said

    def quieten(self, folder: Path, finding: Finding, how: Quiet) -> None:
        path = folder / layout.SILENCED
        if how == "speak":
            path.unlink()
        else:
            severity = {"severity": finding.severity.value} if how == "acknowledge" else {}
            path.write_text(json.dumps({finding.key: {"until": None, **severity}}))


def _entry(seen: Snapshot) -> Entry:
    last = float(seen.loss.values[-1]) if len(seen.loss.values) else None
    return Entry(
        seen.folder,
        seen.folder.parent.name,
        seen.id,
        seen.state,
        cluster=seen.cluster,
        attempt=seen.attempts[-1].number if seen.attempts else None,
        step=seen.step,
        share=seen.share,
        loss=last,
        tokens_per_s=seen.tokens_per_s,
        eta_s=seen.eta_s,
    )


def main() -> None:
    from monitoring.terminal.app import Options, watch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--watch", action="store_true", help="go on live and show it")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds of a live step")
    given = parser.parse_args()
    shape = Shape()
    folder = generate(given.folder, shape)
    if given.watch:
        threading.Thread(target=_go_on, args=(folder, shape, given.pause), daemon=True).start()
        job = JobState("17", "RUNNING", nodes="n2gpu[1201,1205]", ends=time.time() + 900, emulated=True)
        watch(Folders([folder], job), folder, Options(until_done=True))


if __name__ == "__main__":
    main()
