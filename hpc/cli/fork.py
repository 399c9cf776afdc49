"""``hpc fork RUN [OVERRIDES]``: a new run that begins from a checkpoint of another."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from hpc.cli import submit as submitting
from hpc.cli.resume import one_run
from hpc.config import Config
from hpc.errors import Refused
from hpc.runs import Run
from trainer.problems import Problem

if TYPE_CHECKING:
    from hpc.kin import Fork

HELP = """usage: hpc fork RUN [OVERRIDES] [--step N] [--exact|--weights] [--dry-run] [--wait] [--watch] [--json]

A new run that begins from the newest complete checkpoint of RUN, or from that of step N. What was typed for RUN holds;
OVERRIDES change it:

  hpc fork RUN optim.lr=1e-4 name=lower     goes on exactly: optimizer, random state, place in the data
  hpc fork RUN data=mine                    other data, so with the weights alone, from the first step

A fork goes on exactly where model, data and train.seed are as they were, and says so. Where they are not it begins with
the weights alone (train.init_from) and a fresh optimizer, and says why; --exact refuses that, --weights asks for it.
RUN stays as it is, and may go on meanwhile. The new run's manifest names it (forked_from).
"""
FLAGS = (*submitting.FLAGS, "--exact", "--weights")


def main(argv: list[str]) -> int:
    if not argv or {"-h", "--help"} & set(argv):
        print(HELP, end="", file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    rest, step = _step(argv)
    run, new, flags = one_run(rest, FLAGS)
    if {"--exact", "--weights"} <= flags:
        raise Refused("--exact or --weights, not both")
    return _fork(run, new, flags, step)


def _step(argv: list[str]) -> tuple[list[str], int | None]:
    """The other words, and the number behind --step."""
    words: list[str] = []
    step: str | None = None
    rest = iter(argv)
    for word in rest:
        if word == "--step":
            step = next(rest, "")
        elif word.startswith("--step="):
            step = word.partition("=")[2]
        else:
            words.append(word)
    if step is not None and not (step.isascii() and step.isdecimal()):
        raise Refused(f"--step {step}: a number of a step, such as --step 1000")
    return words, None if step is None else int(step)


def _fork(run: Run, new: list[str], flags: set[str], step: int | None) -> int:
    from hpc import kin, resume, submit

    dry_run = "--dry-run" in flags
    if any(resume.key(word) == "train.init_from" for word in new):
        raise Refused("train.init_from: a fork begins from RUN. To begin from other weights: hpc retry RUN")
    saved = kin.origin(run, step)
    exact = True if "--exact" in flags else False if "--weights" in flags else None
    why: list[Problem] = []

    def begin(config: Config) -> None:
        kin.same_places(config, run, new)
        if exact is not False:
            resume.keep_phases(config, saved, new)
        why.extend(kin.settle(config, run, saved, exact=exact))

    (plan,) = submitting.plans(resume.words(run, new), dry_run=dry_run, change=begin)
    plan = replace(plan, typed=kin.words(plan.typed, plan.config))
    goes_on = plan.config.train.init_from is None
    fork = kin.Fork(kin.stem(run), str(run.folder), saved.step, goes_on)
    _tell(fork, why)
    if dry_run:
        print(submit.render(plan), end="")
        return 0
    more = kin.manifest(fork)
    fill = (lambda target: kin.take(run, saved.step, target)) if goes_on else (lambda target: None)
    started = submit.dispatch(plan, kin=more, fill=fill)
    submitting.tell(plan, started, flags, more)
    return submitting.follow(started, flags)


def _tell(fork: Fork, why: list[Problem]) -> None:
    how = "goes on exactly" if fork.exact else "begins with the weights alone"
    print(f"from step {fork.step} of {fork.run}: {how}", file=sys.stderr)
    for problem in why:
        print(f"  as {problem.field} is {problem.given}", file=sys.stderr)
