"""The only file that starts a Slurm program. Text output only: the JSON differs between versions."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hpc.errors import Failed
from monitoring.job import OVER

TIMEOUT = 30.0  # seconds for one answer
URGENT = 8.0  # the same, while Slurm is about to kill whoever asks


class SlurmError(Failed):
    """Slurm refused or did not answer."""

    def __init__(self, message: str, stderr: str = "") -> None:
        super().__init__(message)
        self.stderr = stderr


class Forbidden(SlurmError):
    """The site does not allow it: asking again changes nothing."""


def available() -> bool:
    """Whether this machine has Slurm's client programs."""
    return shutil.which("sbatch") is not None


def clean_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Without what an enclosing job left behind: a job submitted from inside another must not inherit its shape."""
    leftover = re.compile(
        r"(SLURM|SLURMD|SRUN|SBATCH|SUBMITIT|PMI|PMIX)(_.*)?$"
        r"|HPC_(RUN|ATTEMPT|JOB_ID|DEADLINE|EMULATED|RANK|RANKS_PER_NODE|WORLD_SIZE|LOCAL_RANK|NODE)$"
        r"|HPC_(KEEPER|SUPERVISOR_DIED|PAIRS|CHECKPOINTS|RESUME)$|PET_[A-Z_]+$|TORCHELASTIC_[A-Z_]+$"
        r"|(RANK|LOCAL_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE|GROUP_RANK|MASTER_ADDR|MASTER_PORT|NODE_RANK|NNODES)$"
    )
    keep = {"SLURM_CONF"}
    return {k: v for k, v in environment.items() if k in keep or not leftover.match(k)}


def call(argv: list[str], *, environment: Mapping[str, str] | None = None, timeout: float = TIMEOUT) -> str:
    """Run one of Slurm's programs and return what it printed.

    Args:
        environment: beside this process's own.

    Raises:
        SlurmError: if it is not there, fails, or does not answer within ``timeout`` seconds.
    """
    return _run(argv, {**os.environ, **(environment or {})}, timeout)


def sbatch(script: Path, environment: Mapping[str, str] | None = None, *options: str) -> str:
    """Submit a script and return the job id. If Slurm does not answer, the job may be queued all the same."""
    clean = clean_environment({**os.environ, **(environment or {})})
    return _run(["sbatch", "--parsable", *options, str(script)], clean, TIMEOUT).strip().split(";")[0]


def _run(argv: list[str], environment: Mapping[str, str], timeout: float) -> str:
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=timeout, env=environment, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise SlurmError(
            f"{argv[0]} is not installed here. Submit from a login node of the cluster, start an emulated one "
            "with `hpc emulate up cluster=NAME`, or run on this machine with cluster=local."
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{argv[0]} did not answer within {timeout:.0f} s; look with squeue what it did") from None
    return _checked(argv, done.returncode, done.stdout, done.stderr)


def _checked(argv: list[str], status: int, stdout: str, stderr: str) -> str:
    if status:
        said = (stderr.strip() or stdout.strip() or f"exit status {status}").replace("\n", "; ")
        raise SlurmError(f"{argv[0]}: {said}", stderr)
    return stdout


class Question:
    """One of Slurm's programs, started now and heard later, so that several are asked at once."""

    def __init__(self, argv: list[str], environment: Mapping[str, str] | None = None) -> None:
        """
        Raises:
            SlurmError: if the program is not there.
        """
        self.argv = argv
        self.asked = time.monotonic()
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "SLURM_TIME_FORMAT": "standard", **(environment or {})},
            )
        except FileNotFoundError:
            raise SlurmError(f"{argv[0]} is not installed here") from None

    def answer(self, timeout: float) -> str:
        """What it printed.

        Args:
            timeout: seconds, counted from when it was asked.

        Raises:
            SlurmError: if it failed, or has not answered by then.
        """
        try:
            left = self.asked + timeout - time.monotonic()
            stdout, stderr = self._process.communicate(timeout=max(left, 0.01))
        except subprocess.TimeoutExpired:
            self.drop()
            raise SlurmError(f"{self.argv[0]} did not answer within {timeout:g} s") from None
        return _checked(self.argv, self._process.returncode, stdout, stderr)

    def drop(self) -> None:
        """The answer is not wanted any more."""
        if self._process.returncode is None:
            self._process.kill()
            self._process.communicate()


def _squeue(letter: str) -> Any:
    return field(metadata={"letter": letter})


