"""What findings say to type is taken by the verbs' own parsers, for every detector, live and ended."""

from __future__ import annotations

import argparse
import math
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpc.cli import VERBS, main
from hpc.compose import compose
from monitoring import layout
from monitoring.detectors import curve, detect, experts, ranks
from monitoring.evidence import Disk, Evidence
from monitoring.findings import Finding
from monitoring.goodput import Bucket, Span, totals
from monitoring.history import Series
from monitoring.outlook import Outlook
from monitoring.snapshot import GONE, Attempt, JobState
from tests.monitoring.test_detectors import BEGAN, device, evidence, healthy, loads, pulses

CONFIG = {
    "job": {"_target_": "jobs.train.Train"},
    "optim": {"lr": 3e-4},
    "train": {"batch_tokens": 4096},
    "model": {"moe": {"balance_loss": 0.01}},
}
COMMAND = re.compile(r"\b(?:hpc|scontrol) [^;]+")
ARGUMENT = re.compile(r"RUN|OTHER|\d+|-.*|[\w.]+=.*")


def cases() -> Iterator[Evidence]:
    """One piece of evidence, or several, for each detector."""
    whole = healthy(3400, 0)
    loss = whole["loss"]
    yield evidence({"loss": np.append(loss[:3000], math.nan)})
    yield evidence({"loss": np.append(np.append(loss[:3000], math.nan), loss[3000:3010])})
    yield evidence({"loss": np.append(loss[:3000], 30.0)})
    yield evidence({"loss": np.append(loss[:3000], loss[3000:] + 3)})
    yield evidence({"loss": 3 + 0.01 * np.sin(np.arange(12_000)), "lr": np.full(12_000, 3e-4)})
    off = np.linspace(3, 2.5, 30)
    off[[25, 28]] = 4.0, math.nan
    for every in (100, 77):
        curve_of = {"validation_loss": Series(np.arange(1, 31) * every, off)}
        yield replace(evidence({}), series=curve_of)
    turned = {"validation_loss": Series(np.arange(1, 31) * 100, np.append(off[:10], 2.8 + np.arange(20) / 10))}
    given = evidence(whole)
    yield replace(given, series={**given.series, **turned})
    yield evidence(whole, late=9000)
    yield evidence(healthy(310, 0), pulses=pulses(silent=2))
    yield evidence(healthy(310, 0), pulses=pulses(slow=3))
    slow = healthy(1000, 0)
    slow["tokens_per_s"][-60:] *= 0.6
    yield evidence(slow)
    yield replace(evidence({}), loads=loads([1, 0, 1, 0.02]))
    yield replace(evidence({}), loads=loads([1.0] + [0.001] * 15))
    yield evidence({}, pulses=[device(1, gpu_util=0.01, temperature_c=92)])
    yield evidence({"peak_memory_gib": 10 + np.arange(2000) / 500})
    yield evidence({}, disk=Disk("x", 5 << 30, 1000 << 30, checkpoint=10 << 30))
    yield evidence({}, pulses=[device(1, xid=79.0), device(2, xid=31.0)])
    rows = [{"t": BEGAN - 7200 + 60 * n, "memory_gib": 10 + n / 10, "host_memory_gib": 90 + n / 10} for n in range(120)]
    yield evidence({}, pulses=[replace(device(0), devices=rows)])
    given = evidence({})
    for bucket in (
        Bucket.startup,
        Bucket.checkpoint,
        Bucket.evaluation,
        Bucket.repeated,
        Bucket.ending,
        Bucket.unknown,
    ):
        spans = (Span(Bucket.training, 0, 1000), Span(bucket, 1000, 10_000))
        yield replace(given, snapshot=replace(given.snapshot, outlook=Outlook(spans, totals(spans))))
    tried = tuple(Attempt(n, began=BEGAN - 60 * n, ended=BEGAN, cause="node_failure") for n in range(5))
    yield replace(given, snapshot=replace(given.snapshot, attempts=tried, problems=("1 damaged line skipped",)))
    left = JobState("7", "NODE_FAIL", ended=given.now - 600)
    yield replace(given, snapshot=replace(given.snapshot, job=left, attempts=(), updated=None))
    for reason in ("launch failed requeued held", "JobHeldAdmin", "BadConstraints", "DependencyNeverSatisfied"):
        yield replace(given, snapshot=replace(given.snapshot, job=JobState("7", "PENDING", reason)))


def everything() -> Iterator[tuple[Evidence, Finding]]:
    for given in cases():
        for checkpoints in ((), (100, 2900)):
            for state in ("running", "failed", GONE):
                for job in ("jobs.train.Train", "jobs.command.Command"):
                    snapshot = replace(given.snapshot, state=state)
                    config = {**CONFIG, "job": {"_target_": job}}
                    each = replace(given, snapshot=snapshot, checkpoints=checkpoints, config=config)
                    yield from ((each, found) for found in detect(each))


@pytest.fixture(scope="module")
def told() -> list[tuple[Evidence, Finding]]:
    return [*everything()]


