"""The daemons of an emulated cluster: starting each, waiting for them, and what their logs tell."""

from __future__ import annotations

import os
import random
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from hpc import slurm
from hpc.emulate import processes
from hpc.emulate.slurm_conf import CONF, MUNGE_SOCKET
from hpc.emulate.state import MUNGED, SLURMCTLD, State
from hpc.errors import Failed, Refused

STARTUP_LOG = "log/daemons.log"  # what the daemons say on stderr
INSTALL = "apt-get install --no-install-recommends"
SUBDIRECTORIES = ("etc", "state", "spool", "log", "run", "munge", "dev")

# An ordinary user's PATH often lacks where the daemons are installed.
_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"))
_PACKAGES = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "munged": "munge",
    "sinfo": "slurm-client",
    "scontrol": "slurm-client",
    "sbatch": "slurm-client",
}
_children: list[subprocess.Popen[bytes]] = []  # kept, so that those that ended are waited for


def missing_programs() -> list[str]:
    """Which of the programs that an emulated cluster needs are not installed."""
    return [name for name in _PACKAGES if program(name) is None]


def program(name: str) -> str | None:
    """Where a program is installed."""
    return shutil.which(name, path=_PATH)


def full(argv: list[str]) -> list[str]:
    """A command with its program's whole path."""
    return [program(argv[0]) or argv[0], *argv[1:]]


def how_to_install(missing: list[str]) -> str:
    """What to type on Debian and Ubuntu so that these programs are there."""
    return f"{INSTALL} {' '.join(sorted({_PACKAGES[name] for name in missing}))}"


def slurm_version() -> tuple[int, int]:
    """The installed Slurm's version, such as (22, 5) for 22.05.8.

    Raises:
        Failed: if slurmd does not say.
    """
    text = slurm.call(full(["slurmd", "-V"]))
    match = re.search(r"(\d+)\.(\d+)", text)
    if match is None:
        raise Failed(f"slurmd -V says {text.strip()!r}, which names no version")
    return int(match.group(1)), int(match.group(2))


def slurm_conf(directory: Path) -> Path:
    return directory / CONF


