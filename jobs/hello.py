"""``job=hello``: every rank reports in to rank 0, which checks that all agree. A rehearsal without torch."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from hpc.attempt import Attempt
from hpc.config import HelloJob
from hpc.errors import Failed
from hpc.runs import load_config, mark_finished

PATIENCE = 120.0  # seconds for all ranks to report in


@dataclass(frozen=True)
class Greeting:
    """What a rank believes of itself."""

    rank: int
    world_size: int
    local_rank: int
    ranks_per_node: int
    node: str
    attempt: int


class Hello:
    """Start all ranks of a run and let them agree on ranks, nodes, local ranks and rendezvous."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def __call__(self) -> None:
        attempt = Attempt.from_environment()
        attempt.install_stop_handlers()
        job = load_config(self.run).job
        mine = Greeting(
            attempt.rank,
            attempt.world_size,
            attempt.local_rank,
            attempt.ranks_per_node,
            attempt.node,
            attempt.number,
        )
        if attempt.rank == 0:
            greetings = self._collect(attempt, mine)
            disagreements = disagreement(greetings)
            if disagreements:
                raise Failed("the ranks disagree: " + "; ".join(disagreements))
        else:
            self._report(attempt, mine)
        end = time.monotonic() + (job.seconds if isinstance(job, HelloJob) else 0)
        while time.monotonic() < end and not attempt.stop():
            time.sleep(0.05)
        if attempt.rank == 0 and not attempt.stop():
            nodes = sorted({g.node for g in greetings})
            print(f"{len(greetings)} ranks on {len(nodes)} nodes agree: {', '.join(nodes)}", flush=True)
            mark_finished(self.run, ranks=len(greetings), nodes=nodes)

    def _collect(self, attempt: Attempt, mine: Greeting) -> list[Greeting]:
        greetings = [mine]
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(socket.create_server(("", 0), backlog=attempt.world_size))
            server.settimeout(PATIENCE)
            attempt.publish(server.getsockname()[1])
            lines = []
            while len(greetings) < attempt.world_size:
                connection, _ = server.accept()
                line = stack.enter_context(connection.makefile("rw", encoding="utf-8"))
                greetings.append(Greeting(**json.loads(line.readline())))
                lines.append(line)
            attempt.ready()
            # Only now that all are here: a rank that leaves early would hide one that never came.
            for line in lines:
                line.write("hello\n")
                line.flush()
        return greetings

    def _report(self, attempt: Attempt, mine: Greeting) -> None:
        address = attempt.lookup(PATIENCE)
        with socket.create_connection(address, timeout=PATIENCE) as connection:
            line = connection.makefile("rw", encoding="utf-8")
            line.write(json.dumps(asdict(mine)) + "\n")
            line.flush()
            if line.readline() != "hello\n":
                raise Failed("rank 0 left before all ranks had reported in")


def disagreement(greetings: list[Greeting]) -> list[str]:
    """What does not fit together in what the ranks believe; empty if all agree. Pure."""
    found = []
    size = greetings[0].world_size
    for name in ("world_size", "ranks_per_node", "attempt"):
        values = {getattr(g, name) for g in greetings}
        if len(values) > 1:
            found.append(f"{name} is {sorted(values)}")
    if sorted(g.rank for g in greetings) != list(range(size)):
        found.append(f"ranks are not 0 to {size - 1} once each")
    by_node: dict[str, list[Greeting]] = {}
    for greeting in sorted(greetings, key=lambda g: g.rank):
        by_node.setdefault(greeting.node, []).append(greeting)
    for node, here in by_node.items():
        if [g.local_rank for g in here] != list(range(here[0].ranks_per_node)):
            found.append(f"local ranks on {node} are {[g.local_rank for g in here]}")
        if [g.rank for g in here] != list(range(here[0].rank, here[0].rank + len(here))):
            found.append(f"ranks on {node} are not next to each other")
    return found
