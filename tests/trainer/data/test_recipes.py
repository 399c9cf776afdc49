"""Each published run's tiny variant trains: its model, precision, mixture, packing and engine, on real ranks."""

from __future__ import annotations

import math
from pathlib import Path

import folders
import numpy as np
import pytest
import tiny
from ranks import Ranks

from hpc.compose import compose
from hpc.request import resolve
from trainer import parallel
from trainer.config import TrainerConfig
from trainer.data import TokenDataset
from trainer.train import train

SOURCES = ("de", "en", "ja", "zh_CN")  # that the variants' mixtures name
VOCABULARY = 4096

STEPS = {
    "llammlein_120m_tiny": 3,
    "llammlein_1b_tiny": 3,
    "olmoe_1b_7b_tiny": 2,
    "linly_7b_tiny": 2,
    "linly_13b_tiny": 2,
    "linly_33b_tiny": 2,
    "lola_v1_tiny": 2,  # CPUs are slow in float16
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of 20 to 600 ids, some far more frequent than others, as words are."""
    random = np.random.default_rng(0)

    def document() -> list[int]:
        return (1 + random.zipf(1.3, size=random.integers(20, 600)) % (VOCABULARY - 1)).tolist()

    return folders.write(
        tmp_path_factory.mktemp("recipes"),
        {source: [[document() for _ in range(60)]] for source in SOURCES},
        vocab_size=VOCABULARY,
    )


def losses(config: TrainerConfig, ranks_per_node: int, steps: int, folder: Path) -> list[float]:
    """Of the first steps, then training is asked to stop, which saves a checkpoint."""
    memory = tiny.Memory()
    dataset = TokenDataset(config.data, seed=config.train.seed, tokens=config.train.tokens)

    def stop() -> str | None:
        return "enough" if len(memory.steps) >= steps - 1 else None

    engine = parallel.build(config, tiny.CPU, ranks_per_node)
    train(config, engine, dataset=dataset, checkpoints=folder, stop=stop, record=memory)
    return [line["loss"] for line in memory.steps]


@pytest.mark.parametrize("name", STEPS)
def test_a_tiny_variant_begins_to_learn(ranks: Ranks, data: Path, tmp_path: Path, name: str) -> None:
    made = compose([f"experiment={name}", f"data.path={data}"])
    request = resolve(made)
    config = TrainerConfig(made.model, made.data, made.optim, made.parallel, made.train)
    found, *_ = ranks.run(losses, config, request.ranks_per_node, STEPS[name], tmp_path, world_size=request.world_size)
    assert len(found) == STEPS[name] and all(map(math.isfinite, found))
    # At first every token is as likely as any but for the noise of the logits, whose deviation the head's width gives.
    noise = config.model.init_std**2 * config.model.d_model
    assert found[0] == pytest.approx(math.log(VOCABULARY) + noise / 2, abs=0.3)
    assert found[-1] <= found[0]
