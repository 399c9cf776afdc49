"""What the sbatch script says. Pure: the same request renders to the same text, with or without a Slurm."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from hpc import attempt
from hpc.config import Cluster, Config, Container, GpuRequest, Launcher, TrainJob
from hpc.request import Request, clock
from hpc.runs import Run
from monitoring import layout


def directives(config: Config, request: Request, folder: Path, runs: int = 1) -> dict[str, str | None]:
    """The #SBATCH options; None for one without a value.

    Args:
        runs: how many such runs share the job.
    """
    cluster, job = config.cluster, config.job
    # Without --mem a site's default may give one job the whole node, or far too little.
    whole = not job.memory_gb and runs == request.runs_per_node
    gpus = request.gpus_per_node * runs
    options: dict[str, str | None] = {
        "job-name": config.name,
        "chdir": str(folder),
        "output": layout.JOB_LOG,
        "open-mode": "append",
        "requeue": None,
        "signal": f"B:USR2@{request.grace}",
        "partition": request.partition,
        "nodes": str(request.nodes),
        "ntasks-per-node": str(request.ranks_per_node * runs),
        "cpus-per-task": str(request.cpus_per_rank),
        "mem": "0" if whole else f"{request.memory_gb * runs}G",
    }
    if not math.isinf(request.time):
        options["time"] = clock(request.time)
    options |= _gpus(config, request, gpus)
    if cluster.exclusive:
        options["exclusive"] = None
    for name in ("account", "qos", "reservation"):
        value = getattr(job, name) or getattr(cluster, name)
        if value:
            options[name] = value
    for name in ("constraint", "exclude"):
        if getattr(job, name):
            options[name] = getattr(job, name)
    return options


def _gpus(config: Config, request: Request, count: int) -> dict[str, str]:
    """How so many GPUs of a node are asked for."""
    if not count or config.cluster.gpu_request is GpuRequest.none:
        return {}
    kind = f"{request.node.gpu_type}:" if request.node.gpu_type else ""
    if config.cluster.gpu_request is GpuRequest.gres:
        return {"gres": f"gpu:{kind}{count}"}
    return {"gpus-per-node": f"{kind}{count}"}


def render(config: Config, request: Request, folder: Path, *, emulated: bool = False) -> str:
    """The whole script: directives sorted, environment, and the supervisor in place of the shell."""
    options = directives(config, request, folder)
    return _script(config, options, Run(folder).code, [str(folder)], emulated=emulated)


def render_array(
    config: Config, request: Request, folder: Path, number: int, tasks: int, *, emulated: bool = False
) -> str:
    """The script of a sweep's array ``number``, in the sweep's folder: as ``render``, for as many tasks."""
    runs = request.runs_per_node
    throttle = config.job.throttle and max(1, config.job.throttle // runs)
    options = directives(config, request, folder, runs) | {
        "array": f"0-{tasks - 1}" + (f"%{throttle}" if throttle else ""),
        "output": "logs/%A_%a.log",
    }
    return _script(config, options, folder / "code", ["--sweep", str(folder), str(number)], emulated=emulated)


def _script(config: Config, options: dict[str, str | None], code: Path, words: list[str], *, emulated: bool) -> str:
    lines = ["#!/bin/bash"]
    if config.cluster.launcher is Launcher.slurm:
        for name, value in sorted(options.items()):
            lines.append(f"#SBATCH --{name}" + ("" if value is None else f"={_directive(value)}"))
    else:
        lines.append("# No Slurm: what hpc submit starts on this machine, with its output in job.log")
    lines += [
        "",
        *_environment(config.cluster, emulated),
        f"export PYTHONPATH={shlex.quote(str(code))}",
    ]
    # Ignored until the supervisor handles it: by default it would kill the shell or a starting Python.
    lines.append("trap '' USR2")
    # -P: nothing is imported from the working directory. exec: signals reach the supervisor itself.
    python = shlex.quote(interpreter(config.cluster))
    lines.append(f"exec {python} -P -u -m hpc.supervise {shlex.join(words)}")
    return "\n".join(lines) + "\n"


def _directive(value: str) -> str:
    """Slurm reads a directive's value up to a space unless it is quoted."""
    if any(c in value for c in " \t'\"\\#"):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return value


