"""Why ranks ended that nobody asked to, by what they and srun said."""

from __future__ import annotations

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc.diagnose import diagnose
from hpc.exits import Exit, failed_nodes, of_srun
from hpc.requeue import Cause

NODES = ["n1", "n2"]
LOST_PEER = "RuntimeError: [../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:2231"
KILLED = 128 + signal.SIGKILL


def cause_of(line: str, code: int = 1) -> Cause:
    text = f"step 3\nTraceback (most recent call last):\n  File ...\n{line}\n"
    return diagnose([Exit(0, code, first=True)], {0: text}, nodes=NODES).cause


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", Cause.gpu_memory),
        ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", Cause.gpu_memory),
        ("MemoryError", Cause.host_memory),
        ("RuntimeError: [enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't", Cause.host_memory),
        ("RuntimeError: CUDA error: uncorrectable ECC error encountered", Cause.gpu_fault),
        ("RuntimeError: CUDA error: an illegal memory access was encountered", Cause.gpu_fault),
        ("Error: node n1: train.device=auto: this process sees no GPU. To leave this node out:", Cause.gpu_fault),
        (LOST_PEER, Cause.network),
        ("torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:2210, remote", Cause.network),
        ("torch.distributed.DistNetworkError: The client socket has timed out after 300000ms", Cause.network),
        ("OSError: [Errno 28] No space left on device: '/scratch/x'", Cause.storage),
        ("Error: could not keep the run's records at x: the disk is full. Make room", Cause.storage),
        ("ValueError: shapes (3,) and (4,)", Cause.error),
        ("[rank3]: RuntimeError: what torch's own hook prints", Cause.error),
        ("[rank3]: torch.OutOfMemoryError: CUDA out of memory.", Cause.gpu_memory),
        ("[default7]:MemoryError", Cause.host_memory),
        ("ModuleNotFoundError: No module named 'flash_attn'", Cause.error),
        ("a sentence", Cause.crash),
    ],
)
def test_the_last_error_of_a_rank_tells_its_cause(line: str, cause: Cause) -> None:
    assert cause_of(line) is cause


def test_a_rank_that_was_killed_is_the_root_of_connections_that_broke() -> None:
    exits = of_srun(
        "srun: error: n2: task 3: Killed\n"
        "srun: error: n1: tasks 0-1: Exited with exit code 1\n"
        "srun: error: n2: task 2: Terminated\n"
    )
    found = diagnose(exits, {0: LOST_PEER, 1: LOST_PEER}, nodes=NODES, ranks_per_node=2)
    assert (found.cause, found.suspects) == (Cause.crash, ("n2",))
    assert found.evidence == "rank 3 on n2: SIGKILL"


def test_an_exception_is_the_root_of_connections_that_broke() -> None:
    exits = [Exit(0, 1, first=True), Exit(1, 1), Exit(2, 143)]
    found = diagnose(exits, {0: LOST_PEER, 1: "KeyError: 'x'"}, nodes=NODES, ranks_per_node=2)
    assert found.cause is Cause.error
    assert "KeyError" in found.evidence


def test_broken_connections_alone_are_the_network() -> None:
    exits = [Exit(0, 1, first=True), Exit(1, KILLED)]
    assert diagnose(exits, {0: LOST_PEER}, nodes=NODES).cause is Cause.network


def test_a_kill_is_for_want_of_memory_only_if_the_kernel_or_slurm_says_so() -> None:
    exits = [Exit(1, KILLED, first=True)]
    assert diagnose(exits, {}, nodes=NODES).cause is Cause.crash
    assert diagnose(exits, {}, nodes=NODES, out_of_memory="the kernel ended 1").cause is Cause.host_memory
    said = "slurmstepd: error: Detected 1 oom_kill event in StepId=5.0. Some of the step tasks have been OOM Killed."
    assert diagnose(exits, {1: said}, nodes=NODES).cause is Cause.host_memory


def test_of_a_hang_the_rank_that_could_not_speak_is_suspected() -> None:
    hung = "HangError: a step did not end within 300 s; rank 0 is in step.py:95 take"
    exits = [Exit(0, 75, "n1", first=True), Exit(1, 75, "n1"), Exit(2, 75, "n2"), Exit(3, KILLED, "n2")]
    found = diagnose(exits, {0: hung, 1: hung, 2: hung}, nodes=NODES, ranks_per_node=2)
    assert (found.cause, found.suspects) == (Cause.hang, ("n2",))
    assert "nothing came from rank 3" in found.evidence
    everybody = diagnose(exits[:3], dict.fromkeys(range(4), hung), nodes=NODES, ranks_per_node=2)
    assert (everybody.cause, everybody.suspects) == (Cause.hang, ())


def test_a_rank_without_memory_that_others_waited_for_is_the_root() -> None:
    hung = "HangError: a step did not end within 4 s; rank 0 is in base.py:70 _call"
    exits = [Exit(0, 75, first=True), Exit(1, KILLED)]
    found = diagnose(
        exits, {0: hung, 1: "Exception ignored in thread started by: <object>\nMemoryError: "}, nodes=NODES
    )
    assert (found.cause, found.suspects) == (Cause.host_memory, ("n2",))


def test_srun_tells_of_each_task_once_and_in_order() -> None:
    text = (
        "slurmstepd: error: *** STEP 7.0 ON n1 CANCELLED AT 2026-01-31T12:00:00 ***\n"
        "srun: error: n1: task 0: Segmentation fault (core dumped)\n"
        "srun: error: n2: tasks 2,4-5: Exited with exit code 75\n"
        "srun: error: n1: task 0: Killed\n"
        "srun: error: n2: task 1: Out Of Memory\n"
        "srun: error: Node failure on n2\n"
    )
    assert of_srun(text) == [
        Exit(0, 128 + signal.SIGSEGV, "n1", True),
        *(Exit(rank, 75, "n2") for rank in (2, 4, 5)),
        Exit(1, KILLED, "n2"),
    ]
    assert failed_nodes(text) == ["n2"]


@given(st.text())
def test_whatever_srun_and_the_ranks_print_there_is_a_cause(text: str) -> None:
    found = diagnose(of_srun(text), {0: text, 1: f"srun: error: n1: task {text}: Killed"}, nodes=NODES)
    assert found.cause in Cause
    assert found.evidence
