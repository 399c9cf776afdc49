"""What people do about findings: silence them, be told of new ones, have the documented ones acted on."""

from __future__ import annotations

import getpass
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc import probes, slurm
from hpc.departed import Departed
from hpc.errors import Refused
from hpc.queue import controller
from hpc.quota import NEARLY, uses
from hpc.runs import Run, read_json, write_json
from monitoring import layout

if TYPE_CHECKING:
    from monitoring.findings import Finding, Quiet
    from monitoring.job import JobState
    from monitoring.snapshot import Snapshot

TOLD = "told.json"  # in the run's folder: of which findings people were told, when, and how bad they were
AGAIN = 24 * 3600.0  # seconds after which a finding that is still there is told again
GONE = 3600.0  # seconds for which one is not there any more, and new when it comes again
ACKNOWLEDGED = 7 * 24 * 3600.0  # seconds for which nothing more is said of a finding that somebody has seen
RELEASED = "launch failed"  # the only jobs that are released: of others a person wanted that they are held
ACTED_ON = ("stall", "dead_rank", "held")
EXITS = {"warning": 3, "critical": 4}  # 1 and 2 are failures and mistakes


@dataclass(frozen=True)
class Judged:
    """Runs as they are now, with what is to be said of them."""

    looks: list[tuple[Run, Snapshot]]
    failed: int  # runs of which nobody knows how they are

    def status(self, *, of_findings: bool) -> int:
        """The exit status: 1 where something could not be judged, which must not look healthy to who sees no more.

        Args:
            of_findings: whether it says how bad the worst of the findings is.
        """
        from monitoring.detectors import UNJUDGED
        from monitoring.findings import worst

        found = [each for _, look in self.looks for each in look.findings]
        highest = worst(found) if of_findings else None
        if highest is not None and highest.value in EXITS:
            return EXITS[highest.value]
        return int(self.failed > 0 or any(each.kind == UNJUDGED and not each.silenced for each in found))


def judge(found: Sequence[Run], say: Callable[[Run, str], None]) -> Judged:
    """Each run as it is now, judged; Slurm is asked once for all.

    A folder that is no run any more is left out. So is one that cannot be read, of which something is said: it must
    not keep anybody from hearing of the others.
    """
    from hpc.queue import states
    from monitoring.findings import silenced
    from monitoring.reader import Reader

    jobs, read, asked, failed = states(found, departed=Departed()), [], {}, 0
    for run in found:
        try:
            snapshot = Reader(run.folder).read(jobs.get(run.folder))
            if not snapshot.done and (more := [*of_quotas(run, asked, snapshot.now)]):
                known = read_json(run.folder / layout.SILENCED) or {}
                snapshot = replace(snapshot, findings=tuple(silenced([*snapshot.findings, *more], known, snapshot.now)))
            read.append((run, snapshot))
        except FileNotFoundError:  # removed meanwhile
            continue
        except Exception as error:
            say(run, f"cannot be judged: {type(error).__name__}: {error}")
            failed += 1
    return Judged(read, failed)


def of_quotas(run: Run, asked: dict[tuple[str, int], str], now: float) -> Iterator[Finding]:
    """Quotas of whoever asks that leave little room to a run; the files of a run do not tell of them.

    Args:
        asked: what was said of each file system; filled here, for it may take seconds.
    """
    from monitoring.findings import Finding, Severity

    kind = probes.file_system(run.folder)
    place = (kind, run.folder.stat().st_dev)
    if place not in asked:
        asked[place] = probes.quota(run.folder, kind)
    for use in uses(asked[place]):
        if use.over or use.share >= NEARLY:
            yield Finding(
                "quota_nearly_full",
                Severity.critical if use.over or use.share >= 0.98 else Severity.warning,
                f"{use.share:.0%} of a quota is used",
                f"{use}; what is over it cannot be written: checkpoints, records",
                since=now,
                about=f"{use.filesystem}:{use.what}",
                do="hpc gc lists what may go; or ask the site for more",
            )


def silence(run: Run, key: str, *, until: float | None) -> None:
    """Say no more of a finding, or of all of a kind.

    Args:
        key: a finding's key, or its kind.
        until: unix seconds; None: for good.
    """
    known = read_json(run.folder / layout.SILENCED) or {}
    entry = {"until": until, "by": _person(), "at": time.time()}
    write_json(run.folder / layout.SILENCED, {**known, key: entry})


