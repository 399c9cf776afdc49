"""What to type, where that depends on the run: each command works as it stands. RUN is the run, ``...`` a value that
a person chooses."""

from __future__ import annotations

from monitoring import fields
from monitoring.evidence import Evidence
from monitoring.snapshot import GONE

NEAR = 0.25  # of a step, by which a checkpoint next to it may be off
IMPORTED = "imported"  # what stands for the job of a run that another program made


def changed(evidence: Evidence, change: str) -> str:
    """Go on with the run from its newest checkpoint, with an override."""
    if fields.part(evidence.config, "job").get("_target_") == IMPORTED:
        return "nothing: it was imported, and cannot be started here"
    resume = f"hpc resume RUN {change}"
    return f"hpc cancel RUN; once it has ended: {resume}" if _goes_on(evidence) else resume


def without(evidence: Evidence, node: str) -> str:
    """Go on with the run, but not on a node; what is left out already still is."""
    known = fields.text(fields.part(evidence.config, "job").get("exclude"))
    change = f"""'job.exclude="{known},{node}"'""" if known else f"job.exclude={node or '...'}"
    return changed(evidence, change)


def back(evidence: Evidence, change: str, *steps: float) -> str:
    """A new run, with an override, from a checkpoint at or before the first of ``steps`` that has one; else from the
    start."""
    if not evidence.trains:
        return changed(evidence, "command=...")
    cancel = "hpc cancel RUN; " if _goes_on(evidence) else ""
    known = next((each for step in steps for each in reversed(evidence.checkpoints) if each <= step), None)
    if known is not None:
        return f"go back to a checkpoint: {cancel}hpc fork RUN --step {known} {change}"
    ended = "once it has ended: " if cancel else ""
    return f"begin anew, for no checkpoint from before is left: {cancel}{ended}hpc retry RUN {change}"


def measured_again(evidence: Evidence, step: int) -> str:
    """Measure the checkpoint of a step once more."""
    if step in evidence.checkpoints:
        return f"evaluate its checkpoint once more: hpc evaluate RUN --step {step} --again"
    return "its checkpoint is not there; compare it with those of another run: hpc watch RUN OTHER"


def best(evidence: Evidence, step: int) -> str:
    """End it, and take the checkpoint next to a step; else a run that ends there."""
    end = "end it: hpc cancel RUN; " if _goes_on(evidence) else ""
    nearest = min(evidence.checkpoints, key=lambda each: abs(each - step), default=None)
    if nearest is not None and abs(nearest - step) <= NEAR * step:
        return f"{end}the checkpoint nearest to the best is that of step {nearest}: hpc evaluate RUN --step {nearest}"
    batch = fields.whole(fields.part(evidence.config, "train").get("batch_tokens"))
    if not evidence.trains or not batch:
        return f"{end}more data, or fewer steps over it"
    ended = "once it has ended, " if end else ""
    return f"{end}{ended}more data, or a run that ends at the best: hpc retry RUN train.tokens={step * batch}"


def gentler(evidence: Evidence) -> str:
    """Half the learning rate, and half of that at which it ends where it would be above."""
    known = fields.part(evidence.config, "optim")
    rate, lowest = fields.number(known.get("lr")), fields.number(known.get("min_lr"))
    if not rate:
        return "optim.lr=..."
    return f"optim.lr={rate / 2:.3g}" + (f" optim.min_lr={lowest / 2:.3g}" if lowest and lowest > rate / 2 else "")


def balanced(evidence: Evidence) -> str:
    """A loss that balances the experts twice as strongly."""
    known = fields.part(fields.part(evidence.config, "model"), "moe").get("balance_loss")
    weight = fields.number(known)
    return f"model.moe.balance_loss={2 * weight:.3g}" if weight else "model.moe.balance_loss=0.01"


def _goes_on(evidence: Evidence) -> bool:
    """Whether the run has to be ended first."""
    return not evidence.snapshot.done and evidence.snapshot.state != GONE
