"""A request against what the cluster offers: field, value, limit and nearest legal value."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpc.check import data, fits_here, problems, rank_memory_gb
from hpc.compose import compose
from hpc.request import resolve


def found(*overrides: str) -> list[str]:
    config = compose(["job=hello", *overrides])
    return [str(problem) for problem in problems(config, resolve(config))]


def test_a_legal_request_has_no_problem() -> None:
    assert found("cluster=noctua2") == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["job.nodes=25"], "job.nodes=25: partition gpu of noctua2 gives 1 to 24 nodes. Try: job.nodes=24"),
        (["job.nodes=0"], "job.nodes=0: partition gpu of noctua2 gives 1 to 24 nodes. Try: job.nodes=1"),
        (["job.ranks_per_node=5"], "has 4 GPUs, and each rank takes one. Try: job.ranks_per_node=4"),
        (["job.time=8-00:00:00"], "job.time=8-00:00:00: partition gpu of noctua2 gives at most 7-00:00:00"),
        (["job.time=7-00:00:01"], "Try: job.time=7-00:00:00"),
        (["job.time=0"], "must be longer than 0"),
        (["job.memory_gb=481"], "has 480 GiB. Try: job.memory_gb=480"),
        (["job.time=4", "job.grace=300"], "Try: job.grace=60"),
        (["name=a;touch"], "name='a;touch'"),
        (["cluster.container.runtime=apptainer"], "cluster.container.image=null"),
    ],
)
def test_a_limit_is_named(overrides: list[str], message: str) -> None:
    quoted = [o if ";" not in o else "name='a;touch'" for o in overrides]
    texts = found("cluster=noctua2", *quoted)
    assert len(texts) == 1
    assert message in texts[0]


@pytest.mark.parametrize("nodes", [1, 24])
def test_limits_themselves_are_legal(nodes: int) -> None:
    assert found("cluster=noctua2", f"job.nodes={nodes}", "job.time=7-00:00:00") == []


def test_all_problems_are_said_at_once() -> None:
    assert len(found("cluster=noctua2", "job.nodes=99", "job.time=99-0", "job.ranks_per_node=9")) == 3


def test_missing_data_says_how_to_make_it(tmp_path: Path) -> None:
    config = compose([f"data.path={tmp_path / 'none'}"])
    [problem] = data(config)
    assert "hpc submit job=prepare" in str(problem)


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text('{"vocab_size": 5000}')
    config = compose([f"data.path={tmp_path}"])
    [problem] = data(config)
    assert str(problem).endswith("has 5000 ids. Try: model.vocab_size=5000")


def test_a_mixture_of_sources_that_the_data_does_not_have_is_refused(tmp_path: Path) -> None:
    splits = {"train": {"german": {"tokens": 5000}, "english": {"tokens": 9000}}, "validation": {}}
    (tmp_path / "dataset.json").write_text(json.dumps({"vocab_size": 500, "splits": splits}))
    here = [f"data.path={tmp_path}"]
    assert list(data(compose([*here, "train.evaluate.every_steps=0"]))) == []
    [unknown] = data(compose([*here, "train.evaluate.every_steps=0", "+data.mixture.weights={germn: 1, english: 2}"]))
    assert str(unknown).startswith(
        "data.mixture.weights=germn: no such source; the data has german, english. Try: german"
    )
    [unmeasured] = data(compose([*here, "train.evaluate.every_steps=5"]))
    assert unmeasured.fix == "train.evaluate.every_steps=0"


def test_preparing_nothing_is_refused() -> None:
    config = compose(["job=prepare", "data=files"])
    [problem] = problems(config, resolve(config))
    assert "data.corpus.files=[" in problem.fix


def test_preparing_on_several_ranks_is_refused() -> None:
    config = compose(["job=prepare", "job.ranks_per_node=2"])
    [problem] = problems(config, resolve(config))
    assert problem.fix == "job.nodes=1 job.ranks_per_node=1"


def test_what_does_not_fit_this_machine_is_refused_with_what_fits() -> None:
    config = compose(["cluster=noctua2"])
    request = resolve(config)
    each = rank_memory_gb(config)
    [problem] = fits_here(config, request, available_gb=each * 4 * 3.5)
    assert "96 ranks" in problem.allowed
    assert problem.fix.startswith("job.nodes=3 (fits), or job=hello")
    assert fits_here(config, request, available_gb=each * 96 + 1) == []
