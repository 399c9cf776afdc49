"""Slurm's accounting of an emulated cluster: slurmdbd on a MariaDB that nothing else uses or can reach.

The database listens on a socket inside the emulation's directory and on no port. It lets in the user who started it,
whom the socket tells, without a password. Its files go away with the directory, so nothing in it is made durable.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hpc import slurm
from hpc.emulate import daemons
from hpc.emulate.slurm_conf import ACCOUNTS_CONF, DATABASE_SOCKET
from hpc.emulate.state import MARIADBD, SLURMDBD, State
from hpc.errors import Failed, Refused

if TYPE_CHECKING:
    from hpc.config import Cluster

ACCOUNT = "default"  # for a cluster whose description names none
QOS = "normal"  # which slurmdbd itself makes
MEMORY = 75  # MB of both daemons, measured
_PACKAGES = {MARIADBD: "mariadb-server-core", SLURMDBD: "slurmdbd", "sacctmgr": "slurm-client", "sacct": "slurm-client"}
_PLUGIN, _PLUGIN_PACKAGE = "accounting_storage_mysql.so", "slurm-wlm-mysql-plugin"
_PLUGIN_FOLDERS = ("usr/lib/*/slurm-wlm", "usr/lib/*/slurm", "usr/lib*/slurm", "usr/local/lib*/slurm")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_BOUND = 30.0  # seconds for each of the daemons to answer; both together take one

# Small, and quick where a site's would be safe.
_DATABASE = {
    "innodb-buffer-pool-size": "16M",
    "innodb-log-file-size": "4M",
    "innodb-data-file-path": "ibdata1:4M:autoextend",
    "innodb-temp-data-file-path": "ibtmp1:1M:autoextend",
    "innodb-autoextend-increment": "1",
    "innodb-flush-log-at-trx-commit": "0",
    "innodb-flush-method": "nosync",
    "innodb-use-native-aio": "0",  # sandboxes forbid io_uring
    "innodb-lock-wait-timeout": "900",  # what slurmdbd wants
    "key-buffer-size": "1M",
    "aria-pagecache-buffer-size": "1M",
    "performance-schema": "0",
}


def missing_packages() -> list[str]:
    """The Debian packages that accounting needs beside Slurm's own and that are not there."""
    found = {package for program, package in _PACKAGES.items() if daemons.program(program) is None}
    folders = [folder for pattern in _PLUGIN_FOLDERS for folder in Path("/").glob(pattern)]
    if folders and not any((folder / _PLUGIN).exists() for folder in folders):
        found.add(_PLUGIN_PACKAGE)
    return sorted(found)


def check() -> None:
    """Refuse accounting where its programs are not installed.

    Raises:
        Refused: with what to type.
    """
    if missing := missing_packages():
        raise Refused(
            f"--accounting needs slurmdbd and MariaDB's server, and {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not installed here. On Debian and Ubuntu: "
            f"{daemons.INSTALL} {' '.join(missing)}"
        )


def registration(cluster: Cluster, user: str) -> list[list[str]]:
    """What sacctmgr is told one after the other: the cluster, its QoS, its account, and the user in that. Pure.

    Raises:
        Refused: if a name is none that sacctmgr could take.
    """
    account, qos = cluster.account or ACCOUNT, cluster.qos or QOS
    for path, name in (("account", account), ("qos", qos)):
        if not _NAME.fullmatch(name):
            raise Refused(f"cluster.{path}={name}: allowed with --accounting: letters, digits, '_', '-' and '.'")
    name = cluster.slurm_name or cluster.name
    told = [["add", "cluster", name]]
    own = []
    if qos != QOS:
        told.append(["add", "qos", qos])
        own = [f"qos={QOS},{qos}", f"defaultqos={qos}"]
    told.append(["add", "account", account, f"cluster={name}", *own])
    told.append(["add", "user", user, f"account={account}"])
    if user == "root":  # who came with the cluster, in an account of the same name
        told.append(["modify", "user", user, "set", f"defaultaccount={account}"])
    return told


