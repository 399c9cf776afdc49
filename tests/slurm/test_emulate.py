"""Emulated clusters, on a real Slurm: their shape, their manners, and that nothing but theirs is ever ended."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from hpc import emulate, slurm
from hpc.config import Cluster
from hpc.emulate import Emulation, Options, daemons, lifecycle, processes, state
from hpc.errors import Failed, Refused

Describe = Callable[..., Cluster]
WaitFor = Callable[..., None]


@pytest.fixture(scope="module")
def small(slurm_home: Path, described: Describe) -> Callable[..., Cluster]:
    """small("a"): two nodes of noctua2's kind under another name."""

    def cluster(name: str, *overrides: str) -> Cluster:
        nodes = ["cluster.node_types.gpu.count=2", "cluster.node_types.gpu.names='n[1-2]'"]
        return described("noctua2", f"cluster.name={name}", *nodes, *overrides)

    return cluster


@pytest.fixture(scope="module")
def whole(slurm_home: Path, described: Describe) -> Iterator[tuple[Emulation, float]]:
    """All of noctua2, as a site would have it, and the seconds it took. Its ports differ from ``emulation``'s."""
    cluster = described("noctua2", "cluster.name=whole")
    start = time.monotonic()
    with emulate.emulated(cluster) as emulation:
        yield emulation, time.monotonic() - start


def call(emulation: Emulation, *argv: str, timeout: float = 60.0) -> str:
    return slurm.call(list(argv), environment=emulation.environment, timeout=timeout)


def submit(emulation: Emulation, command: str, *options: str) -> str:
    """Submit a command and return the job's id."""
    argv = ["sbatch", "--parsable", "--output=/dev/null", "--mem=0", *options, "--wrap", command]
    return call(emulation, *argv).strip()


def job(emulation: Emulation, job_id: str) -> dict[str, str]:
    return slurm.job(job_id, emulation.environment)


def running(emulation: Emulation, job_id: str) -> bool:
    return job(emulation, job_id)["JobState"] == "RUNNING"


def members(emulation: Emulation) -> list[processes.Member]:
    return processes.members(emulation.directory, emulation.state.noted())


def members_of(name: str) -> list[processes.Member]:
    """Also of an emulation whose directory is gone."""
    return processes.members(state.root() / name)


def test_all_of_noctua2_is_up_within_15_s(whole: tuple[Emulation, float]) -> None:
    emulation, seconds = whole
    assert seconds < 15
    assert emulation.nodes == 24
    text = call(emulation, "sinfo", "--noheader", "-o", "%D %T %c %m %G %l")
    assert text.split() == ["24", "idle", "128", "491520", "gpu:a100:4", "7-00:00:00"]


def test_96_tasks_see_their_nodes_and_gpus(whole: tuple[Emulation, float]) -> None:
    emulation, _ = whole
    shape = ["-N", "24", "--ntasks-per-node=4", "--gres=gpu:a100:4", "--mem=0"]
    said = call(emulation, "srun", *shape, "bash", "-c", "echo $SLURM_PROCID $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES")
    rows = sorted((int(rank), node, gpus) for rank, node, gpus in (line.split() for line in said.splitlines()))
    assert rows == [(rank, f"n2gpu{1201 + rank // 4}", "0,1,2,3") for rank in range(96)]


def test_without_fast_slurm_decides_as_on_a_site(whole: tuple[Emulation, float]) -> None:
    emulation, _ = whole
    config = dict(re.findall(r"^(\S+)\s+= (.*)$", call(emulation, "scontrol", "show", "config"), re.MULTILINE))
    assert config["KillWait"].split()[0] == "30"
    assert config["SlurmdTimeout"].split()[0] == "300"
    assert config["SchedulerParameters"] == "(null)"
    assert config["AuthInfo"] == f"socket={emulation.directory}/munge/sock"
    assert config["MaxArraySize"] == "1001"


def test_limits_are_those_of_the_description(whole: tuple[Emulation, float]) -> None:
    emulation, _ = whole
    with pytest.raises(slurm.SlurmError, match="Invalid job array"):
        submit(emulation, "true", "--array=0-1001")
    with pytest.raises(slurm.SlurmError, match="not available"):
        submit(emulation, "true", "--gres=gpu:a100:5")


