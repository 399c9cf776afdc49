"""The rounds of a search: propose, submit, wait, tell. Whoever does it may die at any line, and another takes it up."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hpc import arrays, metrics, submit
from hpc.combinations import spelled
from hpc.errors import Failed, Refused
from hpc.runs import DIVERGED, Run, read_json, write_json
from hpc.search import Space, ask, composed
from hpc.standing import ENDED, POLL, Standing, standings
from hpc.study import conclude, open_study
from hpc.submit import Plan
from hpc.sweep import Sweep

LOOP = "loop.json"
LOST = ("never began", "gone")  # what a trial's run is when nobody but the loop would bring it back
REFUSED_ROUNDS = 3  # in a row, after which the search is given up


def refuse_running(sweep: Sweep) -> None:
    """
    Raises:
        Refused: if somebody runs the rounds of this search.
    """
    if (who := runner(sweep)) is not None:
        raise Refused(f"the search {sweep.id} goes on: its rounds are submitted by {who}")


def runner(sweep: Sweep) -> str | None:
    """Who submits the rounds of a search, in words; None if nobody does."""
    from hpc.listing import read
    from hpc.processes import process_lives

    found = read_json(sweep.folder / LOOP)
    if found is None:
        return None
    if folder := found.get("run"):
        if not Run(Path(folder)).config_file.exists():
            return None
        (row,) = read([Run(Path(folder))])
        return None if row.state in ENDED else f"run {row.name}/{row.id} ({row.state})"
    who = f"process {found['pid']} on {found['host']}"
    if found["host"] != socket.gethostname():
        return who if time.time() < found["beat"] + 600 else None
    alive = found["pid"] != os.getpid() and process_lives(found["pid"], found["began"])
    return who if alive else None


class Loop:
    """The rounds of a search, one after the other.

    Args:
        say: is told what happens.
        stop: why this process must end, if it must; the search then goes on where it is when it is run again.
        told: is called with the number of trials whose result is known, and with the best value.
        run: the run that this process is a rank of, if it is.
    """

    def __init__(
        self,
        sweep: Sweep,
        say: Callable[[str], None],
        stop: Callable[[], str | None] = lambda: None,
        told: Callable[[int, float | None], None] = lambda count, best: None,
        run: Path | None = None,
    ) -> None:
        self.sweep, self.say, self.stop, self.told = sweep, say, stop, told
        self.space = Space.of(sweep)
        self.study = open_study(sweep.folder, self.space.directions, self.space.seed)
        self.began = time.time()
        self.run = run

    def main(self, again: Sequence[str] = LOST) -> str:
        """Go on until there are all trials. Returns finished, cancelled or stopped.

        Args:
            again: states of trials whose run is submitted again; that of others that ended badly is told as it is.
        """
        self._beat()
        self._forget_unsubmitted()
        self.take_up(again)
        refused = 0
        while not self.sweep.cancelled:
            if not self._wait():
                return "cancelled" if self.sweep.cancelled else "stopped"
            self._tell()
            if len(self.study.trials) >= self.space.trials:
                return "finished"
            refused = 0 if self._round() else refused + 1
            if refused >= REFUSED_ROUNDS:
                raise Failed(f"{self.sweep.id}: no proposal of the last {refused} rounds is one that a run can have")
        return "cancelled"

    def _beat(self) -> None:
        mine = {"host": socket.gethostname(), "pid": os.getpid(), "began": self.began, "beat": time.time()}
        write_json(self.sweep.folder / LOOP, mine | ({"run": str(self.run)} if self.run else {}))

    def _open(self) -> list[int]:
        """Numbers of the runs whose trial has no result yet."""
        trials = self.study.trials
        return [number for number, trial in enumerate(self.sweep.trials) if not trials[trial].state.is_finished()]

    def _forget_unsubmitted(self) -> None:
        """Trials that were proposed and never became runs, as whoever asked for them died."""
        from optuna.trial import TrialState

        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
            if trial.number not in self.sweep.trials:
                self.study.tell(trial.number, state=TrialState.FAIL)

    def take_up(self, again: Sequence[str]) -> None:
        """Bring an interrupted submission to its end, and submit again the trials that are in one of these states."""
        lost = [row.number for row in self._standings() if row.state in again]
        if lost or self.sweep.submitter:
            arrays.resume(self.sweep, lost, alone=True)
            self.sweep = Sweep(self.sweep.folder)

    def _standings(self) -> list[Standing]:
        numbers = set(self._open())
        return [row for row in standings(self.sweep) if row.number in numbers]

    def _wait(self) -> bool:
        """Until no trial runs; False if this process is asked to leave before."""
        from hpc.slurm import SlurmError

        while True:
            self._beat()
            began = time.monotonic()
            try:
                rows = self._standings()
            except SlurmError as error:  # no answer says nothing of the runs
                self.say(str(error))
            else:
                if all(row.state in ENDED for row in rows):
                    return not self.sweep.cancelled
            pause = max(POLL, 10 * (time.monotonic() - began))
            end = time.monotonic() + pause
            while time.monotonic() < end:
                if self.stop() or self.sweep.cancelled:
                    return False
                time.sleep(0.1)

    def _tell(self) -> None:
        from optuna.trial import TrialState

        for row in self._standings():
            trial = self.sweep.trials[row.number]
            run = self.sweep.run(row.number)
            values = [self._value(run, name, way) for name, way in self._aims()] if row.state == "finished" else []
            changes = " ".join(f"{key}={spelled(value)}" for key, value in self.study.trials[trial].params.items())
            known = [value for value in values if value is not None]
            if known and len(known) == len(values):
                self.study.tell(trial, known)
                self.say(f"trial {trial}: {changes}: {self._named(known)}")
                continue
            # A sampler learns from what was pruned, as from a training that diverged; of a failure it learns nothing.
            pruned = len(self.space.directions) == 1 and any(run.attempts.glob(f"*/{DIVERGED}"))
            self.study.tell(trial, state=TrialState.PRUNED if pruned else TrialState.FAIL)
            why = row.reason if row.state != "finished" else f"it recorded no {' and '.join(self.space.metrics)}"
            self.say(f"trial {trial}: {changes}: {row.state}: {why}. Its log: hpc logs {row.run}")
        best = conclude(self.study, self.sweep.folder)
        done = [trial for trial in self.study.trials if trial.state.is_finished()]
        self.told(len(done), best["values"][0] if best else None)

    def _aims(self) -> list[tuple[str, str]]:
        return list(zip(self.space.metrics, self.space.directions, strict=True))

    def _value(self, run: Run, name: str, direction: str) -> float | None:
        if self.space.value == "best":
            return metrics.best(run.folder, name, largest=direction == "maximize")
        return metrics.newest(run.folder, name)

    def _named(self, values: Sequence[float]) -> str:
        return ", ".join(f"{name}={value:.6g}" for name, value in zip(self.space.metrics, values, strict=True))

    def _round(self) -> int:
        """Propose and submit some trials. Returns how many."""
        from optuna.trial import TrialState

        asked = ask(self.study, self.space)
        plans, trials = [], []
        for trial, (config, words) in zip(asked, composed(self.space, asked, self.sweep.base()), strict=True):
            try:
                # What is missing for the moment, such as memory on this machine, is the run's to meet.
                plans.append(submit.plan(config, words, dry_run=True))
                trials.append(trial.number)
            except Refused as error:
                self.say(f"trial {trial.number}: refused: {error}")
                self.study.tell(trial, state=TrialState.FAIL)
        if plans:
            self.sweep = arrays.extend(self.sweep, plans, trials=[*self.sweep.trials, *trials])
        return len(plans)


def job(sweep: Sweep) -> Plan:
    """A small job that runs the rounds from inside the cluster.

    Raises:
        Refused: if it is not what the cluster gives.
    """
    from hpc import compose

    space = Space.of(sweep)
    own = ("cluster", "hydra.searchpath", "job.account", "job.qos", "job.reservation", "job.partition")
    words = [word for word in space.fixed if word.lstrip("+").startswith(own)]
    words += [
        "cluster.exclusive=false",
        "cluster.gpu_request=none",
        "job=search",
        f"job.sweep={spelled(str(sweep.folder))}",
    ]
    words += [f"name={sweep.name[:57]}-search", *space.job]
    config = compose.compose(words)
    config.cluster.runs = str(sweep.folder.parent.parent)
    return submit.plan(config, words)


def start_job(sweep: Sweep) -> Run:
    """Submit that job."""
    run = submit.dispatch(job(sweep))
    mine = {"host": socket.gethostname(), "pid": 0, "began": time.time(), "beat": time.time()}
    write_json(sweep.folder / LOOP, {**mine, "run": str(run.folder)})
    return run
