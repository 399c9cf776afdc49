"""Real Slurm for tests: emulated clusters in a home of this test session's own, ended whatever happens."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpc import compose, emulate
from hpc.config import Cluster
from hpc.emulate import accounting, daemons, processes

_PREFIX = "hpc-test-"  # short: Unix sockets lie below


_LONGEST = "test_training.py"  # begun first, so that nobody waits for it in the end


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    items.sort(key=lambda item: item.path != here / _LONGEST)
    missing = daemons.missing_programs()
    for item in items:
        if not item.path.is_relative_to(here):
            continue
        item.add_marker("slurm")
        if missing and not os.environ.get("REQUIRE_SLURM"):
            reason = f"{', '.join(missing)} not installed. Try: {daemons.how_to_install(missing)}"
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def slurm_home() -> Iterator[Path]:
    """HPC_HOME of this session. What is emulated in it ends with the session."""
    if missing := daemons.missing_programs():
        pytest.fail(f"REQUIRE_SLURM is set, and {', '.join(missing)} not installed: {daemons.how_to_install(missing)}")
    _clear_killed_sessions()
    home = Path(tempfile.mkdtemp(prefix=_PREFIX, dir="/tmp"))
    me = processes.see(os.getpid())
    assert me is not None
    (home / "owner.json").write_text(json.dumps(me.process))
    before = {name: os.environ.get(name) for name in ("HPC_HOME", "SLURM_CONF")}
    os.environ["HPC_HOME"] = str(home)
    os.environ.pop("SLURM_CONF", None)
    try:
        yield home
    finally:
        _end(home)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _end(home: Path) -> None:
    os.environ["HPC_HOME"] = str(home)
    for directory in emulate.directories():
        emulate.down(directory.name)
    shutil.rmtree(home)


def _clear_killed_sessions() -> None:
    """End what a session that was killed outright could not."""
    for owner in Path("/tmp").glob(f"{_PREFIX}*/owner.json"):
        try:
            mine = owner.stat().st_uid == os.getuid()
            dead = not processes.alive(processes.Process(*json.loads(owner.read_text())))
        except (OSError, ValueError):
            continue
        if mine and dead:
            _end(owner.parent)


@pytest.fixture(scope="session")
def described() -> Callable[..., Cluster]:
    """described("noctua2", "cluster.max_array_size=11"): a cluster from conf/, with changes."""

    def compose_cluster(name: str, *overrides: str) -> Cluster:
        return compose.cluster([f"cluster={name}", *overrides])

    return compose_cluster


@pytest.fixture(scope="session")
def emulation(slurm_home: Path, described: Callable[..., Cluster]) -> Iterator[emulate.Emulation]:
    """Four nodes of noctua2, fast, with the preemptible partition: for every test that leaves it as it was."""
    options = emulate.Options(nodes=4, fast=True, preemptible=True, node_timeout=10)
    with emulate.emulated(described("noctua2"), options) as running:
        yield running


@pytest.fixture(scope="session")
def accounted(slurm_home: Path, described: Callable[..., Cluster]) -> Iterator[emulate.Emulation]:
    """The same with accounting, beside it under another name."""
    if (missing := accounting.missing_packages()) and not os.environ.get("REQUIRE_SLURM"):
        pytest.skip(f"not installed: {', '.join(missing)}. Try: {daemons.INSTALL} {' '.join(missing)}")
    options = emulate.Options(nodes=4, fast=True, preemptible=True, node_timeout=10, accounting=True)
    with emulate.emulated(described("noctua2", "cluster.name=accounted"), options) as running:
        yield running


@pytest.fixture(scope="session")
def wait_for() -> Callable[..., None]:
    """wait_for(condition, seconds): poll until it holds; fails at the deadline with what it was last."""

    def wait(condition: Callable[[], object], seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"not within {seconds:.0f} s")
            time.sleep(0.05)

    return wait
