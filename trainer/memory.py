"""What training needs of a rank's memory, by kind, before anything is allocated. Pure and free of torch.

An estimate from shapes: what each engine keeps of parameters, gradients and optimizer state, and what the decoder's
operations keep for backward. A step has some moments that may be its fullest; each is added up, and the largest told.

How near it is, as ``tests/trainer/test_memory.py`` holds it: parameters, gradients, optimizer state and what is
offloaded within 3 % of the bytes that FSDP2 and DeepSpeed hold on real ranks, in each precision; the whole within 10 %
of a trace of the step on tensors without memory, for models of 0.1 to 7 billion parameters under FSDP. Compiling is not
counted: it only takes away. Of what GPUs need, CUDA's context, NCCL's buffers and the allocator's leftovers are not in
it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from trainer.activations import FLOAT, Activations
from trainer.config import Engine, ModelConfig, Precision, Sharding, TrainerConfig
from trainer.size import expert_parameters, is_moe_layer, layer_parameters, moe_layers, parameter_count

BUCKET = 50_000_000  # elements that DeepSpeed reduces together: trainer.parallel.deepspeed.BUCKET
LIVE = 1_000_000_000  # elements that ZeRO-3 lets be gathered at a time: DeepSpeed's stage3_max_live_parameters


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank at the fullest moment of a step."""

    parameters: float = 0.0  # this rank's part, in float32 and as it is computed with
    gradients: float = 0.0  # what is kept of them between passes and until the optimizer's step
    optimizer: float = 0.0  # AdamW's two moments
    gathered: float = 0.0  # parameters of other ranks, or in another type, while layers are computed
    communication: float = 0.0  # gradients on their way into those above, and buffers
    activations: float = 0.0  # kept for backward, and what a layer needs while it is computed
    logits: float = 0.0  # what the head needs
    offloaded: float = 0.0  # in host memory, beside a GPU

    @property
    def total(self) -> float:
        """Of the device."""
        return sum(getattr(self, kind.name) for kind in fields(self)) - self.offloaded


@dataclass(frozen=True)
class _Layout:
    """What an engine holds all along a step, and of gradients on their way at three moments of backward."""

    held: Memory
    leaving: float = 0.0  # those of a layer as backward leaves them
    reducing: float = 0.0  # those of a layer on the way to their owners, while the next layer's backward runs
    last: float = 0.0  # those of the embedding and the head, at the end


def estimate(config: TrainerConfig, world_size: int, ranks_per_node: int, *, gpu: bool) -> Memory:
    """What a rank needs that has its share of the largest parts of the model.

    Args:
        gpu: computed on GPUs, whose kernels keep less than those of CPUs.
    """
    layout = _LAYOUTS[config.parallel.engine](config, world_size, ranks_per_node)
    return max(_moments(layout, Activations(config, gpu)), key=lambda memory: memory.total)


def _moments(layout: _Layout, pass_: Activations) -> Iterator[Memory]:
    """The moments of a step that may be the fullest."""
    held = layout.held
    slope = pass_.width * pass_.model.vocab_size * pass_.model.d_model  # the head's gradient, from its backward on
    yield replace(held, activations=pass_.kept, logits=pass_.head)
    yield replace(held, activations=pass_.kept + pass_.drawn)
    yield replace(held, activations=pass_.kept + pass_.working, communication=layout.leaving, logits=slope)
    done = min(pass_.kept_of(moe=moe) for moe in pass_.kinds)  # by the layer whose gradients are on their way
    left = pass_.kept - done + pass_.working
    yield replace(held, activations=left, communication=layout.reducing, logits=slope)
    yield replace(held, communication=layout.last)


# -- engines -----------------------------------------------------------------------------------------------------


def _single(config: TrainerConfig, world_size: int, ranks_per_node: int) -> _Layout:
    total = parameter_count(config.model)[0]
    casts = 0 if config.train.precision is Precision.fp32 else _width(config) * total  # kept by autograd till backward
    return _Layout(Memory(FLOAT * total, FLOAT * total, 2 * FLOAT * total, casts))


def _fsdp(config: TrainerConfig, world_size: int, ranks_per_node: int) -> _Layout:
    parallel, width = config.parallel, _width(config)
    ranks = world_size
    if parallel.sharding is Sharding.hybrid:
        ranks = parallel.shard_ranks or ranks_per_node
    total, experts = parameter_count(config.model)[0], _experts(config.model)
    padding = _padding(config, ranks)
    part = (total - experts + experts * padding) / ranks
    whole = total - experts + experts / parallel.expert_parallel  # all that this rank computes with
    layer, _, root = _parts(config, 1.0)
    buffer, pair, _ = _parts(config, padding)
    sums = FLOAT * whole if _several(config, world_size) and not parallel.reduce_every_pass else 0.0
    held = Memory(
        parameters=FLOAT * part,
        gradients=FLOAT * part + sums,
        optimizer=2 * FLOAT * part,
        # The root is never freed within a step; of the layers, the one that is computed and the next.
        gathered=width * (whole if parallel.sharding is Sharding.grad_op else root + pair),
    )
    return _Layout(held, leaving=width * layer, reducing=FLOAT * buffer, last=(width + FLOAT) * root)


