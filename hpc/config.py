"""The dataclasses that every YAML file in ``conf/`` is checked against.

A field exists once, here or in ``trainer/config.py``, with its type and meaning; YAML only chooses values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from trainer.config import MISSING, DataConfig, ModelConfig, OptimConfig, ParallelConfig, TrainConfig


class Launcher(Enum):
    """What starts the jobs of a cluster."""

    slurm = "slurm"
    local = "local"  # processes on this machine, through submitit's local executor


class GpuRequest(Enum):
    """How a site wants GPUs to be asked for."""

    gres = "gres"  # --gres=gpu:a100:4
    gpus_per_node = "gpus_per_node"  # --gpus-per-node=a100:4
    none = "none"  # GPUs come with the node


class Host(Enum):
    """Which address of rank 0 the other ranks connect to."""

    node_addr = "node_addr"  # what Slurm knows as the node's address; works where node names do not resolve
    hostname = "hostname"  # the name of the machine, resolved by DNS
    interface = "interface"  # the IPv4 address of rendezvous.interface


class StopSignal(Enum):
    """What a program of one's own is sent when it shall save and end."""

    USR1 = "USR1"
    USR2 = "USR2"
    TERM = "TERM"
    INT = "INT"
    HUP = "HUP"


class Container(Enum):
    """What the ranks run in."""

    none = "none"
    apptainer = "apptainer"
    pyxis = "pyxis"


@dataclass
class NodeType:
    """A kind of node."""

    count: int = MISSING
    names: str = MISSING  # Slurm's notation, such as n2gpu[1201-1224]
    cores: int = MISSING  # physical cores
    sockets: int = 1
    memory_gb: int = MISSING  # what Slurm calls RealMemory, in GiB
    gpus: int = 0
    gpu_type: str = ""  # as Slurm spells it in --gres
    gpu_memory_gb: float = 0.0  # of one GPU
    gpu_peak_tflops: float = 0.0  # dense bf16 tensor peak of one GPU, TFLOP/s
    interconnect: str = ""
    features: list[str] = field(default_factory=list)


@dataclass
class Partition:
    """A partition with its limits."""

    node_type: str = MISSING  # a key of cluster.node_types
    max_time: str = "UNLIMITED"  # Slurm's notation: D-HH:MM:SS, HH:MM:SS, MM
    default_time: str | None = None  # what job.time: null asks for; null: max_time
    max_nodes: int | None = None  # null: all nodes of the type
    preemptible: bool = False


@dataclass
class Rendezvous:
    """How ranks find rank 0 and which network they talk over."""

    host: Host = Host.node_addr
    interface: str | None = None  # for GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME; null: left to the libraries


@dataclass
class ContainerConfig:
    runtime: Container = Container.none
    image: str | None = None
    mounts: list[str] = field(default_factory=list)  # SOURCE or SOURCE:TARGET, beside runs, data and weights
    python: str | None = None  # interpreter in the image; null: cluster.python


@dataclass
class Cluster:
    """A described site: what a request is checked against and how it is written down for sbatch."""

    name: str = MISSING
    launcher: Launcher = Launcher.slurm
    slurm_name: str | None = None  # ClusterName in the site's slurm.conf, where it is not `name`
    node_types: dict[str, NodeType] = MISSING
    partitions: dict[str, Partition] = MISSING
    default_partition: str = MISSING
    max_array_size: int = 1001  # bounds the array index
    gpu_request: GpuRequest = GpuRequest.gres
    exclusive: bool = True  # whole nodes
    account: str | None = None
    qos: str | None = None
    reservation: str | None = None
    # What is loaded and activated before anything runs, in this order; at most one of venv and conda.
    modules: list[str] = field(default_factory=list)
    venv: str | None = None  # folder of a virtual environment
    conda: str | None = None  # name or folder of a conda environment; the command conda comes from a module or PATH
    # Interpreter on the compute nodes; null: that of venv or conda, or else the one that submits.
    python: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    rendezvous: Rendezvous = field(default_factory=Rendezvous)
    # Seconds from a requeue to its start. Must outlast the teardown of a job here, epilog included: otherwise Slurm's
    # own hold of two minutes stays.
    requeue_hold: int = 4
    co2_g_per_kwh: float | None = None  # of the electricity here, for reports; null: nothing is said of CO2
    slurm_from_compute: bool = True  # compute nodes may call sbatch and scontrol
    container: ContainerConfig = field(default_factory=ContainerConfig)
    runs: str = MISSING  # where run folders live: a file system that every node sees
    data: str = MISSING  # where prepared data lives


