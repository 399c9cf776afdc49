"""Inside a rank: who am I, where is rank 0, was I asked to stop.

Every environment variable of a job is spelled here. The supervisor exports what is common to all ranks; what
differs per rank comes from Slurm's step, or from the supervisor itself where there is no Slurm.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from hpc.errors import Diverged, Failed, Refused
from hpc.runs import ADDRESS, DIVERGED, READY, REFUSED, Run, load_config, read_json, write_json, write_text
from monitoring.layout import attempt_info

RUN = "HPC_RUN"  # the run folder
ATTEMPT = "HPC_ATTEMPT"  # number of this attempt
JOB_ID = "HPC_JOB_ID"  # array-safe id of the job, as scontrol takes it
DEADLINE = "HPC_DEADLINE"  # unix time at which ranks stop by themselves, should no signal arrive
RANKS_PER_NODE = "HPC_RANKS_PER_NODE"
PAIRS = "HPC_PAIRS"  # a number: no training, but this turn of trying the network between pairs of nodes
EMULATED = "HPC_EMULATED"  # "1" on an emulated cluster
KEEPER = "HPC_KEEPER"  # of a supervisor: pid of its parent, which is the batch process
SUPERVISOR_DIED = "HPC_SUPERVISOR_DIED"  # likewise: the signal that ended the supervisor before it in this job
# Set per rank by the supervisor where no Slurm step sets its own.
RANK, WORLD_SIZE, LOCAL_RANK, NODE = "HPC_RANK", "HPC_WORLD_SIZE", "HPC_LOCAL_RANK", "HPC_NODE"
PER_RANK = (RANK, WORLD_SIZE, LOCAL_RANK, NODE)
# What the program of a command is told beside RUN, ATTEMPT, JOB_ID and DEADLINE.
CHECKPOINTS = "HPC_CHECKPOINTS"  # the folder to save in
RESUME = "HPC_RESUME"  # "1" if an attempt was made before this one, else "0"
MASTER_ADDR, MASTER_PORT = "MASTER_ADDR", "MASTER_PORT"  # where the program's own processes meet
NODE_RANK, NNODES = "NODE_RANK", "NNODES"
PET = "PET"  # before the names of torchrun's options, such as PET_NNODES
# Of a program that is started once for each of its processes, as torch.distributed has them.
TORCH_RANK, TORCH_WORLD_SIZE, TORCH_LOCAL_RANK = "RANK", "WORLD_SIZE", "LOCAL_RANK"
TORCH_LOCAL_WORLD_SIZE = "LOCAL_WORLD_SIZE"

SIGNALS = {signal.SIGUSR2: "SIGUSR2", signal.SIGTERM: "SIGTERM", signal.SIGINT: "SIGINT"}


@dataclass
class Attempt:
    """One rank's view of one attempt."""

    run: Path
    number: int
    job_id: str
    rank: int
    world_size: int
    local_rank: int
    ranks_per_node: int
    node: str
    deadline: float | None = None  # unix time
    emulated: bool = False
    pairs: int | None = None  # which turn of trying pairs of nodes this is, where it is not the attempt's work
    _reason: str | None = field(default=None, repr=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Attempt:
        """The attempt that this process is a rank of.

        Raises:
            Failed: outside of a job.
        """
        get = environment.get
        try:
            deadline = get(DEADLINE)
            return cls(
                run=Path(environment[RUN]),
                number=int(environment[ATTEMPT]),
                job_id=environment[JOB_ID],
                rank=int(get(RANK) or environment["SLURM_PROCID"]),
                world_size=int(get(WORLD_SIZE) or environment["SLURM_STEP_NUM_TASKS"]),
                local_rank=int(get(LOCAL_RANK) or environment["SLURM_LOCALID"]),
                ranks_per_node=int(environment[RANKS_PER_NODE]),
                node=get(NODE) or environment["SLURMD_NODENAME"],
                deadline=float(deadline) if deadline else None,
                emulated=get(EMULATED) == "1",
                pairs=int(turn) if (turn := get(PAIRS)) else None,
            )
        except KeyError as missing:
            raise Failed(
                f"this process is no rank of a run: {missing} is not set. Start one with: hpc submit"
            ) from None

    @property
    def folder(self) -> Path:
        """Where this attempt's records, logs and address lie."""
        return self.run / "attempts" / str(self.number)

    def nodes_by_rank(self) -> list[str]:
        """The node of each rank; empty where all are on one. Ranks fill a node before the next."""
        names = (read_json(attempt_info(self.folder)) or {}).get("nodes") or []
        return [names[rank // self.ranks_per_node] for rank in range(self.world_size)] if len(names) > 1 else []

    def program_environment(self, address: tuple[str, int], processes: int | None) -> dict[str, str]:
        """What the program of a command is told.

        Args:
            address: where its processes meet.
            processes: that it starts on each node itself; None for a program that is started once for each of them.
        """
        host, port, node_rank = address[0], str(address[1]), str(self.rank // self.ranks_per_node)
        nodes = str(self.world_size // self.ranks_per_node)
        told = {
            RUN: str(self.run),
            ATTEMPT: str(self.number),
            JOB_ID: self.job_id,
            CHECKPOINTS: str(Run(self.run).checkpoints),
            RESUME: "1" if self.number else "0",
            MASTER_ADDR: host,
            MASTER_PORT: port,
            NODE_RANK: node_rank,
            NNODES: nodes,
        }
        if self.deadline is not None:
            told[DEADLINE] = f"{self.deadline:.0f}"
        if processes is None:
            ranks = {TORCH_RANK: self.rank, TORCH_WORLD_SIZE: self.world_size, TORCH_LOCAL_RANK: self.local_rank}
            ranks[TORCH_LOCAL_WORLD_SIZE] = self.ranks_per_node
            return told | {name: str(value) for name, value in ranks.items()}
        pet = {"NNODES": nodes, "NODE_RANK": node_rank, "MASTER_ADDR": host, "MASTER_PORT": port}
        pet["NPROC_PER_NODE"] = str(processes)
        return told | {f"{PET}_{name}": value for name, value in pet.items()}

    # -- being asked to stop ---------------------------------------------------------------------------------

    def install_stop_handlers(self) -> None:
        """Make USR2 and SIGTERM set a flag, and nothing else: nothing is saved inside a signal handler."""
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        # Slurm sends SIGCONT along; an interrupt typed at a terminal is the supervisor's to handle.
        signal.signal(signal.SIGCONT, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _on_signal(self, number: int, frame: object) -> None:
        self._reason = self._reason or SIGNALS[signal.Signals(number)]

    def stop(self) -> str | None:
        """Why this rank was asked to stop, or None. Other ranks may learn of it at another time."""
        if self._reason is None and self.deadline is not None and time.time() >= self.deadline:
            self._reason = "deadline"
        return self._reason

    # -- finding each other ----------------------------------------------------------------------------------

    def host(self) -> str:
        """The address of this node for the other ranks, as the cluster's ``rendezvous`` says."""
        from hpc import slurm
        from hpc.config import Host

        cluster = load_config(self.run).cluster
        rendezvous = cluster.rendezvous
        if self.emulated:
            return "127.0.0.1"
        if rendezvous.host is Host.interface:
            return _interface_address(rendezvous.interface or "lo")
        if rendezvous.host is Host.node_addr and cluster.slurm_from_compute:
            return slurm.node_address(self.node)
        return socket.gethostname()

    def publish(self, port: int, host: str | None = None, name: str = ADDRESS) -> None:
        """Rank 0 tells where it listens. The port is one the system chose, so that runs never collide."""
        write_json(self.folder / name, {"host": host or self.host(), "port": port, "node": self.node})

    def lookup(self, timeout: float = 300.0, name: str = ADDRESS) -> tuple[str, int]:
        """Where rank 0 listens (host, port); waits for it to say so.

        Raises:
            Failed: if rank 0 said nothing within ``timeout`` seconds.
        """
        end = time.monotonic() + timeout
        pause = 0.02
        while time.monotonic() < end:
            # Listing the folder makes network file systems look again instead of answering from memory.
            listed = {path.name for path in self.folder.iterdir()}
            address = read_json(self.folder / name) if name in listed else None
            if address is not None:
                return str(address["host"]), int(address["port"])
            time.sleep(pause)
            pause = min(pause * 1.5, 1.0)
        raise Failed(f"rank 0 did not say within {timeout:.0f} s where it listens ({self.folder / name})")

    def ready(self) -> None:
        """Rank 0: all ranks have joined and handle the stop signals; the supervisor may forward one from now on."""
        if self.rank == 0:
            write_text(self.folder / READY, f"{time.time()}\n")


def _interface_address(interface: str) -> str:
    import psutil

    found = psutil.net_if_addrs()
    for address in found.get(interface, []):
        if address.family == socket.AF_INET:
            return address.address
    names = ", ".join(sorted(found))
    raise Refused(
        f"cluster.rendezvous.interface={interface}: this node has no such interface with IPv4. It has: {names}"
    )


def _give_up(marker: str, error: Exception) -> None:
    """Tell the supervisor that no further attempt would do better."""
    attempt = Attempt.from_environment()
    if attempt.rank == 0 or not (attempt.folder / marker).exists():
        write_text(attempt.folder / marker, f"{error}\n")


def start(run: str | None = None) -> None:
    """What submitit's entry calls on every rank. The path of the run folder is all that travels in the pickle, and that
    of a run of a sweep comes from its supervisor.

    After a mistake in the request (status 2), and after a training that says it cannot go on, the supervisor ends
    the run instead of trying again; the message goes to the run folder for ``hpc status``.
    """
    folder = Path(run or os.environ[RUN])
    try:
        # Hydra's own get_class would import a tenth of a second more, on each of many ranks.
        module, _, name = load_config(folder).job._target_.rpartition(".")
        getattr(import_module(module), name)(folder)()
    except Refused as error:
        print(f"refused: {error}", file=sys.stderr, flush=True)
        _give_up(REFUSED, error)
        sys.exit(Refused.status)
    except Failed as error:
        if isinstance(error, Diverged):
            _give_up(DIVERGED, error)
        # What went wrong is known, so a traceback would only hide it; the supervisor reads this line.
        print(f"Error: {error}", file=sys.stderr, flush=True)
        sys.exit(Failed.status)
    finally:
        # A leaving interpreter puts the default back, and a late reminder to stop would kill a rank that did.
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
