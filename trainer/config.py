"""The trainer's configuration: what a model, its data, its optimizer and its parallel layout may say.

Free of torch, so that a login node can check a request without importing it. A field exists once, here,
with its type and meaning; the YAML files under ``conf/`` only choose values. What can be known to be wrong
from the values alone is found by ``trainer.problems``, which the login node asks before it submits and the
trainer asks again before it builds anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

MISSING: Any = "???"  # OmegaConf's, spelled here: importing it would cost the Tab key 50 ms


class Precision(Enum):
    """What the matrix products are computed in; parameters and optimizer state stay in fp32."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"  # with a dynamic loss scale, see LossScaleConfig


class Device(Enum):
    """Where a rank computes: ``auto`` takes its GPU where torch sees one, otherwise the CPU.

    A rank to which GPUs were granted and that sees none fails under ``auto``; only ``cpu`` lets it go on there.
    """

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


# -- model -------------------------------------------------------------------------------------------------------


class Positions(Enum):
    rotary = "rotary"  # turned into queries and keys (RoFormer)
    learned = "learned"  # a table added to the embedding (GPT-2)


class Norm(Enum):
    rms = "rms"  # RMSNorm
    layer = "layer"  # LayerNorm; with a bias where model.bias


class Activation(Enum):
    """What is between the matrices of a feed-forward or an expert."""

    swiglu = "swiglu"  # three matrices: down(silu(gate(x)) * up(x))
    gelu = "gelu"  # two matrices: down(gelu(up(x))), in the tanh form of GPT-2


class Score(Enum):
    """How the router's scores of the experts come from its logits."""

    softmax = "softmax"  # experts compete
    sigmoid = "sigmoid"  # each for itself


class Scope(Enum):
    """Over which tokens capacity and the balance loss are defined."""

    sequence = "sequence"  # each sequence by itself: the same for every micro-batch and number of ranks
    rank = "rank"  # the sequences that a rank has in one pass, as Megatron-DeepSpeed does


class Selection(Enum):
    """Which tokens an expert takes when more are sent to it than its capacity."""

    position = "position"  # the first ones
    random = "random"  # drawn; keyed by (seed, step, sample), so that every layout draws alike


class ExpertsImplementation(Enum):
    """How the experts of a layer are multiplied: one grouped product, or a loop over experts (reference)."""

    grouped = "grouped"
    loop = "loop"


@dataclass
class MoEConfig:
    """A mixture of experts in place of the dense feed-forward of some layers."""

    experts: int = MISSING  # experts per MoE layer
    top_k: int = MISSING  # experts that each token is sent to
    d_ff: int = MISSING  # hidden size of one expert
    every: int = 1  # layer n (from 1) is MoE when n % every == 0
    shared_experts: int = 0  # experts that every token passes beside its top_k: one feed-forward of n * d_ff
    score: Score = Score.softmax
    normalize_weights: bool = True  # the top-k routing weights of a token sum to 1
    weight_scale: float = 1.0  # the routing weights are multiplied by it
    # An expert takes at most capacity_factor * top_k * tokens / experts tokens, the rest pass it by; null: dropless.
    capacity_factor: float | None = None
    eval_capacity_factor: float | None = None  # in evaluation; null: as in training
    min_capacity: int = 4  # tokens that an expert takes in any case, where there is a capacity
    selection: Selection = Selection.position
    scope: Scope = Scope.sequence
    balance_loss: float = 0.01  # coefficient of the load-balancing loss
    z_loss: float = 0.001  # coefficient of the router z-loss
    # Balance without a loss (arXiv:2408.15664): after each step the bias of an expert, which counts in the choice
    # only, moves by so much towards an even load; 0: no bias.
    bias_update: float = 0.0
    implementation: ExpertsImplementation = ExpertsImplementation.grouped