def _environment(cluster: Cluster, emulated: bool) -> Iterator[str]:
    if emulated:
        yield "# EMULATED: no modules or environments, and all nodes are this machine"
        yield f"export {attempt.EMULATED}=1"
    else:
        for module in cluster.modules:
            yield f"module load {shlex.quote(module)}"
        if cluster.venv:
            # What bin/activate does; that one, as Python writes it, has the shell read the folder's name.
            yield f"export VIRTUAL_ENV={shlex.quote(cluster.venv)}"
            yield f'export PATH={shlex.quote(cluster.venv + "/bin")}:"$PATH"'
        if cluster.conda:
            # Another Python than the one that was meant would only fail later, and say less.
            yield 'eval "$(conda shell.bash hook)" || exit 1'
            yield f"conda activate {shlex.quote(cluster.conda)} || exit 1"
    for name, value in sorted(cluster.environment.items()):
        yield f"export {name}={shlex.quote(value)}"
    for name, value in interfaces(cluster, emulated=emulated).items():
        yield f"export {name}={shlex.quote(value)}"


def interfaces(cluster: Cluster, *, emulated: bool) -> dict[str, str]:
    """Which network gloo and NCCL are told to talk over."""
    interface = "lo" if emulated else cluster.rendezvous.interface
    return {f"{library}_SOCKET_IFNAME": interface for library in ("GLOO", "NCCL")} if interface else {}


def interpreter(cluster: Cluster) -> str:
    """The Python of the compute nodes: the described one, that of the environment, or the one that submits."""
    if cluster.python is None and cluster.venv:
        return f"{cluster.venv}/bin/python"
    return cluster.python or ("python" if cluster.conda else sys.executable)


def rank_command(config: Config, folder: Path) -> list[str]:
    """What starts one rank: submitit's entry, inside the cluster's container if it has one."""
    cluster = config.cluster
    container = cluster.container
    inside = container.python if container.runtime is not Container.none else None
    python = [inside or interpreter(cluster), "-P", "-u", "-m", "submitit.core._submit", str(folder)]
    # USR2 kills a process that does not handle it yet; an ignored signal stays ignored across exec, and the
    # rank installs its handler when it is ready.
    shielded = ["/bin/sh", "-c", 'trap "" USR2; exec "$@"', "rank", *python]
    if container.runtime is Container.apptainer:
        binds = [word for mount in _mounts(config, folder) for word in ("--bind", mount)]
        return ["apptainer", "exec", "--nv", *binds, str(container.image), *shielded]
    return shielded


def _mounts(config: Config, folder: Path) -> list[str]:
    """What a container must see of the host: all runs, as a sweep's code is beside its runs; data and weights."""
    places = [str(folder.parent.parent)]
    if isinstance(config.job, TrainJob):
        places += [config.data.path, *([config.train.init_from] if config.train.init_from else [])]
    return list(dict.fromkeys([*(f"{place}:{place}" for place in places), *config.cluster.container.mounts]))


def step_options(config: Config, request: Request, attempt_folder: Path) -> list[str]:
    """The words between ``srun`` and a rank's command.

    --cpus-per-task is said again because steps have not inherited it since Slurm 22.05; --kill-on-bad-exit ends
    the other ranks when one fails, which would wait in a collective for ever.
    """
    options = [
        f"--nodes={request.nodes}",
        f"--ntasks={request.world_size}",
        f"--ntasks-per-node={request.ranks_per_node}",
        f"--cpus-per-task={request.cpus_per_rank}",
        "--distribution=block",
        "--export=ALL",
        "--input=none",
        "--kill-on-bad-exit=1",
        "--wait=60",
        "--unbuffered",
        "--open-mode=append",
        f"--output={_pattern(attempt_folder)}/rank-%t.log",
    ]
    container = config.cluster.container
    if container.runtime is Container.pyxis:
        options.append(f"--container-image={container.image}")
        options.append(f"--container-mounts={','.join(_mounts(config, attempt_folder.parent.parent))}")
    return options


def share_options(config: Config, request: Request, name: str) -> list[str]:
    """What ``srun`` is told beside ``step_options`` where several runs share the job's node: the part of this one.

    Without --exact and --mem a step takes all cores and all memory, and the others wait for it. It can be told from
    them by its name.
    """
    gpus = _gpus(config, request, request.gpus_per_node)
    words = [f"--{option}={value}" for option, value in gpus.items()]
    return ["--exact", f"--mem={request.memory_gb}G", *words, f"--job-name={name}"]


def _pattern(path: Path) -> str:
    """A path in which Slurm must not find replacement symbols."""
    return str(path).replace("\\", "\\\\").replace("%", "%%")
