"""Why ranks ended that nobody asked to: from their exit statuses and last words to a cause. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hpc.exits import Exit, name
from hpc.requeue import Cause

_HUNG_WORD = "HangError:"
# Exit statuses: by which the trainer's watchdog ends a rank, and by which a rank gives up on a first reduction.
HUNG, UNFIT = 75, 76
LOST = {128 + 9, 128 + 15}  # of ranks that were ended because another had

# What libraries print, by the cause it tells of. The first that matches a line counts.
_PATTERNS: tuple[tuple[Cause, str], ...] = (
    (Cause.preflight, r"^PreflightError:|^Error: preflight:"),
    (Cause.hang, r"^HangError:|Watchdog caught collective operation timeout"),
    (
        Cause.gpu_memory,
        r"OutOfMemoryError|CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|HIP out of memory",
    ),
    (
        Cause.host_memory,
        r"\bMemoryError\b|DefaultCPUAllocator: (can't|not enough)|Cannot allocate memory|std::bad_alloc"
        r"|[Oo]om[-_]kill|Out Of Memory",
    ),
    (
        Cause.gpu_fault,
        r"\bXid\b|\bECC\b|CUDA error: (uncorrectable|unspecified launch failure|hardware|an illegal memory access"
        r"|misaligned|the launch timed out|unknown error|all CUDA-capable devices are busy|no CUDA-capable device"
        r"|device unavailable|peer access)|CUDA driver (error|initialization)|GPU (is lost|has fallen off)"
        r"|Unable to determine the device handle|NVML_ERROR|this process sees no GPU",
    ),
    (
        Cause.storage,
        r"No space left on device|[Dd]isk quota exceeded|Read-only file system|Stale file handle"
        r"|Input/output error|Remote I/O error|Transport endpoint is not connected|the disk is full"
        r"|the quota is used up|the file system is read-only|^PermissionError:",
    ),
    (
        Cause.network,
        r"nccl(System|Remote|Internal|UnhandledCuda)?Error|NCCL (error|WARN)|Connection (reset|refused|closed)"
        r"|Connection timed out|Broken pipe|No route to host|Network is unreachable|Timed out waiting|\bibv_"
        r"|[Gg]loo.*([Tt]imed out|[Cc]onnect|transport)|DistNetworkError|DistStoreError|TCPStore"
        r"|rank 0 did not say within",
    ),
)
_ERROR = re.compile(r"^(?:[\w.]*(?:Error|Exception|Interrupt|Exit|Warning)\b.*|Error: .*)$")
# What launchers print of a process of theirs that failed; what that printed itself says why.
_LAUNCHER_ERROR = re.compile(r"^(?:[\w.]*\.)?(?:ChildFailedError|CalledProcessError)\b")
_SENTENCED = re.compile(r"closing signal|sigkill_handler|Killing subprocess")
# How such a process ended: torchrun and accelerate; deepspeed; subprocess, which accelerate uses for one process.
_CHILD_EXITS = (
    re.compile(r"(?s)Root Cause \(first observed failure\):.*?exitcode\s*: (-?\d+)"),
    re.compile(r"\bexits with return code = (-?\d+)"),
    re.compile(r"CalledProcessError: .* died with <Signals\.\w+: (\d+)>"),
)
# A process of several marks its lines: [rank1]: by torch, [default1]: and [titan] and the like by launchers.
_MARK = re.compile(r"^(?:\[(?:rank|default|[a-z]+_?)\d+\]:\s?)+")
_PATTERN = tuple((cause, re.compile(text)) for cause, text in _PATTERNS)
# What a rank prints of nobody but itself.
_OWN = {Cause.gpu_memory, Cause.host_memory, Cause.gpu_fault, Cause.storage}
# Among causes that several ranks show: the others follow from the first of these.
_ROOTS = (
    Cause.gpu_memory,
    Cause.host_memory,
    Cause.gpu_fault,
    Cause.storage,
    Cause.error,
    Cause.crash,
    Cause.hang,
    Cause.preflight,
    Cause.network,
)


@dataclass(frozen=True)
class Diagnosis:
    """A cause, what it was seen by, and the nodes to be suspected for it."""

    cause: Cause
    evidence: str
    suspects: tuple[str, ...] = ()


def diagnose(
    exits: Sequence[Exit],
    words: Mapping[int, str],
    *,
    nodes: Sequence[str] = (),
    ranks_per_node: int = 1,
    out_of_memory: str = "",
    stopped: str = "",
) -> Diagnosis:
    """The root of an attempt's end.

    Args:
        exits: of ranks that did not end well.
        words: the end of each rank's log.
        nodes: of the attempt, in the order of its ranks, ``ranks_per_node`` on each.
        stopped: why the ranks say that they were asked to stop, if they were.
        out_of_memory: what the kernel says of processes that it ended for want of memory while the attempt ran.
    """
    seen = [finding for each in exits if (finding := _of_rank(each, words.get(each.rank, ""), out_of_memory))]
    told = {each.rank for each in exits}
    # Without any exit status, as where srun itself died, the logs are all there is.
    seen += [
        finding
        for rank, text in words.items()
        if rank not in told and not exits and (finding := _of_words(Exit(rank, 1), text))
    ]
    if not seen:
        code = max((each.code for each in exits), default=0)
        if not code and stopped:
            said = f"the ranks stopped by themselves after {stopped}, of which this process knows nothing"
            return Diagnosis(Cause.crash, said)
        return Diagnosis(Cause.crash, f"{name(code)}; no error in the logs of the ranks")
    exit_, cause, said = min(seen, key=lambda found: (_ROOTS.index(found[1]), not found[0].first))
    where = _node(exit_, nodes, ranks_per_node)
    if cause is Cause.hang:
        # Those that wait say so; to be suspected are the ranks that could not even do that.
        stuck = [rank for rank in range(len(nodes) * ranks_per_node) if _HUNG_WORD not in words.get(rank, "")]
        found = {_node(Exit(rank, 0), nodes, ranks_per_node) for rank in stuck}
        where = found.pop() if len(found) == 1 else None
        said += f"; nothing came from rank {', '.join(map(str, stuck[:8]))}" if stuck else ""
    if cause is Cause.preflight:
        return Diagnosis(cause, said)  # whoever waited longest is not to blame
    place = f" on {where}" if where and cause is not Cause.hang else ""
    return Diagnosis(cause, f"rank {exit_.rank}{place}: {said}", (where,) if where else ())


def _node(exit_: Exit, nodes: Sequence[str], ranks_per_node: int) -> str | None:
    if exit_.node in nodes:
        return exit_.node
    index = exit_.rank // max(1, ranks_per_node)
    return nodes[index] if index < len(nodes) else None


def _of_child(exit_: Exit, text: str) -> Exit:
    """The end of the process that a launcher on this rank says has failed first, or of the rank itself."""
    for pattern in _CHILD_EXITS:
        if found := pattern.findall(text):
            code = int(found[-1])
            signalled = code < 0 or pattern is _CHILD_EXITS[-1]
            return replace(exit_, code=128 + abs(code)) if signalled else exit_
    return exit_


def _of_rank(exit_: Exit, text: str, out_of_memory: str) -> tuple[Exit, Cause, str] | None:
    if exit_.code <= 128:
        child = _of_child(exit_, text)
        if child is not exit_:
            exit_ = replace(child, first=True)  # by what the launcher says
    if exit_.code in LOST and not exit_.first:
        # Ended because another had, and what it printed is about that; unless it hindered the others itself.
        found = _of_words(exit_, text)
        return found if found and found[1] in _OWN else None
    if exit_.code == 128 + 9 and out_of_memory:
        return exit_, Cause.host_memory, f"SIGKILL; {out_of_memory}"
    found = _of_words(exit_, text)
    if exit_.code == UNFIT:
        return exit_, Cause.preflight, found[2] if found else name(exit_.code)
    if exit_.code == HUNG and (found is None or found[1] is not Cause.hang):
        return exit_, Cause.hang, name(exit_.code)
    if found is None or (exit_.code > 128 and found[1] in (Cause.network, Cause.error)):
        return exit_, Cause.crash, name(exit_.code) + (f"; {found[2]}" if found else "")
    return found


def _of_words(exit_: Exit, text: str) -> tuple[Exit, Cause, str] | None:
    """The last error that a rank printed, and what it is about."""
    lines = [_MARK.sub("", line.strip()) for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if line and not (_LAUNCHER_ERROR.match(line) or _SENTENCED.search(line))]
    errors = [line for line in lines if _ERROR.match(line)]
    for line in [*reversed(errors[-3:]), *reversed(lines[-40:])]:
        for cause, pattern in _PATTERN:
            if pattern.search(line):
                return exit_, cause, line[:300]
        if line in errors[-1:]:
            break  # the error that ended the rank is about nothing known
    return (exit_, Cause.error, errors[-1][:300]) if errors else None
