"""The request against what the cluster offers. Pure: values in, problems out; nothing is written or started."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from hpc import check_command, check_site
from hpc.config import CommandJob, Config, Container, EvaluateJob, Launcher, PrepareJob, TrainJob
from hpc.request import Request, clock
from hpc.runs import NAME
from hpc.site import Site
from trainer import problems as training
from trainer.config import CorpusSource, Device, TrainerConfig
from trainer.fit import nearest
from trainer.memory import Memory, estimate
from trainer.problems import Problem

GIB = 2**30
# Host memory of one rank beside the model: interpreter, libraries, buffers. Measured with the CPU build of torch.
PLAIN_RANK_GB, TORCH_RANK_GB = 0.06, 0.45
# Of a GPU's memory, what tensors can have: the rest is CUDA's context, NCCL's buffers and the allocator's leftovers.
GPU_SHARE = 0.9


def problems(config: Config, request: Request, site: Site | None = None) -> list[Problem]:
    """Everything that is wrong with a request, as far as its values, the cluster's description and its Slurm show.

    Args:
        site: what the cluster's Slurm says of itself, where it answers.
    """
    found = [*_name(config), *_words(config), *_shape(config, request), *_time(config, request), *_container(config)]
    found += _shared(config, request)
    found += _notify(config)
    found += check_command.problems(config, request)
    known = {problem.field for problem in found}
    found += [problem for problem in check_site.problems(config, request, site) if problem.field not in known]
    if isinstance(config.job, TrainJob | EvaluateJob):
        own = list(
            training.problems(trainer_config(config), max(1, request.world_size), max(1, request.ranks_per_node))
        )
        found += [*_device(config, request), *(own or _memory(config, request))]
    if isinstance(config.job, EvaluateJob) and config.job.samples is not None:
        found += training.at_least("job.samples", config.job.samples, 1)
    if isinstance(config.job, PrepareJob):
        found += _corpus(config, request)
    return found


def _name(config: Config) -> Iterator[Problem]:
    if not NAME.fullmatch(config.name):
        yield Problem(
            "name",
            repr(config.name),
            "letters, digits, dot, dash and underscore, beginning with a letter or digit, at most 64",
            "name=my-run",
        )


def _words(config: Config) -> Iterator[Problem]:
    """Text that goes into the script: each value must stay one word on one line."""
    cluster, job = config.cluster, config.job
    if not cluster.runs.isprintable() or set("\\%") & set(cluster.runs):
        # Slurm replaces %j and the like also in the folder of a log; a backslash makes it replace nothing at all.
        yield Problem(
            "cluster.runs",
            repr(cluster.runs),
            "a folder whose path has no backslash, percent sign or control character",
            "cluster.runs=DIR",
        )
    given = {f"job.{n}": getattr(job, n) for n in ("account", "qos", "reservation", "constraint", "exclude")}
    if isinstance(job, CommandJob):
        given |= {"job.directory": job.directory, "job.pythonpath": job.pythonpath}
    given |= {f"cluster.{n}": getattr(cluster, n) for n in ("account", "qos", "reservation", "python", "venv", "conda")}
    given |= {f"cluster.container.{n}": getattr(cluster.container, n) for n in ("image", "python")}
    given |= {f"cluster.environment.{k}": v for k, v in cluster.environment.items()}
    for path, value in given.items():
        if value is not None and not value.isprintable():
            yield Problem(path, repr(value), "text on one line without control characters", f"{path}=TEXT")
    for name in cluster.environment:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            yield Problem(
                "cluster.environment",
                repr(name),
                "names of letters, digits and underscore",
                "cluster.environment.NAME=TEXT",
            )


def _shape(config: Config, request: Request) -> Iterator[Problem]:
    node, where = request.node, f"a node of partition {request.partition} of {config.cluster.name}"
    ranks, source = request.ranks_per_node, f"(cluster/{config.cluster.name}.yaml)"
    if ranks < 1:
        yield Problem("job.ranks_per_node", str(ranks), "must be at least 1", "job.ranks_per_node=1")
    elif node.gpus and ranks > node.gpus:
        allowed = f"{where} has {node.gpus} GPUs, and each rank takes one {source}"
        yield Problem("job.ranks_per_node", str(ranks), allowed, f"job.ranks_per_node={node.gpus}")
    elif ranks > node.cores:
        allowed = f"{where} has {node.cores} cores {source}"
        yield Problem("job.ranks_per_node", str(ranks), allowed, f"job.ranks_per_node={node.cores}")
    cpus = config.job.cpus_per_rank
    if cpus is not None and not 1 <= cpus * max(1, ranks) <= node.cores:
        allowed = f"{ranks} ranks share the {node.cores} cores of {where} {source}"
        yield Problem(
            "job.cpus_per_rank", str(cpus), allowed, f"job.cpus_per_rank={max(1, node.cores // max(1, ranks))}"
        )
    if not 0 <= request.gpus_per_node <= node.gpus:
        allowed = f"{where} has {node.gpus} GPUs {source}"
        yield Problem("job.gpus_per_node", str(request.gpus_per_node), allowed, f"job.gpus_per_node={node.gpus}")


def _shared(config: Config, request: Request) -> Iterator[Problem]:
    """Whether as many runs as are to share a node do fit it."""
    node, job, runs = request.node, config.job, request.runs_per_node
    where = f"a node of partition {request.partition} of {config.cluster.name} has"
    if runs < 1:
        yield Problem("job.runs_per_node", str(runs), "must be at least 1, or null for 1", "job.runs_per_node=1")
    if runs <= 1:
        return
    if request.nodes > 1:
        yield Problem("job.nodes", str(request.nodes), "runs that share a node have one node each", "job.nodes=1")
    ranks, cpus = max(1, request.ranks_per_node), job.cpus_per_rank or 1
    units = [(ranks, node.gpus, "GPUs, and each rank takes one")] if node.gpus else []
    units.append((ranks * cpus, node.cores, "cores"))
    if job.memory_gb:
        units.append((job.memory_gb, node.memory_gb, "GiB"))
    most = max(1, min(there // each for each, there, _ in units))
    for each, there, what in units:
        if runs * each > there:
            allowed = f"{runs} runs of {each} are {runs * each}, and {where} {there} {what}"
            yield Problem("job.runs_per_node", str(runs), allowed, f"job.runs_per_node={most}")
            return
    if job.throttle is not None and 1 <= job.throttle < runs:
        allowed = f"the {runs} runs of a node begin together"
        yield Problem("job.throttle", str(job.throttle), allowed, f"job.throttle={runs}")


def _time(config: Config, request: Request) -> Iterator[Problem]:
    if request.time <= 0:
        # Slurm reads 0 as "no limit" and lets the job wait for ever where there is one.
        yield Problem("job.time", str(config.job.time), "must be longer than 0", "job.time=1:00:00")
    elif not math.isinf(request.time) and request.grace * 2 > request.time:
        yield Problem(
            "job.grace",
            str(request.grace),
            f"seconds to save before the end must be at most half of job.time={clock(request.time)}",
            f"job.grace={int(request.time // 4)}",
        )
    if config.job.grace < 1:
        yield Problem("job.grace", str(config.job.grace), "must be at least 1 second", "job.grace=300")
    hold = config.cluster.requeue_hold
    if hold < 1:
        yield Problem("cluster.requeue_hold", str(hold), "must be at least 1 second", "cluster.requeue_hold=4")
    if config.job.throttle is not None and config.job.throttle < 1:
        yield Problem(
            "job.throttle", str(config.job.throttle), "must be at least 1, or null for no limit", "job.throttle=8"
        )
    if config.job.max_fruitless < 1:
        yield Problem("job.max_fruitless", str(config.job.max_fruitless), "must be at least 1", "job.max_fruitless=3")


def _container(config: Config) -> Iterator[Problem]:
    container = config.cluster.container
    if config.cluster.venv and config.cluster.conda:
        yield Problem("cluster.conda", config.cluster.conda, "cluster.venv or it, not both", "cluster.conda=null")
    for mount in container.mounts:
        if not mount.isprintable() or "," in mount:
            allowed = "SOURCE or SOURCE:TARGET, without commas and control characters"
            yield Problem("cluster.container.mounts", repr(mount), allowed, "cluster.container.mounts=[/scratch]")
    if container.runtime is not Container.none and not container.image:
        yield Problem(
            "cluster.container.image",
            "null",
            f"cluster.container.runtime={container.runtime.name} needs an image",
            "cluster.container.image=PATH",
        )


def _notify(config: Config) -> Iterator[Problem]:
    given = config.notify
    if given.webhook is not None and not re.fullmatch(r"(https?://|file:)[!-~]+|env:[A-Za-z_]\w*", given.webhook):
        # Not repeated: it may be a secret with a slip in it.
        fix = "notify.webhook=env:MY_WEBHOOK"
        yield Problem("notify.webhook", "...", "https://..., env:NAME or file:PATH of a file that holds it", fix)
    if given.mail is not None and not re.fullmatch(r"[\w.+-]+@[\w.-]+", given.mail, re.ASCII):
        yield Problem("notify.mail", repr(given.mail), "a mail address", "notify.mail=me@example.org")
    if given.smtp is not None and not re.fullmatch(r"[\w.-]+(:\d{1,5})?", given.smtp, re.ASCII):
        yield Problem("notify.smtp", repr(given.smtp), "HOST or HOST:PORT", "notify.smtp=mail.example.org:25")


def _device(config: Config, request: Request) -> Iterator[Problem]:
    # What is in this machine, which cluster=local stands for, nobody has described.
    cluster = config.cluster
    if config.train.device is Device.cuda and not request.node.gpus and cluster.launcher is Launcher.slurm:
        allowed = f"a node of partition {request.partition} of {cluster.name} has no GPUs"
        with_gpus = [name for name, each in cluster.partitions.items() if cluster.node_types[each.node_type].gpus]
        fix = f"job.partition={with_gpus[0]}, or train.device=auto" if with_gpus else "train.device=auto"
        yield Problem("train.device", "cuda", allowed, fix)


def _corpus(config: Config, request: Request) -> Iterator[Problem]:
    if request.world_size > 1:
        given, fix = f"{request.nodes} nodes x {request.ranks_per_node} ranks", "job.nodes=1 job.ranks_per_node=1"
        yield Problem("job.ranks_per_node", given, "job=prepare works on one rank; more would only wait", fix)
    corpus = config.data.corpus
    if corpus.source is CorpusSource.files and not corpus.files:
        yield Problem(
            "data.corpus.files",
            "[]",
            "data=files needs globs of your UTF-8 text files",
            "'data.corpus.files=[/path/to/texts/**/*.txt]'",
        )


def _memory(config: Config, request: Request) -> Iterator[Problem]:
    """Whether the layout holds the model in the memory of the GPUs and of the nodes, before any is taken."""
    node, whole = request.node, trainer_config(config)
    world, each = max(1, request.world_size), max(1, request.ranks_per_node)
    gpu = node.gpus > 0 and config.train.device is not Device.cpu
    room = node.gpu_memory_gb * GPU_SHARE if gpu and node.gpu_memory_gb else math.inf

    def needs(other: TrainerConfig) -> tuple[Memory, float]:
        memory = estimate(other, world, each, gpu=gpu)
        beside = memory.offloaded if gpu else memory.total
        given = config.job.rank_memory_gb
        return memory, each * (TORCH_RANK_GB + beside / GIB if given is None else given)

    def fits(other: TrainerConfig) -> bool:
        memory, host = needs(other)
        return memory.total <= room * GIB and host <= request.memory_gb

    if fits(whole):
        return
    memory, host = needs(whole)
    where = f"of partition {request.partition} of {config.cluster.name}"
    if memory.total > room * GIB:
        short = f"a rank needs {memory.total / GIB:.1f} GiB ({_kinds(memory)}), and of a GPU's {node.gpu_memory_gb:g} "
        short += f"GiB {where} {room:.1f} can be used"
    else:
        share = f" for each of {request.runs_per_node} runs" if request.runs_per_node > 1 else ""
        short = f"the {each} ranks of a node need {host:.1f} GiB of its memory, and a node {where} has "
        short += f"{request.memory_gb}{share}"
    fix = nearest(whole, world, each, fits)
    more = "more nodes, or a smaller model or data.seq_len: no layout of these ranks fits"
    yield Problem("parallel.micro_batch", str(config.parallel.micro_batch), short, " ".join(fix) if fix else more)


def _kinds(memory: Memory) -> str:
    kinds = ("parameters", "gradients", "optimizer", "gathered", "communication", "activations", "logits")
    sizes = {kind: getattr(memory, kind) / GIB for kind in kinds}
    return ", ".join(f"{kind} {size:.1f}" for kind, size in sizes.items() if size >= 0.05)


def trainer_config(config: Config) -> TrainerConfig:
    """What of a request the trainer is given."""
    return TrainerConfig(config.model, config.data, config.optim, config.parallel, config.train)


def rank_memory_gb(config: Config) -> float:
    """Host memory of one rank that computes on the CPU, in GiB."""
    if config.job.rank_memory_gb is not None:
        return config.job.rank_memory_gb
    if not isinstance(config.job, TrainJob | EvaluateJob | PrepareJob):
        return PLAIN_RANK_GB
    if isinstance(config.job, PrepareJob):
        return 1.0
    from hpc.request import resolve

    request = resolve(config)
    memory = estimate(trainer_config(config), max(1, request.world_size), max(1, request.ranks_per_node), gpu=False)
    return TORCH_RANK_GB + (memory.total + memory.offloaded) / GIB


def fits_here(config: Config, request: Request, available_gb: float) -> list[Problem]:
    """Whether all ranks fit the memory of this one machine, where an emulated cluster or ``local`` puts them."""
    each = rank_memory_gb(config)
    needed = each * request.world_size
    if needed <= available_gb:
        return []
    kind = "local" if config.cluster.launcher is Launcher.local else f"{config.cluster.name} is emulated on"
    nodes = int(available_gb / each // request.ranks_per_node)
    fix = "job=hello, which needs no torch" if isinstance(config.job, TrainJob) else "fewer nodes"
    return [
        Problem(
            "job.nodes",
            str(request.nodes),
            f"{request.world_size} ranks x {each:.2f} GB = {needed:.1f} GB, and {kind} this machine, which has "
            f"{available_gb:.1f} GB free",
            f"job.nodes={nodes} (fits), or {fix}" if nodes else fix,
        )
    ]
