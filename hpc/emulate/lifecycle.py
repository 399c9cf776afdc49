"""Bringing an emulated cluster up and down, so that no crash leaves anything that ``down`` cannot clear."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import pwd
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc import slurm
from hpc.emulate import accounting, daemons, processes, slurm_conf, state
from hpc.emulate.emulation import Emulation, find
from hpc.emulate.slurm_conf import Options, Site
from hpc.errors import Failed, Refused

if TYPE_CHECKING:
    from hpc.config import Cluster

START_BOUND = 60.0  # seconds for all nodes to register; two cores take 2 s for 24
GRACE = 3.0  # seconds that the processes of running jobs have to end when it is taken down
_TRIES = 3  # with other ports, if one was taken between choosing and using it


def _quiet(_: str) -> None: ...


def up(cluster: Cluster, options: Options | None = None, say: Callable[[str], None] = _quiet) -> Emulation:
    """Start an emulated cluster and wait until all its nodes are idle; one that is already up is returned.

    Args:
        cluster: the site whose shape it takes.
        say: is told each step in one line.

    Raises:
        Refused: if it cannot be emulated here, is up with other options, or the real one answers here.
        Failed: if a daemon does not start; everything started is ended, and the message holds what the log tells.
    """
    options = options or Options()
    shape = slurm_conf.described(cluster, options)
    directory = state.root() / cluster.name
    _check_place(directory, shape)
    with _lock(directory):
        if (running := find(cluster.name)) is not None:
            return _same(running, options)
        _refuse_foreign(directory)
        if directory.exists():
            say(f"clearing what is left of an emulated {cluster.name} that died")
            _clear(directory)
        _user()
        if options.accounting:
            accounting.check()
            accounting.registration(shape, _user())
        extra_memory = accounting.MEMORY if options.accounting else 0
        daemons.check_machine(len(slurm_conf.node_names(shape)), extra_memory)
        _refuse_real(cluster)
        if not daemons.resolves(_host()):
            say(f"warning: this machine's name {_host()} has no address, steps may start 10 s late; see /etc/hosts")
        for remaining in reversed(range(_TRIES)):
            try:
                return _start(directory, shape, options, say)
            except BaseException as error:
                again = remaining and isinstance(error, Failed) and daemons.port_taken(directory)
                _clear(directory)
                if isinstance(error, OSError):
                    raise Failed(f"could not set up {directory}: {error.strerror or error}") from error
                if not again:
                    raise
        raise AssertionError


def down(name: str, keep_logs: bool = False, say: Callable[[str], None] = _quiet) -> bool:
    """End exactly the processes of an emulated cluster, running jobs included, and remove its directory.

    Args:
        keep_logs: leave the daemons' logs beside it, in ``<name>.log-<time>``.

    Returns:
        False if there was none.

    Raises:
        Refused: if it was started on another machine.
        Failed: if a process cannot be ended.
    """
    directory = state.root() / name
    if not directory.exists():
        state.remove(directory)
        return False
    with _lock(directory):
        _refuse_foreign(directory)
        if keep_logs and (directory / "log").is_dir():
            # Beside it, so that the directory itself stays the mark of what is up.
            kept = directory.with_name(f"{name}.log-{time.strftime('%Y%m%d-%H%M%S')}")
            _end(directory)
            (directory / "log").rename(kept)
            say(f"logs: {kept}")
        _clear(directory)
    return True


@contextmanager
def emulated(cluster: Cluster, options: Options | None = None, **changes: Any) -> Iterator[Emulation]:
    """An emulated cluster for the length of a ``with``; it is always ended.

    Args:
        changes: fields of ``options``, such as ``nodes=2, fast=True``.

    Raises:
        Refused: if it is up already: whoever brought it up wants to keep it.
    """
    if find(cluster.name) is not None:
        raise Refused(f"the emulated {cluster.name} is up already. Try: hpc emulate down cluster={cluster.name}")
    try:
        yield up(cluster, dataclasses.replace(options or Options(), **changes))
    finally:
        down(cluster.name)


def _start(directory: Path, shape: Cluster, options: Options, say: Callable[[str], None]) -> Emulation:
    names = slurm_conf.node_names(shape)
    port = daemons.free_ports(1 + len(names) + options.accounting)
    known = state.State(
        cluster=shape.name,
        nodes=names,
        options=dataclasses.asdict(options),
        node_types={name: {"count": t.count, "names": t.names} for name, t in shape.node_types.items()},
        preemptible=slurm_conf.preemptible_partition(shape) if options.preemptible else None,
        controller_port=port,
        node_port=port + 1,
        accounting_port=port + 1 + len(names) if options.accounting else 0,
    )
    state.create(directory, known)
    site = Site(directory, _host(), _user(), port, port + 1, daemons.slurm_version(), known.accounting_port)
    gpus = max(node_type.gpus for node_type in shape.node_types.values())
    daemons.prepare(directory, slurm_conf.render(shape, options, site), known, gpus)
    say("munged, slurmctld")
    daemons.start_munged(directory, known)
    if options.accounting:
        state.write(directory, known)
        accounting.start(directory, known, shape, _user(), say)
    daemons.start_slurmctld(directory, known)
    state.write(directory, known)
    for node in names:
        daemons.start_slurmd(directory, known, node)
    state.write(directory, known)
    daemons.wait_until_idle(directory, known, say, START_BOUND)
    known.up = True
    state.write(directory, known)
    return Emulation(directory)


def _host() -> str:
    return socket.gethostname().partition(".")[0]


def _user() -> str:
    """How slurm.conf names the calling user."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        raise Refused(f"user {os.getuid()} has no name on this machine, which Slurm needs: see /etc/passwd") from None