def commands(text: str) -> Iterator[list[str]]:
    """The commands in a sentence: a verb, and what follows it as far as that is no prose."""
    for found in COMMAND.findall(text):
        program, verb, *rest = shlex.split(found)
        words = []
        for word in rest:
            if not ARGUMENT.fullmatch(word):
                break
            words.append(word)
        if program == "hpc":
            yield [verb, *words]


def is_known(config: object, name: str) -> bool:
    """Whether a configuration has a value of that path."""
    for part in name.split("."):
        if not hasattr(config, part):
            return name == "command"  # of another job
        config = getattr(config, part)
    return True


class Parsed(Exception):
    """A verb has understood its arguments."""


def test_the_cases_show_what_each_detector_says(told: list[tuple[Evidence, Finding]]) -> None:
    seen = {found.kind for _, found in told}
    rows = (Path(__file__).parents[2] / "docs" / "findings.md").read_text().splitlines()
    known = {kind for row in rows if row.startswith("| `") for kind in row.split("|")[1].split("`")[1::2]}
    assert seen >= known - {"quota_nearly_full", "unjudged"}


def test_what_is_said_to_type_is_understood(
    told: list[tuple[Evidence, Finding]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def parsed(*given: Any, **more: Any) -> None:
        raise Parsed

    def parse(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> None:
        known(self, args, namespace)
        raise Parsed

    known = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_intermixed_args", parse)
    monkeypatch.setattr("hpc.runs.find", parsed)
    config = compose(["model=tiny_moe"])
    seen = {tuple(words) for _, found in told for words in commands(found.do)}
    assert len(seen) > 20
    for verb, *words in seen:
        assert verb in VERBS, (verb, words)
        with pytest.raises(Parsed):
            main([verb, *words])
        for name in (word.partition("=")[0] for word in words if "=" in word):
            assert is_known(config, name), (verb, words)


def test_a_run_that_goes_on_is_ended_before_it_is_resumed(told: list[tuple[Evidence, Finding]]) -> None:
    for given, found in told:
        verbs = [words[0] for words in commands(found.do)]
        if found.kind != "held" and ("resume" in verbs or "retry" in verbs):
            assert ("cancel" in verbs) == (given.snapshot.state == "running"), found.do


def test_a_fork_is_from_a_checkpoint_that_is_there_and_was_before(told: list[tuple[Evidence, Finding]]) -> None:
    seen = [(given, words) for given, found in told for words in commands(found.do) if words[0] == "fork"]
    assert seen and all(given.checkpoints for given, _ in seen)
    for given, words in seen:
        assert words[:3] == ["fork", "RUN", "--step"] and int(words[3]) in given.checkpoints


def test_checkpoints_from_before_it_went_wrong_are_preferred() -> None:
    whole = healthy(3400, 0)
    given = evidence({"loss": np.append(whole["loss"][:3000], whole["loss"][3000:] + 3)}, config=CONFIG)
    (found,) = curve.divergence(replace(given, checkpoints=(2000, 2900, 3100, 3400)))
    best = int(found.title.split()[-1].replace(",", ""))
    assert f"--step {2900 if best >= 2900 else 2000} optim.lr=0.00015" in found.do
    (found,) = curve.divergence(replace(given, checkpoints=(3300, 3400)))
    assert "hpc retry RUN optim.lr=0.00015" in found.do
    collapsed = loads([1.0] + [0.001] * 15)
    (found,) = experts.routing_collapse(replace(evidence({}, config=CONFIG), loads=collapsed, checkpoints=(900, 1000)))
    assert "--step 900 model.moe.balance_loss=0.02" in found.do


def test_a_gentler_rate_does_not_end_above_itself() -> None:
    given = evidence({"loss": np.array([2.0, math.nan])}, config={"optim": {"lr": 3e-4, "min_lr": 2e-4}})
    (found,) = curve.not_finite(given)
    assert found.do.endswith("hpc retry RUN optim.lr=0.00015 optim.min_lr=0.0001")


def test_a_node_is_left_out_beside_those_that_are() -> None:
    given = evidence(healthy(310, 0), pulses=pulses(slow=3), config={"job": {"exclude": "n1,n2"}})
    (found,) = ranks.straggler(given)
    assert "hpc cancel RUN; once it has ended: hpc resume RUN 'job.exclude=\"n1,n2,b\"'" in found.do
    assert compose([shlex.split(found.do)[-1]]).job.exclude == "n1,n2,b"


def test_what_was_imported_is_not_started() -> None:
    given = evidence({"loss": np.array([2.0, math.nan])}, config={"job": {"_target_": "imported"}})
    (found,) = curve.not_finite(given)
    assert "hpc" not in found.do


def test_complete_checkpoints_are_known(tmp_path: Path) -> None:
    for step in (20, 100, 3):
        layout.checkpoint(tmp_path, step).mkdir(parents=True)
        (layout.checkpoint(tmp_path, step) / layout.COMPLETE).touch()
    (layout.checkpoint(tmp_path, 200)).mkdir()
    (tmp_path / "checkpoints" / ".step-7.tmp-x").mkdir()
    assert layout.complete_checkpoints(tmp_path) == [3, 20, 100]