@dataclass
class ModelConfig:
    """A pre-norm decoder with causal attention: GPT-2 and Llama shapes, dense or with a mixture of experts."""

    vocab_size: int = MISSING
    d_model: int = MISSING
    layers: int = MISSING
    heads: int = MISSING
    kv_heads: int = MISSING  # groups of grouped-query attention; equal to heads for plain attention
    d_ff: int = MISSING  # hidden size of the dense feed-forward
    max_seq_len: int = MISSING  # longest sequence the positions reach, in tokens
    positions: Positions = Positions.rotary
    rope_theta: float = 10000.0
    norm: Norm = Norm.rms
    norm_eps: float = 1e-5
    activation: Activation = Activation.swiglu
    bias: bool = False  # of every matrix but the router's and the head's, and of layer norms
    qk_norm: bool = False  # RMSNorm over all heads of the queries and of the keys, before the positions (OLMoE)
    tie_embeddings: bool = False
    dropout: float = 0.0  # of the embedding and of what each block adds; drawn by (seed, step, sample)
    attention_dropout: float = 0.0  # of attention's weights: these are then computed outright, layer by layer
    init_std: float = 0.02
    init_truncate: float | None = None  # draw again beyond so many standard deviations; null: do not
    init_attention_output_std: float | None = None  # of the matrix that ends attention; null: init_std
    init_down_std: float | None = None  # of the matrix that ends a feed-forward or an expert; null: init_std
    moe: MoEConfig | None = None


# -- data --------------------------------------------------------------------------------------------------------


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


class Packing(Enum):
    """How sequences are cut from documents."""

    stream = "stream"  # documents end to end, cut anywhere: every position is trained on
    documents = "documents"  # whole documents packed while they fit; longer ones are cut; the rest is padded
    padded = "padded"  # one document, or one stretch of a long one, per sequence; the rest is padded


@dataclass
class Phase:
    """Weights of sources that hold for a part of the run."""

    until: float = MISSING  # share of train.tokens at which the phase ends, 0 to 1; the last must be 1
    weights: dict[str, float] = field(default_factory=dict)  # as MixtureConfig.weights


@dataclass
class MixtureConfig:
    """How often each source is drawn; without weights and temperature, in proportion to its tokens."""

    weights: dict[str, float] = field(default_factory=dict)  # by source; a source that is not named is left out
    temperature: float | None = None  # share of a source ~ its tokens ** (1 / temperature); not beside weights
    phases: list[Phase] = field(default_factory=list)  # a mixture that changes along the run; not beside weights


@dataclass
class DataConfig:
    """Token shards and how sequences are cut from them."""

    path: str = MISSING  # folder that job=prepare wrote: shards, tokenizer, dataset.json
    seq_len: int = MISSING  # tokens a sequence predicts; each sample reads seq_len + 1 tokens
    packing: Packing = Packing.stream
    document_mask: bool = False  # tokens do not attend to other documents of their sequence
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)


# -- optimizer ---------------------------------------------------------------------------------------------------


class Schedule(Enum):
    """How the learning rate falls after the warm-up, from lr to min_lr."""

    cosine = "cosine"
    linear = "linear"
    wsd = "wsd"  # warm-up, stable, decay: lr until stable_until, then linear
    constant = "constant"


class Decayed(Enum):
    """Which parameters weight decay pulls on."""

    matrices = "matrices"  # not norms and biases
    all = "all"


@dataclass
class OptimConfig:
    """AdamW and its learning rate. Lengths are in tokens, or in steps where the field says so; not both."""

    lr: float = MISSING  # peak learning rate
    min_lr: float = 0.0  # where the schedule ends
    schedule: Schedule = Schedule.cosine
    warmup_tokens: int = 0
    warmup_steps: int | None = None  # in place of warmup_tokens
    decay_tokens: int | None = None  # where the decay ends, counted from the start; null: at train.tokens
    decay_steps: int | None = None  # in place of decay_tokens
    stable_until: float = 0.9  # for wsd: share of the decay's end at which the decay begins
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decayed: Decayed = Decayed.matrices
    clip: float = 1.0  # largest gradient norm; 0: no clipping


# -- layout ------------------------------------------------------------------------------------------------------


class Engine(Enum):
    """What lays the model over the ranks."""

    fsdp = "fsdp"  # PyTorch's FSDP2
    deepspeed = "deepspeed"  # DeepSpeed's ZeRO
    single = "single"  # one rank, nothing sharded


class Sharding(Enum):
    """What FSDP splits over the ranks."""

    full = "full"  # parameters are freed after forward and gathered again in backward (ZeRO-3)
    grad_op = "grad_op"  # parameters stay gathered from forward to backward (ZeRO-2 in communication)
    hybrid = "hybrid"  # full within groups of shard_ranks ranks, copies across groups (HSDP)


class ActivationCheckpointing(Enum):
    """What of a layer's forward is computed again in backward instead of kept."""

    none = "none"
    selective = "selective"  # all but the products of matrices and attention
    full = "full"  # the whole layer


