"""Accounting of an emulated cluster: sacct answers, accounts are enforced, and a run's efficiency is what it was."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from hpc import accounting, emulate, ledger, slurm
from hpc.config import Cluster
from hpc.emulate import Emulation, daemons, processes, state
from hpc.emulate.accounting import missing_packages
from hpc.errors import Refused
from hpc.runs import Run
from hpc.waiting import outcome
from tests.slurm import training
from tests.slurm.training import Submit, ended, told

pytestmark = pytest.mark.skipif(
    bool(missing_packages()) and not os.environ.get("REQUIRE_SLURM"),
    reason=f"not installed. Try: {daemons.INSTALL} {' '.join(missing_packages())}",
)
Describe = Callable[..., Cluster]
WaitFor = Callable[..., None]
HELLO = ["job=hello", "job.nodes=2", "job.ranks_per_node=2", "cluster.requeue_hold=3"]


@pytest.fixture(scope="module")
def submit(accounted: Emulation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Submit]:
    """Submit to the accounted cluster; what still runs at the end is cancelled."""
    folder = tmp_path_factory.mktemp("accounted")
    places = ["cluster=noctua2", f"cluster.name={accounted.name}", f"cluster.runs={folder}/runs"]
    started: list[Run] = []

    def call(*overrides: str) -> Run:
        started.append(Run(Path(json.loads(training.hpc("submit", "--json", *places, *overrides))["folder"])))
        return started[-1]

    yield call
    for run in started:
        if outcome(run) is None:
            subprocess.run([sys.executable, "-m", "hpc", "cancel", "--now", str(run.folder)], timeout=60, check=False)


def sacctmgr(emulation: Emulation, *words: str) -> str:
    return slurm.call(["sacctmgr", "--immediate", *words], environment=emulation.environment)


def efficiency(run: Run, until: Callable[[dict], bool], patience: float = 30) -> dict:
    """What `hpc efficiency` says, once it says what it must: slurmdbd is told of an end a moment later."""
    end = time.monotonic() + patience
    while not until(said := json.loads(training.hpc("efficiency", str(run.folder), "--json"))):
        assert time.monotonic() < end, said
        time.sleep(0.3)
    return said


def test_the_user_may_submit_under_the_account_and_under_no_other(accounted: Emulation, submit: Submit) -> None:
    said = sacctmgr(accounted, "--noheader", "--parsable2", "show", "assoc", "format=cluster,account,user,qos")
    name = slurm.cluster_name(accounted.environment)
    assert f"{name}|default|{_user()}|normal" in said.splitlines()
    ended(submit(*HELLO, "job.account=default"), 60)
    command = [sys.executable, "-m", "hpc", "submit", "cluster=noctua2", f"cluster.name={accounted.name}"]
    done = subprocess.run([*command, *HELLO, "job.account=other"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "job.account=other" in done.stderr
    assert "sacctmgr" in done.stderr


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def test_limits_of_a_qos_hold(accounted: Emulation) -> None:
    sacctmgr(accounted, "add", "qos", "short", "MaxWall=00:10:00", "Flags=DenyOnLimit")
    sacctmgr(accounted, "modify", "user", _user(), "set", "QOS+=short")
    script = ["sbatch", "--parsable", "--output=/dev/null", "--qos=short", "--wrap", "true"]
    assert slurm.call([*script, "--time=10"], environment=accounted.environment).strip().isdigit()
    with pytest.raises(slurm.SlurmError, match="policy"):
        slurm.call([*script, "--time=11"], environment=accounted.environment)


def test_the_account_and_qos_of_the_description_are_registered(described: Describe, slurm_home: Path) -> None:
    cluster = described("noctua2", "cluster.name=own", "cluster.account=hpc-lola", "cluster.qos=long")
    with emulate.emulated(cluster, nodes=1, fast=True, accounting=True) as found:
        said = sacctmgr(found, "--noheader", "--parsable2", "show", "assoc", "format=account,user,qos,defaultqos")
        assert f"hpc-lola|{_user()}|long,normal|long" in said.splitlines()


def test_the_database_is_reached_by_its_socket_alone(accounted: Emulation) -> None:
    database = accounted.state.daemons[state.MARIADBD]
    ports = [each for each in psutil.Process(database.pid).net_connections("inet") if each.status == "LISTEN"]
    assert ports == []
    size = sum(file.stat().st_size for file in (accounted.directory / "mysql").rglob("*") if file.is_file())
    assert size < 60 * 2**20
    assert (accounted.directory / "etc/slurmdbd.conf").stat().st_mode & 0o777 == 0o600


def test_a_requeued_run_is_counted_start_by_start(accounted: Emulation, submit: Submit) -> None:
    run = submit(*HELLO, "job.seconds=8", "job.time=30", "cluster.requeue_hold=10")  # of which teardown takes a part
    end = time.monotonic() + 60
    while not (ledger.folder(run, 0) / "READY").exists():
        assert time.monotonic() < end, told(run)
        time.sleep(0.1)
    time.sleep(2)
    slurm.signal_batch(str(run.job_id), "USR2", accounted.environment)
    ended(run, 90)
    said = efficiency(run, lambda said: len(said["allocations"]) == 2 and said["allocations"][-1]["ended"] is not None)
    assert (said["source"], said["emulated"], said["starts"]) == ("sacct", True, 2)
    assert [each["state"] for each in said["allocations"]] == ["REQUEUED", "COMPLETED"]
    assert said["seconds"] == pytest.approx(
        sum((record.ended or 0) - record.began for record in ledger.history(run)), abs=5
    )
    assert said["waited_seconds"] >= 2
    assert said["limit_seconds"] == 2 * 30 * 60
    assert said["gpu_hours"] == pytest.approx(said["seconds"] * 8 / 3600)
    assert 0 < said["cores_used"] < 8
    assert 0.05 < said["memory_used_gib"] < 4
    assert said["memory_asked_gib"] == 480
    shown = training.hpc("efficiency", str(run.folder))
    assert "2 starts, by sacct" in shown
    assert "EMULATED" in shown


def test_how_a_job_ended_whose_supervisor_could_not_say_so_is_asked_for(accounted: Emulation, submit: Submit) -> None:
    run = submit(*HELLO, "job.seconds=60")
    end = time.monotonic() + 90
    while not (ledger.folder(run, 0) / "READY").exists():
        assert time.monotonic() < end, told(run)
        time.sleep(0.1)
    slurm.call(["scancel", "--batch", "--signal=KILL", str(run.job_id)], environment=accounted.environment)
    while (said := json.loads(training.hpc("watch", "--once", "--json", str(run.folder))))["state"] != "gone":
        assert time.monotonic() < end, said
        time.sleep(0.5)
    assert said["job"]["state"] == "FAILED" and said["reason"] == "its job ended as FAILED"
    assert "its job is FAILED" in training.hpc("explain", str(run.folder))


def test_a_run_of_a_sweep_and_all_of_it_together(accounted: Emulation, submit: Submit, wait_for: WaitFor) -> None:
    folder = Path(tempfile.mkdtemp(prefix="hpc-test-", dir="/tmp"))
    try:
        words = ["cluster=noctua2", f"cluster.name={accounted.name}", f"cluster.runs={folder}/runs", *HELLO]
        command = ["submit", "-m", "job.seconds=0,1,2", "job.nodes=1", "--wait", "--json", *words]
        sweep = json.loads(training.hpc(*command).splitlines()[0])
        os.environ["HPC_RUNS"] = f"{folder}/runs"

        def counted() -> bool:
            said = json.loads(training.hpc("efficiency", sweep["sweep"], "--json"))
            return len(said["runs"]) == 3 and all(one["cpu_share"] for one in said["runs"])

        wait_for(counted, 30)
        said = json.loads(training.hpc("efficiency", sweep["sweep"], "--json"))
        assert [one["source"] for one in said["runs"]] == ["sacct"] * 3
        assert said["together"]["seconds"] == sum(one["seconds"] for one in said["runs"])
        assert f"{sweep['sweep']}.2" in training.hpc("efficiency", sweep["sweep"])
    finally:
        os.environ.pop("HPC_RUNS", None)
        shutil.rmtree(folder)


def test_without_its_cluster_the_ledger_speaks(described: Describe, slurm_home: Path, tmp_path: Path) -> None:
    with emulate.emulated(described("noctua2", "cluster.name=brief"), nodes=2, fast=True, accounting=True):
        words = ["cluster=noctua2", "cluster.name=brief", f"cluster.runs={tmp_path}/runs", *HELLO]
        run = Run(Path(json.loads(training.hpc("submit", "--json", *words))["folder"]))
        ended(run, 60)
    said = json.loads(training.hpc("efficiency", str(run.folder), "--json"))
    assert (said["source"], said["why"]) == ("ledger", "the emulated brief is down")
    with emulate.emulated(described("noctua2", "cluster.name=brief"), nodes=2, fast=True, accounting=True) as anew:
        # Its first job has the number of ours.
        argv = ["sbatch", "--parsable", "--wait", "--output=/dev/null", "--chdir=/tmp", "--wrap", "true"]
        assert slurm.call(argv, environment=anew.environment).strip() == run.job_id
        assert slurm.sacct(accounting.NAMES, [str(run.job_id)], anew.environment)
        said = json.loads(training.hpc("efficiency", str(run.folder), "--json"))
        assert (said["source"], said["why"]) == ("ledger", "sacct knows none of its jobs")


@pytest.mark.parametrize("which", [state.SLURMDBD, state.MARIADBD])
def test_a_cluster_goes_on_while_its_accounting_is_away(
    described: Describe, slurm_home: Path, tmp_path: Path, which: str
) -> None:
    with emulate.emulated(described("noctua2", "cluster.name=lost"), nodes=2, fast=True, accounting=True) as found:
        os.kill(found.state.daemons[which].pid, signal.SIGKILL)
        words = ["cluster=noctua2", "cluster.name=lost", f"cluster.runs={tmp_path}/runs", *HELLO]
        run = Run(Path(json.loads(training.hpc("submit", "--json", *words))["folder"]))
        ended(run, 60)
        said = json.loads(training.hpc("efficiency", str(run.folder), "--json"))
        assert said["source"] == "ledger"
        assert said["why"]
        assert f"no accounting: {which} ended" in training.hpc("emulate", "status", "cluster=lost")


@pytest.mark.parametrize("started", [1, 2, 3, 4])
def test_an_up_killed_halfway_leaves_nothing_that_down_cannot_clear(
    described: Describe, slurm_home: Path, monkeypatch: pytest.MonkeyPatch, started: int
) -> None:
    """Killed right after it started munged, the database, slurmdbd, the controller, before it noted that."""
    cluster = described("noctua2", "cluster.name=halfway2")
    starts = iter(range(1, 100))
    see = processes.see

    def die_before_noting_it(pid: int) -> processes.Seen | None:
        if next(starts) == started:
            os.kill(os.getpid(), signal.SIGKILL)
        return see(pid)

    def bring_up() -> None:
        monkeypatch.setattr(processes, "see", die_before_noting_it)  # in this process alone
        emulate.up(cluster, emulate.Options(nodes=2, accounting=True))

    child = multiprocessing.get_context("fork").Process(target=bring_up)
    child.start()
    try:
        child.join(30)
        assert child.exitcode == -signal.SIGKILL
        assert len(processes.members(state.root() / "halfway2")) >= started
    finally:
        child.kill()
        emulate.down("halfway2")
    assert not processes.members(state.root() / "halfway2")
    assert not (state.root() / "halfway2").exists()


def test_a_database_that_does_not_start_says_why_and_ends_all(
    described: Describe, slurm_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpc.emulate import accounting
    from hpc.errors import Failed

    monkeypatch.setitem(accounting._DATABASE, "innodb-data-file-path", "nonsense")
    with pytest.raises(Failed, match="MariaDB's own tables") as failure:
        emulate.up(described("noctua2", "cluster.name=broken2"), emulate.Options(nodes=1, accounting=True))
    assert "innodb" in str(failure.value).lower()
    assert not processes.members(state.root() / "broken2")
    assert not (state.root() / "broken2").exists()


def test_what_is_missing_is_named_with_its_packages(
    described: Describe, slurm_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpc.emulate import accounting

    monkeypatch.setattr(accounting, "missing_packages", lambda: ["mariadb-server-core", "slurmdbd"])
    with pytest.raises(Refused, match=r"apt-get install .*mariadb-server-core slurmdbd"):
        emulate.up(described("noctua2", "cluster.name=bare2"), emulate.Options(accounting=True))


def test_all_of_noctua2_with_accounting_is_up_within_20_s(described: Describe, slurm_home: Path) -> None:
    start = time.monotonic()
    with emulate.emulated(described("noctua2", "cluster.name=whole2"), accounting=True) as emulation:
        assert time.monotonic() - start < 20
        assert emulation.nodes == 24
        assert emulation.accounting_ended() == []


@pytest.mark.skipif(os.getuid() != 0, reason="who is no root runs everything here as an ordinary user anyway")
def test_an_ordinary_user_needs_no_rights(described: Describe, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody, cluster = 65534, described("noctua2", "cluster.name=ordinary2")
    home = Path(tempfile.mkdtemp(prefix="hpc-test-", dir="/tmp"))
    os.chown(home, nobody, nobody)
    monkeypatch.setenv("HPC_HOME", str(home))

    def rehearse() -> None:
        os.setgroups([])
        os.setgid(nobody)
        os.setuid(nobody)
        os.chdir(home)
        with emulate.emulated(cluster, nodes=1, fast=True, accounting=True) as emulation:
            said = slurm.call(["srun", "--mem=0", "id", "-u"], environment=emulation.environment)
            assert said.split() == [str(nobody)]
            end = time.monotonic() + 20  # the controller tells slurmdbd a moment later
            while not (rows := slurm.sacct(["JobID", "User"], ["1"], emulation.environment)):
                assert time.monotonic() < end
                time.sleep(0.2)
            assert rows[0] == ["1", "nobody"]

    child = multiprocessing.get_context("fork").Process(target=rehearse)
    child.start()
    try:
        child.join(60)
        assert child.exitcode == 0
    finally:
        child.kill()
        with suppress(FileNotFoundError):
            emulate.down("ordinary2")
        shutil.rmtree(home)
