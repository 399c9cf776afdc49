"""``hpc resume RUN [OVERRIDES]``: go on with a run that has ended, as it was or with changes."""

from __future__ import annotations

import sys

from hpc import runs
from hpc.cli import submit as submitting
from hpc.config import Config
from hpc.errors import Refused
from hpc.runs import Run

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
    flags = {flag for flag in submitting.FLAGS if flag in argv}
    rest = [word for word in argv if word not in submitting.FLAGS]
    if unknown := [word for word in rest if word.startswith("-")]:
        raise Refused(f"unknown flag {unknown[0]}. Allowed: {', '.join(submitting.FLAGS)}")
    named = [word for word in rest if "=" not in word and not word.startswith("~")]
    if len(named) != 1:
        raise Refused(f"name one run, not {len(named)} ({', '.join(named) or 'none'}). Runs are listed by: hpc status")
    run = runs.find(runs.root(), named[0])
    return _resume(run, [word for word in rest if word not in named], flags)


def _resume(run: Run, new: list[str], flags: set[str]) -> int:
    from hpc import resume, submit

    resume.refuse_live(run)
    resume.refuse_evaluation(run)
    typed = resume.words(run, new)
    dry_run = "--dry-run" in flags
    saved = resume.origin(run)

    def keep(config: Config) -> None:
        resume.keep_places(config, run, new)
        resume.keep_phases(config, saved, new)

    (plan,) = submitting.plans(typed, dry_run=dry_run, begun=saved is not None, change=keep)
    resume.refuse_finished(run, plan.config)
    if saved is not None:
        resume.refuse_other(run, plan.config, saved, new)
    if dry_run:
        print(submit.render(plan, run.folder), end="")
        return 0
    resume.resume(run, plan, typed, new)
    submitting.tell(plan, run, flags)
    return submitting.follow(run, flags)
