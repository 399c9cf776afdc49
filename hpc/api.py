"""From Python: submit, wait for, look into, resume and cancel runs and sweeps, in scripts and notebooks.

What is typed after ``hpc submit`` is given as a list of words, or as a dict of values by path:

    from hpc import api

    run = api.submit(["cluster=noctua2", "experiment=lola_v1", "job.nodes=8"])
    run = api.submit({"job": "command", "command": ["torchrun", "train.py"], "job.nodes": 2})

Whoever knows submitit's ``Job`` finds its methods on ``Run``. Mistakes raise ``Refused``, failures ``Failed``.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc import runs as folders
from hpc.errors import Failed, Refused

if TYPE_CHECKING:
    import pandas as pd

    from hpc.config import Config
    from hpc.listing import Row
    from hpc.standing import Standing
    from hpc.submit import Plan
    from monitoring.frames import Frames

__all__ = ["Failed", "Overrides", "Refused", "Run", "Sweep", "find", "runs", "submit", "submit_many", "sweep"]

Overrides = Sequence[str] | Mapping[str, Any]

# As submitit and Slurm spell the state of a job.
_STATES = {
    "queued": "PENDING",
    "requeued": "PENDING",
    "finished": "COMPLETED",
    "gone": "UNKNOWN",
}
_hydra = threading.Lock()  # which has one composer for all threads of a process


@dataclass(frozen=True)
class Paths:
    """Where the files of a run lie."""

    folder: Path
    stdout: Path  # of rank 0 in the newest attempt; stderr is in it
    log: Path  # of the supervisor, all attempts
    checkpoints: Path


class Run:
    """One run. Its folder says all of it, so that any number of these, in any process, may stand for the same."""

    def __init__(self, folder: Path | str) -> None:
        self._run = folders.Run(Path(folder).resolve())
        self._gone: Callable[[], bool] | None = None

    def __repr__(self) -> str:
        return f"<Run {self.name}/{self.id} {self._run.state().get('state', 'unknown')}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and other.folder == self.folder

    def __hash__(self) -> int:
        return hash(self.folder)

    # -- what it is ----------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        return self._run.id

    @property
    def name(self) -> str:
        return self._run.name

    @property
    def folder(self) -> Path:
        return self._run.folder

    @property
    def job_id(self) -> str:
        """Of its newest job: a run lasts over as many as it needs."""
        return self._run.job_id or ""

    @property
    def config(self) -> Config:
        """The resolved configuration."""
        return self._run.config()

    @property
    def paths(self) -> Paths:
        return Paths(self.folder, self._rank_logs(0)[-1], self._run.log, self._run.checkpoints)

    # -- how it stands -------------------------------------------------------------------------------------------

    def status(self) -> Row:
        """State, reason, job, attempt, step and tokens, as ``hpc status`` shows them. Asks Slurm once."""
        from hpc.listing import read

        return read([self._run])[0]

    @property
    def state(self) -> str:
        """PENDING, RUNNING, COMPLETED, FAILED, CANCELLED; UNKNOWN where its job left the queue without a word."""
        found = self.status().state
        return _STATES.get(found, found.upper())

    def get_info(self) -> dict[str, Any]:
        """``status`` as a dict."""
        return asdict(self.status())

    def done(self, force_check: bool = False) -> bool:
        """Whether it has ended, or its job is gone. Cheap: Slurm is asked now and then only.

        Args:
            force_check: ask Slurm now.
        """
        from hpc.waiting import Gone, outcome

        if outcome(self._run) is not None:
            return True
        if force_check:
            return self.status().state == "gone"
        self._gone = self._gone or Gone(self._run)
        return self._gone()

    # -- what follows --------------------------------------------------------------------------------------------

    def wait(self, timeout: float | None = None) -> Run:
        """Block until it has ended, well or not.

        Args:
            timeout: seconds; None: for as long as it takes.

        Raises:
            TimeoutError: if it has not ended by then.
            Failed: if its job left the queue without a word.
        """
        from hpc.waiting import wait

        wait(self._run, quiet=True, timeout=timeout)
        return self

    def cancel(self, now: bool = False) -> str:
        """Save and end it, so that no attempt follows. Returns what was done, in words.

        Args:
            now: without saving.
        """
        from hpc.cancel import cancel

        return cancel(self._run, now=now)

    def resume(self, overrides: Overrides = ()) -> Run:
        """Go on with it after it has ended, with changes."""
        from hpc import resume

        new = words(overrides)
        plan, typed = resume.plan(self._run, new, _plan)
        resume.resume(self._run, plan, typed, new)
        self._gone = None
        return self

    # -- what came of it -----------------------------------------------------------------------------------------

    def result(self) -> dict[str, Any]:
        """Wait, and return what it says of itself at its end: step, tokens, losses.

        Raises:
            Failed: if it failed or was cancelled.
        """
        error = self.exception()
        if error is not None:
            raise error
        return folders.read_json(self._run.finished_file) or {}

    def results(self) -> list[dict[str, Any]]:
        """``result`` in a list, of one: all ranks of a run make one result."""
        return [self.result()]

    def exception(self) -> Failed | None:
        """Wait, and return why it did not finish; None if it did."""
        from hpc.waiting import outcome

        try:
            self.wait()
        except Failed as error:
            return error
        if outcome(self._run) == 0:
            return None
        state = self._run.state()
        return Failed(
            f"{self.name}/{self.id} is {state.get('state')}: {state.get('reason') or 'hpc explain says more'}"
        )

    def history(self) -> pd.DataFrame:
        """Steps, tokens and metrics of the run as if it had never been interrupted; one row a step."""
        return self.frames().history

    def frames(self) -> Frames:
        """All that was recorded: ``.history``, ``.lost``, ``.attempts``, ``.ranks``, ``.experts``."""
        from monitoring import load

        return load(self.folder)

    def logs(self) -> str:
        """What the supervisor printed, all attempts."""
        return _text(self._run.log)

    def stdout(self, rank: int = 0) -> str:
        """What a rank printed, all attempts, its stderr included."""
        return "".join(map(_text, self._rank_logs(rank)))

    def stderr(self, rank: int = 0) -> str:
        """The same as ``stdout``: the two of a rank go to one file, in the order in which they were printed."""
        return self.stdout(rank)

    def _rank_logs(self, rank: int) -> list[Path]:
        from monitoring import layout

        numbers = layout.attempt_numbers(self.folder) or [0]
        return [layout.rank_log(layout.attempt_folder(self.folder, number), rank) for number in numbers]


class Sweep:
    """The runs of one multirun."""

    def __init__(self, folder: Path | str) -> None:
        from hpc import sweep

        self._sweep = sweep.Sweep(Path(folder).resolve())

    def __repr__(self) -> str:
        return f"<Sweep {self._sweep.name}/{self.id}, {len(self)} runs>"

    def __len__(self) -> int:
        return len(self._sweep.members)

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    @property
    def id(self) -> str:
        return self._sweep.id

    @property
    def folder(self) -> Path:
        return self._sweep.folder

    @property
    def runs(self) -> list[Run]:
        """Those that have begun: the others have no folder yet."""
        every = (self._sweep.run(number) for number in range(len(self)))
        return [Run(run.folder) for run in every if run.config_file.exists()]

    def status(self) -> list[Standing]:
        """Where each run stands, and what it changes. Asks Slurm once."""
        from hpc.standing import standings

        return standings(self._fresh())

    def done(self) -> bool:
        """Whether no run of it goes on."""
        from hpc.standing import ENDED

        return all(each.state in ENDED for each in self.status())

    def wait(self, timeout: float | None = None, poll: float = 2.0) -> Sweep:
        """Block until no run of it goes on.

        Raises:
            TimeoutError: if there still is one after ``timeout`` seconds.
        """
        from hpc.slurm import SlurmError

        end = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                if self.done():
                    return self
            except SlurmError:  # no answer says nothing of the runs
                pass
            if end is not None and time.monotonic() > end:
                raise TimeoutError(f"sweep {self.id} has not ended within {timeout:g} s")
            time.sleep(poll)

    def cancel(self, now: bool = False) -> dict[str, str]:
        """End all its runs, and let none begin. Returns what was done with those that had begun, by id."""
        from hpc.cancel import cancel_sweep

        return cancel_sweep(self._fresh(), now=now)

    def resume(self) -> list[int]:
        """Submit again what is missing, failed or was cancelled. Returns their numbers."""
        from hpc import arrays

        return arrays.resume(self._fresh())

    def table(self, metric: str = "loss") -> pd.DataFrame:
        """One row a run: what it changes, its state, step, and the newest value of a metric."""
        import pandas as pd

        from hpc.standing import standings
        from monitoring.tail import last_value

        now = self._fresh()
        rows = [
            {
                "run": each.run,
                **now.settings(each.number),
                "state": each.state,
                "step": each.step,
                metric: last_value(Path(each.folder), metric),
            }
            for each in standings(now)
        ]
        return pd.DataFrame(rows)

    def results(self) -> list[dict[str, Any]]:
        """Wait, and return the result of each run, in order.

        Raises:
            Failed: if not all finished.
        """
        found = self.wait().status()
        if lost := [f"{each.run} is {each.state}" for each in found if each.state != "finished"]:
            raise Failed(f"{len(lost)} of {len(found)} runs did not finish: {', '.join(lost[:5])}")
        return [Run(each.folder).result() for each in found]

    def _fresh(self) -> Any:
        from hpc import sweep

        return sweep.Sweep(self.folder)  # another process may have added an array


def submit(overrides: Overrides = ()) -> Run:
    """Check a request, write its run folder and dispatch it: ``hpc submit``.

    Raises:
        Refused: for a mistake in it; nothing is written then.
        Failed: if it cannot be dispatched.
    """
    from hpc import submit

    return Run(submit.dispatch(_plan(words(overrides))).folder)


def sweep(overrides: Overrides) -> Sweep:
    """Dispatch every combination of overrides such as ``optim.lr=1e-3,1e-4``: ``hpc submit -m``."""
    from hpc import compose, submit

    typed = words(overrides)
    with _hydra:
        found = compose.combinations(typed)
    return _dispatch([submit.plan(config, alone) for alone, config in found], ["-m", *typed])


def submit_many(requests: Sequence[Overrides]) -> Sweep:
    """Dispatch any number of requests as one sweep, however they differ, but for the cluster."""
    if not requests:
        raise Refused("submit_many needs at least one request, such as [['job=hello'], ['job=hello', 'job.nodes=1']]")
    typed = [words(each) for each in requests]
    return _dispatch([_plan(each) for each in typed], ["-m", *typed[0]])


def runs(limit: int | None = None, root: Path | str | None = None) -> list[Run]:
    """The runs under ``root``, newest first.

    Args:
        limit: how many at most.
        root: None: $HPC_RUNS, or ./runs.
    """
    return [Run(run.folder) for run in list(folders.every(_root(root)))[:limit]]


def find(text: str | os.PathLike[str], root: Path | str | None = None) -> Run:
    """The run of an id or its beginning, of a name (its newest), of a folder, or the "last".

    Raises:
        Refused: if there is none, or several.
    """
    return Run(folders.find(_root(root), os.fspath(text)).folder)


def words(overrides: Overrides) -> list[str]:
    """Overrides as they would be typed."""
    if isinstance(overrides, str):
        raise Refused(f"{overrides!r}: overrides are a list, such as [{overrides!r}], or a dict")
    if isinstance(overrides, Mapping):
        return [f"{key}={_spelled(value)}" for key, value in overrides.items()]
    return list(overrides)


def _spelled(value: Any) -> str:
    """A value in Hydra's notation."""
    from hpc.compose import quoted

    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_spelled(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_spelled, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = os.fspath(value) if isinstance(value, os.PathLike) else str(value)
    return text if re.fullmatch(r"[A-Za-z0-9_./@+-]+", text) else quoted(text)


def _plan(typed: list[str], *, begun: bool = False, change: Callable[[Config], None] = lambda config: None) -> Plan:
    from hpc import compose, submit

    with _hydra:
        config = compose.compose(typed)
    change(config)
    return submit.plan(config, typed, begun=begun)


def _dispatch(plans: list[Plan], typed: list[str]) -> Sweep:
    from hpc import arrays

    return Sweep(arrays.dispatch(plans, typed).folder)


def _root(given: Path | str | None) -> Path:
    return folders.root() if given is None else Path(given)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # nothing was printed yet
        return ""
