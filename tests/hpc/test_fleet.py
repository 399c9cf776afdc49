"""Many runs watched together: their rows, and one squeue for all of them."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hpc import queue, slurm, watching
from hpc.cli import main
from hpc.runs import Run, write_json
from hpc.sweep import Array, Member, Sweep
from hpc.watching import Fleet
from monitoring import layout
from monitoring.recorder import encode
from monitoring.terminal.source import Entry
from tests.monitoring.generate import BATCH, START, Shape, Try, generate, loss

SQUEUE = """#!/bin/sh
echo "$@" >> {0}/asked
[ -e {0}/silent ] && exit 1
cat {0}/rows
"""


class Slurm:
    """A squeue that counts how often it is asked, and says what it is told to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        program = folder / "squeue"
        program.write_text(SQUEUE.format(folder))
        program.chmod(0o755)
        self.says({})

    def says(self, rows: dict[str, tuple[str, str, Path]]) -> None:
        """Job -> (state, reason, working folder)."""
        known = {"nodes": "1", "job_id": "", "state": "", "reason": "", "folder": ""}
        lines = []
        for job, (state, reason, folder) in rows.items():
            given = known | {"job_id": job, "state": state, "reason": reason, "folder": str(folder)}
            lines.append(slurm._SEPARATOR.join(given.get(name, "N/A") for name in slurm._LETTERS))
        temporary = self.folder / "rows.tmp"
        temporary.write_text("".join(f"{line}\n" for line in lines))
        temporary.rename(self.folder / "rows")

    def silent(self) -> None:
        (self.folder / "silent").touch()

    @property
    def asked(self) -> list[str]:
        file = self.folder / "asked"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    found = Slurm(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{found.folder}:{os.environ['PATH']}")
    monkeypatch.setattr(queue, "target", lambda *words: {})
    monkeypatch.setattr(watching, "ASK_SLURM_EVERY", 0.05)
    monkeypatch.setattr(watching, "LIST_EVERY", 0.0)
    monkeypatch.setattr(watching, "READ_EVERY", 0.0)
    return found


@pytest.fixture
def fleets() -> Iterator[list[Fleet]]:
    found: list[Fleet] = []
    yield found
    for fleet in found:
        fleet.stop()


def made(root: Path, name: str, number: int, state: str = "running", job: str = "") -> Run:
    cause = state if state == "finished" else None
    folder = generate(
        root / name / f"20251122-{number:04}", Shape((Try(0, 60, cause),), steps=60, layers=(), world_size=1)
    )
    (folder / layout.CONFIG).write_text(
        f"name: {name}\njob:\n  _target_: jobs.train.Train\ntrain:\n  tokens: {120 * BATCH}\n  batch_tokens: {BATCH}\n"
    )
    fields = {"state": state, "reason": "", "job_id": job or str(100 + number), "cluster": "noctua2", "emulated": False}
    write_json(folder / layout.STATE, fields)
    return Run(folder)


def until(fleet: Fleet, true: Callable[[dict[str, Entry]], bool]) -> dict[str, Entry]:
    ends = time.monotonic() + 20
    while True:
        found = {entry.id: entry for entry in fleet.entries()}
        if true(found):
            return found
        assert time.monotonic() < ends, found
        time.sleep(0.02)


def test_rows_say_what_the_ends_of_files_say(tmp_path: Path, cluster: Slurm, fleets: list[Fleet]) -> None:
    root = tmp_path / "runs"
    made(root, "alpha", 1, "finished")
    running = made(root, "beta", 2)
    cluster.says({"102": ("RUNNING", "None", running.folder)})
    fleets.append(fleet := watching.everything(root))
    found = until(fleet, lambda rows: all(row.goodput is not None for row in rows.values()))
    assert [entry.id for entry in fleet.entries()] == ["20251122-0002", "20251122-0001"]
    alpha, beta = found["20251122-0001"], found["20251122-0002"]
    assert alpha.state == "finished" and alpha.loss == pytest.approx(loss(60)) and alpha.eta_s is None
    assert beta.state == "running" and beta.step == 60 and beta.share == 0.5
    assert beta.tokens_per_s == pytest.approx(BATCH / 0.85, rel=0.1)
    assert beta.eta_s == pytest.approx(60 * 0.85, rel=0.1) and 0 <= (beta.goodput or 0) <= 1


def test_what_is_odd_in_one_run_hides_no_other(tmp_path: Path, cluster: Slurm, fleets: list[Fleet]) -> None:
    cluster.silent()
    root = tmp_path / "runs"
    fleets.append(fleet := watching.everything(root))
    made(root, "sound", 1)
    odd = [made(root, f"odd-{number}", number) for number in (2, 3, 4, 5)]
    with layout.rank_records(layout.attempt_folder(odd[0].folder, 0), 0).open("a") as file:
        file.write('{"kind":"step","step":300,"seq":99}\n{"kind":"step","step":301,"seq":100,"t":1.0,"tokens":[]}\n')
    (odd[1].folder / layout.CONFIG).write_text("name: odd\njob: hello\n")
    odd[2].config_file.write_text(odd[2].config_file.read_text().replace("tokens: ", "tokens: " + "9" * 5000))
    odd[3].state_file.write_text('{"state":' + "[" * 100_000)
    found = until(fleet, lambda rows: (row := rows.get("20251122-0001")) is not None and row.goodput is not None)
    assert found["20251122-0001"].step == 60
    assert (found["20251122-0002"].state, found["20251122-0002"].step) == ("running", 60)
    assert found["20251122-0003"].state == "running"
    assert found["20251122-0004"].state == "unreadable" and "ValueError" in found["20251122-0004"].reason
    assert found["20251122-0005"].state == "unknown"


def test_a_run_of_steps_in_two_lines_that_hangs_for_hours_keeps_its_figures(tmp_path: Path) -> None:
    run = made(tmp_path / "runs", "hangs", 1)
    lines = encode(0, START, "header", {"protocol": 1})
    for step in range(1, 61):
        for more in ({"loss": 2.0}, {"lr": 0.1}):
            lines += encode(len(lines), START + step, "step", {"step": step, "tokens": step * BATCH, **more})
    sample = {"gpu_util": 0.0, "power_w": 402.123, "energy_j": 123456789.123, "host_memory_gib": 120.123456}
    lines += [line for n in range(4000) for line in encode(len(lines) + n, START + 60 + 10 * n, "device", sample)]
    layout.rank_records(layout.attempt_folder(run.folder, 0), 0).write_bytes(b"".join(lines))
    found = watching._read(run, None)
    assert (found.step, found.loss, found.tokens_per_s) == (60, 2.0, BATCH)
    assert found.age is not None and found.eta_s == 60.0


def test_one_squeue_tells_of_all_runs(tmp_path: Path, cluster: Slurm, fleets: list[Fleet]) -> None:
    found = [made(tmp_path / "runs", "many", number) for number in range(20)]
    cluster.says({str(100 + n): ("PENDING", "Priority", run.folder) for n, run in enumerate(found)})
    fleets.append(fleet := watching.everything(tmp_path / "runs"))
    rows = until(fleet, lambda rows: all(row.state == "pending" for row in rows.values()))
    assert {row.reason for row in rows.values()} == {"Priority"}
    assert cluster.asked and all(
        ",".join(sorted(words.split()[-1].split(","))) == ",".join(str(100 + n) for n in range(20))
        for words in cluster.asked
    )
    assert fleet.job(found[3].folder) is not None


def test_a_silent_slurm_leaves_what_it_said_with_its_age(
    tmp_path: Path, cluster: Slurm, fleets: list[Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made(tmp_path / "runs", "one", 1)
    cluster.says({"101": ("PENDING", "Resources", run.folder)})
    fleets.append(fleet := watching.some([run]))
    until(fleet, lambda rows: rows[run.id].state == "pending")
    assert fleet.trouble == ""
    monkeypatch.setattr(watching, "SILENT", 0.2)
    cluster.silent()
    until(fleet, lambda rows: "Slurm has not answered for" in fleet.trouble and rows[run.id].state == "pending")


def test_runs_of_a_sweep_that_have_not_begun_are_listed(tmp_path: Path, cluster: Slurm, fleets: list[Fleet]) -> None:
    sweep = swept(tmp_path / "runs" / "sw" / "20251122-000000-abcd", 4)
    begun = made(tmp_path / "runs", "sw", 1, job="77_0")
    begun.folder.rename(sweep.run(0).folder)
    shutil.copy(sweep.run(0).config_file, tmp_path / "config.yaml")
    first = sweep.run(0)
    write_json(first.manifest_file, {"sweep": str(sweep.folder)})
    cluster.says(
        {
            "77_0": ("RUNNING", "None", sweep.folder),
            "77_1": ("PENDING", "Priority", sweep.folder),
            "77_2": ("PENDING", "Priority", tmp_path / "elsewhere"),
        }
    )
    fleets.append(fleet := watching.some([sweep]))
    ids = [f"20251122-000000-abcd.{n}" for n in range(4)]
    rows = until(fleet, lambda rows: rows[ids[1]].reason == "Priority")
    assert list(rows) == ids and fleet.title == "sw/20251122-000000-abcd"
    assert [rows[each].state for each in ids] == ["running", "pending", "never began", "never began"]
    assert [rows[each].begun for each in ids] == [True, False, False, False]
    assert rows[ids[1]].changes == "optim.lr=1"
    assert all(words.split()[-1].count("77_") == 4 for words in cluster.asked if "77_1" in words)
    shutil.rmtree(sweep.folder)
    until(fleet, lambda rows: "cannot be read" in fleet.trouble and list(rows) == ids)


def swept(folder: Path, many: int) -> Sweep:
    folder.mkdir(parents=True)
    members = [Member("sw", [], {"optim.lr": number}) for number in range(many)]
    array = replace(Array(list(range(many)), "submit-0.sh"), job_id="77")
    fields = {"cluster": "noctua2", "launcher": "slurm", "emulated": False, "host": "here", "typed": []}
    return Sweep(folder).write(members=members, arrays=[array], **fields)


def test_one_look_at_several_runs_and_at_a_sweep(
    tmp_path: Path, cluster: Slurm, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPC_RUNS", str(tmp_path / "runs"))
    for number in (1, 2):
        made(tmp_path / "runs", "both", number, "finished")
    assert main(["watch", "--json", "20251122-0001", "20251122-0002"]) == 0
    assert [each["id"] for each in json.loads(capsys.readouterr().out)] == ["20251122-0001", "20251122-0002"]
    assert main(["watch", "--once"]) == 0  # the last one
    assert capsys.readouterr().out.startswith("run       both/20251122-0002\nstate     finished")
    sweep = swept(tmp_path / "runs" / "sw" / "20251123-000000-abcd", 3)
    (tmp_path / "runs" / "both" / "20251122-0002").rename(sweep.run(1).folder)
    assert main(["watch", "--plain", sweep.id]) == 0
    assert "20251123-000000-abcd.1" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--interval", "0"], ["--interval", "nan"], ["nothing"]])
def test_a_mistake_is_said(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPC_RUNS", str(tmp_path))
    assert main(["watch", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("hpc watch: ") and len(said.splitlines()) == 1