def start(directory: Path, state: State, cluster: Cluster, user: str, say: Callable[[str], None]) -> None:
    """Start the database and slurmdbd, and register the cluster, so that the controller finds itself known.

    Raises:
        Failed: if one of them ends, or does not answer within its bound.
    """
    say("mariadbd, slurmdbd")
    (directory / "etc" / ACCOUNTS_CONF).chmod(0o600)  # slurmdbd takes no other
    _start_database(directory, state, user)
    _start_slurmdbd(directory, state)
    say("registering the cluster, its account and its user")
    for words in registration(cluster, user):
        _sacctmgr(directory, *words)


def _start_database(directory: Path, state: State, user: str) -> None:
    folder = directory / DATABASE_SOCKET.parent
    data = folder / "data"
    data.mkdir(parents=True)
    options = [f"--{name}={value}" for name, value in _DATABASE.items()]
    argv = [MARIADBD, "--no-defaults", f"--datadir={data}", f"--user={user}", *options]
    tables = _system_tables(user)
    with (directory / daemons.STARTUP_LOG).open("ab") as log:
        # What mariadb-install-db does, without the help texts and views that take most of its time and space.
        made = subprocess.run(
            [*daemons.full(argv), "--bootstrap", "--max-allowed-packet=8M", "--log-warnings=0"],
            input=tables,
            stdout=log,
            stderr=log,
            cwd=directory,
            env=daemons.environment(directory),
        )
    if made.returncode:
        raise Failed(f"MariaDB's own tables could not be made\n{daemons.evidence(directory)}")
    socket, pid = directory / DATABASE_SOCKET, directory / "run/mariadbd.pid"
    child = daemons.start(
        directory, state, MARIADBD, [*argv, "--skip-networking", f"--socket={socket}", f"--pid-file={pid}"], directory
    )
    _wait(child, socket.exists, directory)


def _system_tables(user: str) -> bytes:
    """The SQL that makes MariaDB's own tables, and an account for a user whom the socket tells."""
    program = daemons.program(MARIADBD)
    assert program is not None  # checked
    share = Path(program).resolve().parent.parent / "share"
    for prefix in ("mysql", "mariadb"):
        for folder in (share / "mysql", share / "mariadb"):
            parts = [folder / f"{prefix}_system_tables.sql", folder / f"{prefix}_system_tables_data.sql"]
            if all(part.exists() for part in parts):
                head = f"create database mysql;\nuse mysql;\nset @auth_root_socket='{user}';\n"
                return head.encode() + b"".join(part.read_bytes() for part in parts)
    raise Failed(f"{share} holds no mysql_system_tables.sql, of which MariaDB's own tables are made")


def _start_slurmdbd(directory: Path, state: State) -> None:
    # StorageHost=localhost means the socket that this variable names: slurmdbd has no setting for it.
    extra = {"MYSQL_UNIX_PORT": str(directory / DATABASE_SOCKET)}
    child = daemons.start(directory, state, SLURMDBD, [SLURMDBD, "-D"], directory, extra)
    # It asks for its tables first and listens then, so who can connect is answered.
    _wait(child, lambda: daemons.listens(state.accounting_port), directory)


def _wait(child: subprocess.Popen[bytes], ready: Callable[[], bool], directory: Path) -> None:
    deadline = time.monotonic() + _BOUND
    while not ready():
        if child.poll() is not None or time.monotonic() > deadline:
            what = "ended" if child.poll() is not None else "does not answer"
            raise Failed(f"{Path(str(child.args[0])).name} {what}\n{daemons.evidence(directory)}")  # pyright: ignore
        time.sleep(0.01)


def _sacctmgr(directory: Path, *words: str) -> None:
    environment = {"SLURM_CONF": str(daemons.slurm_conf(directory))}
    try:
        slurm.call(["sacctmgr", "--immediate", *words], environment=environment)
    except slurm.SlurmError as error:
        raise Failed(f"{error}\n{daemons.evidence(directory)}") from error
