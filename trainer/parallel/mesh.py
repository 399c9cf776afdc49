"""How ranks are arranged: who shards with whom, who keeps copies, who shares experts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from trainer.config import ParallelConfig, Sharding

COPIES, SHARD, EXPERTS = "copies", "shard", "experts"


@dataclass(frozen=True)
class Meshes:
    """Arrangements of the same ranks.

    Args:
        copies: groups of ranks that each hold everything, between them.
        dense: all ranks, [copies, shard] or, with one copy, [shard].
        experts: all ranks, [copies, experts, shard]; None without expert parallelism. Neighbouring ranks share a
            layer's experts, since they exchange tokens in every layer; the others of a group split each expert.
    """

    copies: int
    dense: DeviceMesh
    experts: DeviceMesh | None

    @staticmethod
    def of(parallel: ParallelConfig, device: torch.device, ranks_per_node: int) -> Meshes:
        """Collective."""
        world_size, shared = dist.get_world_size(), parallel.expert_parallel
        shard = world_size
        if parallel.sharding is Sharding.hybrid:
            shard = parallel.shard_ranks or ranks_per_node
        copies = world_size // shard
        if copies * shard != world_size or shard % shared:
            raise ValueError(f"{shard} ranks that share experts by {shared} do not fit into {world_size}")
        sizes, names = ((copies, shard), (COPIES, SHARD)) if copies > 1 else ((shard,), (SHARD,))
        dense = init_device_mesh(device.type, sizes, mesh_dim_names=names)
        if shared == 1:
            return Meshes(copies, dense, None)
        ranks = torch.arange(world_size).view(copies, shard // shared, shared).transpose(1, 2)
        return Meshes(copies, dense, DeviceMesh(device.type, ranks, mesh_dim_names=(COPIES, EXPERTS, SHARD)))

    def of_an_expert(self) -> DeviceMesh:
        """The ranks that hold the same experts, [copies, shard] or [shard]."""
        assert self.experts is not None
        return self.experts[COPIES, SHARD] if self.copies > 1 else self.experts[SHARD]
