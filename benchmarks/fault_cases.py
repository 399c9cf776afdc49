"""The faults of the campaign: what each does, where, and which causes are right for it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from hpc import ledger, slurm
from hpc.emulate import Emulation, state
from hpc.runs import Run
from monitoring.tail import header, last_step
from tests.slurm import faults

STEPS, SAVE_EVERY, EVALUATE_EVERY = 40, 10, 15
UNTIL_A_LIMIT = 900  # steps: Slurm looks at time limits every 30 s
UNTIL_PREEMPTED = 300  # steps: another job is submitted and scheduled meanwhile
PATIENCE = 240.0


@dataclass
class Scene:
    """A run on an emulated cluster."""

    run: Run
    emulation: Emulation

    @property
    def job_id(self) -> str:
        return str(self.run.job_id)

    def until(self, condition: Callable[[], object], patience: float = PATIENCE) -> None:
        end = time.monotonic() + patience
        while not condition():
            if time.monotonic() > end:
                told = slurm.job(self.job_id, self.emulation.environment)
                why = " ".join(f"{name}={told.get(name)}" for name in ("JobState", "Reason", "Restarts", "StartTime"))
                raise TimeoutError(f"the run did not come to the moment of the fault: {why}")
            time.sleep(0.05)

    def at_step(self, step: int, attempt: int = 0) -> None:
        self.until(lambda: (last_step(ledger.folder(self.run, attempt)) or 0) >= step)

    def ended(self, attempt: int) -> None:
        self.until(lambda: any(r.number == attempt and r.action for r in ledger.history(self.run)))

    def pid(self, rank: int) -> int:
        found = header(ledger.folder(self.run, ledger.history(self.run)[-1].number), rank)
        if found is None:
            raise ProcessLookupError(f"rank {rank} has not said who it is")
        return int(found["pid"])

    def kill_rank(self, rank: int, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid(rank), number)

    def supervisor(self) -> int:
        return ledger.history(self.run)[-1].pid

    def ask_to_stop(self) -> None:
        slurm.signal_batch(self.job_id, "USR2", self.emulation.environment)


@dataclass(frozen=True)
class Case:
    """One fault in one phase of a run."""

    fault: str
    phase: str
    causes: frozenset[str]  # right ones for the attempt that it hits
    act: Callable[[Scene], object] = lambda scene: None  # from outside, while the run goes
    prepare: Callable[[Run], object] = lambda run: None  # in the run's folder, before it begins
    overrides: list[str] = field(default_factory=list)
    resume: bool = False  # the run stops, and a person resumes it
    steps: int = STEPS

    @property
    def name(self) -> str:
        return f"{self.fault}, {self.phase}"


# -- faults of one rank, at a place in its own work ---------------------------------------------------------------

_PLACES = {
    "start-up": """
        def arm(parallel):
            build = parallel.build
            def broken(*args):
                act()
                return build(*args)
            parallel.build = broken
        after("trainer.parallel", arm)
    """,
    "step": """
        def arm(step):
            take = step.Stepper.take
            def broken(self, number, *args, **named):
                if number == 13:
                    act()
                return take(self, number, *args, **named)
            step.Stepper.take = broken
        after("trainer.step", arm)
    """,
    "save": """
        def arm(event, arguments):
            if event == "open" and ".step-20.tmp" in str(arguments[0]):
                act()
        sys.addaudithook(arm)
    """,
    "evaluation": """
        def arm(train):
            evaluate = train.evaluate
            def broken(*args, **named):
                act()
                return evaluate(*args, **named)
            train.evaluate = broken
        after("trainer.train", arm)
    """,
}
_ACTS = {
    "SIGKILL": ("os.kill(os.getpid(), signal.SIGKILL)", {"crash"}),
    "SIGSEGV": ("os.kill(os.getpid(), signal.SIGSEGV)", {"crash"}),
    "SIGSTOP": ("os.kill(os.getpid(), signal.SIGSTOP)", {"hang"}),
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM)", {"crash"}),
    "exception": ("raise RuntimeError('a fault was brought in')", {"error"}),
    "hang": ("time.sleep(100000)", {"hang"}),
}
# The watchdog's patience is minutes, for what may take minutes; not here.
_HURRY = """
    def hurry(watchdog):
        watchdog.FIRST_STEP = watchdog.SLOW = 15.0
    after("trainer.watchdog", hurry)