def test_finding_it_is_cheap_and_starts_nothing(
    whole: tuple[Emulation, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    fastest = 1.0
    for _ in range(5):
        start = time.perf_counter()
        assert emulate.find("whole") is not None
        fastest = min(fastest, time.perf_counter() - start)
    assert fastest < 0.005
    assert emulate.find("no_such") is None


def test_the_directory_is_for_its_user_alone(whole: tuple[Emulation, float]) -> None:
    emulation, _ = whole
    assert emulation.directory.stat().st_mode & 0o777 == 0o700
    assert (emulation.directory / "munge/key").stat().st_mode & 0o777 == 0o600


def test_a_request_is_checked_against_what_is_up(emulation: Emulation, described: Describe) -> None:
    cluster = emulation.described(described("noctua2"))
    assert cluster.node_types["gpu"].count == 4
    assert cluster.node_types["gpu"].names == "n2gpu[1201-1204]"
    assert emulation.preemptible == "gpu_preempt"
    assert cluster.partitions["gpu_preempt"].preemptible
    assert emulation.fast


def test_a_higher_partition_requeues_the_preemptible_one(emulation: Emulation, wait_for: WaitFor) -> None:
    low = submit(emulation, "sleep 60", "--partition=gpu_preempt", "-N4", "--exclusive", "--requeue")
    wait_for(lambda: running(emulation, low))
    high = submit(emulation, "true", "-N4", "--exclusive")
    wait_for(lambda: job(emulation, high)["JobState"] == "COMPLETED")
    assert job(emulation, low)["Restarts"] == "1"
    assert job(emulation, low)["JobState"] == "PENDING"
    call(emulation, "scancel", low)


def test_a_killed_node_takes_its_steps_along_and_comes_back(emulation: Emulation, wait_for: WaitFor) -> None:
    lost, kept = "n2gpu1202", "n2gpu1201"
    job_id = submit(emulation, "srun sleep 60", "-N2", f"--nodelist={kept},{lost}", "--no-requeue")

    def tasks(node: str) -> list[processes.Member]:
        return [member for member in members(emulation) if member.node == node and member.name == "sleep"]

    wait_for(lambda: tasks(lost) and tasks(kept))
    survivor = tasks(kept)[0].process
    emulation.kill_node(lost)
    assert not [member for member in members(emulation) if member.node == lost]
    assert processes.alive(survivor)
    emulation.kill_node(lost, report=True)
    wait_for(lambda: job(emulation, job_id)["JobState"] == "NODE_FAIL")
    assert emulation.node_states()[lost].startswith("down")
    assert emulate.find("noctua2") is not None
    emulation.start_node(lost)
    wait_for(lambda: set(emulation.node_states().values()) == {"idle"})
    assert call(emulation, "srun", "-w", lost, "bash", "-c", "echo $SLURMD_NODENAME").strip() == lost
    with pytest.raises(Refused, match="n2gpu1204"):
        emulation.kill_node("n2gpu1205")


@pytest.mark.parametrize("kill", [False, True])
def test_a_restarted_controller_knows_its_jobs(emulation: Emulation, wait_for: WaitFor, kill: bool) -> None:
    job_id = submit(emulation, "sleep 60")
    wait_for(lambda: running(emulation, job_id))
    if kill:  # what a crash leaves is what had reached the disk
        started = time.time()
        wait_for(lambda: (emulation.directory / "state/job_state").stat().st_mtime > started)
    emulation.restart_controller(kill)
    assert emulate.find("noctua2") is not None
    wait_for(lambda: running(emulation, job_id))
    call(emulation, "scancel", job_id)


def test_two_side_by_side_and_down_ends_exactly_one(small: Callable[..., Cluster], wait_for: WaitFor) -> None:
    with emulate.emulated(small("left")) as left, emulate.emulated(small("right")) as right:
        assert left.slurm_conf != right.slurm_conf
        # A person's shell, working in the directory with its SLURM_CONF exported, is no part of the cluster.
        foreign = subprocess.Popen(
            ["sleep", "60"], cwd=left.directory, env={**os.environ, **left.environment}, start_new_session=True
        )
        try:
            theirs = {member.process for member in members(right)}
            # One task leaves its parents and session behind, one clears its environment.
            submit(left, "setsid -f sleep 61; env -i /bin/sleep 62")
            wait_for(lambda: len([m for m in members(left) if m.name == "sleep"]) == 2)
            ours = members(left)
            assert {"munged", "slurmctld", "slurmd", "slurmstepd", "sleep"} <= {member.name for member in ours}
            assert not theirs & {member.process for member in ours}
            assert emulate.down("left")
            assert not [member for member in ours if processes.alive(member.process)]
            assert not left.directory.exists()
            assert foreign.poll() is None
            assert {member.process for member in members(right)} == theirs
            assert set(right.node_states().values()) == {"idle"}
        finally:
            foreign.kill()
            foreign.wait()
    assert not emulate.down("left")


def test_a_dead_one_is_cleared_by_the_next_up(small: Callable[..., Cluster], wait_for: WaitFor) -> None:
    emulation = emulate.up(small("crashed"))
    try:
        os.kill(emulation.state.daemons[state.SLURMCTLD].pid, signal.SIGKILL)
        wait_for(lambda: emulate.find("crashed") is None)
        orphans = [member.process for member in members(emulation)]
        assert len(orphans) >= 3  # munged and two slurmd
        said: list[str] = []
        again = emulate.up(small("crashed"), say=said.append)
        assert "died" in said[0]
        assert not [process for process in orphans if processes.alive(process)]
        assert again.alive()
    finally:
        emulate.down("crashed")


@pytest.mark.parametrize("started", [1, 2, 3, 4])
def test_an_up_killed_halfway_leaves_nothing_that_down_cannot_clear(
    small: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch, started: int
) -> None:
    cluster = small("halfway")
    starts = iter(range(1, 100))
    see = processes.see

    def die_before_noting_it(pid: int) -> processes.Seen | None:
        if next(starts) == started:
            os.kill(os.getpid(), signal.SIGKILL)
        return see(pid)

    def bring_up() -> None:
        monkeypatch.setattr(processes, "see", die_before_noting_it)  # in this process alone
        emulate.up(cluster)

    child = multiprocessing.get_context("fork").Process(target=bring_up)
    child.start()
    try:
        child.join(30)
        assert child.exitcode == -signal.SIGKILL
        assert len(members_of("halfway")) >= started
        assert emulate.find("halfway") is None
        assert "hpc emulate down cluster=halfway" in hpc("emulate", "status").stdout
    finally:
        child.kill()
        emulate.down("halfway")
    assert not members_of("halfway")
    assert not (state.root() / "halfway").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_up_ends_what_it_started(slurm_home: Path, wait_for: WaitFor, number: int) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "hpc", "emulate", "up", "cluster=noctua2", "cluster.name=stopped"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # Whoever starts the tests in the background of a shell hands an ignored SIGINT on to them.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        wait_for(lambda: len(members_of("stopped")) > 3)
        child.send_signal(number)
        said, _ = child.communicate(timeout=30)
        assert child.returncode == 130, said
        assert b"Traceback" not in said
        assert not members_of("stopped")
        assert not (state.root() / "stopped").exists()
    finally:
        child.kill()
        child.wait()
        emulate.down("stopped")


def test_a_daemon_that_does_not_start_says_why_and_ends_all(small: Callable[..., Cluster]) -> None:
    with pytest.raises(Failed, match="slurmctld ended") as failure:
        emulate.up(small("broken", "cluster.partitions.gpu.max_time=soon"))
    assert "MaxTime" in str(failure.value)
    assert not members_of("broken")
    assert not (state.root() / "broken").exists()


def test_a_port_that_was_taken_meanwhile_is_another_one_next(
    small: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = daemons.free_ports
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", choose(3)))
        taken.listen()
        first = iter([taken.getsockname()[1]])
        monkeypatch.setattr(daemons, "free_ports", lambda count: next(first, None) or choose(count))
        with emulate.emulated(small("ports")) as emulation:
            assert emulation.state.controller_port != taken.getsockname()[1]


def test_up_again_is_the_same_one_unless_it_should_differ(small: Callable[..., Cluster]) -> None:
    with emulate.emulated(small("twice")) as emulation:
        before = {member.process for member in members(emulation)}
        assert emulate.up(small("twice")) == emulation
        assert {member.process for member in members(emulation)} == before
        with pytest.raises(Refused, match=r"fast=False, not True.*hpc emulate down cluster=twice"):
            emulate.up(small("twice"), Options(fast=True))
        with pytest.raises(Refused, match="up already"), emulate.emulated(small("twice")):
            pass
        assert emulation.alive()


def test_where_the_real_cluster_answers_it_is_refused(
    small: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    with emulate.emulated(small("real", "cluster.slurm_name=pc2")) as emulation:
        monkeypatch.setenv("SLURM_CONF", str(emulation.slurm_conf))
        with pytest.raises(Refused, match="answers here as pc2"):
            emulate.up(small("rehearsal", "cluster.slurm_name=pc2"))
        assert not (state.root() / "rehearsal").exists()


def test_what_this_machine_cannot_hold_is_refused(
    small: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemons, "memory_available", lambda: 40.0)
    with pytest.raises(Refused, match=r"2 nodes take about 44 MB, and 40 MB are free. Try: --nodes 1"):
        emulate.up(small("big"))
    monkeypatch.undo()
    monkeypatch.setenv("HPC_HOME", "/tmp/" + "long" * 20)
    with pytest.raises(Refused, match=r"too long by .* HPC_HOME"):
        emulate.up(small("far"))
    assert not Path("/tmp/" + "long" * 20).exists()


def test_missing_programs_are_named_with_their_packages(
    small: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemons, "_PATH", "/nowhere")
    with pytest.raises(Refused, match=r"apt-get install .*munge slurm-client slurmctld slurmd"):
        emulate.up(small("bare"))


def test_a_user_without_a_name_is_refused(small: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    monkeypatch.setattr(lifecycle, "_check_place", lambda *_: None)
    state.root().mkdir(exist_ok=True)
    with pytest.raises(Refused, match="54321 has no name"):
        emulate.up(small("nameless"))


def test_one_of_another_machine_is_left_alone(small: Callable[..., Cluster]) -> None:
    cluster = small("shared")
    directory = state.root() / "shared"
    state.create(directory, state.State("shared", ["n1"], {}, {}, up=True, host="login2"))
    try:
        assert emulate.find("shared") is None
        for act in (lambda: emulate.up(cluster), lambda: emulate.down("shared")):
            with pytest.raises(Refused, match="started on login2"):
                act()
        assert directory.exists()
    finally:
        shutil.rmtree(directory)


def test_pids_of_an_earlier_boot_mean_nothing(small: Callable[..., Cluster]) -> None:
    me = processes.see(os.getpid())
    assert me is not None
    daemons_then = {state.SLURMCTLD: me.process}
    state.create(
        state.root() / "old", state.State("old", ["n1"], {}, {}, up=True, boot="an earlier one", daemons=daemons_then)
    )
    assert emulate.find("old") is None
    assert emulate.down("old")


def test_one_up_or_down_at_a_time(small: Callable[..., Cluster]) -> None:
    with lifecycle._lock(state.root() / "locked"):
        assert emulate.busy("locked")
        with pytest.raises(Failed, match="just bringing locked up or down"):
            emulate.up(small("locked"))
    assert not emulate.busy("locked")


def hpc(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "hpc", *argv], capture_output=True, text=True, timeout=60)


def test_what_a_person_types_and_sees(slurm_home: Path) -> None:
    names = ["cluster=a100_4x8", "cluster.name=typed"]
    try:
        done = hpc("emulate", "up", *names, "--nodes", "2", "--fast")
        assert done.returncode == 0, done.stderr
        assert "EMULATED typed: all 2 nodes idle after" in done.stderr
        assert "hpc emulate down cluster=typed" in done.stdout
        status = hpc("emulate", "status", "cluster=typed").stdout
        assert "EMULATED typed (--fast): nodes: 2 idle; queue: empty" in status
        assert f"export SLURM_CONF={slurm_home}/emulated/typed/etc/slurm.conf" in status
    finally:
        done = hpc("emulate", "down", "cluster=typed", "--keep")
    assert done.returncode == 0
    logs = list((slurm_home / "emulated").glob("typed.log-*/slurmctld.log"))
    assert len(logs) == 1
    assert "is not up" in hpc("emulate", "down", "cluster=typed").stdout


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["up", "cluster=local"], "launcher=local"),
        (["up", "cluster=noctua2", "--nodes", "25"], "Allowed: 1 to 24"),
        (["up", "cluster=noctua2", "--node-timeout", "1"], "allowed: 5 to 65533"),
        (["up"], "Try: hpc emulate up cluster=noctua2"),
        (["up", "cluster=noctua3"], "Try: cluster=noctua2"),
        (["down"], "which one?"),
    ],
)
def test_a_mistake_is_told_in_words(slurm_home: Path, argv: list[str], said: str) -> None:
    done = hpc("emulate", *argv)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="who is no root runs everything here as an ordinary user anyway")
def test_an_ordinary_user_needs_no_rights(small: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch) -> None:
    nobody, cluster = 65534, small("ordinary")
    home = Path(tempfile.mkdtemp(prefix="hpc-test-", dir="/tmp"))
    os.chown(home, nobody, nobody)
    monkeypatch.setenv("HPC_HOME", str(home))

    def rehearse() -> None:
        os.setgroups([])
        os.setgid(nobody)
        os.setuid(nobody)
        os.chdir(home)
        with emulate.emulated(cluster) as emulation:
            said = call(emulation, "srun", "-N2", "--gres=gpu:a100:4", "id", "-u")
            assert said.split() == [str(nobody)] * 2
            submit(emulation, "sleep 60", "-N2")
        assert not members_of("ordinary")

    child = multiprocessing.get_context("fork").Process(target=rehearse)
    child.start()
    try:
        child.join(60)
        assert child.exitcode == 0
    finally:
        child.kill()
        with suppress(FileNotFoundError):
            emulate.down("ordinary")
        shutil.rmtree(home)