def _same(running: Emulation, options: Options) -> Emulation:
    given = dataclasses.asdict(options)
    differing = [name for name, value in running.state.options.items() if given.get(name) != value]
    if differing:
        name = differing[0]
        raise Refused(
            f"the emulated {running.name} is up with {name}={running.state.options[name]}, not {given.get(name)}. "
            f"To start it anew: hpc emulate down cluster={running.name}"
        )
    return running


def _check_place(directory: Path, shape: Cluster) -> None:
    longest = slurm_conf.longest_socket(directory, shape)
    if longest > slurm_conf.SOCKET_PATH_LIMIT:
        raise Refused(
            f"{directory} is too long by {longest - slurm_conf.SOCKET_PATH_LIMIT} characters: a Unix socket's path "
            f"holds {slurm_conf.SOCKET_PATH_LIMIT}. Try: export HPC_HOME=/tmp/hpc-{os.getuid()}"
        )
    if any(c.isspace() or c in "#=," for c in str(directory)):
        raise Refused(f"{directory}: Slurm's files hold no such path. Try: export HPC_HOME=/tmp/hpc-{os.getuid()}")
    try:
        directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = directory.parent.stat().st_uid
    except OSError as error:
        raise Failed(f"could not make {directory.parent}: {error.strerror}. Choose another place: HPC_HOME") from error
    if owner != os.getuid():
        raise Refused(f"{directory.parent} belongs to another user. Try: export HPC_HOME=/tmp/hpc-{os.getuid()}")


def busy(name: str) -> bool:
    """Whether a cluster of this name is just being brought up or down."""
    try:
        with _lock(state.root() / name):
            return False
    except Failed:
        return True


@contextmanager
def _lock(directory: Path) -> Iterator[None]:
    """One ``up`` or ``down`` of a cluster at a time; the kernel lets go of it when its holder dies."""
    with directory.with_name(f"{directory.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failed(f"another hpc emulate is just bringing {directory.name} up or down; try again") from None
        yield


def _refuse_foreign(directory: Path) -> None:
    if directory.exists() and not (directory / state.FILE).exists():
        raise Refused(f"{directory} was not made by hpc emulate: it holds no {state.FILE}. Move it away.")
    known = state.read(directory)
    if known is not None and known.elsewhere:
        raise Refused(
            f"the emulated {known.cluster} in {directory} was started on {known.host}, this is "
            f"{socket.gethostname()}. Type it there; if that machine is gone: rm -r {directory}"
        )


def _refuse_real(cluster: Cluster) -> None:
    """A rehearsal must not be mistaken for the real thing where that is at hand."""
    answering = slurm.cluster_name()
    if answering is not None and answering in (cluster.slurm_name, cluster.name):
        raise Refused(
            f"a Slurm controller answers here as {answering}: this is the real {cluster.name}, "
            f"which hpc submit cluster={cluster.name} goes to. Emulate it on a machine outside of it."
        )


def _end(directory: Path) -> None:
    known = state.read(directory)
    noted = known.noted() if known is not None else []

    def find_members() -> list[processes.Member]:
        found = processes.members(directory, noted)
        if any(member.process.pid == os.getpid() for member in found):
            raise Refused(f"this shell runs inside a job of the emulated {directory.name}. Type it outside of it.")
        return found

    processes.end(find_members, GRACE)


def _clear(directory: Path) -> None:
    if directory.exists():
        _end(directory)
    state.remove(directory)
