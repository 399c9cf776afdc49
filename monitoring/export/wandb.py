"""A run as an offline run of Weights & Biases, for ``wandb sync``. No network is asked for, and nobody a question.

``FOLDER/wandb/offline-run-<when>-<id>/``. Its steps are the run's, its times those at which they were made. W&B's steps
only go up: where steps were lost that it holds, the offline run is written anew.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from monitoring.export import About, Missing, needs
from monitoring.export.increments import Increment
from monitoring.history import History

_QUIET = {
    "WANDB_MODE": "offline",
    "WANDB_ERROR_REPORTING": "false",  # its own reports of crashes would go over the network
    "WANDB_SILENT": "true",
    "WANDB_CONSOLE": "off",
}
_open: set[str] = set()  # ids of the runs that this process has not finished


def make(folder: Path, about: About, lost: bool) -> Wandb:
    if lost:
        raise Missing("--lost: W&B keeps one value a step. Lost stretches go to tensorboard, csv and parquet")
    return Wandb(folder, about)


class Wandb:
    """One run's offline run."""

    appends_only = True

    def __init__(self, folder: Path, about: About) -> None:
        os.environ.update(_QUIET)  # before the import, which reads some of them
        self.wandb = needs("wandb", "wandb")
        self.folder, self.about = folder, about
        self.run: Any = None

    def take(self, found: Increment, history: History) -> None:
        for chunk in found.chunks:
            for step, tokens, t, metrics in chunk.rows():
                if self.run is None:
                    self.run = self._begin()
                self.run.log({**metrics, "tokens": tokens, "attempt": chunk.attempt, "_timestamp": t}, step=step)

    def restart(self) -> None:
        if self.run is not None:
            where = Path(self.run.settings.sync_dir)
            self._finish()
            shutil.rmtree(where)

    def close(self, history: History, state: str) -> None:
        if self.run is not None:
            self.run.summary["state"] = state
            self._finish(exit_code=1 if state == "failed" else 0)

    def _finish(self, exit_code: int = 0) -> None:
        self.run.finish(exit_code)
        self.run = None
        _open.discard(self.about.id)
        if not _open:
            self.wandb.teardown()  # finish() comes back some milliseconds before the last records are in the file

    def _begin(self) -> Any:
        _open.add(self.about.id)
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in self.folder.glob(f"wandb/offline-run-*-{self.about.id}"):
            shutil.rmtree(old)  # an export from before of the same run
        settings = self.wandb.Settings(
            x_disable_stats=True,
            x_disable_meta=True,
            x_save_requirements=False,
            disable_git=True,
            save_code=False,
            silent=True,
            console="off",
        )
        return self.wandb.init(
            mode="offline",
            dir=str(self.folder),
            project=os.environ.get("WANDB_PROJECT") or self.about.name,
            id=self.about.id,
            name=f"{self.about.name}/{self.about.id}",
            group=self.about.group or None,
            tags=list(self.about.tags) or None,
            notes=self.about.note or None,
            config=dict(self.about.config),
            reinit="create_new",
            settings=settings,
        )