def free_ports(count: int) -> int:
    """The first of ``count`` consecutive ports that nobody listens on.

    They lie below the range that outgoing connections take theirs from, or a node that is started again could find
    its port taken. Two that choose at once may still collide, so a start that fails for it is tried again.

    Raises:
        Failed: if there is no such block.
    """
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
    except OSError:
        text = "32768"
    low, high = 10_000, max(int(text.split()[0]), 20_000 + count)
    for _ in range(50):
        first = random.randrange(low, high - count)
        if all(_is_free(port) for port in range(first, first + count)):
            return first
    raise Failed(f"found no {count} free ports in a row between {low} and {high}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def prepare(directory: Path, files: dict[str, str], state: State, gpus: int) -> None:
    """Lay out everything below ``directory`` that the daemons need.

    Args:
        files: what goes into ``etc/``.
        gpus: the most GPUs that a node has.
    """
    for name in SUBDIRECTORIES:
        (directory / name).mkdir(mode=0o755, exist_ok=True)
    for node in state.nodes:
        (directory / "spool" / node).mkdir(mode=0o755, exist_ok=True)
    for index in range(gpus):
        (directory / "dev" / f"nvidia{index}").symlink_to("/dev/null")
    for name, text in files.items():
        (directory / "etc" / name).write_text(text)
    key = directory / "munge/key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(1024))


def start_munged(directory: Path, state: State) -> None:
    """Start the authentication daemon and wait for its socket.

    Raises:
        Failed: if it ends, or has none after 10 s.
    """
    munge = directory / "munge"
    # --force: munged wants its socket to be reachable for everybody, while this one is for one user alone.
    argv = ["munged", "--foreground", "--force", "--key-file", str(munge / "key"), "--seed-file", str(munge / "seed")]
    argv += ["--socket", str(directory / MUNGE_SOCKET), "--pid-file", str(munge / "pid")]
    child = start(directory, state, MUNGED, argv, directory)
    deadline = time.monotonic() + 10
    while not (directory / MUNGE_SOCKET).exists():
        if child.poll() is not None or time.monotonic() > deadline:
            raise Failed(f"munged did not start\n{evidence(directory)}")
        time.sleep(0.01)


def start_slurmctld(directory: Path, state: State) -> None:
    """Start the controller."""
    start(directory, state, SLURMCTLD, ["slurmctld", "-D", "-f", str(slurm_conf(directory))], directory)


def start_slurmd(directory: Path, state: State, node: str) -> None:
    """Start one node's daemon. Its steps inherit its working directory, which tells them from other nodes' steps."""
    argv = ["slurmd", "-D", "-N", node, "-f", str(slurm_conf(directory))]
    start(directory, state, node, argv, directory / "spool" / node)


def environment(directory: Path) -> dict[str, str]:
    """What every process of an emulation is started with: the mark that it is found by, and where its Slurm is."""
    # Without what an enclosing job or another cluster left in it.
    kept = {k: v for k, v in slurm.clean_environment().items() if not k.startswith(("SLURM", "MUNGE"))}
    return kept | {"SLURM_CONF": str(slurm_conf(directory)), processes.MARK: str(directory)}


def start(
    directory: Path, state: State, role: str, argv: list[str], cwd: Path, extra: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a daemon and note it in ``state``, which the caller writes.

    Args:
        extra: for its environment.
    """
    _children[:] = [child for child in _children if child.poll() is None]
    with (directory / STARTUP_LOG).open("ab") as log:
        child = subprocess.Popen(
            full(argv),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=cwd,
            env=environment(directory) | dict(extra or {}),
            umask=0o022,
            start_new_session=True,
        )
    _children.append(child)
    seen = processes.see(child.pid)  # at worst a zombie: it cannot be gone before poll()
    assert seen is not None
    state.daemons[role] = seen.process
    return child


def node_states(directory: Path, timeout: float = 10.0) -> dict[str, str]:
    """Each node's state as sinfo spells it, such as idle, mixed, down*."""
    environment = {"SLURM_CONF": str(slurm_conf(directory))}
    text = slurm.call(["sinfo", "--noheader", "-N", "-o", "%N %T"], environment=environment, timeout=timeout)
    return dict(line.split() for line in text.splitlines())


def unusable(node_state: str) -> bool:
    """Whether the controller gives no work to a node in this state."""
    return node_state.endswith("*") or node_state.startswith(("unknown", "down", "drain", "inval", "fail"))


def wait_until_idle(directory: Path, state: State, say: Callable[[str], None], bound: float) -> None:
    """Wait until the controller has heard from every node.

    Raises:
        Failed: if a daemon ends, a node is refused, or ``bound`` seconds are over.
    """
    deadline = time.monotonic() + bound
    ready, listening = -1, False
    while True:
        states = {}
        if listening or (listening := listens(state.controller_port)):  # sinfo would wait a second to try again
            with suppress(slurm.SlurmError):  # another program listens on this port
                states = node_states(directory, timeout=3)
        count = sum(not unusable(states.get(node, "unknown")) for node in state.nodes)
        if count != ready:
            ready = count
            say(f"{ready} of {len(state.nodes)} nodes")
        if ready == len(state.nodes):
            return
        ended = [role for role, process in state.daemons.items() if not processes.alive(process)]
        invalid = [node for node, text in states.items() if text.startswith("inval")]
        if ended or invalid or time.monotonic() > deadline:
            what = f"{ended[0]} ended" if ended else f"node {invalid[0]} is refused" if invalid else "too slow"
            raise Failed(f"{ready} of {len(state.nodes)} nodes came up: {what}\n{evidence(directory)}")
        time.sleep(0.1 if listening else 0.02)


def listens(port: int) -> bool:
    """Whether somebody does on this port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def port_taken(directory: Path) -> bool:
    """Whether a daemon could not start because its port was taken meanwhile."""
    try:
        return "Address already in use" in (directory / STARTUP_LOG).read_text(errors="replace")
    except OSError:
        return False


def evidence(directory: Path, lines: int = 8) -> str:
    """The last lines of the daemons' log that tell why."""
    try:
        text = (directory / STARTUP_LOG).read_text(errors="replace")
    except OSError:
        return ""
    said = text.splitlines()
    telling = list(dict.fromkeys(line for line in said if re.search(r"error|fatal|denied|fail", line, re.IGNORECASE)))
    return "\n".join(f"  {line}" for line in (telling or said)[-lines:])


def check_machine(nodes: int, extra_memory: float = 0) -> None:
    """Refuse what cannot work on this machine.

    Args:
        nodes: how many are to be started.
        extra_memory: of what runs beside them, in MB.

    Raises:
        Refused: with what is missing and what to type.
    """
    missing = missing_programs()
    if missing:
        raise Refused(
            f"an emulated cluster is a real Slurm, and {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} "
            f"not installed here. On Debian and Ubuntu: {how_to_install(missing)}"
        )
    if not Path("/dev/null").is_char_device():
        raise Refused("/dev/null is no character device in this sandbox: GPUs cannot be emulated by links to it")
    need, have = memory_needed(nodes) + extra_memory, memory_available()
    if have is not None and need > have:
        fits = int((have - memory_needed(0) - extra_memory) // (memory_needed(1) - memory_needed(0)))
        allowed = f"Try: --nodes {fits}" if fits > 0 else "Free some first."
        raise Refused(f"{nodes} nodes take about {need:.0f} MB, and {have:.0f} MB are free. {allowed}")


def resolves(host: str) -> bool:
    """Whether this machine's own name has an address, which Slurm's programs ask for."""
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True


def memory_needed(nodes: int) -> float:
    """Memory of the daemons in MB, measured: 7 per slurmd, 30 for slurmctld, munged and the page tables of all."""
    return 30 + 7 * nodes


def memory_available() -> float | None:
    """What this machine can give without swapping, in MB; None if it does not tell."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    match = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    return int(match.group(1)) / 1024 if match else None
