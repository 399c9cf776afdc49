"""``job=search``: the rounds of a search that Optuna proposes, submitted from inside the cluster."""

from __future__ import annotations

from pathlib import Path

from hpc import rounds
from hpc.attempt import Attempt
from hpc.config import SearchJob
from hpc.errors import Failed
from hpc.runs import Run, load_config, mark_finished
from hpc.sweep import Sweep
from jobs.recording import recorder


class Search:
    """Propose, submit, wait and tell, until there are all trials or this job's time is over."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def __call__(self) -> None:
        attempt = Attempt.from_environment()
        attempt.install_stop_handlers()
        job = load_config(self.run).job
        if not isinstance(job, SearchJob):
            raise Failed("job=search runs what hydra.sweeper.as_job=true has submitted, and nothing else")
        if attempt.rank != 0:
            return
        attempt.ready()
        sweep = Sweep(Path(job.sweep))
        record = recorder(Run(self.run), attempt, rank=0)

        def told(count: int, best: float | None) -> None:
            # A trial is this run's step: by it is seen that an attempt brought something.
            record.step(step=count, tokens=0, **({} if best is None else {"best": best}))

        try:
            loop = rounds.Loop(sweep, lambda text: print(text, flush=True), attempt.stop, told, self.run)
            how = loop.main()
        finally:
            record.close()
        print(f"the search is {how}", flush=True)
        if how != "stopped":
            mark_finished(self.run, search=how, trials=len(loop.sweep.trials))
