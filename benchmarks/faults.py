"""Faults brought into trainings on an emulated cluster: do they go on by themselves, exactly, and for the right cause?

    python -m benchmarks.faults [--json] [--only TEXT] [--soak 50] [--markdown FILE]

Two ranks on two of four nodes, fp32. Every case is a run of its own, whose losses must be those of a run that was left
alone, bit by bit; then a soak brings random faults into one run. Needs root for the read-only and the full disk.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

import monitoring
from benchmarks.fault_cases import (
    EVALUATE_EVERY,
    HURRIED,
    PATIENCE,
    SAVE_EVERY,
    STEPS,
    Case,
    Scene,
    cases,
    hpc,
    places,
)
from benchmarks.report import Figure, progress, report, unwind_when_terminated
from hpc import emulate, ledger, slurm
from hpc.compose import cluster
from hpc.runs import Run
from hpc.waiting import outcome, settle
from monitoring.tail import last_step
from tests.slurm import faults
from tests.slurm.training import SHAPE

BATCH = 2048
HELD_OUT = "data.corpus.validation_share=0.2"
SOAK_STEPS = 2000
SIZE_MB = 96  # of the file system that fills up
# A job whose end a killed controller missed is queued again and held for two minutes; it then ends at once.
HELD_SECONDS = 180.0


@dataclass(frozen=True)
class Result:
    """What became of one case."""

    case: Case
    survived: bool = False
    exact: bool = False
    cause: str = ""
    cause_right: bool = False
    left_over: str = ""
    unaccounted_s: float | None = None
    lost_steps: int = 0
    seconds: float = 0.0
    problem: str = ""

    @property
    def good(self) -> bool:
        accounted = self.unaccounted_s is not None and abs(self.unaccounted_s) <= 1.0
        return self.survived and self.exact and not self.left_over and accounted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", default="", metavar="REGEX", help="cases whose name matches")
    parser.add_argument("--soak", type=int, default=50, help="random faults in one run (50)")
    parser.add_argument("--markdown", type=Path, help="write the table there")
    args = parser.parse_args()
    unwind_when_terminated()
    with tempfile.TemporaryDirectory(prefix="faults", dir="/tmp") as name:
        folder = Path(name)
        os.environ.update(HPC_HOME=f"{folder}/h", HPC_RUNS=f"{folder}/runs", HPC_DATA=f"{folder}/data")
        options = emulate.Options(nodes=4, fast=True, preemptible=True, node_timeout=10)
        with _small_disk(folder / "runs"), emulate.emulated(cluster(["cluster=noctua2"]), options) as emulation:
            hpc(
                "submit",
                "job=prepare",
                *places(folder),
                *(w for w in SHAPE if w.startswith(("data", "cluster"))),
                HELD_OUT,
                "--wait",
            )
            chosen = [case for case in cases(str(emulation.preemptible)) if re.search(args.only, case.name)]
            longest = max([SOAK_STEPS if args.soak else STEPS, *(case.steps for case in chosen)])
            bench = Bench(folder, emulation, longest)
            found = [bench.tried(case) for case in chosen]
            soaked = bench.soak(args.soak) if args.soak else 0
    table = _table(found)
    print(table)
    if args.markdown:
        args.markdown.write_text(table + "\n")
    tried = float(len(found))
    report(
        [
            Figure("faults_tried", tried, "faults"),
            Figure("faults_survived_exactly", float(sum(r.good for r in found)), "faults", f">= {len(found)}"),
            Figure("cause_right", float(sum(r.cause_right for r in found)), "faults", f">= {len(found)}"),
            Figure("soak_faults_survived", float(soaked) if args.soak else None, "faults", f">= {args.soak}"),
        ],
        as_json=args.json,
    )


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[None]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


class Bench:
    def __init__(self, folder: Path, emulation: emulate.Emulation, longest: int) -> None:
        self.longest = longest
        self.folder = folder
        self.emulation = emulation
        self.undisturbed: dict[int, str] = {}

    def words(self, steps: int) -> list[str]:
        plain = [word for word in SHAPE if not word.startswith(("job.", "train.batch", "train.checkpoint"))]
        return [
            *places(self.folder),
            *plain,
            HELD_OUT,
            "job.nodes=2",
            "job.ranks_per_node=1",
            f"train.batch_tokens={BATCH}",
            f"train.tokens={steps * BATCH}",
            f"optim.decay_tokens={SOAK_STEPS * BATCH}",
            f"train.checkpoint.every_steps={SAVE_EVERY}",
            f"train.evaluate.every_steps={EVALUATE_EVERY}",
            "train.evaluate.samples=16",
            "train.checkpoint.keep_latest=3",
            "train.watch.spike_sigma=0",  # so small a model learns its few texts by heart
        ]

    # -- one case ------------------------------------------------------------------------------------------------

    def tried(self, case: Case) -> Result:
        """The case, whatever goes wrong with it."""
        if not self.undisturbed:
            self.undisturbed = self._reference()
        began = time.time()
        try:
            result = self._try(case)
        except Exception as error:
            result = Result(case, problem=f"{type(error).__name__}: {error}"[:200])
        result = Result(**{**result.__dict__, "seconds": time.time() - began})
        progress(f"{'ok ' if result.good and result.cause_right else 'BAD'} {case.name}: {_summary(result)}")
        return result

    def _reference(self) -> dict[int, str]:
        """The losses of a run that was left alone, for the longest that is asked for."""
        run = faults.dispatch(self.words(self.longest), lambda run: None)
        _wait(run, 900)
        progress(f"left alone: {len(_losses(run))} steps")
        return _losses(run)

    def _try(self, case: Case) -> Result:
        asked = time.time()
        run = faults.dispatch([*self.words(case.steps), *case.overrides], lambda run: _prepared(case, run))
        scene = Scene(run, self.emulation)
        try:
            case.act(scene)
            if case.resume:
                hpc("resume", str(run.folder))
            _wait(run, PATIENCE)
            ended = (run.folder / "FINISHED").stat().st_mtime
            return self._judge(case, run, asked, ended)
        finally:
            self._clear(run)

    def _judge(self, case: Case, run: Run, asked: float, ended: float) -> Result:
        records = ledger.history(run)
        losses = _losses(run)
        accounted = sum(sum(record.seconds.values()) for record in records)
        wanted = {step: self.undisturbed[step] for step in range(1, case.steps + 1)}
        first = records[0]
        return Result(
            case,
            survived=run.finished,
            exact=losses == wanted,
            cause=f"{first.cause}: {first.evidence}",
            cause_right=first.cause in case.causes,
            left_over=self._left_over(run),
            unaccounted_s=(records[-1].ended or 0.0) - asked - accounted - _idle(run),
            lost_steps=sum(record.lost_steps or 0 for record in records),
        )

    def _left_over(self, run: Run) -> str:
        end = time.monotonic() + HELD_SECONDS
        while True:
            found = [p.pid for p in psutil.process_iter(["cmdline"]) if str(run.folder) in (p.info["cmdline"] or [])]
            queued = slurm.in_queue(str(run.job_id), self.emulation.environment)
            if not found and queued is None:
                return ""
            if time.monotonic() > end:
                return f"processes {found}, job {queued}"
            time.sleep(0.2)

    def _clear(self, run: Run) -> None:
        if outcome(run) is None:
            with contextlib.suppress(Exception):
                hpc("cancel", "--now", str(run.folder))
                self._left_over(run)
        subprocess.run(["rm", "-r", str(run.folder)], check=False)

    # -- many in one run -----------------------------------------------------------------------------------------

    def soak(self, count: int) -> int:
        """Random faults in one run, each once the run has gone on after the one before. How many it survived."""
        if not self.undisturbed:
            self.undisturbed = self._reference()
        patient = [f"requeue.{cause}.budget=null" for cause in ("crash", "hang", "network", "error")]
        words = [*self.words(SOAK_STEPS), *HURRIED, *patient, "requeue.error.fruitless=null", "job.max_fruitless=10"]
        run = faults.dispatch(words, lambda run: None)
        scene, dice, survived, hit = Scene(run, self.emulation), random.Random(1), 0, -1
        try:
            for number in range(count):
                name = dice.choice(list(_SOAKING))
                hit = _brought(name, scene, dice, hit)
                progress(f"soak {number + 1}: {name} at step {_newest(run)}")
                survived = number
            _wait(run, 900)
            survived = count
            losses = _losses(run)
            if losses != self.undisturbed:
                progress(f"soak: {sum(losses.get(s) != l for s, l in self.undisturbed.items())} losses differ")
                return 0
            return survived
        except Exception as error:
            progress(f"soak ended after {survived}: {type(error).__name__}: {error}\n{run.log.read_text()[-3000:]}")
            return survived
        finally:
            self._clear(run)


def _brought(name: str, scene: Scene, dice: random.Random, hit: int) -> int:
    """Bring a fault into an attempt that trains, later than the one hit last. Which attempt has to end by it."""
    while True:
        _goes_on(scene, hit)
        time.sleep(dice.uniform(0, 0.8))
        number = ledger.history(scene.run)[-1].number
        try:
            _SOAKING[name](scene)
        except (ProcessLookupError, slurm.SlurmError):
            continue  # nothing was hit: that attempt ended just now, or a controller that was killed has yet to find it
        return hit if name in _SURVIVED_BY_ATTEMPTS else number


def _controller_killed(scene: Scene) -> None:
    """Once it has written down that it started the job: one that has not starts it twice, and then holds it."""
    saved = scene.emulation.directory / "state/job_state"
    began = ledger.history(scene.run)[-1].began
    scene.until(lambda: saved.stat().st_mtime > began + 1 or time.time() > began + 10)
    scene.emulation.restart_controller(kill=True)


def _node_blinks(scene: Scene) -> None:
    node = ledger.history(scene.run)[-1].nodes[-1]
    scene.emulation.kill_node(node, report=True)
    time.sleep(1)
    scene.emulation.start_node(node)


_SOAKING: dict[str, Callable[[Scene], object]] = {
    "SIGKILL of rank 0": lambda scene: scene.kill_rank(0),
    "SIGKILL of rank 1": lambda scene: scene.kill_rank(1),
    "SIGSEGV of rank 0": lambda scene: scene.kill_rank(0, signal.SIGSEGV),
    "SIGSTOP of rank 1": lambda scene: scene.kill_rank(1, signal.SIGSTOP),
    "SIGTERM of rank 1": lambda scene: scene.kill_rank(1, signal.SIGTERM),
    "notice of a time limit": lambda scene: scene.ask_to_stop(),
    "requeue": lambda scene: slurm.call(["scontrol", "requeue", scene.job_id], environment=scene.emulation.environment),
    "supervisor killed": lambda scene: os.kill(scene.supervisor(), signal.SIGKILL),
    "slurmctld killed": lambda scene: _controller_killed(scene),
    "node dies": _node_blinks,
}


_SURVIVED_BY_ATTEMPTS = ("slurmctld killed",)


def _idle(run: Run) -> float:
    """Seconds for which nobody had asked for the run: after it stopped, until a person resumed it."""
    resumed = (json.loads(run.manifest_file.read_text())).get("resumed") or []
    return sum(
        each["time"] - max(r.ended or 0.0 for r in ledger.history(run) if r.began < each["time"]) for each in resumed
    )


def _goes_on(scene: Scene, hit: int) -> None:
    """Wait until an attempt later than ``hit`` has made steps of its own."""
    run = scene.run

    def moved() -> bool:
        if outcome(run) not in (None, 0):
            raise RuntimeError(f"the run stopped: {run.state().get('reason')}")
        if run.finished:
            raise RuntimeError("the run was finished before all faults were brought in")
        last = ledger.history(run)[-1:]
        if not last or last[0].ended is not None or last[0].number <= hit:
            return False
        folder = ledger.folder(run, last[0].number)
        if (folder / "rank-1.jsonl").exists() and (reached := last_step(folder)):
            return reached >= _before(run, last[0].number) + 2
        return False

    scene.until(moved, 300)


def _before(run: Run, number: int) -> int:
    """The step from which an attempt went on."""
    from monitoring.tail import events

    found = [event["step"] for event in events(ledger.folder(run, number), ("resumed",))]
    return found[-1] if found else 0


def _newest(run: Run) -> int:
    steps = [last_step(ledger.folder(run, number)) or 0 for number in ledger.numbers(run)]
    return max(steps, default=0)


def _prepared(case: Case, run: Run) -> None:
    case.prepare(run)


def _wait(run: Run, patience: float) -> None:
    end = time.monotonic() + patience
    while (code := outcome(run)) is None:
        if time.monotonic() > end:
            raise TimeoutError(f"not ended: {run.state()}; {run.log.read_text()[-600:]}")
        time.sleep(0.1)
    settle(run)
    if code:
        raise RuntimeError(f"the run is {run.state().get('state')}: {run.state().get('reason')}")


def _losses(run: Run) -> dict[int, str]:
    history = monitoring.load(run.folder).history
    return {int(step): float(loss).hex() for step, loss in zip(history["step"], history["loss"], strict=True)}


def _summary(result: Result) -> str:
    if result.problem:
        return result.problem
    parts = ["exact" if result.exact else "OTHER LOSSES", result.cause, f"{result.lost_steps} steps lost"]
    parts += [result.left_over] if result.left_over else []
    unaccounted = result.unaccounted_s
    return "; ".join([*parts, f"{unaccounted:+.1f} s unaccounted" if unaccounted is not None else ""])


def _table(found: list[Result]) -> str:
    lines = ["| fault | phase | goes on, losses exact | cause in the ledger | steps computed again | seconds |"]
    lines.append("|---|---|---|---|---|---|")
    for r in found:
        outcome = "yes" if r.good else r.problem or _summary(r)
        cause = r.cause.split(":")[0] + ("" if r.cause_right else " (wrong)")
        cells = (r.case.fault, r.case.phase, outcome, cause, str(r.lost_steps), f"{r.seconds:.0f}")
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