def _padding(config: TrainerConfig, ranks: int) -> float:
    """By what the routed experts grow when they are split: to equal parts of whole experts, where no dimension of
    their matrices divides by the ranks that hold the same ones."""
    moe, own = config.model.moe, config.parallel.expert_parallel
    if moe is None:
        return 1.0
    experts, same = moe.experts // own, max(1, ranks // own)
    if any(size % same == 0 for size in (experts, config.model.d_model, moe.d_ff)):
        return 1.0
    return same * -(-experts // same) / experts


def _deepspeed(config: TrainerConfig, world_size: int, ranks_per_node: int) -> _Layout:
    parallel, width, stage = config.parallel, _width(config), config.parallel.zero_stage
    experts = _experts(config.model) / parallel.expert_parallel
    dense = parameter_count(config.model)[0] - _experts(config.model)
    whole = dense + experts
    if stage == 0:
        casts = 0 if config.train.precision is Precision.fp32 else width * whole
        return _Layout(Memory(FLOAT * whole, FLOAT * whole, 2 * FLOAT * whole, casts), last=FLOAT * whole)
    part = dense / world_size + experts * parallel.expert_parallel / world_size
    masters, moments, gradients = FLOAT * part, 2 * FLOAT * part, FLOAT * part
    layer, _, root = _parts(config, 1.0)
    bucket = (width + FLOAT) * min(BUCKET, whole)
    several, sums = _several(config, world_size), 0.0
    if stage == 1:  # gradients of all, until they are reduced after the last pass
        if several:
            sums = FLOAT * whole
        else:
            bucket += FLOAT * whole
    lower = width * (part if stage == 3 else whole)
    gathered = width * min(whole, LIVE + BUCKET) if stage == 3 else 0.0
    held = Memory(lower + masters, gradients + sums, moments, gathered)
    if parallel.offload:
        host = masters + gradients + moments
        if stage == 3:  # gradients once for adding up and once for the optimizer
            held = Memory(gathered=gathered, offloaded=host + gradients + lower)
        else:
            # A buffer for one parameter on either side, and what goes back to the device. Gradients of parameters
            # in a lower type are added up in float32 on the device, others in host memory.
            one, low = width * _largest(config), width < FLOAT
            host += one + width * part + (gradients if several and not low else 0.0)
            held = Memory(lower, sums + (gradients if low else 0.0), offloaded=host)
            bucket += one
    return _Layout(held, bucket + width * layer, bucket + width * layer, bucket + width * root)


_LAYOUTS = {Engine.single: _single, Engine.fsdp: _fsdp, Engine.deepspeed: _deepspeed}


# -- sizes -------------------------------------------------------------------------------------------------------


def _width(config: TrainerConfig) -> int:
    return Activations(config, gpu=False).width


def _several(config: TrainerConfig, world_size: int) -> bool:
    """Whether a step has more than one pass."""
    return config.train.batch_tokens > world_size * Activations(config, gpu=False).tokens


def _parts(config: TrainerConfig, padding: float) -> tuple[float, float, float]:
    """Parameters that a rank computes with, in the largest layer, in the largest two neighbours, and in the root:
    tables, last norm, head."""
    model, own = config.model, config.parallel.expert_parallel
    sizes = [float(layer_parameters(model, moe=is_moe_layer(model, n))[0]) for n in range(1, model.layers + 1)]
    root = parameter_count(model)[0] - sum(sizes)
    if model.moe is not None:
        experts = model.moe.experts * expert_parameters(model, model.moe)
        for number in moe_layers(model):
            sizes[number - 1] += experts * (padding / own - 1)
    pairs = [one + other for one, other in itertools.pairwise(sizes)]
    return max(sizes), max(pairs, default=sizes[0]), root


def _largest(config: TrainerConfig) -> int:
    """Elements of the largest parameter that a rank computes with: a table, or one matrix of all of a layer's experts
    on it."""
    model, moe = config.model, config.model.moe
    experts = moe.experts // config.parallel.expert_parallel * moe.d_ff if moe is not None else 0
    return model.d_model * max(model.vocab_size, model.d_ff, model.d_model, experts)


def _experts(model: ModelConfig) -> int:
    """Parameters of all routed experts."""
    if model.moe is None:
        return 0
    return len(moe_layers(model)) * model.moe.experts * expert_parameters(model, model.moe)
