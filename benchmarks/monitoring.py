"""How fast runs are recorded, opened, followed and zoomed, beside TensorBoard on the same data.

    python -m benchmarks.monitoring [--json] [--steps 300000] [--ranks 96] [--peer-steps 100000]

A generated run of four attempts, the last still going on: 16 metrics a step of rank 0, a summary of each rank and the
loads of experts as often as the configuration's defaults say, what each rank's device did each minute. Each reading is
timed in a process of its own, after the files were put out of the page cache; the time of the first view counts from
that process's start, imports included.

TensorBoard gets the same values, an event each as SummaryWriter writes them, and once more with all of a step in one
event; both of its readers keep them all, as ours do. Its Python loader is timed on fewer steps, and so are we for that
figure, of a run that is over, without imports; its data server on all steps, and our first view, both from their
processes' start.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import monitoring_runs as generate
from benchmarks import tfevents
from benchmarks.report import Figure, progress, report
from monitoring import layout

RUNS = 1000
POINTS = 10_000_000
REFRESHES = 60
INTERVAL = 0.5  # seconds between two refreshes, as the screen has them


def main() -> None:
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(MEASURES[sys.argv[2]](Path(sys.argv[3]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--steps", type=int, default=300_000)
    parser.add_argument("--ranks", type=int, default=96)
    parser.add_argument("--peer-steps", type=int, default=100_000, help="that TensorBoard's Python loader reads")
    parser.add_argument("--folder", type=Path, help="keep the generated runs here, and use those that are there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="monitoring", dir="/tmp") as temporary:
        report(_figures(args, args.folder or Path(temporary)), as_json=args.json)


def _figures(args: argparse.Namespace, folder: Path) -> list[Figure]:
    size = f"{args.steps} steps x {args.ranks} ranks"
    run = _made(
        folder / f"long-{args.steps}x{args.ranks}", lambda path: generate.long_run(path, args.steps, args.ranks)
    )
    many = _made(folder / "many", lambda path: generate.many_runs(path, RUNS))
    _drop_parquet(run)
    record = _measure("record", folder / "recorded")
    first, ranks, devices = (_measure(name, run) for name in ("first_view", "ranks_view", "devices_view"))
    idle, new = _measure("refresh_idle", run), _refresh_1000(run)
    zoom = _measure("zoom", folder)
    listed = _measure("sweep_list", many)
    begin = time.perf_counter()
    _python("monitoring.compact", str(run))
    compacting = time.perf_counter() - begin
    sizes = [sum(path.stat().st_size for path in run.glob(f"attempts/[0-2]/*.{end}")) for end in ("jsonl", "parquet")]
    first_compacted, ranks_compacted = _measure("first_view", run), _measure("ranks_view", run)
    devices_compacted = _measure("devices_view", run)
    peers, ours = _peers(args, folder), first["wall_s"]
    not_here = "TensorBoard is not installed"
    few = peers and f"{args.peer_steps} steps: {peers.python_s:.1f} s, ours"
    told = f"{few} {peers.ours_s * 1000:.0f} ms from Parquet" if peers else not_here
    told_records = f"{few} {peers.records_s * 1000:.0f} ms from records" if peers else not_here
    return [
        Figure("record_us", record["median_us"], "us", "<= 10", f"median of one step; mean {record['mean_us']:.1f} us"),
        Figure("first_view_s", first["wall_s"], "s", "<= 2", f"{size}, {generate.ATTEMPTS} attempts, from records"),
        Figure("first_view_cpu_s", first["cpu_s"], "s", "", "CPU of that process"),
        Figure("first_view_mb", first["peak_mb"], "MB", "<= 500", "peak memory of that process"),
        Figure("first_view_compacted_s", first_compacted["wall_s"], "s", "", "what has ended from Parquet"),
        Figure("ranks_view_s", ranks_compacted["view_s"], "s", "<= 3", "what has ended from Parquet"),
        Figure("ranks_view_records_s", ranks["view_s"], "s", "<= 20", "all from records"),
        Figure("ranks_view_records_cpu_s", ranks["cpu_s"], "s", "", "CPU of that process, opening the run included"),
        Figure("ranks_view_mb", ranks["peak_mb"], "MB", "", "peak memory, all from records"),
        Figure("devices_view_s", devices_compacted["view_s"], "s", "<= 5", "what has ended from Parquet"),
        Figure("devices_view_records_s", devices["view_s"], "s", "<= 20", "all from records"),
        Figure("devices_view_mb", devices["peak_mb"], "MB", "", "peak memory, all from records"),
        Figure("refresh_idle_ms", idle["cpu_ms"], "ms", "<= 20", f"CPU, mean of {REFRESHES}, one each {INTERVAL} s"),
        Figure("refresh_1000_ms", new["cpu_ms"], "ms", "<= 5", "CPU, for 1,000 new records, median"),
        Figure("sweep_1000_list_s", listed["wall_s"], "s", "<= 2", f"hpc runs over {RUNS} runs"),
        Figure("zoom_10m_ms", zoom["most_ms"], "ms", "<= 50", "slowest of 200 zooms of 10 million points"),
        Figure("zoom_10m_first_ms", zoom["first_ms"], "ms", "", "the first view of such a curve"),
        Figure("vs_tensorboard_python", peers and peers.python_s / peers.ours_s, "x", ">= 100", told),
        Figure("vs_python_records", peers and peers.python_s / peers.records_s, "x", "", told_records),
        Figure("vs_tensorboard_data_server", peers and peers.server_s / ours, "x", ">= 1", "its load, our first view"),
        Figure(
            "vs_python_joined", peers and peers.python_joined_s / peers.ours_s, "x", "", "a step is one event, Parquet"
        ),
        Figure("vs_data_server_joined", peers and peers.server_joined_s / ours, "x", "", "a step is one event"),
        Figure("tensorboard_data_server_s", peers and peers.server_s, "s", "", f"{args.steps} steps"),
        Figure("compact_s", compacting, "s", "", f"three attempts; {sizes[0] / sizes[1]:.1f}x smaller"),
    ]


def _drop_parquet(run: Path) -> None:
    for path in run.glob("attempts/*/*.parquet"):
        path.unlink()


def _made(path: Path, make: Callable[[Path], Any]) -> Path:
    """A generated folder, made unless it is there already."""
    if not path.exists():
        progress(f"generating {path.name}")
        draft = path.with_name(path.name + ".draft")
        shutil.rmtree(draft, ignore_errors=True)
        draft.parent.mkdir(parents=True, exist_ok=True)
        make(draft)
        draft.rename(path)
    return path


def _cold(folder: Path) -> None:
    """Put the files of a folder out of the page cache."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _python(*words: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *words],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    return done.stdout


