"""What is on disk: what is kept, what is removed, what counts as damage."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer import checkpoint_folder as disk

STEPS = st.sets(st.integers(1, 300), max_size=12)


def place(folder: Path, step: int, mark: str | None = disk.COMPLETE) -> Path:
    path = disk.step_folder(folder, step)
    path.mkdir(parents=True)
    (path / "data").write_bytes(b"x" * 100)
    if mark:
        (path / mark).touch()
    return path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@given(steps=STEPS, keep_latest=st.integers(0, 6), keep_every=st.integers(0, 50))
def test_the_newest_and_every_nth_are_kept_and_nothing_else(steps: set[int], keep_latest: int, keep_every: int) -> None:
    stay = disk.kept(steps, keep_latest, keep_every)
    assert stay <= steps
    assert not steps or max(steps) in stay
    newest = sorted(steps)[-max(1, keep_latest) :]
    for step in steps:
        assert (step in stay) == (step in newest or bool(keep_every and step % keep_every == 0))


@given(history=st.lists(st.integers(1, 60), unique=True, max_size=15), keep_latest=st.integers(1, 4))
def test_purging_after_each_save_leaves_what_one_purge_at_the_end_would(history: list[int], keep_latest: int) -> None:
    standing: set[int] = set()
    for step in sorted(history):
        standing = disk.kept(standing | {step}, keep_latest, 10)
    assert standing == disk.kept(history, keep_latest, 10)


def test_purge_removes_old_ones_and_corrupt_ones_older_than_the_newest(tmp_path: Path) -> None:
    for step in (10, 20, 25, 30, 40):
        place(tmp_path, step)
    place(tmp_path, 35, disk.CORRUPT)
    place(tmp_path, 50, disk.CORRUPT)  # nothing newer is complete yet
    disk.purge(tmp_path, keep_latest=2, keep_every=20)
    assert names(tmp_path) == {"step-20", "step-30", "step-40", "step-50"}


def test_leftovers_of_dead_writers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    place(tmp_path, 10)
    place(tmp_path, 20, disk.CORRUPT)
    place(tmp_path, 30, None)
    disk.make_temporary(tmp_path, 40)
    (tmp_path / "notes.txt").write_text("a person's")
    (tmp_path / ".step-40.tmp-notours").mkdir()
    disk.remove_leftovers(tmp_path)
    assert names(tmp_path) == {"step-10", "step-20", "notes.txt", ".step-40.tmp-notours"}


def test_commit_replaces_an_unmarked_or_corrupt_one_of_the_same_step(tmp_path: Path) -> None:
    for mark in (None, disk.CORRUPT):
        place(tmp_path, 10, mark)
        temporary = disk.make_temporary(tmp_path, 10)
        (temporary / "fresh").touch()
        disk.commit(tmp_path, temporary, 10, {"step": 10})
        assert names(tmp_path) == {"step-10"}
        assert names(tmp_path / "step-10") == {"fresh", disk.COMPLETE}
        assert disk.read_marker(tmp_path, 10) == {"step": 10}
        disk.remove(tmp_path / "step-10")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 99}', '{"format": 1}', '{"format": 1, "checksum": 5}', '"text"', "\0\0\0"]
)
def test_a_marker_that_cannot_be_understood_is_none(tmp_path: Path, text: str) -> None:
    place(tmp_path, 10)
    (tmp_path / "step-10" / disk.COMPLETE).write_text(text)
    assert disk.complete_steps(tmp_path) == [10]
    assert disk.read_marker(tmp_path, 10) is None


def test_a_marker_with_one_changed_figure_is_none(tmp_path: Path) -> None:
    marker = {"progress": {"step": 10, "next_sample": 80, "loss_last": 1 / 3}, "files": {"a": [5, "0f"]}}
    disk.commit(tmp_path, disk.make_temporary(tmp_path, 10), 10, marker)
    assert disk.read_marker(tmp_path, 10) == marker
    file = tmp_path / "step-10" / disk.COMPLETE
    file.write_text(file.read_text().replace("80", "81"))
    assert disk.read_marker(tmp_path, 10) is None


def test_damage_names_the_file_and_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "part"
    file.write_bytes(bytes(range(256)))
    recorded = disk.describe(file)
    assert disk.damage(file, recorded) is None
    file.write_bytes(bytes(range(255)))
    assert disk.damage(file, recorded) == "part has 255 bytes instead of 256"
    file.write_bytes(bytes(range(255)) + b"\0")
    assert disk.damage(file, recorded) == "part does not have its checksum"
    file.unlink()
    assert disk.damage(file, recorded) == "part: No such file or directory"


@pytest.mark.parametrize("blocks", [1, 3, 4096, 4097])
def test_what_is_written_is_described_as_it_is(tmp_path: Path, blocks: int) -> None:
    content = memory(blocks)
    recorded = disk.write(tmp_path / "file", content)
    assert (tmp_path / "file").read_bytes() == content
    assert recorded == disk.describe(tmp_path / "file")
    assert disk.write_small(tmp_path / "small", bytes(content)) == recorded


def memory(blocks: int) -> memoryview:
    found = mmap.mmap(-1, blocks * disk.BLOCK)
    found[:] = random.Random(0).randbytes(len(found))
    return memoryview(found)


def refuse_to_open(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def opened(path: Any, flags: int, mode: int = 0o777, **fields: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(path, flags, mode, **fields)

    monkeypatch.setattr(os, "open", opened)


def refuse_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite

    def written(handle: int, content: memoryview, begin: int) -> int:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(handle, content, begin)

    monkeypatch.setattr(os, "pwrite", written)


def write_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, content, begin: real(handle, content[:1000], begin))


@pytest.mark.parametrize("whim", [refuse_to_open, refuse_to_write, write_in_parts])
def test_file_systems_that_refuse_direct_writes_or_take_parts_get_all_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whim: Callable[[pytest.MonkeyPatch], None]
) -> None:
    content = memory(17)
    with monkeypatch.context() as patched:
        whim(patched)
        recorded = disk.write(tmp_path / "file", content)
    assert (tmp_path / "file").read_bytes() == content
    assert recorded == disk.describe(tmp_path / "file")


def test_a_full_disk_is_said_to_be_full() -> None:
    with pytest.raises(OSError, match="No space left on device"):
        disk.write(Path("/dev/full"), memory(1))


def test_a_path_to_weights_is_a_run_its_checkpoints_or_one_of_them(tmp_path: Path) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    for step in (5, 10):
        place(checkpoints, step)
    place(checkpoints, 15, None)
    assert disk.candidates(tmp_path / "run") == (checkpoints, [10, 5])
    assert disk.candidates(checkpoints) == (checkpoints, [10, 5])
    assert disk.candidates(checkpoints / "step-5") == (checkpoints, [5])
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    for path, why in (
        (tmp_path / "nowhere", "there is no such folder"),
        (tmp_path / "empty", "there is no complete checkpoint in"),
        (checkpoints / "step-15", "is not complete"),
    ):
        with pytest.raises(FileNotFoundError, match=why):
            disk.candidates(path)