"""
HURRIED = ["train.watch.hang_seconds=6", "train.watch.hang_factor=3", "job.silence=60"]


def _in_rank(fault: str, place: str) -> Case:
    act, causes = _ACTS[fault]
    code = f"    done = []\n    def act():\n        if not done:\n            done.append(1)\n            {act}\n"

    def prepare(run: Run) -> None:
        faults.in_ranks(run, {"True": _HURRY, "RANK == 1 and ATTEMPT == 0": code + _dedent(_PLACES[place])})

    return Case(f"{fault} of a rank", place, frozenset(causes), prepare=prepare, overrides=HURRIED)


def _dedent(code: str) -> str:
    return "\n".join(line[4:] for line in code.splitlines())


# -- faults from outside ------------------------------------------------------------------------------------------


def _preempted(scene: Scene) -> None:
    scene.at_step(13)
    hpc("submit", "cluster=noctua2", "job=hello", "job.nodes=4", "job.ranks_per_node=1", "--wait")


def _preempted_with_grace(scene: Scene) -> None:
    partition = f"PartitionName={scene.emulation.preemptible}"
    slurm.call(["scontrol", "update", partition, "GraceTime=20"], environment=scene.emulation.environment)
    try:
        _preempted(scene)
    finally:
        slurm.call(["scontrol", "update", partition, "GraceTime=0"], environment=scene.emulation.environment)


def _time_limit(scene: Scene) -> None:
    """The limit is lowered to a minute, of which less is left than ranks are given to save."""
    scene.at_step(13)
    slurm.set_time_limit(scene.job_id, 1, scene.emulation.environment)
    scene.ended(0)
    slurm.set_time_limit(scene.job_id, 5, scene.emulation.environment)


def _between_attempts(scene: Scene) -> None:
    """The notice of a time limit comes while the supervisor has no ranks to hand it to."""
    scene.at_step(13)
    scene.kill_rank(1)
    scene.ended(0)
    scene.ask_to_stop()


def _node_dies(scene: Scene) -> None:
    scene.at_step(13)
    node = ledger.history(scene.run)[0].nodes[1]
    scene.emulation.kill_node(node)
    try:
        scene.until(lambda: len(ledger.history(scene.run)) > 1)
    finally:
        scene.emulation.start_node(node)


def _supervisor_killed(scene: Scene) -> None:
    scene.at_step(13)
    os.kill(scene.supervisor(), signal.SIGKILL)


def _batch_process_killed(scene: Scene) -> None:
    scene.at_step(13)
    os.kill(psutil.Process(scene.supervisor()).ppid(), signal.SIGKILL)
    scene.until(lambda: slurm.in_queue(scene.job_id, scene.emulation.environment) is None)


def _controller_restarted_in_a_requeue(scene: Scene) -> None:
    scene.at_step(13)
    scene.ask_to_stop()
    scene.until(lambda: scene.run.state().get("state") == "requeued")
    scene.emulation.restart_controller(kill=True)


@contextlib.contextmanager
def _stopped(scene: Scene, daemon: str) -> Iterator[None]:
    """A daemon that is there and does not answer."""
    pid = scene.emulation.state.daemons[daemon].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _controller_away_while_watching(scene: Scene) -> None:
    scene.at_step(10)
    with _stopped(scene, state.SLURMCTLD):
        done = hpc("status", str(scene.run.folder), "--json")
        assert '"state": "running"' in done or '"state": "finished"' in done, done


def _controller_away_while_submitting(scene: Scene) -> None:
    scene.at_step(10)
    name = f"away-{os.getpid()}"
    # Ended, not killed: one that is killed forgets the jobs of its last seconds, and gives their numbers away again.
    controller = psutil.Process(scene.emulation.state.daemons[state.SLURMCTLD].pid)
    controller.terminate()
    try:
        psutil.wait_procs([controller], timeout=30)
        words = ["submit", "cluster=noctua2", "job=hello", "job.nodes=1", f"name={name}"]
        command = [sys.executable, "-m", "hpc", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 1, done
        assert not list(scene.run.folder.parent.parent.glob(f"{name}/*")), "a folder was left"
    finally:
        scene.emulation.restart_controller(kill=True)


def _munge_away_in_a_requeue(scene: Scene) -> None:
    scene.at_step(13)
    pid = psutil.Process(scene.supervisor()).ppid()
    with _stopped(scene, state.MUNGED):
        os.kill(pid, signal.SIGUSR2)  # scancel would need munge
        time.sleep(12)


def _disk_full(scene: Scene) -> None:
    """The file system of the runs fills up, and is emptied while the run tries again."""
    scene.at_step(13)
    filler = scene.run.folder.parent.parent / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * (1 << 20))
    with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 512)
    time.sleep(15)
    filler.unlink()


def _read_only(scene: Scene) -> None:
    scene.at_step(13)
    folder = str(scene.run.checkpoints)
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        scene.ended(0)
        time.sleep(2)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


_SPOIL = """
    import glob
    def newest(root):
        found = glob.glob(os.environ["HPC_RUN"] + "/checkpoints/step-*/COMPLETE")
        return os.path.dirname(max(found, key=lambda path: int(path.split("step-")[-1].split("/")[0])))
    def files(folder):
        whole = [os.path.join(at, name) for at, _, names in os.walk(folder) for name in names]
        return sorted((path for path in whole if not path.endswith("COMPLETE")), key=os.path.getsize)
