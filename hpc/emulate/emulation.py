"""A running emulated cluster: finding it, asking it, and breaking parts of it on purpose."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hpc import slurm
from hpc.emulate import daemons, processes, state
from hpc.errors import Failed, Refused

if TYPE_CHECKING:
    from hpc.config import Cluster


def find(name: str) -> Emulation | None:
    """The emulated cluster of this name, if it is up on this machine. Reads two small files and starts nothing."""
    directory = state.root() / name
    known = state.read(directory)
    if known is None or not known.up:
        return None
    emulation = Emulation(directory)
    return emulation if emulation.alive() else None


@dataclass(frozen=True)
class Emulation:
    """The emulated cluster in a directory. What can change is read from there each time."""

    directory: Path

    @property
    def state(self) -> state.State:
        """What emulation.json says.

        Raises:
            Failed: if it was taken down meanwhile.
        """
        known = state.read(self.directory)
        if known is None:
            raise Failed(f"the emulated cluster in {self.directory} is gone")
        return known

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def slurm_conf(self) -> Path:
        return daemons.slurm_conf(self.directory)

    @property
    def environment(self) -> dict[str, str]:
        """What a Slurm program must be given to talk to this cluster."""
        return {"SLURM_CONF": str(self.slurm_conf)}

    @property
    def nodes(self) -> int:
        return len(self.state.nodes)

    @property
    def fast(self) -> bool:
        """Whether its figures are those of ``--fast``, not of a site's scheduler."""
        return bool(self.state.options["fast"])

    @property
    def accounting(self) -> bool:
        """Whether sacct and sacctmgr have somebody to answer them."""
        return bool(self.state.options.get("accounting"))

    def accounting_ended(self) -> list[str]:
        """Which of the daemons of its accounting run no more; Slurm itself goes on without them."""
        known = self.state
        here = [role for role in (state.MARIADBD, state.SLURMDBD) if role in known.daemons]
        return [role for role in here if not processes.alive(known.daemons[role])]

    @property
    def preemptible(self) -> str | None:
        """The partition that ``--preemptible`` added."""
        return self.state.preemptible

    def alive(self) -> bool:
        """Whether the controller runs."""
        known = state.read(self.directory)
        if known is None or not known.here:
            return False
        if known.controller_alive():
            return True
        # A controller that was told to reconfigure may go on under another pid.
        try:
            pid = int((self.directory / "run/slurmctld.pid").read_text())
        except (OSError, ValueError):
            return False
        return processes.see(pid) is not None and processes.marked(pid, self.directory)

    def described(self, cluster: Cluster) -> Cluster:
        """A cluster's description with what this emulation changed: fewer nodes, an added partition.

        A request is checked against this, for the described limits are not those of what is up.
        """
        known = self.state
        node_types = {
            name: dataclasses.replace(node_type, **known.node_types.get(name, {}))
            for name, node_type in cluster.node_types.items()
        }
        partitions = dict(cluster.partitions)
        if known.preemptible is not None:
            default = cluster.partitions[cluster.default_partition]
            partitions[known.preemptible] = dataclasses.replace(default, preemptible=True)
        # All nodes are this machine, where the site's environments are not.
        here = {"venv": None, "conda": None}
        return dataclasses.replace(cluster, node_types=node_types, partitions=partitions, **here)

    def node_states(self) -> dict[str, str]:
        """Each node's state as sinfo spells it, such as idle, mixed, down*.

        Raises:
            hpc.slurm.SlurmError: if the controller does not answer.
        """
        return daemons.node_states(self.directory)

    def queue(self) -> Counter[str]:
        """How many jobs are in which state.

        Raises:
            hpc.slurm.SlurmError: if the controller does not answer.
        """
        said = slurm.call(["squeue", "--noheader", "--array", "-o", "%T"], environment=self.environment, timeout=5)
        return Counter(said.split())

    def kill_node(self, node: str, report: bool = False) -> None:
        """A node loses power: its slurmd, its steps and all their processes are killed at once.

        Args:
            report: tell the controller, as an administrator would. Otherwise it finds out by itself: with a
                SlurmdTimeout of 10 s or less that takes it 25 to 30 s, most of it MessageTimeout.

        Raises:
            Refused: if there is no such node.
            Failed: if a process cannot be ended.
        """
        self._check(node)
        known = self.state
        start = time.monotonic()
        while left := [m for m in processes.members(self.directory, known.noted()) if m.node == node]:
            for member in left:  # the daemon first, then the steps: nobody is left to report the others' end
                processes.send(member, signal.SIGKILL)
            if time.monotonic() - start > 10:
                raise Failed(f"node {node}: pid {left[0].process.pid} cannot be ended")
            time.sleep(0.02)
        if report:
            down = ["scontrol", "update", f"nodename={node}", "state=down", "reason=killed"]
            slurm.call(down, environment=self.environment, timeout=10)

    def start_node(self, node: str, bound: float = 30.0) -> None:
        """Bring a killed node back and wait until the controller gives it work again.

        Raises:
            Refused: if there is no such node.
            Failed: if it does not come back within ``bound`` seconds.
        """
        self._check(node)
        known = self.state
        if not processes.alive(known.daemons[node]):
            daemons.start_slurmd(self.directory, known, node)
            state.write(self.directory, known)
        start = time.monotonic()
        while daemons.unusable(self.node_states()[node]):
            if time.monotonic() - start > bound:
                raise Failed(f"node {node} did not come back within {bound:.0f} s\n{daemons.evidence(self.directory)}")
            resume = ["scontrol", "update", f"nodename={node}", "state=resume"]
            with suppress(slurm.SlurmError):  # it is not down yet, or already back
                slurm.call(resume, environment=self.environment, timeout=10)
            time.sleep(0.2)

    def restart_controller(self, kill: bool = False, bound: float = 30.0) -> None:
        """End the controller, in order or (``kill``) as a crash would, and start it again on its saved state.

        Raises:
            Failed: if it does not answer within ``bound`` seconds.
        """
        known = self.state
        old = known.daemons[state.SLURMCTLD]
        if processes.alive(old):
            os.kill(old.pid, signal.SIGKILL if kill else signal.SIGTERM)
        start = time.monotonic()
        while processes.alive(old):
            if time.monotonic() - start > bound:
                raise Failed(f"slurmctld (pid {old.pid}) does not end")
            time.sleep(0.02)
        daemons.start_slurmctld(self.directory, known)
        state.write(self.directory, known)
        while True:
            try:
                self.node_states()
                return
            except slurm.SlurmError:
                if time.monotonic() - start > bound:
                    raise Failed(f"slurmctld does not answer\n{daemons.evidence(self.directory)}") from None
                time.sleep(0.1)

    def _check(self, node: str) -> None:
        known = self.state
        if node not in known.nodes:
            raise Refused(f"{node}: the emulated {self.name} has no such node. Allowed: {', '.join(known.nodes)}")