class After(Enum):
    """What follows an attempt that did not finish."""

    requeue = "requeue"  # give the nodes back and queue again
    restart = "restart"  # start the ranks again in the same allocation; queue again if that fails in the same way
    stop = "stop"


@dataclass
class Policy:
    """What follows an attempt that ended by one cause."""

    action: After = After.requeue
    budget: int | None = None  # ends by this cause since a person submitted or resumed the run; null: any number
    fruitless: int | None = None  # stop after so many attempts in a row without a new step; null: job.max_fruitless
    exclude: bool = False  # queue again without the suspected node, where there are others
    shrink: bool = False  # with a smaller micro-batch and the same global batch
    wait: float = 0.0  # seconds before a restart


@dataclass
class RequeueConfig:
    """What follows the end of an attempt, by its cause (``hpc.requeue.Cause`` says what each means)."""

    time_limit: Policy = MISSING
    preemption: Policy = MISSING
    node_failure: Policy = MISSING
    host_memory: Policy = MISSING
    gpu_memory: Policy = MISSING
    gpu_fault: Policy = MISSING
    network: Policy = MISSING
    hang: Policy = MISSING
    preflight: Policy = MISSING
    storage: Policy = MISSING
    error: Policy = MISSING
    crash: Policy = MISSING


@dataclass
class Job:
    """What every kind of job asks Slurm for; null takes the cluster's default."""

    _target_: str = MISSING  # the class in jobs/ that runs on each rank
    nodes: int | None = None  # null: all nodes of the partition
    ranks_per_node: int | None = None  # null: one per GPU; one where a node has none
    gpus_per_node: int | None = None  # null: one per rank, or all where the node is taken whole
    time: str | None = None  # Slurm's notation; null: the partition's default
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    reservation: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    memory_gb: int | None = None  # per node, of one run; null: all of it, or an equal share where runs share a node
    grace: int = 300  # seconds before the time limit at which ranks are asked to stop
    max_fruitless: int = 3  # attempts without a new step after which the chain stops
    # Seconds for which no rank prints or records anything after which the attempt counts as hanging; null: any time.
    silence: float | None = None
    preflight: bool = True  # look at nodes and network before training on more than one node
    rank_memory_gb: float | None = None  # what one rank needs of host memory; null: estimated from the model
    throttle: int | None = None  # of a sweep's runs, how many at a time; null: as many as the cluster has room for
    # Of a sweep's runs, how many share a node, where a site gives only whole ones; null: each has its own.
    runs_per_node: int | None = None
    cpus_per_rank: int | None = None  # null: the ranks of a node share its cores


@dataclass
class TrainJob(Job):
    """Train a model."""

    _target_: str = "jobs.train.Train"
    silence: float | None = 4500.0  # beyond what the trainer's own watchdog allows for its slowest part
    # Have each checkpoint that is kept for good (train.checkpoint.keep_every; 0: every one) evaluated by a job of its
    # own, submitted as soon as it is complete.
    evaluate_checkpoints: bool = False


@dataclass
class CheckpointJob(Job):
    """What every job on a checkpoint of another run has."""

    run: str | None = None  # folder of the run that was trained; in a pipeline, null: that of the stage before
    step: int | None = None  # of the checkpoint; null: the newest complete one


@dataclass
class EvaluateJob(CheckpointJob):
    """Perplexity on held-out text of one checkpoint of another run."""

    _target_: str = "jobs.evaluate.Evaluate"
    samples: int | None = None  # held-out sequences over all sources; null: train.evaluate.samples


@dataclass
class PrepareJob(Job):
    """Fetch a corpus, train a tokenizer on it and write token shards to data.path."""

    _target_: str = "jobs.prepare.Prepare"


@dataclass
class Stage:
    """One run of a pipeline."""

    job: str = MISSING  # a choice of the group job
    after: list[str] = field(default_factory=list)  # stages that must have finished
    overrides: list[str] = field(default_factory=list)  # for this stage alone, beside what is typed for all


