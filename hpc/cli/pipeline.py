"""``hpc submit job=pipeline``: the stages of a pipeline, composed, checked, and dispatched together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hpc.cli import submit as submitting
from hpc.errors import Refused

if TYPE_CHECKING:
    from hpc.config import Config
    from hpc.pipeline import Begun, Planned


def submit(whole: Config, typed: Sequence[str], flags: set[str]) -> int:
    """Check all stages, then dispatch them. Returns the exit status."""
    from hpc import pipeline

    stages = plan(whole, typed, dry_run="--dry-run" in flags)
    if "--dry-run" in flags:
        return _show(stages)
    begun = pipeline.dispatch(stages)
    _tell(stages, begun, flags)
    if not flags & {"--wait", "--watch"}:
        return 0
    return max(submitting.follow(each.run, flags) for each in begun)


def plan(whole: Config, typed: Sequence[str], *, dry_run: bool) -> list[Planned]:
    """One checked request for each stage, in order.

    Raises:
        Refused: with what is wrong with any of them.
    """
    from hpc import pipeline
    from hpc.config import PipelineJob

    job = whole.job
    assert isinstance(job, PipelineJob)
    found: dict[str, Planned] = {}
    problems: list[str] = []
    for name in pipeline.ordered(job):
        before = [found[other].plan.config for other in pipeline.upstream(job, name) if other in found]
        try:
            words = pipeline.words(typed, job, name, whole.name)
            (each,) = submitting.plans(words, dry_run=dry_run, before=before)
        except Refused as error:
            problems += [f"stage {name}: {line}" for line in str(error).splitlines()]
        else:
            found[name] = pipeline.Planned(name, list(job.stages[name].after), each)
    if problems:
        raise Refused("\n".join(problems))
    return list(found.values())


def _show(stages: Sequence[Planned]) -> int:
    from hpc.submit import render

    submitting.tell_missing([stage.plan for stage in stages])
    for stage in stages:
        print(f"# stage {stage.name}" + (f", after {', '.join(stage.after)}" if stage.after else ""))
        print(render(stage.plan), end="")
    return 0


def _tell(stages: Sequence[Planned], begun: Sequence[Begun], flags: set[str]) -> None:
    both = list(zip(stages, begun, strict=True))
    if "--json" in flags:
        told = [{**submitting.told(s.plan, b.run), "stage": b.name, "after": b.after} for s, b in both]
        print(json.dumps(told), flush=True)
        return
    for stage, each in both:
        after = f", after {', '.join(each.after)}" if each.after else ""
        print(f"stage {each.name}{after}:")
        submitting.tell(stage.plan, each.run, flags)
