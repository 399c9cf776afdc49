"""What the engine needs of DeepSpeed that DeepSpeed has no interface for, in one place.

Its optimizers keep parameters, gradients and moments in flat tensors, and say in different ways where a parameter
lies in them. Each class here tells it of one of them. Tested with deepspeed 0.19.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Part(NamedTuple):
    """This rank's part of a parameter."""

    flat: Tensor  # float32, what the optimizer works on; all ranks have one, were it for padding alone
    offset: int  # the part's first element in it
    start: int  # the part's first element in the parameter
    size: int  # elements; may be 0

    def of(self, tensor: Tensor) -> Tensor:
        """The part of ``flat``, or of a tensor like it; of one dimension, sharing its memory."""
        return tensor.detach().view(-1).narrow(0, self.offset, self.size)


class Zero(ABC):
    """One of DeepSpeed's optimizers."""

    averages = False  # gradients are averaged over the ranks rather than summed
    copies = False  # each rank holds everything, rather than a part of its own

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.optimizer = engine.optimizer

    @abstractmethod
    def flats(self) -> list[Tensor]:
        """What the optimizer works on, each with its state."""

    @abstractmethod
    def part(self, parameter: nn.Parameter) -> Part: ...

    @abstractmethod
    def gradients(self) -> list[Tensor]:
        """Reduced over the ranks; after the last pass of a step, and before it is taken."""

    @abstractmethod
    def drop(self) -> None:
        """Throw the gradients away."""

    @abstractmethod
    def refresh(self) -> None:
        """Make the parameters that are computed with equal the float32 ones. Collective."""

    def _gradients_on_host(self) -> list[Tensor]:
        if self.engine.device is not None and self.engine.device.type == "cuda":
            torch.cuda.synchronize()  # they may still be on their way
        return [flat.grad for flat in self.flats() if flat.grad is not None]

    def step(self) -> None:
        """Collective."""
        self.engine.step()
        if not self.engine.was_step_applied():
            raise RuntimeError("DeepSpeed skipped a step whose gradients are finite")


