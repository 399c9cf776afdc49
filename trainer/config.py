"""The trainer's configuration: what a model, its data, its optimizer and its parallel layout may say.

Free of torch, so that a login node can check a request without importing it. A field exists once, here,
with its type and meaning; the YAML files under ``conf/`` only choose values. What can be known to be wrong
from the values alone is found by ``problems()``, which the login node asks before it submits and the trainer
asks again before it builds anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING


class Precision(Enum):
    """What the matrix products are computed in; parameters and optimizer state stay in fp32."""

    fp32 = "fp32"
    bf16 = "bf16"


class ExpertsImplementation(Enum):
    """How the experts of a layer are multiplied: one grouped product, or a loop over experts (reference)."""

    grouped = "grouped"
    loop = "loop"


class Engine(Enum):
    """What shards the model over the ranks."""

    fsdp = "fsdp"


class Device(Enum):
    """Where a rank computes: ``auto`` takes its GPU where torch sees one, otherwise the CPU.

    A rank to which GPUs were granted and that sees none fails under ``auto``; only ``cpu`` lets it go on there.
    """

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


@dataclass
class MoEConfig:
    """A mixture of experts in place of the dense feed-forward of some layers."""

    experts: int = MISSING  # experts per MoE layer
    top_k: int = MISSING  # experts that each token is sent to
    d_ff: int = MISSING  # hidden size of one expert
    every: int = 1  # layer n (from 1) is MoE when n % every == 0
    normalize_weights: bool = True  # the top-k routing weights of a token sum to 1
    balance_loss: float = 0.01  # coefficient of the load-balancing loss
    z_loss: float = 0.001  # coefficient of the router z-loss
    implementation: ExpertsImplementation = ExpertsImplementation.grouped


@dataclass
class ModelConfig:
    """A pre-norm decoder: RMSNorm, rotary positions, causal attention, SwiGLU feed-forward or MoE."""

    vocab_size: int = MISSING
    d_model: int = MISSING
    layers: int = MISSING
    heads: int = MISSING
    kv_heads: int = MISSING  # groups of grouped-query attention; equal to heads for plain attention
    d_ff: int = MISSING  # hidden size of the dense feed-forward
    max_seq_len: int = MISSING  # longest sequence the positions reach, in tokens
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    init_std: float = 0.02
    moe: MoEConfig | None = None


class CorpusSource(Enum):
    """Where ``job=prepare`` gets text from."""

    debian_guide = "debian_guide"  # Debian's installation guide in 19 languages, through apt-get download
    django_po = "django_po"  # Django's message catalogues in 99 languages, through pip download
    files = "files"  # text files of one's own, one document per file


@dataclass
class CorpusConfig:
    """The text that ``job=prepare`` makes token shards from."""

    source: CorpusSource = CorpusSource.debian_guide
    files: list[str] = field(default_factory=list)  # globs of UTF-8 text files, for source=files
    vocab_size: int = 8192  # of the BPE tokenizer that is trained on it
    validation_share: float = 0.02  # part of the documents kept out of training, 0 to 1


@dataclass
class DataConfig:
    """Token shards and how sequences are cut from them."""

    path: str = MISSING  # folder that job=prepare wrote: shards, tokenizer, dataset.json
    seq_len: int = MISSING  # tokens a sequence predicts; each sample reads seq_len + 1 tokens
    corpus: CorpusConfig = field(default_factory=CorpusConfig)


@dataclass
class OptimConfig:
    """AdamW with linear warm-up and cosine decay, both by tokens consumed."""

    lr: float = MISSING  # peak learning rate
    min_lr: float = 0.0  # where the cosine ends
    warmup_tokens: int = 0
    decay_tokens: int | None = None  # where the cosine ends; null: at train.tokens
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1  # on matrices; norms and embeddings' vectors of one dimension are spared
    clip: float = 1.0  # largest gradient norm; 0: no clipping


@dataclass
class ParallelConfig:
    """How one training step is laid over ranks."""

    engine: Engine = Engine.fsdp
    micro_batch: int = 1  # sequences per rank in one forward and backward pass
    reshard_after_forward: bool = True  # FSDP: free gathered parameters after forward, gather again in backward
    compile: bool = False  # torch.compile each block; its first step takes 6-40 s
    threads: int = 0  # CPU threads per rank; 0: the rank's share of the node's cores


@dataclass
class CheckpointConfig:
    """When the state is saved and what is kept."""

    every_steps: int = 100  # a checkpoint each n optimizer steps; 0: only at stops and at the end
    keep_latest: int = 2  # the newest checkpoints kept
    keep_every: int = 0  # keep for good each checkpoint whose step is a multiple of n; 0: none


@dataclass
class TrainConfig:
    """How long and how training goes."""

    tokens: int = MISSING  # the run is finished when so many tokens were consumed (rounded up to whole steps)
    batch_tokens: int = MISSING  # tokens of one optimizer step over all ranks
    seed: int = 0  # of initialisation and of the order of the data
    precision: Precision = Precision.fp32
    device: Device = Device.auto
    deterministic: bool = True  # refuse kernels whose result depends on timing
    experts_every: int = 10  # write the tokens per expert each n steps
    ranks_every: int = 10  # write a summary line of each other rank every n steps
    sample_prompt: str = "The"  # what the sample at the end of a run continues
    sample_tokens: int = 60
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)


@dataclass
class TrainerConfig:
    """All that the trainer is configured by; whoever calls it cuts these five out of a larger request."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


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