"""


def _after_a_kill(fault: str, spoil: str) -> Case:
    """A rank is killed, and before the next attempt reads it, something on disk is damaged."""
    kill, _ = _ACTS["SIGKILL"]
    arm = _PLACES["step"].replace("== 13", "== 25")
    code = f"    done = []\n    def act():\n        {kill}\n"

    def prepare(run: Run) -> None:
        cases = {"RANK == 1 and ATTEMPT == 0": code + _dedent(arm), "RANK == 0 and ATTEMPT == 1": _SPOIL + spoil}
        faults.in_ranks(run, cases)

    return Case(fault, "step", frozenset({"crash"}), prepare=prepare)


_TRUNCATE = """
    path = files(newest(None))[-1]
    os.truncate(path, os.path.getsize(path) // 2)
"""
_FLIP = """
    with open(files(newest(None))[-1], "r+b") as file:
        file.seek(os.path.getsize(file.name) // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 4]))
"""
_CORRUPT = """
    path = os.environ["HPC_RUN"] + "/attempts/0/rank-0.jsonl"
    text = open(path, "rb").read()
    at = text.index(b'"step":22,')
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(bytes(40))
"""


def _clock_jumps(by: float) -> Case:
    code = textwrap.dedent(f"""
        import time as clock
        real = clock.time
        jumped = []
        def act():
            jumped.append({by})
        clock.time = lambda: real() + sum(jumped[:1])
    """)
    kill = _PLACES["step"].replace("== 13", "== 25").replace("act()", "os.kill(os.getpid(), signal.SIGKILL)")

    def prepare(run: Run) -> None:
        place = {"RANK == 0 and ATTEMPT == 0": code + textwrap.dedent(_PLACES["step"])}
        faults.in_ranks(run, {**place, "RANK == 1 and ATTEMPT == 0": kill})

    direction = "forward" if by > 0 else "back"
    return Case(f"clock jumps {direction} an hour, then SIGKILL", "step", frozenset({"crash"}), prepare=prepare)


def _rank_and_controller(scene: Scene) -> None:
    scene.at_step(13)
    thread = threading.Thread(target=scene.emulation.restart_controller, kwargs={"kill": True})
    thread.start()
    scene.kill_rank(1)
    thread.join()


def _rank_and_supervisor(scene: Scene) -> None:
    scene.at_step(13)
    scene.kill_rank(0)
    os.kill(scene.supervisor(), signal.SIGKILL)


def _stop_and_supervisor(scene: Scene) -> None:
    """The supervisor is killed while the ranks that it asked to stop are saving."""
    scene.at_step(13)
    scene.ask_to_stop()
    os.kill(scene.supervisor(), signal.SIGKILL)


def cases(partition: str) -> list[Case]:
    """All of them, in the order in which they are tried.

    Args:
        partition: whose jobs are preempted.
    """
    requeued = frozenset({"preemption"})
    return [
        *(_in_rank(fault, place) for fault in _ACTS for place in _PLACES),
        Case(
            "time limit",
            "step",
            frozenset({"time_limit"}),
            _time_limit,
            overrides=["job.time=5", "job.grace=150"],
            steps=UNTIL_A_LIMIT,
        ),
        Case("time limit between two attempts", "start-up", frozenset({"crash"}), _between_attempts),
        Case(
            "preemption without grace",
            "step",
            requeued,
            _preempted,
            overrides=[f"job.partition={partition}"],
            steps=UNTIL_PREEMPTED,
        ),
        Case(
            "preemption with grace",
            "step",
            requeued,
            _preempted_with_grace,
            overrides=[f"job.partition={partition}"],
            steps=UNTIL_PREEMPTED,
        ),
        Case("slurmd and its steps killed", "step", frozenset({"node_failure"}), _node_dies),
        Case("supervisor killed", "step", frozenset({"crash"}), _supervisor_killed),
        Case("batch process killed", "step", frozenset({"crash"}), _batch_process_killed, resume=True),
        Case("slurmctld killed in a requeue", "requeue", requeued, _controller_restarted_in_a_requeue),
        Case("slurmctld away while watching", "step", frozenset({"finished"}), _controller_away_while_watching),
        Case("slurmctld away while submitting", "step", frozenset({"finished"}), _controller_away_while_submitting),
        # Without munge nothing reaches the ranks, which may be done before it is back.
        Case("munge away", "requeue", requeued | {"finished"}, _munge_away_in_a_requeue),
        Case("disk full", "save", frozenset({"storage"}), _disk_full, overrides=["requeue.storage.wait=5"]),
        Case("run folder read-only", "save", frozenset({"storage"}), _read_only, overrides=["requeue.storage.wait=5"]),
        _after_a_kill("checkpoint file truncated", _TRUNCATE),
        _after_a_kill("checkpoint file with a flipped bit", _FLIP),
        _after_a_kill("record file with damaged bytes", _CORRUPT),
        _clock_jumps(3600.0),
        _clock_jumps(-3600.0),
        Case("SIGKILL of a rank and slurmctld killed", "step", frozenset({"crash"}), _rank_and_controller),
        Case("SIGKILL of a rank and of the supervisor", "step", frozenset({"crash"}), _rank_and_supervisor),
        Case("asked to stop and supervisor killed", "save", frozenset({"crash"}), _stop_and_supervisor),
    ]


def hpc(*words: str) -> str:
    """What the command prints."""
    command = [sys.executable, "-m", "hpc", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    if done.returncode:
        raise RuntimeError(f"hpc {' '.join(words)}: {done.stderr}")
    return done.stdout


def places(folder: Path) -> list[str]:
    return [f"cluster.runs={folder}/runs", f"cluster.data={folder}/data"]
