"""Before training on several nodes of a real Slurm: a node that is not fit is named, and left out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hpc import ledger, slurm
from hpc.emulate import Emulation
from hpc.runs import Run
from tests.slurm import faults, training
from tests.slurm.training import SHAPE, ended, told


@pytest.fixture(scope="module")
def folder(emulation: Emulation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("preflight")
    with training.submitting(folder):
        yield folder


# What a broken node does: its first product is wrong, or it never takes part in a reduction.
BROKEN = {
    "device": """
        def spoil(preflight):
            preflight._matmul = lambda device: 1 / 0
        after("trainer.preflight", spoil)
    """,
    "network": """
        def spoil(preflight):
            preflight.dist.all_reduce = lambda values: time.sleep(1000)
            preflight.TOGETHER = preflight.SETTLED = 6.0
        after("trainer.preflight", spoil)
    """,
}
HURRY = """
        def hurry(preflight):
            preflight.TOGETHER = preflight.SETTLED = 6.0
        after("trainer.preflight", hurry)
"""


@pytest.mark.timeout(400)
@pytest.mark.parametrize("broken", sorted(BROKEN))
def test_an_unfit_node_is_named_and_left_out(broken: str, folder: Path, emulation: Emulation) -> None:
    bad = sorted(emulation.node_states())[1]
    shape = [word for word in SHAPE if not word.startswith(("job.", "train.batch"))]
    size = ["job.nodes=3", "job.ranks_per_node=1", "train.batch_tokens=6144", f"train.tokens={3 * 6144}"]

    def prepare(run: Run) -> None:
        faults.in_ranks(run, {f"NODE == {bad!r}": BROKEN[broken], f"NODE != {bad!r}": HURRY})

    run = faults.dispatch([*faults.data(folder), *shape, *size, "optim.decay_tokens=61440"], prepare)
    try:
        ended(run, 300)
    finally:
        slurm.cancel(str(run.job_id), emulation.environment)
    first, *rest = ledger.history(run)
    assert (first.cause, first.suspects, first.exclude) == ("preflight", [bad], [bad]), told(run)
    assert bad in first.evidence
    assert rest[-1].cause == "finished"
    assert bad not in rest[-1].nodes