@dataclass
class PipelineJob(TrainJob):
    """Several runs, each of which starts when those that it needs have finished. Nothing of it runs by itself.

    What is said of the job beside ``stages`` is said of the training among them.
    """

    _target_: str = "hpc.pipeline"
    stages: dict[str, Stage] = field(default_factory=dict)


@dataclass
class HelloJob(Job):
    """Every rank reports in to rank 0, which checks that all agree. Needs no torch."""

    _target_: str = "jobs.hello.Hello"
    seconds: float = 0.0  # how long each rank stays after it was greeted


@dataclass
class CommandJob(Job):
    """Run a program of one's own, such as torchrun with a training script: ``command`` says which."""

    _target_: str = "jobs.command.Command"
    # How often the program is started on a node. null: once, with all of its GPUs; the program starts a process for
    # each of them itself, as torchrun, accelerate and deepspeed do.
    ranks_per_node: int | None = None
    directory: str | None = None  # where it works; null: where it was submitted
    pythonpath: str | None = None  # its PYTHONPATH; null: as it was where it was submitted
    signal: StopSignal = StopSignal.USR2  # what those of its processes get that handle it
    # What its output is read by: names of monitoring/patterns.py, or regular expressions with named groups.
    metrics: list[str] = field(default_factory=lambda: ["megatron", "huggingface", "litgpt", "torchtitan"])
    tokens_per_step: int | None = None  # for a program that prints steps and no tokens


@dataclass
class DoctorJob(Job):
    """Each node says what it has and sees: hpc doctor --job."""

    _target_: str = "jobs.doctor.Doctor"
    max_fruitless: int = 1  # a second try would see the same


@dataclass
class HydraJob(Job):
    """One combination of another Hydra application's multirun, as hydra/launcher=hpc_slurm submits it."""

    _target_: str = "jobs.hydra.Hydra"
    max_fruitless: int = 1  # whether an application does better at a second try, only its author can know
    task: int = 0  # number of the combination


class End(Enum):
    """How a run may end."""

    finished = "finished"
    failed = "failed"
    cancelled = "cancelled"


@dataclass
class NotifyConfig:
    """Who is told when a run has ended; the supervisor sends it, from a compute node."""

    webhook: str | None = None  # a URL that takes JSON, or where it is kept: env:NAME, file:PATH
    mail: str | None = None  # an address
    file: str | None = None  # gets a line of JSON for each message; a path below the run's folder if it is relative
    smtp: str | None = None  # HOST or HOST:PORT that takes mail; null: sendmail, or else localhost
    on: list[End] = field(default_factory=lambda: [End.finished, End.failed])


@dataclass
class SearchJob(Job):
    """The rounds of a search, as hydra/sweeper=hpc_optuna hydra.sweeper.as_job=true submits it."""

    _target_: str = "jobs.search.Search"
    sweep: str = MISSING  # folder of the sweep whose trials it submits
    max_fruitless: int = 50  # a trial may take longer than this job's time limit
    cpus_per_rank: int | None = 1


@dataclass
class Config:
    """One request: everything that `hpc submit` composes from conf/ and the overrides."""

    name: str = "run"  # runs/<name>/<id>
    cluster: Cluster = MISSING
    model: ModelConfig = MISSING
    data: DataConfig = MISSING
    optim: OptimConfig = MISSING
    parallel: ParallelConfig = MISSING
    train: TrainConfig = field(default_factory=TrainConfig)
    requeue: RequeueConfig = MISSING
    job: Job = MISSING
    notify: NotifyConfig = field(default_factory=NotifyConfig)
    # The program of job=command: text, split into words as a shell would and given to none; or a list of words.
    command: Any = None
    args: dict[str, Any] = field(default_factory=dict)  # values of one's own, for ${args.NAME} in the command


JOBS: dict[str, type[Job]] = {
    "train": TrainJob,
    "prepare": PrepareJob,
    "evaluate": EvaluateJob,
    "pipeline": PipelineJob,
    "hello": HelloJob,
    "doctor": DoctorJob,
    "hydra": HydraJob,
    "search": SearchJob,
    "command": CommandJob,
}


def job_schema(target: str) -> type[Job]:
    """The dataclass of a kind of job, by its ``_target_``; plain ``Job`` for a class of one's own."""
    for schema in JOBS.values():
        if schema._target_ == target:
            return schema
    return Job
