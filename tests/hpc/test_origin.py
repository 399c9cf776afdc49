"""What an attempt ran with, as its provenance.json says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hpc import ledger, origin, provenance
from hpc.compose import compose
from hpc.runs import Run, read_json, write_json, write_text


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "runs" / "demo" / "20260101-000000-abcd")
    (run.attempts / "0").mkdir(parents=True)
    (run.code / "hpc").mkdir(parents=True)
    write_text(run.code / "hpc" / "a.py", "x = 1\n")
    write_text(run.config_file, "name: demo\n")
    write_json(run.manifest_file, {"git": {"commit": "c0ffee", "dirty": True}})
    write_text(run.patch_file, "diff\n")
    return run


def test_code_config_environment_and_data_are_known(
    run: Run, dataset: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOADEDMODULES", "lang/Python/3.11:system/CUDA/12.4")
    data = dataset({"de": 500})
    config = compose([f"data.path={data}"])
    found = origin.collect(run, config, ["n1", "n2"])
    assert found["code"] == {
        "digest": origin.code_digest(run.code),
        "commit": "c0ffee",
        "dirty": True,
        "patch": "dirty.patch",
        "patch_digest": origin._digest(run.patch_file),
    }
    assert found["modules"] == ["lang/Python/3.11", "system/CUDA/12.4"]
    assert found["nodes"] == ["n1", "n2"]
    assert found["packages"] == provenance.packages() and found["torch"] == found["packages"]["torch"]
    assert len(found["data"]["fingerprint"]) == 32
    other = origin.collect(run, compose([f"data.path={dataset({'de': 600}, name='other')}"]), [])
    assert other["data"]["fingerprint"] != found["data"]["fingerprint"]
    assert origin.collect(run, compose(["data.path=/nowhere"]), [])["data"]["fingerprint"] is None
    assert origin.collect(run, compose(["job=hello"]), [])["data"] is None


def test_a_resumed_run_names_the_code_of_its_last_resumption(run: Run) -> None:
    before = origin.code(run)
    write_text(run.code / "hpc" / "a.py", "x = 2\n")
    write_json(
        run.manifest_file, {"git": {"commit": "c0ffee"}, "resumed": [{"git": {"commit": "beef", "dirty": False}}]}
    )
    after = origin.code(run)
    assert (after["commit"], after["dirty"], "patch" in after) == ("beef", False, False)
    assert after["digest"] != before["digest"]


def test_compiled_files_do_not_count_and_names_do(run: Run) -> None:
    before = origin.code_digest(run.code)
    (run.code / "hpc" / "a.pyc").write_bytes(b"x")
    assert origin.code_digest(run.code) == before
    (run.code / "hpc" / "a.py").rename(run.code / "hpc" / "b.py")
    assert origin.code_digest(run.code) != before


def test_what_cannot_be_written_is_one_line(run: Run) -> None:
    said: list[str] = []
    run.config_file.unlink()
    origin.note(run, compose(["job=hello"]), 0, [], said.append).join()
    assert len(said) == 1 and "was not written: FileNotFoundError" in said[0]


@pytest.mark.parametrize(
    ("packages", "cuda"),
    [
        ({"torch": "2.13.0+cpu"}, None),
        ({"torch": "2.13.0+cu126"}, "12.6"),
        ({"torch": "2.13.0", "nvidia-cuda-runtime-cu12": "12.8.90"}, "12.8.90"),
        ({"torch": "2.13.0", "nvidia-cuda-runtime": "13.0.48"}, "13.0.48"),
        ({}, None),
    ],
)
def test_the_version_of_cuda(packages: dict[str, str], cuda: str | None) -> None:
    assert origin._cuda(packages) == cuda


def test_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "version"
    monkeypatch.setattr(origin, "DRIVER", file)
    assert origin._driver() is None
    for line, version in {
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19": "535.104.05",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  Release": "550.54.15",
    }.items():
        file.write_text(line)
        assert origin._driver() == version


def test_each_attempt_of_a_real_run_has_its_own(start: Callable[..., Run]) -> None:
    run = start("job=hello", "job.ranks_per_node=1", "--wait")
    found = read_json(ledger.folder(run, 0) / origin.FILE) or {}
    assert found["code"]["digest"] == origin.code_digest(run.code)
    assert found["config"]["digest"] == origin._digest(run.config_file)
