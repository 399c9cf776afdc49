"""A layout that the GPUs or the nodes cannot hold is refused before any is taken, with one that they can."""

from __future__ import annotations

from hpc.check import problems, rank_memory_gb
from hpc.compose import compose
from hpc.request import resolve
from trainer.problems import Problem


def found(*overrides: str) -> list[Problem]:
    config = compose(list(overrides))
    return problems(config, resolve(config))


def test_a_batch_too_large_for_the_gpus_is_refused_with_what_fits() -> None:
    given = ["experiment=olmoe_1b_7b", "cluster.node_types.gpu.gpu_memory_gb=40"]
    [problem] = found(*given)
    assert problem.field == "parallel.micro_batch"
    assert problem.given == "4"
    assert "of a GPU's 40 GiB of partition h100 of h100_32x8 36.0 can be used" in problem.allowed
    assert "activations" in problem.allowed
    assert problem.fix == "parallel.activation_checkpointing=selective"
    assert found(*given, *problem.fix.split()) == []


def test_a_smaller_micro_batch_comes_first() -> None:
    given = ["experiment=llammlein_120m", "parallel.micro_batch=32", "parallel.activation_checkpointing=none"]
    given += ["cluster.node_types.gpu.gpu_memory_gb=20"]
    [problem] = found(*given)
    assert problem.fix == "parallel.micro_batch=16"


def test_gradients_added_up_over_passes_are_counted() -> None:
    """Two passes in place of one keep a whole copy of the gradients, which OLMoE's GPUs would not hold either."""
    given = ["experiment=olmoe_1b_7b", "cluster.node_types.gpu.gpu_memory_gb=40", "parallel.micro_batch=2"]
    [problem] = found(*given)
    assert "gradients 25.9" in problem.allowed
    assert found(*given, "parallel.reduce_every_pass=true") == []


def test_where_one_change_is_not_enough_several_are_proposed() -> None:
    given = ["experiment=llammlein_1b", "parallel.activation_checkpointing=none", "parallel.micro_batch=16"]
    given += ["cluster.node_types.gpu.gpu_memory_gb=7"]
    [problem] = found(*given)
    assert len(problem.fix.split()) > 1
    assert found(*given, *problem.fix.split()) == []


def test_where_no_layout_fits_it_says_so() -> None:
    [problem] = found("experiment=llammlein_1b", "cluster.node_types.gpu.gpu_memory_gb=1")
    assert "no layout of these ranks fits" in problem.fix


def test_what_is_offloaded_must_fit_the_node() -> None:
    [problem] = found("experiment=linly_33b", "cluster.node_types.gpu.memory_gb=100")
    assert "ranks of a node need" in problem.allowed
    assert "has 100" in problem.allowed


def test_a_rank_on_the_cpu_needs_what_it_computes_with() -> None:
    small = rank_memory_gb(compose(["experiment=tiny_moe"]))
    large = rank_memory_gb(compose(["experiment=tiny_moe", "model.d_model=1024", "parallel.micro_batch=8"]))
    assert 0.45 < small < 0.8 < large
    assert rank_memory_gb(compose(["experiment=tiny_moe", "job.rank_memory_gb=3"])) == 3
