"""What is wrong with a training request, as far as its values alone show it. Pure and free of torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from trainer.config import (
    DataConfig,
    Engine,
    ModelConfig,
    MoEConfig,
    OptimConfig,
    Packing,
    ParallelConfig,
    Positions,
    Precision,
    Sharding,
    TrainConfig,
    TrainerConfig,
)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a request: what was given, what is allowed, what to type instead."""

    field: str  # full path in the config, such as "train.batch_tokens"
    given: str
    allowed: str
    fix: str = ""  # an override that would do, such as "train.batch_tokens=8192"

    def __str__(self) -> str:
        text = f"{self.field}={self.given}: {self.allowed}"
        return f"{text}. Try: {self.fix}" if self.fix else text


def problems(config: TrainerConfig, world_size: int, ranks_per_node: int = 0) -> Iterator[Problem]:
    """Everything about a training request that its values alone show to be wrong, one Problem each.

    Args:
        ranks_per_node: for layouts that follow the nodes; 0: all ranks are on one.
    """
    yield from _model(config.model)
    yield from _data(config.data, config.model)
    yield from _batch(config.data, config.parallel, config.train, world_size, ranks_per_node)
    yield from _optim(config.optim)
    yield from _layout(config, world_size, ranks_per_node or world_size)
    yield from _train(config.train)


def at_least(path: str, value: float, least: float) -> Iterator[Problem]:
    """A Problem if the value is below ``least``, or no number."""
    if not value >= least:
        yield Problem(path, str(value), f"must be at least {least:g}", f"{path}={least:g}")


def above(path: str, value: float, bound: float) -> Iterator[Problem]:
    if not value > bound:
        yield Problem(path, str(value), f"must be above {bound:g}")


def within(path: str, value: float, low: float, high: float) -> Iterator[Problem]:
    """A Problem unless low <= value < high."""
    if not low <= value < high:
        yield Problem(path, str(value), f"must be at least {low:g} and below {high:g}")


