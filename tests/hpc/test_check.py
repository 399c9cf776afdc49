"""A request against what the cluster offers: field, value, limit and nearest legal value."""

from __future__ import annotations

import pytest

from hpc.check import fits_here, problems, rank_memory_gb
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
        (
            ["job.nodes=25"],
            "job.nodes=25: partition gpu of noctua2 gives 1 to 24 nodes (cluster/noctua2.yaml). Try: job.nodes=24",
        ),
        (
            ["job.nodes=0"],
            "job.nodes=0: partition gpu of noctua2 gives 1 to 24 nodes (cluster/noctua2.yaml). Try: job.nodes=1",
        ),
        (
            ["job.ranks_per_node=5"],
            "has 4 GPUs, and each rank takes one (cluster/noctua2.yaml). Try: job.ranks_per_node=4",
        ),
        (
            ["job.time=8-00:00:00"],
            "job.time=8-00:00:00: partition gpu of noctua2 gives at most 7-00:00:00 (cluster/noctua2.yaml)",
        ),
        (["job.time=7-00:00:01"], "Try: job.time=7-00:00:00"),
        (["job.time=0"], "must be longer than 0"),
        (["job.memory_gb=481"], "gives 1 to 480 GiB (cluster/noctua2.yaml). Try: job.memory_gb=480"),
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


def trained(*overrides: str) -> list[str]:
    config = compose(["cluster=noctua2", "job.nodes=1", "train.batch_tokens=16384", *overrides])
    return [str(problem) for problem in problems(config, resolve(config))]


def test_a_gpu_is_not_asked_of_nodes_without() -> None:
    assert trained("train.device=cuda") == []
    [problem] = trained("train.device=cuda", "cluster.node_types.gpu.gpus=0", "job.ranks_per_node=1")
    assert problem.startswith("train.device=cuda: a node of partition gpu of noctua2 has no GPUs. Try: ")
    assert problem.endswith("train.device=auto")


@pytest.mark.parametrize(
    ("overrides", "fixes"),
    [
        (["job.nodes=3"], "train.batch_tokens=15360, or with this batch job.nodes=2"),
        (
            ["job.nodes=2", "parallel.micro_batch=3"],
            "train.batch_tokens=18432, or with this batch parallel.micro_batch=2",
        ),
        (
            ["job.nodes=3", "parallel.micro_batch=3", "train.batch_tokens=6144"],
            "train.batch_tokens=9216, or with this batch parallel.micro_batch=2 or job.nodes=2",
        ),
        (
            ["job.nodes=3", "parallel.micro_batch=4", "train.batch_tokens=2048"],
            "train.batch_tokens=12288, or with this batch job.nodes=2 parallel.micro_batch=1",
        ),
        (["job.nodes=1", "train.batch_tokens=100"], "train.batch_tokens=1024"),
    ],
)
def test_a_batch_that_the_layout_cannot_give_comes_with_layouts_that_can(overrides: list[str], fixes: str) -> None:
    [problem] = trained("parallel.micro_batch=1", *overrides)
    assert problem.startswith("train.batch_tokens=")
    assert problem.split("Try: ")[1] == fixes


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