@dataclass
class ParallelConfig:
    """How one training step is laid over ranks."""

    engine: Engine = Engine.fsdp
    micro_batch: int = 1  # sequences per rank in one forward and backward pass
    expert_parallel: int = 1  # ranks that share one set of a layer's experts; tokens travel to them
    activation_checkpointing: ActivationCheckpointing = ActivationCheckpointing.none
    compile: bool = False  # torch.compile each block; its first step takes 6-40 s
    threads: int = 0  # CPU threads per rank; 0: the rank's share of the node's cores
    sharding: Sharding = Sharding.full  # fsdp
    shard_ranks: int = 0  # fsdp, hybrid: ranks that hold one copy together; 0: those of a node
    # fsdp: sum gradients over ranks after every pass, not only after the last: gradients stay sharded between
    # passes, which saves the memory of one full copy, for one reduction per pass.
    reduce_every_pass: bool = False
    zero_stage: int = 2  # deepspeed: 0 copies everything; 1 shards optimizer state, 2 gradients too, 3 parameters too
    offload: bool = False  # deepspeed: optimizer state, and with stage 3 parameters, in host memory


# -- training ----------------------------------------------------------------------------------------------------


@dataclass
class LossScaleConfig:
    """The loss scale of fp16: halved when gradients overflow, doubled after a while without.

    As published ones, it is that of a loss which is a mean over one rank's tokens, and gradients that are averaged.
    """

    initial: float = 65536.0
    window: int = 1000  # steps without overflow after which it doubles
    hysteresis: int = 2  # overflows before it is halved; what is left of them is made good by `window` good steps
    minimum: float = 1.0


@dataclass
class CheckpointConfig:
    """When the state is saved and what is kept."""

    # A checkpoint each n optimizer steps; 0: only at stops and at the end; auto: from what a checkpoint costs and
    # mttf_hours (Young, 1974; Daly, 2006).
    every_steps: int | str = 100
    mttf_hours: float = 24.0  # for auto: mean time between failures of the whole job
    keep_latest: int = 2  # the newest checkpoints kept
    keep_every: int = 0  # keep for good each checkpoint whose step is a multiple of n; 0: none
    background: bool = True  # write while training goes on; it waits only for the copy into host memory


@dataclass
class EvalConfig:
    """Validation loss, by source, in the training loop."""

    every_steps: int = 0  # each n steps, and at the end; 0: never
    samples: int = 64  # sequences, shared out evenly over the sources; the same ones each time


@dataclass
class WatchConfig:
    """What training does by itself when something goes wrong."""

    skip_non_finite: int = 3  # steps in a row with a loss or gradient that is not finite that are skipped; then stop
    spike_sigma: float = 6.0  # a loss so many standard deviations above the mean of the window is a spike; 0: off
    spike_window: int = 128  # steps
    spike_rewinds: int = 2  # times that a spike leads back to the last checkpoint, skipping its batches; then stop
    hang_factor: float = 10.0  # no step within so many times the usual: stacks are dumped, the attempt ends; 0: off
    hang_seconds: float = 300.0  # but not before so many seconds


@dataclass
class TrainConfig:
    """How long and how training goes."""

    tokens: int = MISSING  # the run is finished when so many tokens were consumed (rounded up to whole steps)
    batch_tokens: int = MISSING  # tokens of one optimizer step over all ranks
    seed: int = 0  # of initialisation and of the order of the data
    init_from: str | None = None  # another run's folder, or one of its checkpoints, whose weights to begin with
    precision: Precision = Precision.fp32
    device: Device = Device.auto
    deterministic: bool = True  # refuse kernels whose result depends on timing
    experts_every: int = 10  # write the tokens per expert each n steps
    ranks_every: int = 10  # write a summary line of each other rank every n steps
    sample_prompt: str = "The"  # what the sample at the end of a run continues
    sample_tokens: int = 60
    loss_scale: LossScaleConfig = field(default_factory=LossScaleConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluate: EvalConfig = field(default_factory=EvalConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)


@dataclass
class TrainerConfig:
    """All that the trainer is configured by; whoever calls it cuts these five out of a larger request."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def accumulation(train: TrainConfig, data: DataConfig, parallel: ParallelConfig, world_size: int) -> int:
    """Micro-batches that each rank sums into one optimizer step.

    Raises:
        ValueError: if the layout cannot give exactly ``train.batch_tokens``; ``problems`` says what can.
    """
    per_pass = data.seq_len * parallel.micro_batch * world_size
    if train.batch_tokens % per_pass:
        raise ValueError(f"batch_tokens={train.batch_tokens} is no multiple of {per_pass}")
    return train.batch_tokens // per_pass
