"""Findings on evaluations: the one that is off is named, its healthy neighbours are not, and noise is none."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import numpy as np
import pytest

from monitoring.detectors import evaluations
from monitoring.detectors.overfitting import overfitting
from monitoring.evidence import Evidence
from monitoring.findings import Finding, Severity
from monitoring.history import Series
from tests.monitoring.test_detectors import BEGAN, evidence, healthy


def law(count: int, every: int = 1000, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """Evaluations of a training that goes well."""
    step, dice = np.arange(1, count + 1) * every, np.random.default_rng(seed)
    return (2.2 + 8.5 * (step + 20.0) ** -0.35) * (1 + noise * dice.standard_t(10, count) / 1.12)


def judged(values: np.ndarray, every: int = 1000, name: str = "validation_loss") -> list[Finding]:
    series = {name: Series(np.arange(1, len(values) + 1) * every, values)}
    return list(evaluations.evaluation_out_of_line(Evidence(evidence({}).snapshot, series=series)))


@pytest.mark.parametrize("noise", [0.0, 0.003])
def test_the_evaluation_that_is_off_is_named_and_no_other(noise: float) -> None:
    values = law(60, noise=noise)
    values[12] *= 1.2
    for count in range(8, 61):
        found = judged(values[:count])
        assert len(found) == (count > 12)
        if found:
            assert "step 13,000 " in found[0].title and "above" in found[0].evidence and "more" not in found[0].evidence
            assert found[0].severity is (Severity.warning if count <= 20 else Severity.info)
            assert found[0].key == "evaluation_out_of_line:validation_loss:13000"


def test_of_several_the_worst_is_named_with_their_number() -> None:
    values = law(200, every=10_000)
    values[[30, 90, 141]] *= [1.1, 1.05, 1.4]
    (found,) = judged(values, every=10_000)
    assert "1,420,000" in found.title and "2 more" in found.evidence


def test_one_that_is_far_too_low_is_told_once_those_after_it_say_so() -> None:
    values = law(30)
    values[20] *= 0.8
    assert [len(judged(values[:count])) for count in (21, 25, 26, 30)] == [0, 0, 1, 1]


def test_a_loss_that_begins_to_fall_faster_is_in_line() -> None:
    values = law(100, noise=0.002)
    values[80:] -= 0.03 * np.arange(20)
    assert not [found for count in range(60, 101) for found in judged(values[:count])]


def test_healthy_evaluations_are_left_in_peace() -> None:
    looks, alarms = 0, 0
    for seed in range(5):
        for every in (10, 100, 1000):
            for noise in (0.0, 0.001, 0.01, 0.03):
                values = law(40, every, noise, seed)
                for count in range(8, 41, 4):
                    looks, alarms = looks + 1, alarms + len(judged(values[:count], every))
    assert alarms <= looks / 200


def test_two_evaluations_of_one_step_are_no_fault() -> None:
    series = {"validation_loss": Series(np.repeat(np.arange(1, 11), 2) * 100, np.repeat(law(10), 2))}
    assert not list(evaluations.evaluation_out_of_line(Evidence(evidence({}).snapshot, series=series)))


def test_an_evaluation_that_is_no_number_is_told_while_it_is_news() -> None:
    def found(values: np.ndarray) -> list[Finding]:
        series = {"validation_loss/code": Series(np.arange(1, len(values) + 1) * 10, values)}
        return list(evaluations.not_finite(Evidence(evidence({}).snapshot, series=series)))

    assert not found(law(20))
    (told,) = found(np.append(law(5), [math.nan, 2.0]))
    assert "nan at step 60" in told.title and told.about == "validation_loss/code"
    assert not found(np.append(math.inf, law(20)))


@functools.cache
def training(seed: int) -> np.ndarray:
    return healthy(12_000, seed)["loss"]


def learned(count: int, turn: int, rise: float, *, noise: float = 0.0, seed: int = 0) -> Evidence:
    """A training whose validation loss rises from step ``turn`` on, by ``rise`` each 1,000 steps."""
    steps, dice = np.arange(100, count + 1, 100), np.random.default_rng(seed)
    values = 2.25 + 8.5 * (np.minimum(steps, turn) + 20.0) ** -0.35 + rise * np.maximum(0, steps - turn) / 1000
    values *= 1 + noise * dice.standard_t(10, len(steps)) / 1.12
    given = evidence({"loss": training(seed)[:count]})
    return replace(given, series={**given.series, "validation_loss": Series(steps, values)})


@pytest.mark.parametrize(("rise", "noise", "steps"), [(0.3, 0.003, 1500), (0.1, 0.003, 2500), (0.05, 0.001, 3000)])
def test_data_that_is_learned_by_heart_is_told(rise: float, noise: float, steps: int) -> None:
    for seed in range(4):
        assert not list(overfitting(learned(3000, 3000, rise, noise=noise, seed=seed)))
        (found,) = overfitting(learned(3000 + steps, 3000, rise, noise=noise, seed=seed))
        assert found.key == "overfitting:validation_loss" and found.severity is Severity.warning
        assert 2000 <= found.since - BEGAN - 20 <= 3600


def test_a_validation_loss_that_rises_with_the_training_loss_is_no_overfitting() -> None:
    given = learned(9000, 3000, 0.3)
    loss = given.series["loss"]
    risen = Series(loss.steps, np.where(loss.steps > 3000, 3.0, loss.values))
    assert not list(overfitting(replace(given, series={**given.series, "loss": risen})))


def test_noise_is_no_overfitting() -> None:
    looks, alarms = 0, 0
    for seed in range(16):
        noise = (0.0, 0.001, 0.003, 0.01)[seed % 4]
        for turn in (12_000, 3000):  # it falls, or stays where it is
            for count in (800, 1500, 3000, 6000, 9000, 12_000):
                looks, alarms = (
                    looks + 1,
                    alarms + len(list(overfitting(learned(count, turn, 0.0, noise=noise, seed=seed)))),
                )
    assert not alarms, (alarms, looks)
