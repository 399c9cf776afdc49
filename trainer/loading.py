"""Loading checkpoints into tensors that are there already, laid over the ranks in any way. Collective."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.filesystem import FileSystemReader

from trainer import checkpoint_folder as disk
from trainer.agreement import Agreement, failure_of
from trainer.checkpoint_errors import CheckpointError, CheckpointMismatch
from trainer.identity import differences


def load(path: Path, files: Mapping[str, list[int | str]], state: Mapping[str, Any], agree: Agreement) -> str | None:
    """Verify the files of a checkpoint and load ``state`` from it, in place.

    Args:
        files: size and checksum of each file, as the marker has them.
        state: tensors, or what stands for them, all or some of those in the checkpoint.

    Returns:
        None, or why it could not be done; the same on all ranks. Values may have been overwritten then.
    """

    def damages() -> str:
        mine = sorted(files.items())[agree.rank :: agree.world_size]
        return "; ".join(damage for name, recorded in mine if (damage := disk.damage(path / name, recorded)))

    if found := agree.on_each_rank(damages, lambda each: "; ".join(filter(None, each))):
        return found

    def load_tensors() -> str | None:
        how = {"storage_reader": FileSystemReader(path), "process_group": agree.group}
        return failure_of(lambda: state_dict_loader.load(dict(state), **how))

    return agree.on_each_rank(load_tensors, lambda each: next(filter(None, each), None))


def load_weights(
    path: Path,
    state: Mapping[str, Any],
    model: Mapping[str, Any],
    agree: Agreement,
    asked: str = "train.init_from",
) -> tuple[Path, int]:
    """Load the model's tensors in ``state``, and nothing else, from the newest checkpoint of a run that is whole.

    Args:
        path: a run's folder, its folder of checkpoints, or one checkpoint. Nothing is changed there.
        model: what the model must have in common with the one saved, as a checkpoint's identity has it.
        asked: the field that names ``path``, for messages.

    Returns:
        The folder of the checkpoints and the step of the one loaded.

    Raises:
        CheckpointMismatch: if there is no checkpoint, or the model is another.
        CheckpointError: if none can be loaded.
    """
    wanted = {name: value for name, value in state.items() if name.startswith("model.")}
    found = agree.on_rank_0(lambda: _markers(path))
    if isinstance(found, str):
        raise CheckpointMismatch(f"{asked}={path}: {found}")
    folder, markers = found
    passed_over: list[tuple[int, str]] = []
    for step, marker in markers:
        reason: str | None = disk.UNREADABLE
        if marker is not None:
            if different := in_words(marker["identity"].get("model", {}), model, "model."):
                raise CheckpointMismatch(f"{asked}={path}: its weights are of another model: {different}")
            reason = load(disk.step_folder(folder, step), marker["files"], wanted, agree)
        if reason is None:
            return folder, step
        passed_over.append((step, reason))
    raise CheckpointError(f"{asked}={path}: no checkpoint there can be loaded: {listed(passed_over)}")


def _markers(path: Path) -> tuple[Path, list[tuple[int, dict[str, Any] | None]]] | str:
    """The checkpoints that a path leads to, newest first, with their markers; or why there is none."""
    try:
        folder, steps = disk.candidates(path)
    except FileNotFoundError as error:
        return str(error)
    return folder, [(step, disk.read_marker(folder, step)) for step in steps]


def in_words(saved: Mapping[str, Any], mine: Mapping[str, Any], prefix: str = "") -> str:
    """In which values a checkpoint and a run differ, and what to type instead; empty where in none."""
    found = differences(saved, mine, prefix)
    text, fixes = "; ".join(map(str, found)), " ".join(filter(None, (each.fix for each in found)))
    return f"{text}. Try: {fixes}" if fixes else text


def listed(passed_over: list[tuple[int, str]]) -> str:
    return "; ".join(f"step {step}: {reason}" for step, reason in passed_over)
