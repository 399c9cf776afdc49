"""Faults in the processes of a run, brought in from outside: what a rank does is written into the run's code folder.

Python imports ``sitecustomize`` from there before anything else. Nothing in the project itself knows of it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

from hpc import submit
from hpc.compose import compose
from hpc.runs import Run, read_json, write_json


def dispatch(overrides: list[str], prepare: Callable[[Run], None]) -> Run:
    """Submit a run whose folder ``prepare`` may change before its job begins."""
    plan = submit.plan(compose(overrides), overrides)
    run = Run(submit.write_folder(plan))
    prepare(run)
    job_id = submit.hand_over(run, plan)
    write_json(run.manifest_file, {**(read_json(run.manifest_file) or {}), "job_id": job_id})
    return run


_HEAD = """
import os, signal, sys, threading, time

RANK = int(os.environ.get("HPC_RANK") or os.environ.get("SLURM_PROCID") or 0)
NODE = os.environ.get("SLURMD_NODENAME", "")
ATTEMPT = int(os.environ.get("HPC_ATTEMPT", -1))
IN_RANK = ATTEMPT >= 0 and "submitit.core._submit" in " ".join(sys.orig_argv)

def after(module, function):
    def wait():
        while True:
            found = sys.modules.get(module)
            spec = getattr(found, "__spec__", None)
            if spec is not None and not getattr(spec, "_initializing", False):
                return function(found)
            time.sleep(0.001)
    threading.Thread(target=wait, daemon=True).start()
"""


def in_ranks(run: Run, cases: dict[str, str]) -> None:
    """Have code run in ranks before they import anything: of each condition over RANK, NODE and ATTEMPT its own.

    The code may use ``after(module, function)``, which calls a function with that module once it is there.
    """
    parts = [
        f"if IN_RANK and ({when}):\n{textwrap.indent(textwrap.dedent(code), '    ')}" for when, code in cases.items()
    ]
    (run.code / "sitecustomize.py").write_text("\n".join([_HEAD, *parts]))


def data(folder: Path) -> list[str]:
    """Where a run of these tests lives, and where its data is."""
    return [f"cluster.runs={folder}/runs", f"cluster.data={folder}/data"]
