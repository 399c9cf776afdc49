"""How soon findings are made, and how often falsely, on generated histories.

    python -m benchmarks.findings [--json] [--seeds N]

A history is a power law with long-tailed noise (Student's t), warm-up, and pauses of checkpoints. Something goes wrong
at step 3,000 (a step takes a second), and the detectors look every ten steps. Delays are the median and worst over the
seeds. Looks at runs in which nothing goes wrong are every 600 steps of 6,000, at noise of 1, 3 and 10 %.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from benchmarks.report import Figure, report
from monitoring.detectors import detect
from monitoring.evidence import Evidence, Pulse
from monitoring.history import Series
from monitoring.snapshot import ExpertLoad
from tests.monitoring.test_detectors import BEGAN, evidence, healthy

FAULT, END, EVERY = 3000, 9000, 10  # steps
NOISES = (0.01, 0.03, 0.1)
RANKS, SUMMARY, LOAD, EVALUATION = 4, 10, 50, 100  # ranks; steps between two records of each kind
History = Callable[[int], Callable[[int], Evidence]]  # by seed: what is known at a step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seeds", type=int, default=20)
    args = parser.parse_args()
    figures = [_false_alarms(freedom) for freedom in (10, 5)]
    for (kind, what), (history, goal) in CASES.items():
        found = [delay(history(seed), kind) for seed in range(args.seeds)]
        told = [each for each in found if each is not None]
        median = float(np.median(told)) if told else float("nan")
        said = f"steps; {what}; {len(told)} of {len(found)} told, the last after {max(told, default=0)}"
        figures.append(Figure(f"{kind}_delay", median, "steps", goal, said))
    report(figures, as_json=args.json)


def delay(known: Callable[[int], Evidence], kind: str) -> int | None:
    """Steps from the fault until a detector tells of it; None if it does not, or did before."""
    for step in range(FAULT - EVERY, END, EVERY):
        if any(found.kind == kind for found in detect(known(step))):
            return step - FAULT if step >= FAULT else None
    return None


def _false_alarms(freedom: int) -> Figure:
    looks, told = 0, Counter[str]()
    for noise in NOISES:
        for seed in range(80):
            whole = noisy(seed, noise, freedom)
            for count in range(600, 6001, 600):
                looks += 1
                told.update(found.kind for found in detect(_until(whole, count)))
    kinds = ", ".join(f"{count} {kind}" for kind, count in told.most_common())
    goal = "<= 24" if freedom == 10 else ""
    return Figure(f"false_alarms_t{freedom}", told.total(), "", goal, f"of {looks} looks: {kinds or 'none'}")


def noisy(seed: int, noise: float, freedom: int) -> dict[str, np.ndarray]:
    """A healthy run whose loss has the tails of that many degrees of freedom."""
    whole = healthy(6000, seed, noise)
    if freedom != 10:
        steps, dice = np.arange(1, 6001), np.random.default_rng(seed)
        scale = noise / np.sqrt(freedom / (freedom - 2))
        whole["loss"] = (2.2 + 8.5 * (steps + 20.0) ** -0.35) * (1 + scale * dice.standard_t(freedom, 6000))
    return whole


def _until(whole: dict[str, np.ndarray], step: int) -> Evidence:
    return evidence({name: values[:step] for name, values in whole.items()})


# -- what goes wrong -------------------------------------------------------------------------------------------------


def metric(name: str, change: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> History:
    """A metric that changes from the fault on; the change is given the steps since, and the values."""

    def history(seed: int) -> Callable[[int], Evidence]:
        whole = healthy(END, seed)
        whole[name][FAULT:] = change(np.arange(END - FAULT), whole[name][FAULT:])
        return lambda step: _until(whole, step)

    return history


def evaluated(change: Callable[[np.ndarray], np.ndarray]) -> History:
    """A validation loss, which is what the change makes of the steps since the fault above a falling curve."""

    def history(seed: int) -> Callable[[int], Evidence]:
        whole, dice = healthy(END, seed), np.random.default_rng(seed)
        steps = np.arange(EVALUATION, END, EVALUATION)
        curve = 2.3 + 8.5 * (steps + 20.0) ** -0.35
        values = (curve + change(steps - FAULT)) * (1 + 0.003 * dice.standard_normal(len(steps)))

        def known(step: int) -> Evidence:
            given, rows = _until(whole, step), steps <= step
            return replace(given, series={**given.series, "validation_loss": Series(steps[rows], values[rows])})

        return known

    return history


def ranked(*, slow: float = 0.0, silent: bool = False) -> History:
    """Rank 3 takes so many seconds more for its data, or says no more."""

    def history(seed: int) -> Callable[[int], Evidence]:
        whole, dice = healthy(END, seed), np.random.default_rng(seed)
        steps = np.arange(SUMMARY, END, SUMMARY)
        waited = 0.01 * (1 + 0.05 * dice.standard_normal((RANKS, len(steps))))
        waited[3] += slow * (steps > FAULT)

        def known(step: int) -> Evidence:
            found = []
            for rank in range(RANKS):
                last = min(step, FAULT) if silent and rank == 3 else step
                rows = (steps <= last) & (steps > last - 300)
                columns = {"step_s": np.full(rows.sum(), 1.0), "data_s": waited[rank, rows]}
                found.append(Pulse(rank, "ab"[rank // 2], BEGAN + 20.0 + steps[rows], steps[rows], columns))
            return replace(_until(whole, step), pulses=found)

        return known

    return history


def loaded(shares: list[float]) -> History:
    """Experts of a layer that from the fault on get such shares."""

    def history(seed: int) -> Callable[[int], Evidence]:
        whole, dice = healthy(END, seed), np.random.default_rng(seed)

        def known(step: int) -> Evidence:
            found = []
            for at in range(max(LOAD, step // LOAD * LOAD - 9 * LOAD), step + 1, LOAD):
                usual = np.array(shares) if at > FAULT else 1 + 0.1 * dice.standard_normal(len(shares))
                found.append(ExpertLoad(2, at, tuple((1000 * usual).astype(int).tolist())))
            return replace(_until(whole, step), loads={2: found})

        return known

    return history


def silent(seed: int) -> Callable[[int], Evidence]:
    """No step comes any more; a second is a step of this benchmark."""
    whole = {name: values[:FAULT] for name, values in healthy(FAULT, seed).items()}
    return lambda step: _until(whole, step) if step <= FAULT else evidence(whole, late=float(step - FAULT))


CASES: dict[tuple[str, str], tuple[History, str]] = {
    ("not_finite", "the loss is NaN"): (metric("loss", lambda t, v: np.full_like(v, np.nan)), "<= 10"),
    ("loss_spike", "one step at twice its loss"): (metric("loss", lambda t, v: np.where(t == 0, 2 * v, v)), "<= 10"),
    ("divergence", "the loss gains 0.01 a step"): (metric("loss", lambda t, v: v + np.minimum(t / 100, 2)), "<= 250"),
    ("plateau", "the loss falls no more"): (
        metric("loss", lambda t, v: np.full_like(v, v[0]) * (1 + 0.01 * np.sin(t))),
        "<= 4000",
    ),
    ("throughput_drop", "30 % slower"): (metric("tokens_per_s", lambda t, v: 0.7 * v), "<= 60"),
    ("memory_growth", "a hundredth of a GiB a step"): (metric("peak_memory_gib", lambda t, v: v + t / 100), "<= 3000"),
    ("evaluation_out_of_line", "one evaluation 5 % above"): (
        evaluated(lambda t: np.where((t >= 0) & (t < EVALUATION), 0.15, 0.0)),
        "<= 100",
    ),
    ("overfitting", "0.3 up each 1,000 steps"): (evaluated(lambda t: np.maximum(0, t) * 3e-4), "<= 1500"),
    ("straggler", "a rank's data take a fifth of a step"): (ranked(slow=0.2), "<= 300"),
    ("dead_rank", "a rank says no more"): (ranked(silent=True), "<= 150"),
    ("dead_expert", "one of eight experts gets nothing"): (loaded([8 / 7] * 7 + [0.0]), "<= 300"),
    ("routing_collapse", "one of 16 experts gets nearly all"): (loaded([15.0] + [1 / 15] * 15), "<= 300"),
    ("stall", "no step any more, a step taking a second"): (silent, ""),
}


if __name__ == "__main__":
    main()