def _measure(what: str, folder: Path) -> dict[str, float]:
    """A measurement in a process of its own, with how long that process took in all."""
    progress(what)
    if folder.is_dir() and what != "zoom":
        _cold(folder)
    begin, used = time.perf_counter(), _children_s()
    if what == "sweep_list":
        found = {"runs": float(_python("hpc", "runs", "--json", HPC_RUNS=str(folder)).count('"folder"'))}
        if found["runs"] != RUNS:
            raise RuntimeError(f"{found['runs']} of {RUNS} runs were listed")
    else:
        found = json.loads(_python("benchmarks.monitoring", "measure", what, str(folder)))
    return {**found, "wall_s": time.perf_counter() - begin, "cpu_s": _children_s() - used}


def _children_s() -> float:
    """CPU seconds of all processes that were started and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def _record(folder: Path) -> dict[str, float]:
    from monitoring.recorder import Recorder

    folder.mkdir(parents=True)
    recorder = Recorder(folder, 0, 1, "demo", 0)
    rows = generate.values(20_000, 0).tolist()
    taken = []
    for step, row in enumerate(rows):
        metrics = dict(zip(generate.METRICS, row, strict=True))
        begin = time.perf_counter_ns()
        recorder.step(step=step, tokens=step, **metrics)
        taken.append((time.perf_counter_ns() - begin) / 1000)
        time.sleep(0.0002)  # a step takes its time; the writer has its own
    recorder.close()
    shutil.rmtree(folder)
    return {"median_us": statistics.median(taken), "mean_us": statistics.fmean(taken)}


def _first_view(run: Path) -> dict[str, float]:
    from monitoring.reader import Reader

    snapshot = Reader(run).read()
    if not len(snapshot.loss.steps):
        raise RuntimeError("there is no loss")
    return {"peak_mb": _peak_mb()}


def _ranks_view(run: Path) -> dict[str, float]:
    """The tab is opened in a process that has shown the run already."""
    from monitoring.history import History
    from monitoring.ranks import Ranks

    history = History(run)
    history.refresh()
    begin = time.perf_counter()
    times = Ranks(run, history).read()
    seconds = time.perf_counter() - begin
    if np.isnan(times.seconds).any() or times.steps[-1] != history.last[0]:  # pyright: ignore[reportOptionalSubscript]
        raise RuntimeError("some ranks' times are missing")
    return {"view_s": seconds, "peak_mb": _peak_mb()}


def _devices_view(run: Path) -> dict[str, float]:
    """The map of a metric over the time of the run, in a process that has shown the run already."""
    from monitoring.device_history import DeviceHistory
    from monitoring.history import History

    history = History(run)
    history.refresh()
    begin = time.perf_counter()
    times = DeviceHistory(run, history).read("power_w")
    seconds = time.perf_counter() - begin
    if not len(times.ranks) or np.isnan(times.newest).any():
        raise RuntimeError("some ranks' devices are missing")
    return {"view_s": seconds, "peak_mb": _peak_mb()}


def _refresh_idle(run: Path) -> dict[str, float]:
    from monitoring.reader import Reader

    reader, now = Reader(run), time.time()
    reader.read(now=now)
    begin = time.process_time()
    for number in range(1, REFRESHES + 1):
        reader.read(now=now + number * INTERVAL)
    return {"cpu_ms": (time.process_time() - begin) / REFRESHES * 1000}


def _refresh_1000(run: Path) -> dict[str, float]:
    """On a copy of the live attempt's end, for records are added to it."""
    attempt = layout.attempt_folder(run, generate.ATTEMPTS - 1)
    path = layout.rank_records(attempt, 0)
    size = path.stat().st_size
    try:
        return _measure("refresh_1000", run)
    finally:
        os.truncate(path, size)


