"""``hpc retry RUN [OVERRIDES]``: what was asked for a run, once more as a new run."""

from __future__ import annotations

import sys

from hpc.cli import submit as submitting
from hpc.cli.resume import one_run
from hpc.config import Config
from hpc.runs import Run

HELP = """usage: hpc retry RUN [OVERRIDES] [--dry-run] [--wait] [--watch] [--json]

Submit what was asked for a run that has ended once more, as a new run from its beginning and with the code of now.
OVERRIDES change it. The old run stays as it is; the new one's manifest names it (retry_of). A run that was forked
begins from the same checkpoint again.

To go on with a run from its newest checkpoint, in its own folder: hpc resume RUN
"""


def main(argv: list[str]) -> int:
    if not argv or {"-h", "--help"} & set(argv):
        print(HELP, end="", file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    run, new, flags = one_run(argv, submitting.FLAGS)
    return _retry(run, new, flags)


def _retry(run: Run, new: list[str], flags: set[str]) -> int:
    from hpc import kin, resume, submit

    resume.refuse_live(run)
    dry_run = "--dry-run" in flags
    began = kin.began_from(run, run.folder.parent.parent)

    def same(config: Config) -> None:
        kin.same_places(config, run, new)
        if began:
            saved = kin.origin(*began)
            resume.keep_phases(config, saved, new)
            kin.settle(config, run, saved, exact=True)

    (plan,) = submitting.plans(resume.words(run, new), dry_run=dry_run, change=same)
    if dry_run:
        print(submit.render(plan), end="")
        return 0
    more = kin.retried(run)
    started = submit.dispatch(plan, kin=more, fill=lambda target: kin.take(*began, target) if began else None)
    submitting.tell(plan, started, flags, more)
    return submitting.follow(started, flags)
