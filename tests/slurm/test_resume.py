"""A run that goes on with another number of ranks, or laid out another way, keeps its losses and its samples."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hpc import ledger
from hpc.emulate import Emulation
from hpc.runs import Run
from tests.slurm import training
from tests.slurm.training import Submit, at_step, causes, ended, hpc, told

STEPS = 60
HALF = 25  # checkpoints are written each 25 steps


@pytest.fixture(scope="module")
def submit(emulation: Emulation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Submit]:
    with training.submitting(tmp_path_factory.mktemp("resuming")) as call:
        yield call


def train(submit: Submit, *overrides: str) -> Run:
    return training.train(submit, STEPS, *overrides, decay=STEPS)


def losses(run: Run) -> dict[int, float]:
    return {step: float.fromhex(loss) for step, loss in training.losses(run).items()}


@pytest.fixture(scope="module")
def undisturbed(submit: Submit) -> dict[int, float]:
    run = train(submit)
    ended(run, 300)
    return losses(run)


def changed_on_the_way(submit: Submit, first: list[str], then: list[str]) -> Run:
    """A run that is cancelled after its first checkpoint, and resumed with other words."""
    run = train(submit, *first)
    at_step(run, 0, HALF)
    hpc("cancel", str(run.folder))
    training.left(run)
    hpc("resume", str(run.folder), *then)
    ended(run, 300)
    assert causes(run) == ["cancelled", "finished"], told(run)
    return run


@pytest.mark.parametrize(
    ("first", "then", "ranks"),
    [
        ([], ["job.nodes=1", "parallel.sharding=grad_op"], [4, 2]),
        (["parallel.expert_parallel=2"], ["parallel.sharding=hybrid", "parallel.expert_parallel=1"], [4, 4]),
        (["parallel=deepspeed"], ["job.nodes=1", "parallel.zero_stage=1"], [4, 2]),
    ],
    ids=["fewer nodes, other sharding", "other expert parallelism, copies", "deepspeed, fewer nodes, other stage"],
)
@pytest.mark.timeout(900)
def test_a_run_goes_on_alike_on_another_layout(
    first: list[str], then: list[str], ranks: list[int], submit: Submit, undisturbed: dict[int, float]
) -> None:
    run = changed_on_the_way(submit, first, then)
    assert [record.world_size for record in ledger.history(run)] == ranks
    found = losses(run)
    assert sorted(found) == list(range(1, STEPS + 1))
    switched = ledger.history(run)[0].step
    assert switched is not None
    for step in range(1, min(STEPS, switched + 20) + 1):
        assert found[step] == pytest.approx(undisturbed[step], rel=1e-4), f"step {step}"