@dataclass(frozen=True)
class QueueRow:
    """One job as squeue tells it; each field carries the letter that squeue knows it by."""

    job_id: str = _squeue("i")  # array-safe
    state: str = _squeue("T")
    reason: str = _squeue("r")
    name: str = _squeue("j")
    partition: str = _squeue("P")
    nodes: int = _squeue("D")
    node_list: str = _squeue("N")
    submitted: str = _squeue("V")
    started: str = _squeue("S")  # while pending: expected start
    ends: str = _squeue("e")
    user: str = _squeue("u")
    folder: str = _squeue("Z")  # its working folder: for our jobs that of the run


_LETTERS = {f.name: f.metadata["letter"] for f in fields(QueueRow)}
_SEPARATOR = "\x1f"


def queue_row(line: str) -> QueueRow:
    """Parse one line that squeue printed with ``queue_format``.

    Raises:
        ValueError: if it has another number of fields.
    """
    parts = line.split(_SEPARATOR)
    values = dict(zip(_LETTERS, parts, strict=True))
    return QueueRow(**{**values, "nodes": int(values["nodes"] or 0)})  # pyright: ignore[reportArgumentType]


def queue_format() -> str:
    """The -o argument of squeue that ``queue_row`` reads; the separator cannot occur in a name."""
    return _SEPARATOR.join(f"%{letter}" for letter in _LETTERS.values())


def queue(
    job_ids: Iterable[str] | None = None,
    environment: Mapping[str, str] | None = None,
    timeout: float = TIMEOUT,
) -> dict[str, QueueRow]:
    """The queue, by job id: of the given jobs, or all of this user's. One squeue.

    Raises:
        SlurmError: if Slurm does not answer. Silence never reads as "nothing is queued".
    """
    argv = ["squeue", "--noheader", "--array", "-t", "all", "-o", queue_format()]
    wanted = None if job_ids is None else list(job_ids)
    argv += ["--me"] if wanted is None else ["--jobs", ",".join(wanted)]
    try:
        text = call(argv, environment={"SLURM_BITSTR_LEN": "1024", **(environment or {})}, timeout=timeout)
    except SlurmError as error:
        if "Invalid job id" in error.stderr:  # squeue's answer for one single job that it no longer knows
            return {}
        raise
    rows = [queue_row(line) for line in text.splitlines() if line.strip()]
    return {row.job_id: row for row in rows}


def sacct(
    fields: Iterable[str], job_ids: Iterable[str], environment: Mapping[str, str] | None = None
) -> list[list[str]]:
    """What the accounting keeps of jobs: of each line, a job's or a step's, the values of ``fields``.

    A requeued job has as many lines as starts.

    Raises:
        SlurmError: if there is no accounting, or it does not answer.
    """
    argv = ["sacct", "--noheader", "--parsable2", f"--delimiter={_SEPARATOR}", "--duplicates"]
    argv += [f"--format={','.join(fields)}", f"--jobs={','.join(job_ids)}"]
    text = call(argv, environment=environment)
    return [line.split(_SEPARATOR) for line in text.split("\n") if line.strip()]


def unix(text: str) -> float | None:
    """A time as Slurm prints it (2026-01-31T12:00:00, local time) in seconds since 1970; None for N/A, Unknown."""
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None


def in_queue(job_id: str, environment: Mapping[str, str] | None = None) -> str | None:
    """The state of a job that still waits, runs or may run again; None if Slurm has let go of it.

    Raises:
        SlurmError: if Slurm does not answer.
    """
    row = queue([job_id], environment).get(job_id)
    return None if row is None or row.state in OVER else row.state


