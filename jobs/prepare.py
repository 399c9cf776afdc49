"""``job=prepare``: fetch a corpus, train its tokenizer and write its token shards to data.path.

One rank does it. It may be killed at any moment: downloads stay, nothing half-made is
taken for whole, and the next attempt makes the rest. Asked to stop it goes on, having nothing to save.
"""

from __future__ import annotations

import time
from pathlib import Path

from hpc.attempt import Attempt
from hpc.errors import Failed, Refused
from hpc.runs import load_config, mark_finished
from trainer.data.fetch import FetchError
from trainer.data.files import DataError
from trainer.data.prepare import TRAIN, VALIDATION, prepare


class Prepare:
    """Make the data folder that a configuration's ``data`` describes."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def __call__(self) -> None:
        """
        Raises:
            Refused: if the request cannot be met as it is, such as when data.path holds something else.
            Failed: if a download or the disk fails; another attempt may do better.
        """
        attempt = Attempt.from_environment()
        attempt.install_stop_handlers()
        if attempt.world_size > 1:  # it would be ended a minute after the others, who have nothing to do, left
            raise Refused(
                f"job=prepare takes one rank, and this run has {attempt.world_size}. "
                "Try: job.nodes=1 job.ranks_per_node=1"
            )
        attempt.ready()
        data = load_config(self.run).data
        path = Path(data.path)
        begun = time.monotonic()
        try:
            manifest = prepare(path, data.corpus, path.parent / ".cache", _say)
        except FetchError as error:
            raise Failed(str(error)) from error
        except DataError as error:
            raise Refused(str(error)) from error
        except OSError as error:
            raise Failed(
                f"could not write the data to {path}: {error.strerror or error}. "
                "Free space there, or choose another place with data.path=DIR or cluster.data=DIR"
            ) from error
        mark_finished(
            self.run,
            data=str(path),
            vocab_size=manifest.vocab_size,
            sources=len(manifest.splits[TRAIN]),
            train_tokens=manifest.tokens(TRAIN),
            validation_tokens=manifest.tokens(VALIDATION),
            seconds=round(time.monotonic() - begun, 1),
        )


def _say(line: str) -> None:
    print(line, flush=True)
