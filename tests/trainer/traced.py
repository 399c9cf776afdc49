"""A step of one rank of many, traced on tensors without memory: what it would hold at its fullest moment.

To be run in a process of its own, of which it becomes a rank of a process group that has no other.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.testing._internal.distributed.fake_pg import FakeStore

from trainer.batch import Batch
from trainer.config import TrainerConfig
from trainer.loss import loss_of
from trainer.model import Decoder
from trainer.parallel.fsdp import FSDP
from trainer.parallel.held import Held


def traced(config: TrainerConfig, world_size: int, ranks_per_node: int) -> float:
    """Bytes that rank 0 of ``world_size`` holds at most in a step of one pass, under FSDP."""
    torch.set_num_threads(1)
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def to_empty(self: Decoder, **keywords: object) -> Decoder:
        with mode:  # the meshes before it are made of real tensors
            return nn.Module.to_empty(self, **keywords)  # type: ignore[arg-type]

    Decoder.to_empty = to_empty  # type: ignore[method-assign,assignment]
    Held.initialise = lambda *_: None  # type: ignore[method-assign,assignment]
    dist.init_process_group("fake", rank=0, world_size=world_size, store=FakeStore())
    try:
        engine = FSDP(config, torch.device("cpu"), ranks_per_node)
        with mode:
            return _peak(engine, config)
    finally:
        dist.destroy_process_group()


def _peak(engine: FSDP, config: TrainerConfig) -> float:
    size = (config.parallel.micro_batch, config.data.seq_len)
    tokens_BS = torch.zeros(size, dtype=torch.int64)
    batch = Batch(tokens_BS, tokens_BS, None, torch.zeros(size[0], dtype=torch.int64))
    tracker = FSDPMemTracker(engine.model, engine.optimizer)  # type: ignore[arg-type]
    tracker.track_inputs((tokens_BS,))
    with tracker:
        engine.backward(_loss(engine, batch, config), last=True)
        engine.update(1e-3, norm=1.0, max_norm=0.0)
    [device] = tracker.get_tracker_snapshot("peak").values()
    return float(device["Total"])


def _loss(engine: FSDP, batch: Batch, config: TrainerConfig) -> Tensor:
    return loss_of(engine.forward(batch), batch.targets_BS, config.model, 1)[0]
