"""Over one run, inside its job: starts the ranks, takes the signals and the deadline, decides what follows an end.

It runs in place of the batch shell, so that ``--signal=B:USR2@grace`` reaches it and no signal falls between two
steps. It does not touch the training state: ranks save together when they are asked to stop, and a run is
finished only when its FINISHED marker says so.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import time
from pathlib import Path

from hpc import aftermath, attempt, exits, following, ledger, notify, origin, shrink
from hpc.allocation import TERM_PATIENCE, Allocation, Ranks
from hpc.compacting import Compacting
from hpc.config import Config
from hpc.diagnose import Diagnosis, diagnose
from hpc.errors import Failed
from hpc.evaluating import Evaluating
from hpc.exits import SRUN_LOG
from hpc.ledger import Record
from hpc.pairs import blame, turns
from hpc.request import resolve
from hpc.requeue import Action, Cause, Decision, decide
from hpc.runs import READY, Run, pair_passed

POLL = 0.1  # seconds between two looks at the ranks
PAIR_PATIENCE = 240.0  # seconds for pairs of nodes, most of it for importing torch from a cold disk
REPEAT = 3.0  # seconds after which a stop is forwarded again: signals to steps do get lost
WRITE_PATIENCE = 60.0  # seconds for which a write into the run folder is tried again


class Supervisor:
    """One batch process over one or more attempts."""

    def __init__(self, run: Run, config: Config, allocation: Allocation) -> None:
        self.run = run
        self.config = config
        self.allocation = allocation
        self.request = resolve(config)
        self.asked: tuple[str, float] | None = None  # reason, monotonic time
        self.node_failure: str | None = None  # why, once Slurm has ended the job for it
        self.evaluating = Evaluating(run, config, say)
        self.compacting = Compacting(run, say)
        self.silent: str | None = None  # for how long nothing came from the ranks, once they were ended for it

    # -- signals -------------------------------------------------------------------------------------------------

    def install_signals(self) -> None:
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGCONT, signal.SIG_IGN)

    def _on_signal(self, number: int, frame: object) -> None:
        name = signal.Signals(number).name
        if self.asked is None or (name == "SIGTERM" and self.asked[0] != "SIGTERM"):
            self.asked = (name, time.monotonic())

    def _stop_asked(self) -> tuple[str, float] | None:
        if self.asked is None and time.time() >= self.deadline:
            self.asked = ("deadline", time.monotonic())
        return self.asked

    @property
    def deadline(self) -> float:
        """Unix time at which ranks are asked to stop even if no signal came."""
        return self.allocation.ends - self.request.grace

    # -- attempts ------------------------------------------------------------------------------------------------

    def main(self) -> int:
        """Run attempts until the run is over, or the job was queued again. Returns the exit status."""
        self.install_signals()
        while True:
            if self.run.finished:
                say("the run is finished")
                return 0
            if self.run.cancelled:
                return self._conclude(Decision(Action.end, "cancelled"))
            try:
                record = ledger.take(
                    self.run, self._new_record, lambda past: self.allocation.owner_lives(self.run, past)
                )
                self._settle_predecessor(record)
                decision = self._attempt(record)
            except ledger.Held as held:
                say(f"refused: {held}. This job ends, the run goes on there. To end that: hpc cancel {self.run.id}")
                return 3
            # Cancelled while the attempt was ending: no need to wait in the queue for that.
            if decision.action is Action.requeue and not self.run.cancelled and self._requeue(record, decision):
                return 0
            if decision.action in (Action.end, Action.stop):
                return self._conclude(decision)
            self._pause(max(1.0, decision.wait))

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._stop_asked() is None and not self.run.cancelled:
            time.sleep(POLL)

    def _new_record(self, number: int) -> Record:
        return Record(
            number=number,
            job_id=self.allocation.job_id,
            restart_count=self.allocation.restart_count,
            cluster=self.config.cluster.name,
            emulated=os.environ.get(attempt.EMULATED) == "1",
            host=socket.gethostname(),
            pid=os.getpid(),
            nodes=self.allocation.nodes,
            world_size=self.request.world_size,
            began=time.time(),
        )

    def _settle_predecessor(self, record: Record) -> None:
        """An attempt whose supervisor died with it could not say how it ended; the next one says so for it."""
        past = ledger.history(self.run)
        if len(past) < 2 or past[-2].ended is not None:
            return
        last = past[-2]
        same_job = last.job_id == record.job_id
        if same_job and record.restart_count == last.restart_count:
            self.allocation.clear()
            by = os.environ.get(attempt.SUPERVISOR_DIED, "something")
            found, action = Diagnosis(Cause.crash, f"its supervisor was ended by {by}"), Action.restart
        elif same_job and record.restart_count > last.restart_count:
            said = "Slurm started the job again without a notice to the attempt"
            found, action = Diagnosis(Cause.node_failure, said), Action.requeue
        else:
            found, action = Diagnosis(Cause.crash, "its job ended without a word of its supervisor"), Action.requeue
        self._note_end(last, found, ended=aftermath.last_sign(self.run, last), action=action.value)
        say(f"attempt {last.number} ended by {found.cause.value}: {found.evidence}")

    def _attempt(self, record: Record) -> Decision:
        say(
            f"attempt {record.number}{' (EMULATED)' if record.emulated else ''}: job {record.job_id}, "
            f"restart {record.restart_count}, "
            f"{record.world_size} ranks on {', '.join(record.nodes)}"
        )
        self.run.set_state("running", job_id=record.job_id, attempt=record.number, reason="")
        killed = aftermath.oom_kills()
        ranks = self.allocation.start(ledger.folder(self.run, record.number), self._rank_environment(record))
        written = origin.note(self.run, self.config, record.number, record.nodes, say)
        code = self._watch(ranks, record)
        written.join(5.0)
        found = self._cause(record, ranks, killed)
        if found.cause is Cause.preflight and not found.suspects:
            found = self._try_pairs(record, found)
        self._relay(record)
        statuses = {str(each.rank): each.code for each in ranks.exits()}
        self._note_end(record, found, ended=time.time(), exit_code=code, exits=statuses)
        decision = self._decide()
        changed = self._shrink() if decision.shrink else {}
        plan = {"reason": decision.reason, "exclude": list(decision.exclude), "changed": changed}
        self._note(record, action=decision.action.value, **plan)
        say(f"attempt {record.number} ended by {found.cause.value} ({found.evidence}); next: {decision.action.value}")
        return decision

    def _try_pairs(self, record: Record, found: Diagnosis) -> Diagnosis:
        """A reduction over all failed, which nobody can be blamed for: let pairs of nodes try."""
        folder, count, passed = ledger.folder(self.run, record.number), len(record.nodes), set[int]()
        for turn in range(turns(count)):
            say(f"looking for the node that hinders the others: pairs, turn {turn + 1} of {turns(count)}")
            environment = {**self._rank_environment(record), attempt.PAIRS: str(turn)}
            ranks, end = self.allocation.start(folder, environment), time.monotonic() + PAIR_PATIENCE
            while ranks.poll() is None and self._stop_asked() is None:
                if time.monotonic() > end:
                    ranks.end(now=True)
                time.sleep(POLL)
            passed |= {node for node in range(count) if (folder / pair_passed(turn, node)).exists()}
        blamed = tuple(record.nodes[node] for node in blame(passed, count))
        said = f"; alone with another, {', '.join(blamed)} could not either" if blamed else "; no node stands out"
        return Diagnosis(found.cause, found.evidence + said, blamed)

    def _decide(self) -> Decision:
        request = self.request
        return decide(
            aftermath.since_asked(self.run),
            self.config.requeue,
            max_fruitless=self.config.job.max_fruitless,
            seconds_left=self.allocation.ends - time.time(),
            grace=request.grace,
            spare_nodes=request.node.count - request.nodes,
            can_shrink=shrink.smaller(self.config, request) is not None,
        )

    def _shrink(self) -> dict[str, list[int]]:
        """The next attempt takes a smaller micro-batch, and the same global batch in more passes. What was changed."""
        micro_batch, before = shrink.smaller(self.config, self.request), self.config.parallel.micro_batch
        assert micro_batch is not None
        shrink.shrink(self.run, self.config, micro_batch)
        say(f"{shrink.FIELD} is {micro_batch} from now on; it was {before}")
        return {shrink.FIELD: [before, micro_batch]}

    def _relay(self, record: Record) -> None:
        """What srun said goes to the log that a person reads."""
        if text := exits.tail(ledger.folder(self.run, record.number) / SRUN_LOG).strip():
            with contextlib.suppress(OSError):
                print(text, flush=True)

    def _note_end(self, record: Record, found: Diagnosis, *, ended: float, **more: object) -> None:
        known = aftermath.account(self.run, record, max(ended, record.began))
        self._note(
            record, **known, cause=found.cause.value, evidence=found.evidence, suspects=list(found.suspects), **more
        )

    def _note(self, record: Record, **changes: object) -> None:
        """Write into an attempt's record. A file system that stumbles must not end a run that is well."""
        end = time.monotonic() + WRITE_PATIENCE
        while True:
            try:
                ledger.update(self.run, record.number, **changes)
                return
            except OSError as error:
                if time.monotonic() > end:
                    raise
                say(f"could not write the attempt's record, trying again: {error}")
                time.sleep(5.0)

    def _beat(self, record: Record) -> None:
        """Show that this process lives, and look whether it was given up meanwhile.

        Raises:
            ledger.Held: if a later attempt began, as when Slurm took this node for dead and started the job elsewhere.
        """
        try:
            ledger.beat(self.run, record.number)
        except OSError as error:
            say(f"no heartbeat: {error}")
        if ledger.folder(self.run, record.number + 1).exists():
            raise ledger.Held(f"attempt {record.number + 1} began while this one was taken for dead")

    def _rank_environment(self, record: Record) -> dict[str, str]:
        env = {
            attempt.RUN: str(self.run.folder),
            attempt.ATTEMPT: str(record.number),
            attempt.JOB_ID: record.job_id,
            attempt.RANKS_PER_NODE: str(self.request.ranks_per_node),
            attempt.EMULATED: "1" if record.emulated else "",
            "SUBMITIT_EXECUTOR": "hpc",
        }
        if not math.isinf(self.deadline):
            env[attempt.DEADLINE] = f"{self.deadline + 2:.3f}"  # only if the supervisor's own word got lost
        # More threads than cores of its own make every rank slower; a person's own choice stays.
        env["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(self._threads(record.emulated)))
        return env

    def _threads(self, emulated: bool) -> int:
        """CPU threads of one process: its share of the cores that are really here."""
        here = len(os.sched_getaffinity(0))
        each = self.request.processes_per_rank
        here //= each * (self.request.world_size if emulated else self.request.ranks_per_node)
        return self.config.parallel.threads or max(1, min(self.request.cpus_per_rank // each, here))

    def _watch(self, ranks: Ranks, record: Record) -> int:
        """Wait for the ranks, handing on a stop. Returns their exit status."""
        folder = ledger.folder(self.run, record.number)
        next_beat = forwarded = 0.0
        told = ""
        silence = aftermath.Silence(folder, self.config.job.silence)
        self.silent = None
        while (code := ranks.poll()) is None:
            now = time.monotonic()
            if now >= next_beat:
                next_beat = now + ledger.HEARTBEAT_SECONDS
                try:
                    self._beat(record)
                except ledger.Held:
                    ranks.end(now=True)
                    raise
            if self.asked is None:
                self.evaluating.look()
                self.compacting.look()
            if self.silent is None and (said := silence.broken()):
                self.silent = said
                say(f"{said}; ending the ranks")
                ranks.end(now=True)
            asked = self._stop_asked()
            if asked and now >= forwarded + REPEAT:
                forwarded = now
                self._forward(ranks, folder, asked)
            if asked and asked[0] != told:
                told = asked[0]
                say(f"asked to stop by {told}")
                # Only after the ranks were told: Slurm may take seconds to answer, of the few that it leaves.
                self.node_failure = self.allocation.taken_away() if told == "SIGTERM" else None
                if self.node_failure:
                    # srun would wait for the dead node until Slurm kills this process.
                    ranks.end(now=False)
                    return 1
            time.sleep(POLL)
        return code

    def _forward(self, ranks: Ranks, folder: Path, asked: tuple[str, float]) -> None:
        if time.monotonic() > self._patience_ends(asked):
            say("the ranks did not end in time; killing them")
            ranks.end(now=True)
        elif (folder / READY).exists():
            ranks.ask_to_stop()
        else:  # nothing was computed yet, so there is nothing to save
            ranks.end(now=False)

    def _patience_ends(self, asked: tuple[str, float]) -> float:
        """Monotonic time until which ranks may take to save."""
        reason, since = asked
        if reason == "SIGTERM" and not math.isinf(self.allocation.ends):
            return since + TERM_PATIENCE
        margin = min(20.0, self.request.grace / 3)  # to requeue before Slurm's own end
        job_ends = time.monotonic() + self.allocation.ends - time.time()
        return max(since + 5.0, min(job_ends, since + self.request.grace) - margin)

    def _cause(self, record: Record, ranks: Ranks, killed: int) -> Diagnosis:
        if found := aftermath.marked(self.run, record):
            return found
        folder = ledger.folder(self.run, record.number)
        if found := self._seen_from_outside(folder):
            return Diagnosis(*found, aftermath.named(found[1], record.nodes))
        return diagnose(
            ranks.exits(),
            exits.words(folder, record.world_size),
            nodes=record.nodes,
            ranks_per_node=self.request.ranks_per_node,
            stopped=aftermath.asked_to_stop(self.run, record),
            out_of_memory=aftermath.starved(killed),
        )

    def _seen_from_outside(self, folder: Path) -> tuple[Cause, str] | None:
        """Why the ranks had to end, whatever they say of it themselves."""
        if self.node_failure:
            return Cause.node_failure, self.node_failure
        if self.silent:
            return Cause.hang, self.silent
        if self.asked is not None:
            return self.allocation.cause_of_stop(self.asked[0], self.request.grace)
        if found := self.allocation.end_unbidden():
            return found
        lost = exits.failed_nodes(exits.tail(folder / SRUN_LOG))
        return (Cause.node_failure, f"srun lost {', '.join(lost)}") if lost else None

    # -- ends ----------------------------------------------------------------------------------------------------

    def _requeue(self, record: Record, decision: Decision) -> bool:
        """Queue again; True if this process must exit."""
        self.run.set_state("requeued")
        try:
            if self.allocation.requeue(self.config.cluster.requeue_hold, decision.exclude) == "ended":
                return True
        except Failed:
            self._note(record, action=Action.stop.value)  # this job gives the run up to whoever submits it again
            raise
        self.asked = None
        return False

    def _conclude(self, decision: Decision) -> int:
        """Say how the run ended. Returns this process's exit status, by which Slurm starts what follows, or not."""
        if decision.action is Action.stop:
            say(f"the run stops: {decision.reason}")
            self.run.set_state("failed", reason=decision.reason)
        else:
            say(f"the run is {decision.reason}")
            self.run.set_state(decision.reason, reason="")
        notify.ended(self.run, self.config, say)
        if self.run.finished:
            self.evaluating.finish(self._stop_asked)
            self.compacting.finish(self._stop_asked)
            return 0
        following.give_up(self.run)
        return 1 if decision.action is Action.stop or following.followers(self.run) else 0


def say(text: str) -> None:
    """A line in the job's log, unless its disk is full."""
    with contextlib.suppress(OSError):
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} hpc: {text}", flush=True)
