"""One rank, nothing sharded: parameters in float32, cast where they are used."""

from __future__ import annotations

import torch

from trainer.config import TrainerConfig
from trainer.model import Decoder
from trainer.parallel.base import COMPUTE_DTYPE, Base
from trainer.parallel.layers import prepare


class Single(Base):
    """The decoder as it is, on one device."""

    def __init__(self, config: TrainerConfig, device: torch.device, ranks_per_node: int = 1) -> None:
        self.rank, self.world_size = 0, 1
        with torch.device("meta"):
            model = Decoder(config.model)
        model.compute_dtype = COMPUTE_DTYPE[config.train.precision]
        prepare(model, config.parallel)
        super().__init__(model, config, device, lambda name, parameter: None)
