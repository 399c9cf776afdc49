"""Runs exported into a folder, once or for as long as they go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc import notes, runs, sweep
from hpc.errors import Refused
from hpc.runs import Run, read_json
from hpc.sweep import Sweep

if TYPE_CHECKING:
    from monitoring.export import About, Export
    from monitoring.reader import Reader

LOOK_EVERY = 5.0  # seconds between two looks at the runs' records
ASK_SLURM_EVERY = 30.0  # seconds between two squeues, for runs whose jobs went without a word
METRICS_FILE = "hpc.prom"  # the ending that node_exporter's text collector looks for
METRICS_EVERY = 15.0


def find(root: Path, texts: Iterable[str]) -> list[Run | Sweep]:
    """The runs and sweeps that a person means.

    Raises:
        Refused: if one is neither.
    """
    found: list[Run | Sweep] = []
    for text in texts:
        try:
            found.append(runs.find(root, text))
        except Refused as refused:
            try:
                found.append(sweep.find(root, text))
            except Refused:
                raise refused from None
    return found


def members(found: Iterable[Run | Sweep]) -> list[Run]:
    """The runs that have begun by now, those of sweeps too, each once."""
    every: dict[Path, Run] = {}
    for each in found:
        several = [each] if isinstance(each, Run) else [each.run(number) for number in range(len(each.members))]
        every.update({run.folder: run for run in several if run.config_file.is_file()})
    return list(every.values())


def about(run: Run) -> About:
    """What is said of a run beside its records: its configuration, and what tells it from others."""
    import yaml

    from monitoring.export import About

    written = notes.read(run)
    config, typed = _yaml(run.config_file), _yaml(run.overrides_file)
    changed: dict[str, Any] = {}
    folder = sweep.of_run(run)
    if folder is not None and (number := (read_json(run.manifest_file) or {}).get("number")) is not None:
        try:
            changed = Sweep(folder).settings(number)
        except (Refused, LookupError, TypeError):  # the sweep's own folder is gone
            folder = None
    elif isinstance(typed, list):
        for word in map(str, typed):
            key, _, value = word.lstrip("+").partition("=")
            try:
                changed[key] = yaml.safe_load(value)
            except yaml.YAMLError:
                changed[key] = value
    group = folder.name if folder is not None else ""
    return About(
        run.name, run.id, config if isinstance(config, dict) else {}, changed, written.tags, written.note, group
    )


def _yaml(file: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(file.read_bytes())
    except (OSError, yaml.YAMLError):
        return None


class Curves:
    """The curves of runs on their way into a folder.

    Args:
        chosen: all runs that are meant, by now.
        say: told of each run, and how many steps its curve has, when its export is whole.
    """

    def __init__(
        self, chosen: Callable[[], list[Run]], to: str, folder: Path, *, lost: bool, say: Callable[[str, int], None]
    ) -> None:
        self.chosen, self.to, self.folder, self.lost, self.say = chosen, to, folder, lost, say
        self.open: dict[Path, Export] = {}
        self.done: dict[Path, int] = {}  # steps of each run whose export is whole
        self._asked = -ASK_SLURM_EVERY
        self._missing: set[Path] = set()  # in no queue when Slurm was last asked
        self._gone: set[Path] = set()  # nor the time before

    def once(self) -> None:
        """Everything as it is now."""
        for run in self.chosen():
            self._look(run, over=True)
            self._close(run)

    def follow(self, pause: float = LOOK_EVERY) -> None:
        """What is new, again and again, until no run is left that goes on. However it ends, what it wrote is whole."""
        try:
            while True:
                chosen = self.chosen()
                for folder in self.open.keys() - {run.folder for run in chosen}:  # deleted
                    self._close(Run(folder))
                ended = {run.folder for run in chosen if self._ended(run)}  # asked before looking: nothing comes later
                for run in chosen:
                    if run.folder not in self.done:
                        self._look(run, over=run.folder in ended)
                        if run.folder in ended:
                            self._close(run)
                if self.done and all(run.folder in self.done for run in chosen):
                    return
                time.sleep(pause)
        finally:
            for folder in list(self.open):
                self._close(Run(folder))

    def _ended(self, run: Run) -> bool:
        from hpc.listing import ENDED, read

        if run.finished or run.state().get("state") in ENDED:
            return True
        if time.monotonic() - self._asked >= ASK_SLURM_EVERY:
            left = [each for each in self.chosen() if each.folder not in self.done]
            missing = {Path(row.folder) for row in read(left) if row.state == "gone"}
            self._gone, self._missing = missing & self._missing, missing  # between two jobs a run has none
            self._asked = time.monotonic()
        return run.folder in self._gone

    def _look(self, run: Run, *, over: bool) -> None:
        from monitoring.export import Export

        if run.folder not in self.open:
            self.open[run.folder] = Export(self.to, self.folder, run.folder, about(run), lost=self.lost)
        self.open[run.folder].look(over=over)

    def _close(self, run: Run) -> None:
        export = self.open.pop(run.folder)
        export.close("finished" if run.finished else str(run.state().get("state", "unknown")))
        self.done[run.folder] = export.steps
        self.say(f"{run.name}/{run.id}", export.steps)


class Metrics:
    """Where runs stand, as a file that is replaced again and again."""

    def __init__(self, chosen: Callable[[], list[Run]], file: Path) -> None:
        self.chosen, self.file = chosen, file
        self._readers: dict[Path, Reader] = {}
        self._jobs: Mapping[Path, Any] = {}
        self._asked = -ASK_SLURM_EVERY

    def once(self) -> bool:
        """Write the file. Returns whether no run goes on."""
        from hpc.queue import states
        from monitoring.export import openmetrics, replacing
        from monitoring.reader import Reader

        chosen = self.chosen()
        if time.monotonic() - self._asked >= ASK_SLURM_EVERY:
            self._jobs, self._asked = states(chosen, self._jobs), time.monotonic()
        for run in chosen:
            self._readers.setdefault(run.folder, Reader(run.folder))
        found = [self._readers[run.folder].read(self._jobs.get(run.folder)) for run in chosen]
        with replacing(self.file) as file:
            file.write(openmetrics.render(found).encode())
        file.close()
        return all(each.done for each in found)

    def follow(self, pause: float = METRICS_EVERY) -> None:
        while not self.once():
            time.sleep(pause)
