"""``hpc resume RUN [OVERRIDES]``: go on with a run that has ended, as it was or with changes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hpc import runs
from hpc.cli import submit as submitting
from hpc.config import Config
from hpc.errors import Refused
from hpc.runs import Run

if TYPE_CHECKING:
    from hpc.submit import Plan

HELP = """usage: hpc resume RUN [OVERRIDES] [--dry-run] [--wait] [--watch] [--json]

Go on with a run that was cancelled, failed, or whose job is gone, from its newest checkpoint, in its own folder.
What was typed for it holds; OVERRIDES change it:

  hpc resume RUN                                    as it was
  hpc resume RUN job.nodes=4 parallel.micro_batch=2 on another number of ranks: the same samples in the same order
  hpc resume RUN train.tokens=2_000_000             longer, also when it had finished
  hpc resume RUN parallel.sharding=grad_op          with another layout

The model, the data and train.seed cannot change: that is another run. Phases of data.mixture stay where they began.
"""


def main(argv: list[str]) -> int:
    if not argv or {"-h", "--help"} & set(argv):
        print(HELP, end="", file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    run, new, flags = one_run(argv, submitting.FLAGS)
    return _resume(run, new, flags)


def one_run(argv: list[str], allowed: Sequence[str]) -> tuple[Run, list[str], set[str]]:
    """The run, the overrides and the flags that were typed.

    Raises:
        Refused: for another flag, and if not exactly one run is named.
    """
    flags = {word for word in argv if word in allowed}
    rest = [word for word in argv if word not in allowed]
    if unknown := [word for word in rest if word.startswith("-")]:
        raise Refused(f"unknown flag {unknown[0]}. Allowed: {', '.join(allowed)}")
    named = [word for word in rest if "=" not in word and not word.startswith("~")]
    if len(named) != 1:
        raise Refused(f"name one run, not {len(named)} ({', '.join(named) or 'none'}). Runs are listed by: hpc status")
    return runs.find(runs.root(), named[0]), [word for word in rest if word not in named], flags


def _resume(run: Run, new: list[str], flags: set[str]) -> int:
    from hpc import resume, submit

    resume.refuse_evaluation(run)
    dry_run = "--dry-run" in flags

    def plans(typed: list[str], *, begun: bool, change: Callable[[Config], None]) -> Plan:
        return submitting.plans(typed, dry_run=dry_run, begun=begun, change=change)[0]

    plan, typed = resume.plan(run, new, plans)
    if dry_run:
        print(submit.render(plan, run.folder), end="")
        return 0
    resume.resume(run, plan, typed, new)
    submitting.tell(plan, run, flags)
    return submitting.follow(run, flags)