def _model(model: ModelConfig) -> Iterator[Problem]:
    for name in ("vocab_size", "d_model", "layers", "heads", "kv_heads", "d_ff", "max_seq_len"):
        if getattr(model, name) < 1:
            yield Problem(f"model.{name}", str(getattr(model, name)), "must be at least 1")
            return
    if model.d_model % model.heads:
        nearest = max(h for h in range(1, model.heads + 1) if model.d_model % h == 0)
        yield Problem(
            "model.heads", str(model.heads), f"must divide model.d_model={model.d_model}", f"model.heads={nearest}"
        )
    elif model.positions is Positions.rotary and (model.d_model // model.heads) % 2:
        yield Problem(
            "model.heads",
            str(model.heads),
            f"rotary positions need an even head size, this is {model.d_model // model.heads}",
        )
    elif model.heads % model.kv_heads:
        nearest = max(h for h in range(1, model.kv_heads + 1) if model.heads % h == 0)
        yield Problem(
            "model.kv_heads", str(model.kv_heads), f"must divide model.heads={model.heads}", f"model.kv_heads={nearest}"
        )
    for name in ("dropout", "attention_dropout"):
        yield from within(f"model.{name}", getattr(model, name), 0, 1)
    for name in ("norm_eps", "rope_theta"):
        yield from above(f"model.{name}", getattr(model, name), 0)
    for name in ("init_std", "init_attention_output_std", "init_down_std"):
        yield from at_least(f"model.{name}", getattr(model, name) or 0.0, 0)
    if model.init_truncate is not None:
        yield from above("model.init_truncate", model.init_truncate, 0)
    if model.moe is not None:
        yield from _moe(model, model.moe)


def _moe(model: ModelConfig, moe: MoEConfig) -> Iterator[Problem]:
    for name in ("experts", "top_k", "d_ff", "every", "min_capacity"):
        yield from at_least(f"model.moe.{name}", getattr(moe, name), 1)
    for name in ("shared_experts", "balance_loss", "z_loss", "bias_update"):
        yield from at_least(f"model.moe.{name}", getattr(moe, name), 0)
    for name in ("capacity_factor", "eval_capacity_factor"):
        if getattr(moe, name) is not None:
            yield from above(f"model.moe.{name}", getattr(moe, name), 0)
    if moe.eval_capacity_factor is not None and moe.capacity_factor is None:
        yield Problem(
            "model.moe.eval_capacity_factor",
            str(moe.eval_capacity_factor),
            "has no use where model.moe.capacity_factor is null (dropless)",
            "model.moe.eval_capacity_factor=null",
        )
    if moe.top_k > moe.experts:
        yield Problem(
            "model.moe.top_k",
            str(moe.top_k),
            f"a token cannot go to more than model.moe.experts={moe.experts}",
            f"model.moe.top_k={moe.experts}",
        )
    if moe.every > model.layers:
        yield Problem(
            "model.moe.every", str(moe.every), f"no layer of model.layers={model.layers} would be MoE", "model.moe=null"
        )


def _data(data: DataConfig, model: ModelConfig) -> Iterator[Problem]:
    if data.seq_len > model.max_seq_len:
        yield Problem(
            "data.seq_len",
            str(data.seq_len),
            f"model.max_seq_len is {model.max_seq_len}",
            f"data.seq_len={model.max_seq_len}",
        )
    if data.document_mask and data.packing is Packing.padded:
        yield Problem(
            "data.document_mask",
            "true",
            "has no use with data.packing=padded: each sequence is of one document",
            "data.document_mask=false",
        )
    yield from _mixture(data)


def _mixture(data: DataConfig) -> Iterator[Problem]:
    mixture = data.mixture
    given = [name for name in ("weights", "temperature", "phases") if getattr(mixture, name)]
    if len(given) > 1:
        yield Problem("data.mixture", " and ".join(given), "takes one of weights, temperature and phases")
    if mixture.temperature is not None:
        yield from above("data.mixture.temperature", mixture.temperature, 0)
    parts = [("data.mixture.weights", mixture.weights)] if mixture.weights else []
    parts += [(f"data.mixture.phases[{i}].weights", phase.weights) for i, phase in enumerate(mixture.phases)]
    for path, weights in parts:
        wrong = {k: w for k, w in weights.items() if not 0 <= w < math.inf}
        if wrong or not any(w > 0 for w in weights.values()):
            given_text = ", ".join(f"{k}: {w}" for k, w in (wrong or weights).items()) or "{}"
            yield Problem(path, given_text, "weights are numbers of at least 0, one of them above 0")
    ends = [phase.until for phase in mixture.phases]
    if ends and (ends != sorted(set(ends)) or ends[0] <= 0 or ends[-1] != 1):
        yield Problem(
            "data.mixture.phases",
            f"until {', '.join(f'{end:g}' for end in ends)}",
            "each `until` must be larger than the one before, above 0, and the last 1",
        )


def _batch(
    data: DataConfig, parallel: ParallelConfig, train: TrainConfig, world_size: int, ranks_per_node: int
) -> Iterator[Problem]:
    for name, value in (
        ("train.tokens", train.tokens),
        ("train.batch_tokens", train.batch_tokens),
        ("data.seq_len", data.seq_len),
        ("parallel.micro_batch", parallel.micro_batch),
    ):
        if value < 1:
            yield Problem(name, str(value), "must be at least 1")
            return
    per_pass = data.seq_len * parallel.micro_batch * world_size
    if train.batch_tokens % per_pass:
        nearest = max(1, round(train.batch_tokens / per_pass)) * per_pass
        same = _same_batch(data, parallel, train, world_size, ranks_per_node)
        yield Problem(
            "train.batch_tokens",
            str(train.batch_tokens),
            f"must be a multiple of data.seq_len x parallel.micro_batch x ranks = "
            f"{data.seq_len} x {parallel.micro_batch} x {world_size} = {per_pass}",
            ", or with this batch ".join(filter(None, (f"train.batch_tokens={nearest}", " or ".join(same)))),
        )


def _same_batch(
    data: DataConfig, parallel: ParallelConfig, train: TrainConfig, world_size: int, ranks_per_node: int
) -> Iterator[str]:
    """What gives the batch that was asked for: a smaller micro-batch or fewer nodes, which fit too; else both."""
    sequences, rest = divmod(train.batch_tokens, data.seq_len)
    if rest:
        return
    most = world_size // ranks_per_node if ranks_per_node else 0

    def gives(micro_batch: int, ranks: int) -> bool:
        return sequences % (micro_batch * ranks) == 0 and ranks % max(1, parallel.expert_parallel) == 0

    smaller = [m for m in range(parallel.micro_batch - 1, 0, -1) if gives(m, world_size)]
    fewer = [n for n in range(most - 1, 0, -1) if gives(parallel.micro_batch, n * ranks_per_node)]
    yield from (f"parallel.micro_batch={m}" for m in smaller[:1])
    yield from (f"job.nodes={n}" for n in fewer[:1])
    if not smaller and not fewer:
        for nodes in range(most - 1, 0, -1):
            if both := [m for m in range(parallel.micro_batch - 1, 0, -1) if gives(m, nodes * ranks_per_node)]:
                yield f"job.nodes={nodes} parallel.micro_batch={both[0]}"
                return


def _optim(optim: OptimConfig) -> Iterator[Problem]:
    yield from above("optim.lr", optim.lr, 0)
    for name in ("min_lr", "clip", "weight_decay", "warmup_tokens", "eps"):
        yield from at_least(f"optim.{name}", getattr(optim, name), 0)
    if optim.min_lr > optim.lr > 0:
        yield Problem(
            "optim.min_lr",
            f"{optim.min_lr:g}",
            f"must not be above optim.lr={optim.lr:g}, from which it falls",
            f"optim.min_lr={optim.lr / 10:g}",
        )
    for name in ("beta1", "beta2"):
        yield from within(f"optim.{name}", getattr(optim, name), 0, 1)
    yield from within("optim.stable_until", optim.stable_until, 0, 1)
    if optim.warmup_steps is not None:
        yield from at_least("optim.warmup_steps", optim.warmup_steps, 0)
        if optim.warmup_tokens:
            yield Problem(
                "optim.warmup_steps",
                str(optim.warmup_steps),
                f"optim.warmup_tokens={optim.warmup_tokens} says it too",
                "optim.warmup_tokens=0",
            )
    for name in ("decay_tokens", "decay_steps"):
        if getattr(optim, name) is not None:
            yield from at_least(f"optim.{name}", getattr(optim, name), 1)
    if optim.decay_tokens is not None and optim.decay_steps is not None:
        yield Problem(
            "optim.decay_steps",
            str(optim.decay_steps),
            f"optim.decay_tokens={optim.decay_tokens} says it too",
            "optim.decay_tokens=null",
        )


def _layout(config: TrainerConfig, world_size: int, ranks_per_node: int) -> Iterator[Problem]:
    parallel = config.parallel
    yield from at_least("parallel.threads", parallel.threads, 0)
    yield from _expert_parallel(config, world_size)
    if parallel.engine is Engine.single and world_size > 1:
        yield Problem("parallel.engine", "single", f"works on one rank, these are {world_size}", "parallel=fsdp")
    if parallel.engine is Engine.fsdp and parallel.sharding is Sharding.hybrid:
        yield from _hybrid(parallel, world_size, ranks_per_node)
    if parallel.engine is Engine.deepspeed:
        yield from _deepspeed(config)


def _expert_parallel(config: TrainerConfig, world_size: int) -> Iterator[Problem]:
    ep, moe = config.parallel.expert_parallel, config.model.moe
    yield from at_least("parallel.expert_parallel", ep, 1)
    if ep <= 1:
        return
    if moe is None:
        yield Problem(
            "parallel.expert_parallel",
            str(ep),
            "this model has no experts (model.moe=null)",
            "parallel.expert_parallel=1",
        )
        return
    both = math.gcd(world_size, moe.experts)
    if both % ep:
        nearest = max(n for n in range(1, min(ep, both) + 1) if both % n == 0)
        yield Problem(
            "parallel.expert_parallel",
            str(ep),
            f"must divide the number of ranks, {world_size}, and model.moe.experts={moe.experts}",
            f"parallel.expert_parallel={nearest}",
        )
    if config.parallel.engine is Engine.single:
        yield Problem(
            "parallel.expert_parallel", str(ep), "parallel.engine=single has one rank", "parallel.expert_parallel=1"
        )


def _hybrid(parallel: ParallelConfig, world_size: int, ranks_per_node: int) -> Iterator[Problem]:
    shard = parallel.shard_ranks or ranks_per_node
    if shard < 1 or world_size % shard or shard % parallel.expert_parallel:
        fits = [n for n in range(1, world_size + 1) if world_size % n == 0 and n % parallel.expert_parallel == 0]
        allowed = f"must divide the number of ranks, {world_size}"
        if parallel.expert_parallel > 1:
            allowed += f", and be a multiple of parallel.expert_parallel={parallel.expert_parallel}"
        nearest = min(fits, key=lambda n: abs(n - shard), default=None)
        fix = f"parallel.shard_ranks={nearest}" if nearest else ""
        yield Problem("parallel.shard_ranks", str(shard), allowed, fix)


def _deepspeed(config: TrainerConfig) -> Iterator[Problem]:
    parallel = config.parallel
    if not 0 <= parallel.zero_stage <= 3:
        yield Problem("parallel.zero_stage", str(parallel.zero_stage), "must be 0, 1, 2 or 3", "parallel.zero_stage=2")
    if parallel.zero_stage == 3 and parallel.expert_parallel > 1:
        yield Problem(
            "parallel.expert_parallel",
            str(parallel.expert_parallel),
            "experts are spread over ranks up to parallel.zero_stage=2; stage 3 shards them like everything else",
            "parallel.expert_parallel=1",
        )
    if parallel.offload and parallel.zero_stage == 0:
        yield Problem("parallel.offload", "true", "needs parallel.zero_stage of at least 1", "parallel.zero_stage=2")


def _train(train: TrainConfig) -> Iterator[Problem]:
    checkpoint, watch, scale = train.checkpoint, train.watch, train.loss_scale
    if isinstance(checkpoint.every_steps, str):
        if checkpoint.every_steps != "auto":
            yield Problem(
                "train.checkpoint.every_steps",
                checkpoint.every_steps,
                "must be a number of steps, or auto",
                "train.checkpoint.every_steps=auto",
            )
    else:
        yield from at_least("train.checkpoint.every_steps", checkpoint.every_steps, 0)
    for name in ("seed", "experts_every", "ranks_every", "sample_tokens"):
        yield from at_least(f"train.{name}", getattr(train, name), 0)
    yield from above("train.checkpoint.mttf_hours", checkpoint.mttf_hours, 0)
    yield from at_least("train.checkpoint.keep_every", checkpoint.keep_every, 0)
    if checkpoint.keep_latest < 1:
        yield Problem(
            "train.checkpoint.keep_latest",
            str(checkpoint.keep_latest),
            "must be at least 1, or a run could not resume",
            "train.checkpoint.keep_latest=2",
        )
    yield from at_least("train.evaluate.every_steps", train.evaluate.every_steps, 0)
    yield from at_least("train.evaluate.samples", train.evaluate.samples, 1)
    for name in ("skip_non_finite", "spike_sigma", "spike_rewinds", "hang_factor", "hang_seconds"):
        yield from at_least(f"train.watch.{name}", getattr(watch, name), 0)
    yield from at_least("train.watch.spike_window", watch.spike_window, 2)
    if train.precision is Precision.fp16:
        for name in ("initial", "minimum"):
            yield from above(f"train.loss_scale.{name}", getattr(scale, name), 0)
        for name in ("window", "hysteresis"):
            yield from at_least(f"train.loss_scale.{name}", getattr(scale, name), 1)