class Copies(Zero):
    """Stage 0: torch's optimizer on the parameters, gradients summed over all ranks."""

    copies = True

    def flats(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def part(self, parameter: nn.Parameter) -> Part:
        return Part(parameter, 0, 0, parameter.numel())

    def gradients(self) -> list[Tensor]:
        return [p.grad for p in self.flats() if p.grad is not None]

    def drop(self) -> None:
        self.engine.zero_grad()

    def refresh(self) -> None:
        pass


class _Linked(Zero):
    """DeepSpeed links each parameter to its fragment in the flat tensors of its group."""

    def __init__(self, engine: Any, groups: list[list[nn.Parameter]]) -> None:
        super().__init__(engine)
        self.group = {id(p): i for i, group in enumerate(groups) for p in group}

    def part(self, parameter: nn.Parameter) -> Part:
        flat = self.flats()[self.group[id(parameter)]]
        link: Any = parameter._hp_mapping  # type: ignore[attr-defined]
        if link is None:
            return Part(flat, 0, 0, 0)
        held, whole = link.hp_fragment_address, link.lp_fragment_address
        return Part(flat, held.start, whole.start, held.numel)

    def refresh(self) -> None:
        self.optimizer.update_lp_params()


class Sharded(_Linked):
    """Stages 1 and 2."""

    def __init__(self, engine: Any) -> None:
        super().__init__(engine, engine.optimizer.bit16_groups)
        self.finite = True
        # Its step asks whether gradients are finite and for their norm. Both are known when it is called, and asking
        # again would cost a reduction and a wait for the device. An overflow makes it clean up instead of stepping.
        self.optimizer.check_grad_overflow = True
        self.optimizer.has_overflow = lambda *_, **__: not self.finite
        self.optimizer.scaled_global_norm = lambda *_, **__: torch.ones(())

    def flats(self) -> list[Tensor]:
        return self.optimizer.single_partition_of_fp32_groups

    def gradients(self) -> list[Tensor]:
        if self.optimizer.cpu_offload:
            return self._gradients_on_host()
        return [gradient for group in self.optimizer.averaged_gradients.values() for gradient in group]

    def drop(self) -> None:
        self.finite = False
        self.engine.step()
        self.finite = True
        # With offload it forgets these, and would add the next gradients to them.
        self.optimizer.averaged_gradients.clear()


class ShardedBfloat16(_Linked):
    """Stage 1 with bfloat16 parameters, whose gradients are summed over passes in float32."""

    def __init__(self, engine: Any) -> None:
        super().__init__(engine, engine.optimizer.bf16_groups)

    def flats(self) -> list[Tensor]:
        return self.optimizer.fp32_groups_flat_partition

    def gradients(self) -> list[Tensor]:
        return self.optimizer.fp32_groups_gradient_flat_partition

    def drop(self) -> None:
        self.optimizer.zero_grad()


class ShardedParameters(Zero):
    """Stage 3. Each parameter is cut into equal parts, rounded up, one per rank."""

    averages = True  # DeepSpeed refuses gradient_allreduce_op=sum here

    def __init__(self, engine: Any) -> None:
        super().__init__(engine)
        self.norm = torch.ones(())
        self.optimizer.has_overflow = lambda *_, **__: False  # as in Sharded
        self.optimizer._get_norm_groups = lambda: [self.norm]
        self.optimizer.unscale_and_clip_grads = lambda *_, **__: None

    def flats(self) -> list[Tensor]:
        return self.optimizer.fp32_partitioned_groups_flat

    def part(self, parameter: nn.Parameter) -> Part:
        optimizer, partitioned = self.optimizer, _partitioned(parameter)
        group, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = min(optimizer._get_param_partition_rank(parameter) * size, partitioned.ds_numel)
        return Part(self.flats()[group], offset, start, min(size, partitioned.ds_numel - start))

    def gradients(self) -> list[Tensor]:
        if self.optimizer.offload_optimizer:
            return self._gradients_on_host()
        return [gradient for group in self.optimizer.averaged_gradients.values() for gradient in group]

    def drop(self) -> None:
        self.norm.fill_(torch.inf)
        self.engine.step()
        self.norm.fill_(1.0)

    @torch.no_grad()
    def refresh(self) -> None:
        optimizer = self.optimizer
        persistent = optimizer.persistent_parameters  # small ones that stay gathered
        if persistent:
            persistent[0].partition(persistent)
        for group in range(len(self.flats())):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if persistent:
            persistent[0].all_gather(persistent)


def _partitioned(parameter: nn.Parameter) -> Any:
    return parameter  # with what DeepSpeed adds to it


def zero_of(engine: Any) -> Zero:
    """What DeepSpeed made of the optimizer."""
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    match engine.optimizer:
        case BF16_Optimizer():
            return ShardedBfloat16(engine)
        case DeepSpeedZeroOptimizer_Stage3():
            return ShardedParameters(engine)
        case DeepSpeedZeroOptimizer():
            return Sharded(engine)
        case _:
            return Copies(engine)


# -- starting DeepSpeed ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def environment(device: torch.device) -> Iterator[None]:
    """In which DeepSpeed finds what it does not take as arguments; nothing of it stays."""
    known = {
        "DS_ACCELERATOR": device.type,
        "LOCAL_RANK": str(device.index or 0),
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # it sets this one itself
    }
    before = {name: os.environ.get(name) for name in known}
    os.environ.update(known)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def load(device: torch.device) -> Any:
    """The module ``deepspeed``, on the process group that there is. Collective; within ``environment``."""
    import deepspeed
    from deepspeed.comm import comm
    from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
    from deepspeed.utils import groups

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # It calls collectives by names that torch is about to give up; each call would warn.
    warnings.filterwarnings("ignore", "`torch.distributed.*` is deprecated", FutureWarning)
    # A faster reduction over shared memory, which is compiled when first used: not every compute node can.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # What it remembers of a process group that may have ended meanwhile.
    comm.cdb = None
    groups._WORLD_GROUP = None
    for remembered in (
        groups._EXPERT_PARALLEL_GROUP,
        groups._EXPERT_PARALLEL_GROUP_RANKS,
        groups._EXPERT_DATA_PARALLEL_GROUP,
        groups._EXPERT_DATA_PARALLEL_GROUP_RANKS,
    ):
        remembered.clear()
    # It numbers the parameters and modules of all models of a process, and compares these numbers among the ranks.
    deepspeed.zero.Init.param_id = 0
    numbers: Any = DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__
    numbers[0][:] = [0]
    if device.type == "cpu":
        # It asks whether the CPU has instructions for float16. Without these torch is slow, and as exact.
        accelerator: Any = deepspeed.get_accelerator()
        accelerator.is_fp16_supported = lambda: True
    deepspeed.init_distributed(dist_backend="nccl" if device.type == "cuda" else "gloo")
    return deepspeed