def job(job_id: str, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """What ``scontrol show job`` says, as key -> value. Values with spaces are cut at the space (not used here)."""
    text = call(["scontrol", "show", "job", "-o", job_id], environment=environment)
    return dict(re.findall(r"(?:^|\s)([A-Za-z_/:]+)=(\S*)", text))


def down_nodes(nodes: Iterable[str]) -> list[str]:
    """Those of ``nodes`` that Slurm has given up."""
    text = call(["sinfo", "--noheader", "--Node", "--nodes", ",".join(nodes), "-o", "%N %T"], timeout=URGENT)
    rows = [line.split() for line in text.splitlines() if line.strip()]
    # Not "unknown": that is what a controller which was just started says of every node.
    return sorted({name for name, state in rows if state.startswith(("down", "fail"))})


def node_address(node: str) -> str:
    """The address Slurm itself reaches a node by; names of nodes need not resolve."""
    text = call(["scontrol", "show", "node", "-o", node])
    match = re.search(r"\bNodeAddr=(\S+)", text)
    if not match:
        raise SlurmError(f"scontrol names no NodeAddr for node {node}")
    return match.group(1)


def hostnames(expression: str) -> list[str]:
    """n[1-3] -> n1, n2, n3. Local, no question to the controller."""
    return call(["scontrol", "show", "hostnames", expression]).split()


def requeue(job_id: str, environment: Mapping[str, str] | None = None) -> bool:
    """Put a job back into the queue; False if Slurm did not take that: it has done so already, or is not there.

    Args:
        job_id: array-safe, A_T for a task of an array: A alone would requeue every task.

    Raises:
        Forbidden: if the site does not allow it.
    """
    try:
        call(["scontrol", "requeue", job_id], environment=environment)
    except SlurmError as error:
        if "disabled" in error.stderr or "denied" in error.stderr:
            raise Forbidden(str(error), error.stderr) from error
        return False
    return True


def start_at(job_id: str, in_seconds: int, exclude: Iterable[str] = ()) -> None:
    """Give a requeued job a start in the near future, in place of Slurm's hold of two minutes.

    Args:
        exclude: nodes that it must not start on.

    Raises:
        SlurmError: also for a job that was not requeued.
    """
    nodes = ",".join(exclude)
    change = [f"ExcNodeList={nodes}"] if nodes else []
    call(["scontrol", "update", f"JobId={job_id}", f"StartTime=now+{in_seconds}", *change], timeout=URGENT)


def depend(job_id: str, on: Sequence[str]) -> None:
    """Have a waiting job wait until others have ended well, in place of what it waited for."""
    jobs = f"afterok:{':'.join(on)}" if on else ""
    call(["scontrol", "update", f"JobId={job_id}", f"Dependency={jobs}"], timeout=URGENT)


def steps(job_id: str, name: str | None = None) -> list[str]:
    """The steps of a job that run now, as scancel takes them, without the batch script's; those of a name only."""
    text = call(["squeue", "--noheader", "--steps", "--jobs", job_id, "-o", "%i|%j"], timeout=URGENT)
    rows = [line.strip().partition("|") for line in text.splitlines()]
    found = [step for step, _, called in rows if name is None or called == name]
    return [step for step in found if step.rpartition(".")[2].isdecimal()]


def end_steps(job_id: str, patience: float, grace: float = 0.0, name: str | None = None) -> None:
    """End every step of a job, and wait until they are gone.

    Args:
        name: only those called so.
        grace: seconds that they are given to end by themselves.

    Raises:
        SlurmError: if Slurm does not answer, or a step is still there after ``patience`` seconds.
    """
    kill = time.monotonic() + grace
    end = kill + patience
    while left := steps(job_id, name):
        if time.monotonic() > end:
            raise SlurmError(f"steps of the attempt before do not end: {', '.join(left)}")
        if time.monotonic() >= kill:
            call(["scancel", "--signal=KILL", *left])
        time.sleep(0.5)


def set_time_limit(job_id: str, minutes: int, environment: Mapping[str, str] | None = None) -> None:
    """Lower a job's time limit, which its owner may."""
    call(["scontrol", "update", f"JobId={job_id}", f"TimeLimit={minutes}"], environment=environment)


def on_node(job_id: str, node: str, words: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """Run a command beside a job's own steps, on one of its nodes; what it printed."""
    step = ["srun", f"--jobid={job_id}", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={node}", "--mem=0"]
    environment = clean_environment({**os.environ, **(environment or {})})
    return _run([*step, "--immediate=20", "--quiet", *words], environment, TIMEOUT)


def signal_batch(job_id: str, name: str, environment: Mapping[str, str] | None = None) -> None:
    """Send a signal to the supervisor alone."""
    call(["scancel", "--batch", f"--signal={name}", job_id], environment=environment)


def cancel(job_id: str, environment: Mapping[str, str] | None = None) -> None:
    """End a job, waiting or running."""
    call(["scancel", job_id], environment=environment)


def cancel_waiting(job_id: str, environment: Mapping[str, str] | None = None) -> None:
    """End those tasks of an array that wait."""
    try:
        call(["scancel", "--state=PENDING", job_id], environment=environment)
    except SlurmError as error:
        if "Invalid job id" not in error.stderr:  # what scancel says of an array that has ended meanwhile
            raise


def release(job_ids: Iterable[str], environment: Mapping[str, str] | None = None) -> None:
    """Let jobs that were submitted with --hold begin."""
    call(["scontrol", "release", ",".join(job_ids)], environment=environment)


def cluster_name(environment: Mapping[str, str] | None = None) -> str | None:
    """ClusterName of the controller that answers here; None if none answers."""
    try:
        text = call(["scontrol", "show", "config"], environment=environment, timeout=10)
    except SlurmError:
        return None
    match = re.search(r"^ClusterName\s*=\s*(\S+)", text, re.MULTILINE)
    return match.group(1) if match else None
