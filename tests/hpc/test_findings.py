"""Findings on the command line: shown, silenced, sent once, and acted on only where that is documented."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from hpc import findings
from hpc.cli import main
from hpc.compose import compose
from hpc.runs import Run, read_json, write_json
from monitoring import layout
from monitoring.findings import Finding, Severity
from monitoring.reader import Reader
from monitoring.snapshot import JobState, Snapshot
from tests.hpc.test_notify import Hook, serving
from tests.monitoring.generate import Shape, Try, generate


@pytest.fixture
def stalled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run whose state says that it runs, and whose last step is years old."""
    monkeypatch.setenv("HPC_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("HPC_HOME", str(tmp_path / "home"))
    folder = generate(tmp_path / "runs" / "demo" / "20260309-115900-0000", Shape((Try(0, 60),), layers=()))
    write_json(folder / "manifest.json", {"submitted": 1_763_800_000.0, "command": "hpc submit"})
    write_json(folder / layout.STATE, {"state": "running", "cluster": "local"})
    findings.silence(Run(folder), "low_goodput", until=None)  # as years without a step are, too
    return Run(folder)


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main(["findings", *words])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_what_is_wrong_is_shown_with_what_to_type(stalled: Run, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = shown(capsys)
    assert status == 0
    assert "critical" in out and "nothing for" in out and f"hpc explain {stalled.id}" in out


def test_cron_sees_it_by_the_exit_status(stalled: Run, capsys: pytest.CaptureFixture[str]) -> None:
    looks = ("findings", "last", "--exit-code"), ("watch", "--once", "--exit-code"), ("watch", "--json", "--exit-code")
    assert [main([*look]) for look in looks] == [4, 4, 4]
    write_json(stalled.folder / layout.STATE, {"state": "finished"})
    assert [main([*look]) for look in looks] == [0, 0, 0]
    capsys.readouterr()
    assert main(["watch", "--once"]) == 0 and "tiny_moe" in capsys.readouterr().out


def test_programs_get_a_list(stalled: Run, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(shown(capsys, "--json")[1])
    assert found[0]["run"] == stalled.id
    assert {"kind", "severity", "title", "evidence", "since", "key", "do"} <= found[0].keys()


def test_what_is_silenced_is_out_of_the_way_until_it_is_spoken_again(
    stalled: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shown(capsys, stalled.id, "--silence", "stall", "--for", "2h")[0] == 0
    status, out, _ = shown(capsys, "last", "--exit-code")
    assert "silenced" in out and status == 0
    findings.silence(stalled, "stall", until=time.time() - 1)
    assert shown(capsys, "last", "--exit-code")[0] == 4
    assert shown(capsys, stalled.id, "--speak", "stall")[0] == 0
    status, _, err = shown(capsys, stalled.id, "--speak", "stall")
    assert status == 2 and "not silenced" in err


def test_what_somebody_has_seen_is_quiet_until_it_gets_worse(stalled: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "last", "--acknowledge", "stall")[0] == 0
    status, out, _ = shown(capsys, "--exit-code")
    assert "seen" in out and status == 0
    (found,) = [each for each in json.loads(shown(capsys, "--json")[1]) if each["kind"] == "stall"]
    assert found["silenced"] and found["acknowledged"]
    known = read_json(stalled.folder / layout.SILENCED) or {}
    write_json(stalled.folder / layout.SILENCED, {**known, "stall": known["stall"] | {"severity": "warning"}})
    assert shown(capsys, "--exit-code")[0] == 4
    write_json(stalled.folder / layout.SILENCED, {**known, "stall": known["stall"] | {"until": time.time() - 1}})
    assert shown(capsys, "--exit-code")[0] == 4
    status, _, err = shown(capsys, "last", "--acknowledge", "straggler")
    assert status == 2 and "stall" in err


@pytest.mark.parametrize(
    "words", [["--silence", "stall"], ["--acknowledge", "stall"], ["--for", "2h"], ["no-such-run"]]
)
def test_mistakes_are_told(stalled: Run, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, *words)[0] == 2


def test_a_new_finding_is_sent_once(stalled: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Hook)) as hook:
        config = compose([f"notify.webhook=http://127.0.0.1:{hook.server_address[1]}/hook"])
        from omegaconf import OmegaConf

        stalled.config_file.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
        assert "notify.webhook: sent" in shown(capsys, "last", "--notify")[2]
        assert shown(capsys, "last", "--notify")[2] == ""
        ((_, _, message),) = hook.taken
    assert message["kind"] == "stall" and stalled.id in message["text"] and message["next"].startswith("hpc explain")


def test_what_got_worse_or_came_again_is_sent_again(stalled: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def send(given: object, message: dict[str, Any], say: object) -> bool:
        tried.append(message["kind"])
        return len(tried) > 1  # the first does not arrive

    monkeypatch.setattr("hpc.notify.send", send)
    from omegaconf import OmegaConf

    stalled.config_file.write_text(OmegaConf.to_yaml(OmegaConf.structured(compose(["notify.webhook=http://x/hook"]))))
    warning = Finding("not_finite", Severity.warning, "x", "y", since=0.0)
    worse = replace(warning, severity=Severity.critical)

    def tell(minutes: float, *found: Finding) -> int:
        return len(findings.tell(stalled, found, lambda text: None, now=1e9 + 60 * minutes))

    assert [tell(0, warning), tell(10, warning), tell(20, warning)] == [0, 1, 0]
    assert [tell(30, worse), tell(40, worse), tell(50, warning)] == [1, 0, 0]
    assert [tell(60), tell(70, worse)] == [0, 0]  # gone for a moment only
    assert [tell(200), tell(300, worse), tell(30 * 60, worse)] == [0, 1, 1]


def test_a_run_that_cannot_be_judged_keeps_nobody_from_hearing_of_others(
    stalled: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = generate(stalled.folder.parent / "20260309-115900-0001", Shape((Try(0, 60),), layers=()))
    write_json(other / layout.STATE, {"state": "running", "cluster": "local"})
    read = Reader.read

    def odd(self: Reader, *given: Any) -> Snapshot:
        if self.run == other:
            raise KeyError("odd")
        return read(self, *given)

    monkeypatch.setattr(Reader, "read", odd)
    status, out, err = shown(capsys)
    assert status == 1 and "nothing for" in out and f"{other.name}: cannot be judged: KeyError" in err


def test_a_quota_that_is_nearly_used_up_is_told_and_can_be_silenced(
    stalled: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hpc.probes.quota", lambda path, kind: "/dev/sda1  1000000  0  1050000  7  0  0\n")
    found = {each["kind"]: each for each in json.loads(shown(capsys, "--json")[1])}
    assert found["quota_nearly_full"]["severity"] == "warning"
    assert "1.0 of 1.0 GiB on /dev/sda1" in found["quota_nearly_full"]["evidence"]
    assert shown(capsys, "last", "--silence", "quota_nearly_full")[0] == 0
    found = {each["kind"]: each for each in json.loads(shown(capsys, "--json")[1])}
    assert found["quota_nearly_full"]["silenced"]


def test_a_run_that_cannot_be_judged_does_not_look_healthy_to_cron(
    stalled: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def odd(self: Reader, *given: Any) -> Snapshot:
        raise KeyError("odd")

    monkeypatch.setattr(Reader, "read", odd)
    for words in (["findings"], ["findings", "--json"], ["watch", "--once"]):
        assert main([*words]) == main([*words, "--exit-code"]) == 1
        assert "nothing found" not in capsys.readouterr().out


def test_a_detector_that_failed_does_not_look_healthy_to_cron(
    stalled: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("monitoring.detectors.DETECTORS", (lambda evidence: iter([1 / 0]),))
    assert [main(["findings", *more]) for more in ([], ["--exit-code"])] == [1, 1]
    assert "could not be judged" in capsys.readouterr().out
    findings.silence(stalled, "unjudged", until=None)
    assert main(["findings", "--exit-code"]) == 0


@pytest.mark.parametrize(
    ("reason", "done"),
    [
        ("launch failed requeued held", True),
        ("launch_failed_requeued_held", True),
        ("JobHeldUser", False),
        ("job requeued in held state", False),
    ],
)
def test_only_a_launch_that_failed_is_released(
    stalled: Run, monkeypatch: pytest.MonkeyPatch, reason: str, done: bool
) -> None:
    released: list[str] = []
    monkeypatch.setattr("hpc.slurm.release", lambda jobs, environment: released.extend(jobs))
    job = JobState("17", "PENDING", reason)
    reader = Reader(stalled.folder).read(job)
    assert [each.kind for each in reader.findings if each.severity is Severity.critical] == ["held"]
    assert (findings.act(stalled, reader.findings, job) is not None) == done == (released == ["17"])


def test_nothing_is_done_to_a_run_that_slurm_does_not_run(stalled: Run) -> None:
    finding = Finding("stall", Severity.critical, "x", "y", since=0.0)
    assert findings.act(stalled, [finding], None) is None
    assert not (stalled.folder / "acted.jsonl").exists()