def steps_of(train: TrainConfig) -> int:
    """Optimizer steps until ``train.tokens`` are consumed: tokens / batch_tokens, rounded up."""
    return -(-train.tokens // train.batch_tokens)


def accumulation(train: TrainConfig, data: DataConfig, parallel: ParallelConfig, world_size: int) -> int:
    """Micro-batches that each rank sums into one optimizer step.

    Raises:
        ValueError: if the layout cannot give exactly ``train.batch_tokens``; ``problems`` says what can.
    """
    per_pass = data.seq_len * parallel.micro_batch * world_size
    if train.batch_tokens % per_pass:
        raise ValueError(f"batch_tokens={train.batch_tokens} is no multiple of {per_pass}")
    return train.batch_tokens // per_pass


def problems(
    model: ModelConfig,
    data: DataConfig,
    optim: OptimConfig,
    parallel: ParallelConfig,
    train: TrainConfig,
    world_size: int,
) -> Iterator[Problem]:
    """Everything about a training request that its values alone show to be wrong, one Problem each."""
    yield from _model_problems(model)
    yield from _batch_problems(data, parallel, train, world_size)
    if data.seq_len > model.max_seq_len:
        yield Problem(
            "data.seq_len",
            str(data.seq_len),
            f"model.max_seq_len is {model.max_seq_len}",
            f"data.seq_len={model.max_seq_len}",
        )
    for name in ("lr", "clip", "weight_decay", "warmup_tokens", "min_lr"):
        value = getattr(optim, name)
        if value < 0 or (name == "lr" and value == 0):
            yield Problem(f"optim.{name}", str(value), "must be above 0" if name == "lr" else "must be at least 0")
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(optim, name) < 1:
            yield Problem(f"optim.{name}", str(getattr(optim, name)), "must be at least 0 and below 1")
    for name, value in (
        ("optim.eps", optim.eps),
        ("parallel.threads", parallel.threads),
        ("train.checkpoint.every_steps", train.checkpoint.every_steps),
        ("train.checkpoint.keep_every", train.checkpoint.keep_every),
    ):
        if value < 0:
            yield Problem(name, str(value), "must be at least 0")
    if train.checkpoint.keep_latest < 1:
        yield Problem(
            "train.checkpoint.keep_latest",
            str(train.checkpoint.keep_latest),
            "must be at least 1, or a run could not resume",
            "train.checkpoint.keep_latest=2",
        )


def _model_problems(model: ModelConfig) -> Iterator[Problem]:
    for name in ("vocab_size", "d_model", "layers", "heads", "kv_heads", "d_ff", "max_seq_len"):
        if getattr(model, name) < 1:
            yield Problem(f"model.{name}", str(getattr(model, name)), "must be at least 1")
            return
    if model.d_model % model.heads:
        nearest = max(h for h in range(1, model.heads + 1) if model.d_model % h == 0)
        yield Problem(
            "model.heads", str(model.heads), f"must divide model.d_model={model.d_model}", f"model.heads={nearest}"
        )
    elif (model.d_model // model.heads) % 2:
        yield Problem(
            "model.heads",
            str(model.heads),
            f"rotary positions need an even head size, this is {model.d_model // model.heads}",
        )
    if model.heads % model.kv_heads:
        nearest = max(h for h in range(1, model.kv_heads + 1) if model.heads % h == 0)
        yield Problem(
            "model.kv_heads", str(model.kv_heads), f"must divide model.heads={model.heads}", f"model.kv_heads={nearest}"
        )
    moe = model.moe
    if moe is None:
        return
    for name in ("experts", "top_k", "d_ff", "every"):
        if getattr(moe, name) < 1:
            yield Problem(f"model.moe.{name}", str(getattr(moe, name)), "must be at least 1")
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


def _batch_problems(
    data: DataConfig, parallel: ParallelConfig, train: TrainConfig, world_size: int
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
        yield Problem(
            "train.batch_tokens",
            str(train.batch_tokens),
            f"must be a multiple of data.seq_len x parallel.micro_batch x ranks = "
            f"{data.seq_len} x {parallel.micro_batch} x {world_size} = {per_pass}",
            f"train.batch_tokens={nearest}",
        )


def parameter_count(model: ModelConfig) -> tuple[int, int]:
    """Parameters of a model, (total, active): active counts the experts that one token is sent to.

    Per layer: attention d*(heads + 2*kv_heads)*head + heads*head*d, two norms, and either a SwiGLU feed-forward
    3*d*d_ff or a router d*experts with 3*d*d_ff parameters an expert.
    """
    head = model.d_model // model.heads
    attention = model.d_model * head * (2 * model.heads + 2 * model.kv_heads)
    total = active = model.vocab_size * model.d_model * (1 if model.tie_embeddings else 2) + model.d_model
    for layer in range(1, model.layers + 1):
        common = attention + 2 * model.d_model
        moe = model.moe
        if moe is not None and layer % moe.every == 0:
            expert = 3 * model.d_model * moe.d_ff
            router = model.d_model * moe.experts
            total += common + router + expert * moe.experts
            active += common + router + expert * moe.top_k
        else:
            dense = 3 * model.d_model * model.d_ff
            total += common + dense
            active += common + dense
    return total, active
