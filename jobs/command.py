"""``job=command``: a program of one's own in a run: told where it is, asked to stop, watched, and started again.

Nothing of it goes through a shell. Its standard output is the rank's log. What ``docs/command.md`` promises it is kept
here; the process tree is ``hpc.program``'s.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

from hpc import check_command, ledger, program
from hpc.attempt import Attempt
from hpc.config import CommandJob
from hpc.errors import Failed, Refused
from hpc.program import Program
from hpc.request import resolve
from hpc.runs import Run, load_config, mark_finished, write_text
from jobs.recording import recorder
from monitoring.follow import Follower
from monitoring.tail import last_record, last_value

# Below the ports that Linux gives out by itself: what listens there does so on purpose.
PORTS = range(10_000, 32_000)
DONE = "rank-{}.done"  # in the attempt's folder: a rank's program ended well, and nobody had asked it to stop


class Command:
    """Run the program of a run's ``command`` on this rank, from its start to its end."""

    def __init__(self, run: Path) -> None:
        self.run = Run(run)

    def __call__(self) -> None:
        """
        Returns when the run is finished, or the program has ended well after it was asked to stop. Leaves with the
        program's exit status where that is another than 0.

        Raises:
            Refused: if the program or its folder is not there.
            Failed: if rank 0 does not say where to meet.
        """
        attempt = Attempt.from_environment()
        attempt.install_stop_handlers()
        config = load_config(self.run.folder)
        job = config.job
        assert isinstance(job, CommandJob)
        folder = Path(job.directory or self.run.folder)
        processes = resolve(config).processes_per_rank if job.ranks_per_node is None else None
        told = attempt.program_environment(_meet(attempt), processes)
        environment = self._environment(job, told)
        command = check_command.filled(check_command.words(config.command), told)
        _refuse_missing(attempt, command[0], folder, environment)
        if attempt.stop():
            return
        started = Program.start(command, environment, folder)
        try:
            attempt.ready()
            self._attend(attempt, job, started)
        finally:
            started.end()

    def _environment(self, job: CommandJob, told: dict[str, str]) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SUBMITIT_")}
        # Our own packages come last: what the program calls by the same names is its own.
        path = [*filter(None, (job.pythonpath or "").split(os.pathsep)), str(self.run.code)]
        # Its lines are to be seen when it prints them, not when a buffer is full.
        return {"PYTHONUNBUFFERED": "1", **kept, **told, "PYTHONPATH": os.pathsep.join(path)}

    def _attend(self, attempt: Attempt, job: CommandJob, started: Program) -> None:
        """Wait for the program, handing on a stop; then say how it ended."""
        follower = self._follow(attempt, job) if attempt.rank == 0 else None
        number = signal.Signals[f"SIG{job.signal.value}"]
        asked = False
        try:
            while (code := started.poll()) is None:
                if reason := attempt.stop():
                    new = started.hand_on(number)
                    if new or not asked:
                        print(f"hpc: {reason}; {new} processes were sent {number.name}", flush=True)
                    asked = True
                time.sleep(program.POLL)
        finally:
            if follower is not None:
                follower.close()
        if code:
            sys.exit(code)
        if attempt.stop():
            return
        write_text(attempt.folder / DONE.format(attempt.rank), "")
        if _all_done(attempt) and attempt.rank == 0 and not self.run.finished:
            mark_finished(self.run.folder, **self._summary(attempt))

    def _follow(self, attempt: Attempt, job: CommandJob) -> Follower:
        follower = Follower(
            attempt.folder,
            attempt.world_size,
            job.metrics,
            lambda: recorder(self.run, attempt, rank=0),
            job.tokens_per_step,
        )
        return follower.start()

    def _summary(self, attempt: Attempt) -> dict[str, float]:
        # Of the newest attempt that recorded any: this one may have found nothing left to do.
        records = (last_record(ledger.folder(self.run, number)) for number in range(attempt.number, -1, -1))
        last = next(filter(None, records), {})
        known = {name: last[name] for name in ("step", "tokens") if name in last}
        loss = last_value(self.run.folder, "loss")  # the newest record may be of a validation alone
        return known if loss is None else known | {"loss": loss}


def _meet(attempt: Attempt) -> tuple[str, int]:
    """Where the program's processes meet: a port on rank 0's node that nothing listens on now."""
    if attempt.rank == 0:
        attempt.publish(_free_port())
    return attempt.lookup()


def _free_port() -> int:
    for port in random.sample(PORTS, 100):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
                return port
            except OSError:
                continue
    raise Failed(f"none of 100 ports from {PORTS.start} to {PORTS.stop} is free on {socket.gethostname()}")


def _refuse_missing(attempt: Attempt, name: str, folder: Path, environment: dict[str, str]) -> None:
    if not folder.is_dir():
        raise Refused(f"job.directory={folder}: node {attempt.node} has no such folder. Try: job.directory=DIR")
    if program.find(name, folder, environment.get("PATH", os.defpath)) is None:
        raise Refused(
            f"command: {name!r} is not found on node {attempt.node}, whose PATH is {environment.get('PATH')}. "
            "Give its whole path, or set cluster.modules or cluster.environment.PATH"
        )


def _all_done(attempt: Attempt) -> bool:
    """Wait until the programs of all ranks have ended well; False if asked to stop before.

    A rank that left early would have srun end the others a minute later.
    """
    wanted = {DONE.format(rank) for rank in range(attempt.world_size)}
    while not wanted <= set(os.listdir(attempt.folder)):  # noqa: PTH208 (a listing makes network file systems look)
        if attempt.stop():
            return False
        time.sleep(0.2)
    return True