def acknowledge(run: Run, finding: Finding) -> None:
    """Say no more of a finding that somebody has seen, until it gets worse or ``ACKNOWLEDGED`` is over."""
    known, now = read_json(run.folder / layout.SILENCED) or {}, time.time()
    entry = {"until": now + ACKNOWLEDGED, "severity": finding.severity.value, "by": _person(), "at": now}
    write_json(run.folder / layout.SILENCED, {**known, finding.key: entry})


def speak(run: Run, key: str) -> None:
    """Say again what was silenced.

    Raises:
        Refused: if it was not.
    """
    known = read_json(run.folder / layout.SILENCED) or {}
    if key not in known:
        raise Refused(f"{key!r} is not silenced. Silenced are: {', '.join(sorted(known)) or 'none'}")
    write_json(run.folder / layout.SILENCED, {name: entry for name, entry in known.items() if name != key})


def quieten(run: Run, finding: Finding, how: Quiet) -> None:
    """What a person says to a finding before their eyes."""
    if how == "acknowledge":
        acknowledge(run, finding)
    elif how == "silence":
        silence(run, finding.key, until=None)
    else:
        for key in (finding.key, finding.kind):
            with suppress(Refused):  # it was not by this one
                speak(run, key)


def tell(run: Run, found: Iterable[Finding], say: Callable[[str], None], now: float | None = None) -> list[Finding]:
    """Send the findings that nobody was told of yet, or that got worse, to where ``notify`` of the configuration says.

    Those of severity info are not sent. Returns what was sent.
    """
    from hpc import notify

    now = time.time() if now is None else now
    loud = [finding for finding in found if finding.severity.rank and not finding.silenced]
    before: dict[str, Any] = read_json(run.folder / TOLD) or {}
    told = {key: each for key, each in before.items() if isinstance(each, dict) and now - _number(each, "seen") < GONE}
    told |= {each.key: before[each.key] | {"seen": now} for each in loud if isinstance(before.get(each.key), dict)}
    due = [each for each in loud if _is_due(each, told.get(each.key), now)]
    given = run.config().notify if due else None
    sent = []
    if given is not None and notify.anybody(given):
        sent = [each for each in due if notify.send(given, _message(run, each), say)]
    told |= {each.key: {"at": now, "seen": now, "severity": each.severity.rank} for each in sent}
    if told != before:
        write_json(run.folder / TOLD, told)
    return sent


def _is_due(finding: Finding, told: dict[str, Any] | None, now: float) -> bool:
    return told is None or now - _number(told, "at") > AGAIN or finding.severity.rank > _number(told, "severity")


def _message(run: Run, finding: Finding) -> dict[str, Any]:
    where = run.cluster + (" (EMULATED)" if run.emulated else "")
    text = f"{run.name}/{run.id} on {where}: {finding.severity.value}: {finding.headline} ({finding.evidence})"
    fields = {key: value for key, value in finding.to_json().items() if key not in ("silenced", "acknowledged", "do")}
    said = {"run": run.id, "name": run.name, "state": finding.title, **fields}
    following = finding.typed(run.id)
    text += f"\nType: {following}" if following else ""
    return {**said, "folder": str(run.folder), "next": following, "text": text}


def act(run: Run, found: Iterable[Finding], job: JobState | None) -> str | None:
    """Do what a person would do about the worst: put a stalled job back into the queue, release one that Slurm holds
    after a launch that failed. What was done, or None.

    Only for a critical finding of ``ACTED_ON``; nothing else is ever done.
    """
    cause = next((f for f in found if f.kind in ACTED_ON and f.severity.value == "critical" and not f.silenced), None)
    if cause is None or job is None:
        return None
    if job.state == "RUNNING" and cause.kind != "held":
        taken = slurm.requeue(job.job_id, controller(run))
        done = f"job {job.job_id} was put back into the queue" if taken else f"Slurm did not put job {job.job_id} back"
    elif cause.kind == "held" and RELEASED in job.reason.lower().replace("_", " "):
        slurm.release([job.job_id], controller(run))
        done = f"job {job.job_id} was released"
    else:
        return None
    record = {"time": time.time(), "by": _person(), "finding": cause.to_json(), "done": done}
    with (run.folder / "acted.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    return done


def _person() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an id without a name
        return "unknown"


def _number(entry: dict[str, Any], name: str) -> float:
    value = entry.get(name)
    return float(value) if isinstance(value, int | float) else 0.0


def runs_to_look_at(root: Path) -> list[Run]:
    """The runs that have not ended by their own word."""
    from hpc import runs

    return [run for run in runs.every(root) if run.state().get("state") not in ("finished", "failed", "cancelled")]
