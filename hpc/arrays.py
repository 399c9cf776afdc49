"""From the requests of a sweep to Slurm arrays: one folder, one array for each distinct script.

Where there are several arrays, all are submitted held and released together: should Slurm refuse one of them, or
whoever submits them die, no run has begun.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hpc import check_access, executor, provenance, script, slurm, submit
from hpc.config import Cluster, Launcher
from hpc.errors import Failed, Refused
from hpc.queue import controller
from hpc.resume import clear_ends
from hpc.runs import Run, disk_failure, read_json, write_bytes, write_json, write_text
from hpc.standing import ENDED, held, standings, submitted
from hpc.submit import Plan
from hpc.sweep import Array, Member, Submitter, Sweep, changes

PLACE = Path("/FOLDER")  # stands for the sweep's folder where scripts are only compared
RELEASES = 5  # times that Slurm is asked to let the arrays begin


def group(plans: Sequence[Plan]) -> list[list[int]]:
    """Numbers of the requests that one array can ask for, in order: what Slurm is told is the same.

    An array has as many tasks as the cluster has indices. Without Slurm all runs are one group, taken in turn.
    """
    if all(plan.config.cluster.launcher is Launcher.local for plan in plans):
        return [list(range(len(plans)))]
    groups: dict[str, list[int]] = {}
    for number, plan in enumerate(plans):
        groups.setdefault(array_script(plan, PLACE, 0, 1), []).append(number)
    return [part for found in groups.values() for part in _chunks(found, plans[found[0]])]


def _chunks(numbers: list[int], plan: Plan) -> Iterator[list[int]]:
    # MaxArraySize bounds the index: the largest is one less.
    most = plan.config.cluster.max_array_size * plan.request.runs_per_node
    for start in range(0, len(numbers), most):
        yield numbers[start : start + most]


def refuse_many_clusters(plans: Sequence[Plan]) -> None:
    """
    Raises:
        Refused: if the sweep is over clusters.
    """
    names = list(dict.fromkeys(plan.config.cluster.name for plan in plans))
    if len(names) > 1:
        raise Refused(
            f"cluster={','.join(names)}: a sweep runs on one cluster. Submit one for each: cluster={names[0]}"
        )


def refuse_too_many(plans: Sequence[Plan]) -> None:
    """
    Raises:
        Refused: if the user may not have so many jobs in the queue.
    """
    first = plans[0]
    tasks = -(-len(plans) // first.request.runs_per_node)
    if problems := check_access.submission(first.config, first.request, first.site, tasks):
        raise Refused("\n".join(map(str, problems)))


def array_script(plan: Plan, folder: Path, number: int, runs: int) -> str:
    """What would be submitted for an array of so many runs like this one."""
    tasks = -(-runs // plan.request.runs_per_node)
    return script.render_array(plan.config, plan.request, folder, number, tasks, emulated=plan.emulated)


def dispatch(
    plans: Sequence[Plan], typed: list[str], files: Mapping[str, bytes] | None = None, **more: object
) -> Sweep:
    """Write the sweep's folder and hand its runs to the cluster.

    Args:
        files: what else lies in the folder, by name.
        more: what else stands in its sweep.json.

    Raises:
        Refused: if they are too many for the user, or of several clusters.
        Failed: if the folder cannot be written or Slurm does not take every array; then none is left in the queue.
    """
    refuse_many_clusters(plans)
    refuse_too_many(plans)
    first = plans[0]
    submit.need_sbatch(first.config.cluster)
    parent = Path(first.config.cluster.runs) / first.config.name

    def write(tmp: Path, folder: Path) -> None:
        for name, content in (files or {}).items():
            write_bytes(tmp / name, content)
        _write(Sweep(tmp), folder, plans, typed, more)

    sweep = Sweep(submit.new_folder(parent, write))
    try:
        sweep = _hand_over(sweep, 0, first.config.cluster, first.environment)
    except BaseException as error:
        shutil.rmtree(sweep.folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise disk_failure(error, "dispatch the sweep") from error
        raise
    return _let_begin(sweep, _held(sweep.arrays), first.environment)


def _write(tmp: Sweep, folder: Path, plans: Sequence[Plan], typed: list[str], more: Mapping[str, object]) -> None:
    from omegaconf import OmegaConf

    base = plans[0].config
    cluster, emulated = base.cluster, plans[0].emulated
    tmp.logs.mkdir()
    write_text(tmp.base_file, OmegaConf.to_yaml(OmegaConf.structured(base)))
    manifest = provenance.manifest(typed, cluster.name, emulated=emulated)
    write_json(tmp.manifest_file, manifest | submit.note_program(tmp.folder, base))
    if patch := provenance.dirty_patch():
        write_text(tmp.folder / "dirty.patch", patch)
    provenance.snapshot(tmp.code)
    executor.write_entry(tmp.pickle)
    tmp.write(
        typed=typed,
        cluster=cluster.name,
        launcher=cluster.launcher.name,
        emulated=emulated,
        host=socket.gethostname(),
        submitted=time.time(),
        submitter=Submitter.me(),
        members=[Member(plan.config.name, plan.typed, changes(base, plan.config)) for plan in plans],
        arrays=_arrays(tmp.folder, folder, 0, plans, range(len(plans))),
        **more,
    )


def _arrays(where: Path, folder: Path, first: int, plans: Sequence[Plan], numbers: Sequence[int]) -> list[Array]:
    """The arrays, counted from ``first``, of the runs with these numbers and plans; their scripts are written.

    Args:
        where: the sweep's folder as it is called now.
        folder: as it will be called.
    """
    found = []
    for number, places in enumerate(group(plans), start=first):
        plan, name = plans[places[0]], f"submit-{number}.sh"
        if plan.config.cluster.launcher is Launcher.slurm:
            write_text(where / name, array_script(plan, folder, number, len(places)))
        found.append(Array([numbers[place] for place in places], name, per_task=plan.request.runs_per_node))
    return found


def _hand_over(sweep: Sweep, first: int, cluster: Cluster, environment: Mapping[str, str]) -> Sweep:
    """Give the arrays from number ``first`` on to the cluster; if there are several, none begins yet.

    Raises:
        whatever stood in the way; none of them is in the queue then.
    """
    arrays = list(sweep.arrays)
    hold = ["--hold"] if len(arrays) - first > 1 else []
    try:
        for number in range(first, len(arrays)):
            if sweep.launcher is Launcher.local:
                words = ["--sweep", str(sweep.folder), str(number)]
                process = executor.start_here(cluster, sweep.code, words, sweep.logs / "local.log")
                job_id = f"local-{process.pid}"
            else:
                job_id = slurm.sbatch(sweep.folder / arrays[number].script, environment, *hold)
            arrays[number] = replace(arrays[number], job_id=job_id)
            sweep = sweep.write(arrays=arrays)
    except BaseException:
        _withdraw(arrays[first:], environment)
        raise
    return sweep


def _held(arrays: Sequence[Array]) -> list[str]:
    """The jobs of arrays that were handed over together, as far as they wait for a release."""
    jobs = [array.job_id for array in arrays if array.job_id and not array.job_id.startswith("local-")]
    return jobs if len(jobs) > 1 else []


def _let_begin(sweep: Sweep, waiting: list[str], environment: Mapping[str, str]) -> Sweep:
    """All arrays are in the queue: release those that were submitted held.

    Raises:
        Failed: if Slurm does not do that.
    """
    for attempt in range(RELEASES):
        if not waiting:
            return sweep.write(submitter=None)
        try:
            slurm.release(waiting, environment)
            waiting = held(sweep, environment)  # its exit status says nothing
        except slurm.SlurmError:
            time.sleep(0.5 * attempt)
    if waiting:
        raise Failed(
            f"all arrays of {sweep.id} are in the queue, and Slurm does not let them begin. "
            f"To try that again: hpc sweep resume {sweep.id}"
        )
    return sweep.write(submitter=None)


def extend(sweep: Sweep, plans: Sequence[Plan], **more: object) -> Sweep:
    """Further runs, as arrays of their own.

    Raises:
        Failed: if Slurm does not take every array; the runs are then there and have not begun.
    """
    refuse_submitting(sweep)
    base, first = sweep.base(), len(sweep.arrays)
    members = [Member(plan.config.name, plan.typed, changes(base, plan.config)) for plan in plans]
    numbers = range(len(sweep.members), len(sweep.members) + len(plans))
    try:
        added = _arrays(sweep.folder, sweep.folder, first, plans, numbers)
        sweep = sweep.write(
            members=[*sweep.members, *members], arrays=[*sweep.arrays, *added], submitter=Submitter.me(), **more
        )
        sweep = _hand_over(sweep, first, plans[0].config.cluster, plans[0].environment)
    except OSError as error:
        raise disk_failure(error, "submit further runs of the sweep") from error
    return _let_begin(sweep, _held(sweep.arrays[first:]), plans[0].environment)


def refuse_submitting(sweep: Sweep) -> None:
    """
    Raises:
        Refused: if another process is just submitting runs of the sweep.
    """
    if (who := sweep.submitter) is not None and who.lives():
        raise Refused(f"{sweep.id} is just being submitted, by process {who.pid} on {who.host}. Type this again later")


def resume(sweep: Sweep, only: Sequence[int] | None = None, *, alone: bool = False) -> list[int]:
    """Submit again what is missing, failed or was cancelled; runs go on from where they were. Returns their numbers.

    A submission that was interrupted is brought to its end. Runs have the code of the sweep, as those do that have
    not ended.

    Args:
        only: numbers of the runs that are looked at.
        alone: nobody else can be submitting runs of this sweep.

    Raises:
        Refused: if the cluster would not take one of them any more.
        Failed: if Slurm does not take every array; they then stand as before.
    """
    if not alone:
        refuse_submitting(sweep)
    environment = controller(sweep) if sweep.launcher is Launcher.slurm else {}
    if environment is None:
        raise Failed(f"{sweep.cluster} of this sweep does not answer here: it was {_which(sweep)}")
    sweep = _take_stock(sweep, environment)
    waiting = held(sweep, environment) if sweep.submitter and sweep.launcher is Launcher.slurm else []
    begin = [number for array in sweep.arrays if array.job_id in waiting for number in array.runs]
    rows = [row for row in standings(sweep) if only is None or row.number in only]
    again = [row.number for row in rows if row.state in ENDED and row.state != "finished"]
    if not again and not begin:
        return []
    plans = [_plan(sweep, number) for number in again]
    if plans:
        refuse_too_many(plans)
    first = len(sweep.arrays)
    before = _states(sweep, again)
    try:
        added = _arrays(sweep.folder, sweep.folder, first, plans, again) if plans else []
        for number, plan in zip(again, plans, strict=True):
            _here(sweep.run(number), plan)
        sweep.cancel_file.unlink(missing_ok=True)
        sweep = sweep.write(arrays=[*sweep.arrays, *added], submitter=Submitter.me())
        for run in before:
            run.set_state("queued", reason="", job_id="")
            clear_ends(run)
        if plans:
            submit.need_sbatch(plans[0].config.cluster)
            sweep = _hand_over(sweep, first, plans[0].config.cluster, plans[0].environment)
            _note_jobs(sweep, first)
    except BaseException as error:
        with contextlib.suppress(OSError):
            for run, text in before.items():
                write_text(run.state_file, text)
            sweep.write(arrays=sweep.arrays[:first], submitter=sweep.submitter if begin else None)
        if isinstance(error, OSError):
            raise disk_failure(error, "resume the sweep") from error
        raise
    _let_begin(sweep, [*waiting, *_held(sweep.arrays[first:])], environment)
    return sorted({*begin, *again})


def _which(sweep: Sweep) -> str:
    return "an emulated one, which is down" if sweep.emulated else "the real one, and an emulated one is up"


def _take_stock(sweep: Sweep, environment: Mapping[str, str]) -> Sweep:
    """After an interrupted submission: the arrays that the cluster was given. The others were never submitted."""
    if sweep.submitter is None:
        return sweep
    known = [array for array in sweep.arrays if array.job_id]
    return sweep.write(arrays=known if sweep.launcher is Launcher.local else submitted(sweep, environment))


def _states(sweep: Sweep, numbers: Sequence[int]) -> dict[Run, str]:
    """What the runs that have begun say of themselves."""
    return {run: run.state_file.read_text() for run in map(sweep.run, numbers) if run.config_file.exists()}


def _here(run: Run, plan: Plan) -> None:
    """Have what a begun run starts from speak of the folder that it is in now: it may have been moved."""
    if not run.config_file.exists():
        return
    text = script.render(plan.config, plan.request, run.folder, emulated=plan.emulated)
    if run.script.exists() and run.script.read_text(encoding="utf-8") == text:
        return
    write_text(run.script, text)
    executor.write_entry(run.pickle)


def _plan(sweep: Sweep, number: int) -> Plan:
    run, member = sweep.run(number), sweep.members[number]
    begun = run.config_file.exists()
    return submit.plan(run.config() if begun else sweep.config(number), member.overrides, begun=begun)


def _note_jobs(sweep: Sweep, first: int) -> None:
    """Write the new job of each run that has begun into its folder."""
    if sweep.launcher is Launcher.local:
        return
    for array in sweep.arrays[first:]:
        for number, job_id in array.jobs().items():
            # The state is the supervisor's from here on; it may be running already.
            if (manifest := read_json(sweep.run(number).manifest_file)) is not None:
                write_json(sweep.run(number).manifest_file, {**manifest, "job_id": job_id})


def _withdraw(arrays: list[Array], environment: Mapping[str, str]) -> None:
    """End what has been submitted of a sweep that could not be submitted whole."""
    left = []
    for array in arrays:
        if array.job_id and array.job_id.startswith("local-"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(array.job_id.removeprefix("local-")), 15)
        elif array.job_id:
            try:
                slurm.cancel(array.job_id, environment)
            except Failed:
                left.append(array.job_id)
    if left:
        raise Failed(
            f"Slurm did not take all arrays, and does not take back those that it has: they are held, and begin "
            f"nothing. Type: {shlex.join(['scancel', *left])}"
        )