def _refresh_new(run: Path) -> dict[str, float]:
    from monitoring.reader import Reader

    reader, now = Reader(run), time.time()
    step = reader.read(now=now).step or 0
    path = layout.rank_records(layout.attempt_folder(run, generate.ATTEMPTS - 1), 0)
    taken, seq = [], 10_000_000
    for number in range(1, 21):
        lines: list[bytes] = []
        for row in generate.values(2000, number).tolist():
            step += 1
            lines += generate.step_lines(seq + len(lines), now + step, step, row)
            if len(lines) >= 1000:
                break
        seq += len(lines)
        with path.open("ab") as file:
            file.write(b"".join(lines))
        begin = time.process_time()
        if reader.read(now=now + number * INTERVAL).step != step:
            raise RuntimeError("what was new was not read")
        taken.append((time.process_time() - begin) * 1000 / len(lines) * 1000)
    return {"cpu_ms": statistics.median(taken), "most_ms": max(taken)}


def _zoom(folder: Path) -> dict[str, float]:
    from monitoring.columns import Metric
    from monitoring.curves import Curves
    from monitoring.history import Attempt, History

    history, attempt = History(folder), Attempt(folder, 0)
    (stretch,), rows = attempt.stretches, np.arange(POINTS)
    for values, found in ((stretch.steps, rows + 1), (stretch.tokens, rows * 10), (stretch.times, rows * 0.4)):
        values.frombytes(found.tobytes())
    loss = Metric(array("q"), array("d"))
    loss.rows.frombytes(rows.tobytes())
    loss.values.frombytes(np.random.default_rng(0).random(POINTS).tobytes())
    stretch.metrics["loss"], stretch.kept = loss, POINTS
    history.attempts = [attempt]
    curves, taken = Curves(history), []
    for axis in ("step", "tokens"):
        begin = time.perf_counter()
        curves.view("loss", axis)
        first = time.perf_counter() - begin
        high = curves.view("loss", axis).x[-1]
        random = np.random.default_rng(1)
        for width in np.geomspace(10, high, 100):
            low = random.random() * (high - width)
            begin = time.perf_counter()
            curves.view("loss", axis, low, low + width, 2000)
            taken.append((time.perf_counter() - begin) * 1000)
    return {"most_ms": max(taken), "median_ms": statistics.median(taken), "first_ms": first * 1000}


@dataclass(frozen=True)
class _Peers:
    """Seconds that TensorBoard's loaders take; None where it is not installed."""

    python_s: float
    ours_s: float  # for the same steps, from Parquet
    records_s: float  # the same, from records
    python_joined_s: float
    server_s: float
    server_joined_s: float


def _peers(args: argparse.Namespace, folder: Path) -> _Peers | None:
    if importlib.util.find_spec("tensorboard") is None or importlib.util.find_spec("tensorboard_data_server") is None:
        return None
    few = _made(folder / f"few-{args.peer_steps}", lambda path: generate.long_run(path, args.peer_steps, 1, alone=True))
    records = _measure("ours", few)["load_s"]
    _python("monitoring.compact", str(few))
    ours = _measure("ours", few)["load_s"]
    _drop_parquet(few)
    python, server = [], []
    for joined in (False, True):
        name = "joined" if joined else "separate"

        def make(steps: int, joined: bool = joined) -> Callable[[Path], None]:
            return lambda path: tfevents.write(path, steps, joined=joined)

        python.append(_measure("python", _made(folder / f"{name}-{args.peer_steps}", make(args.peer_steps)))["load_s"])
        events = _made(folder / f"{name}-{args.steps}", make(args.steps))
        progress("data server")
        _cold(events)
        server.append(tfevents.server_s(events))
    return _Peers(python[0], ours, records, python[1], *server)


def _tensorboard(folder: Path) -> dict[str, float]:
    return {"load_s": tfevents.python_s(folder)}


def _ours(run: Path) -> dict[str, float]:
    import pyarrow.parquet  # noqa: F401

    from monitoring.history import History

    begin = time.perf_counter()
    history = History(run)
    history.refresh()
    return {"load_s": time.perf_counter() - begin}


MEASURES: dict[str, Callable[[Path], dict[str, float]]] = {
    "record": _record,
    "first_view": _first_view,
    "ranks_view": _ranks_view,
    "devices_view": _devices_view,
    "refresh_idle": _refresh_idle,
    "refresh_1000": _refresh_new,
    "zoom": _zoom,
    "python": _tensorboard,
    "ours": _ours,
}


if __name__ == "__main__":
    main()
