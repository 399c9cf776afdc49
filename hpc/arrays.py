"""From the requests of a sweep to Slurm arrays: one folder, one array for each distinct script."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from hpc import check_access, executor, provenance, script, slurm, submit
from hpc.config import Cluster, Launcher
from hpc.errors import Failed, Refused
from hpc.resume import clear_ends
from hpc.runs import Run, disk_failure, read_json, write_bytes, write_json, write_text
from hpc.standing import ENDED, standings
from hpc.submit import Plan
from hpc.sweep import Array, Member, Sweep, changes

PLACE = Path("/FOLDER")  # stands for the sweep's folder where scripts are only compared


def group(plans: list[Plan]) -> list[list[int]]:
    """Numbers of the requests that one array can ask for, in order: what Slurm is told is the same.

    An array has as many tasks as the cluster has indices. Without Slurm all runs are one group, taken in turn.
    """
    if all(plan.config.cluster.launcher is Launcher.local for plan in plans):
        return [list(range(len(plans)))]
    groups: dict[str, list[int]] = {}
    for number, plan in enumerate(plans):
        groups.setdefault(array_script(plan, PLACE, 0, 1), []).append(number)
    return [part for found in groups.values() for part in _chunks(found, plans[found[0]].config.cluster)]


def _chunks(numbers: list[int], cluster: Cluster) -> Iterator[list[int]]:
    # MaxArraySize bounds the index: the largest is one less.
    for start in range(0, len(numbers), cluster.max_array_size):
        yield numbers[start : start + cluster.max_array_size]


def refuse_many_clusters(plans: list[Plan]) -> None:
    """
    Raises:
        Refused: if the sweep is over clusters.
    """
    names = list(dict.fromkeys(plan.config.cluster.name for plan in plans))
    if len(names) > 1:
        raise Refused(
            f"cluster={','.join(names)}: a sweep runs on one cluster. Submit one for each: cluster={names[0]}"
        )


def refuse_too_many(plans: list[Plan]) -> None:
    """
    Raises:
        Refused: if the user may not have so many jobs in the queue.
    """
    first = plans[0]
    if problems := check_access.submission(first.config, first.request, first.site, len(plans)):
        raise Refused("\n".join(map(str, problems)))


def array_script(plan: Plan, folder: Path, number: int, tasks: int) -> str:
    """What would be submitted for an array of runs like this one."""
    return script.render_array(plan.config, plan.request, folder, number, tasks, emulated=plan.emulated)


def dispatch(plans: list[Plan], typed: list[str], files: Mapping[str, bytes] | None = None) -> Sweep:
    """Write the sweep's folder and hand its runs to the cluster.

    Args:
        files: what else lies in the folder, by name.

    Raises:
        Refused: if they are too many for the user, or of several clusters.
        Failed: if the folder cannot be written or Slurm does not take every array; then none is left in the queue.
    """
    refuse_many_clusters(plans)
    refuse_too_many(plans)
    first = plans[0]
    submit.need_sbatch(first.config.cluster)
    parent = Path(first.config.cluster.runs) / first.config.name
    groups = group(plans)

    def write(tmp: Path, folder: Path) -> None:
        for name, content in (files or {}).items():
            write_bytes(tmp / name, content)
        _write(Sweep(tmp), folder, plans, groups, typed)

    sweep = Sweep(submit.new_folder(parent, write))
    arrays = list(sweep.arrays)
    try:
        for number, array in enumerate(arrays):
            plan = plans[array.runs[0]]
            arrays[number] = replace(array, job_id=_hand_over(sweep, number, plan))
            sweep = sweep.write(arrays=arrays)
    except BaseException as error:
        withdraw(arrays, first.environment)
        shutil.rmtree(sweep.folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise disk_failure(error, "dispatch the sweep") from error
        raise
    return sweep


def _write(tmp: Sweep, folder: Path, plans: list[Plan], groups: list[list[int]], typed: list[str]) -> None:
    from omegaconf import OmegaConf

    base = plans[0].config
    cluster, emulated = base.cluster, plans[0].emulated
    tmp.logs.mkdir()
    arrays = []
    for number, runs in enumerate(groups):
        name = f"submit-{number}.sh"
        if cluster.launcher is Launcher.slurm:
            write_text(tmp.folder / name, array_script(plans[runs[0]], folder, number, len(runs)))
        arrays.append(Array(runs, name))
    write_text(tmp.base_file, OmegaConf.to_yaml(OmegaConf.structured(base)))
    write_json(tmp.manifest_file, provenance.manifest(typed, cluster.name, emulated=emulated))
    if patch := provenance.dirty_patch():
        write_text(tmp.folder / "dirty.patch", patch)
    provenance.snapshot(tmp.code)
    tmp.write(
        typed=typed,
        cluster=cluster.name,
        launcher=cluster.launcher.name,
        emulated=emulated,
        host=socket.gethostname(),
        submitted=time.time(),
        members=[Member(plan.config.name, plan.typed, changes(base, plan.config)) for plan in plans],
        arrays=arrays,
    )


def _hand_over(sweep: Sweep, number: int, plan: Plan) -> str:
    if plan.config.cluster.launcher is Launcher.local:
        words = ["--sweep", str(sweep.folder), str(number)]
        process = executor.start_here(plan.config.cluster, sweep.code, words, sweep.logs / "local.log")
        return f"local-{process.pid}"
    return slurm.sbatch(sweep.folder / sweep.arrays[number].script, plan.environment)


def resume(sweep: Sweep) -> list[int]:
    """Submit again what is missing, failed or was cancelled; runs go on from where they were. Returns their numbers.

    They run with the code of the sweep, as those do that have not ended.

    Raises:
        Refused: if the cluster would not take one of them any more.
        Failed: if Slurm does not take an array; those before it stay.
    """
    again = [row.number for row in standings(sweep) if row.state in ENDED and row.state != "finished"]
    if not again:
        return []
    plans = [_plan(sweep, number) for number in again]
    refuse_too_many(plans)
    submit.need_sbatch(plans[0].config.cluster)
    first = len(sweep.arrays)
    try:
        added = []
        for number, found in enumerate(group(plans), start=first):
            added.append(Array([again[each] for each in found], f"submit-{number}.sh"))
            if sweep.launcher is Launcher.slurm:
                text = array_script(plans[found[0]], sweep.folder, number, len(found))
                write_text(sweep.folder / added[-1].script, text)
        sweep.cancel_file.unlink(missing_ok=True)
        sweep = sweep.write(arrays=[*sweep.arrays, *added])
        for number, array in enumerate(added, start=first):
            sweep = _hand_over_again(sweep, number, plans[again.index(array.runs[0])])
    except OSError as error:
        raise disk_failure(error, "resume the sweep") from error
    return again


def _plan(sweep: Sweep, number: int) -> Plan:
    run, member = sweep.run(number), sweep.members[number]
    begun = run.config_file.exists()
    return submit.plan(run.config() if begun else sweep.config(number), member.overrides, begun=begun)


def _hand_over_again(sweep: Sweep, number: int, plan: Plan) -> Sweep:
    runs = [run for run in map(sweep.run, sweep.arrays[number].runs) if run.config_file.exists()]
    texts = {run: run.state_file.read_text() for run in runs}
    for run in runs:
        run.set_state("queued", reason="", job_id="")
        clear_ends(run)
    try:
        job_id = _hand_over(sweep, number, plan)
    except BaseException:
        for run, text in texts.items():
            write_text(run.state_file, text)
        raise
    arrays = [replace(array, job_id=job_id) if n == number else array for n, array in enumerate(sweep.arrays)]
    sweep = sweep.write(arrays=arrays)
    if sweep.launcher is Launcher.slurm:
        # The state is the supervisor's from here on; it may be running already.
        for run in runs:
            task = f"{job_id}_{arrays[number].runs.index(_number(run))}"
            write_json(run.manifest_file, {**(read_json(run.manifest_file) or {}), "job_id": task})
    return sweep


def _number(run: Run) -> int:
    return int((read_json(run.manifest_file) or {})["number"])


def withdraw(arrays: list[Array], environment: Mapping[str, str]) -> None:
    """End what has been submitted of a sweep that could not be submitted whole."""
    for array in arrays:
        if array.job_id and array.job_id.startswith("local-"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(array.job_id.removeprefix("local-")), 15)
        elif array.job_id:
            with contextlib.suppress(Failed):
                slurm.cancel(array.job_id, environment)
