"""OpenMetrics text: what Prometheus' own parser reads in it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as older_text

from monitoring.export import openmetrics
from monitoring.findings import Finding, Severity
from monitoring.reader import Reader
from monitoring.snapshot import JobState, Snapshot
from tests.monitoring.generate import START, generate

EMPTY = Snapshot(Path("/runs/a/1"), "a", "1", now=100.0)


def values(text: str) -> dict[tuple[str, ...], float]:
    """(name, label values beside the run's own ...) -> value."""
    own = ("run", "name", "cluster")
    return {
        (sample.name, *(value for key, value in sample.labels.items() if key not in own)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_run_is_told_in_full(tmp_path: Path) -> None:
    run = generate(tmp_path / "tiny" / "run")
    job = JobState("17", "RUNNING")
    found = Finding("stall", Severity.critical, "no step", "for 100 s", START)
    snapshot = replace(Reader(run).read(job, now=START + 1000), findings=(found, replace(found, silenced=True)))
    told = values(openmetrics.render([snapshot]))
    assert told[("hpc_run_up",)] == 1
    assert told[("hpc_run_state", "running")] == 1
    assert (told[("hpc_run_step",)], told[("hpc_run_target_steps",)]) == (290, 500)
    assert told[("hpc_run_tokens",)] == 290 * 4096
    assert told[("hpc_run_loss",)] == told[("hpc_run_metric", "loss")] == snapshot.metrics["loss"]
    assert told[("hpc_run_attempts_ended_total", "time_limit")] == 1
    assert told[("hpc_run_lost_steps",)] == 51
    assert [told[("hpc_run_findings", each)] for each in ("info", "warning", "critical")] == [0, 0, 1]
    assert told[("hpc_run_last_step_age_seconds",)] == START + 1000 - (snapshot.updated or 0)
    assert 0 < told[("hpc_run_ettr_ratio",)] <= 1
    assert abs(sum(value for key, value in told.items() if key[0] == "hpc_run_time_seconds") - 1000) < 1


def test_what_is_not_known_has_no_sample() -> None:
    told = values(openmetrics.render([EMPTY]))
    assert told[("hpc_run_up",)] == 0
    assert not {"hpc_run_step", "hpc_run_loss", "hpc_run_last_step_age_seconds"} & {key[0] for key in told}


def test_a_run_that_cannot_be_told_hides_no_other() -> None:
    odd = replace(EMPTY, id="2", metrics={"loss": "x"})  # pyright: ignore[reportArgumentType]
    lines = openmetrics.render([odd, replace(EMPTY, step=7)]).splitlines()
    assert [line for line in lines if 'run="2"' in line] == ['hpc_run_read_problems{run="2",name="a"} 1.0']
    assert 'hpc_run_step{run="1",name="a"} 7.0' in lines


def test_of_no_run_nothing_is_said() -> None:
    assert openmetrics.render([]) == "# EOF\n"


def test_a_waiting_run_is_not_up_and_a_lost_one_neither() -> None:
    for state, job in (("queued", None), ("running", JobState("1", "PENDING")), ("finished", JobState("1", "RUNNING"))):
        assert values(openmetrics.render([replace(EMPTY, state=state, job=job)]))[("hpc_run_up",)] == 0


def test_units_end_the_names_and_families_are_not_interleaved(tmp_path: Path) -> None:
    run = generate(tmp_path / "tiny" / "run")
    one = Reader(run).read(now=START + 1000)
    families = list(text_string_to_metric_families(openmetrics.render([one, replace(one, id="2"), one])))
    assert len({family.name for family in families}) == len(families)
    for family in families:
        assert family.documentation and family.name.endswith(family.unit)
        assert len({sample.labels["run"] for sample in family.samples}) == 2


def test_the_older_text_format_reads_it_too(tmp_path: Path) -> None:
    run = generate(tmp_path / "tiny" / "run")
    assert len(list(older_text(openmetrics.render([Reader(run).read()])))) > 15


@given(st.text(max_size=30), st.text(max_size=30), st.floats(), st.text(min_size=1, max_size=10))
def test_whatever_a_run_is_called_the_labels_come_back(name: str, identity: str, value: float, metric: str) -> None:
    snapshot = replace(EMPTY, name=name, id=identity, metrics={metric: value})
    text = openmetrics.render([snapshot])
    assert text.endswith("# EOF\n") and text.count("# EOF\n") == 1
    (sample,) = [
        sample
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "hpc_run_metric"
    ]
    assert sample.labels.get("name", "") == name and sample.labels.get("run", "") == identity
    assert sample.labels["metric"] == metric
    assert sample.value == value or (math.isnan(sample.value) and math.isnan(value))


def test_a_name_that_is_no_text_is_told_all_the_same() -> None:
    openmetrics.render([replace(EMPTY, name="caf\udce9")]).encode()
