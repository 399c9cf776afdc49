"""What validation reads: the same few sequences of every source each time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trainer.config import DataConfig
from trainer.data.files import DataError
from trainer.data.mixture import drawn_sources
from trainer.data.order import shuffled
from trainer.data.sequences import Sequences
from trainer.samples import IGNORED, Samples


class ValidationSet:
    """Fixed sequences of the sources that a run trains on, shared out evenly over them.

    They depend on nothing but the data and how it is cut, so that runs with other seeds are measured on the same
    text. A source that is too small for one sequence is padded.

    Attributes:
        sources: names of the sources, by ``Samples.sources``; those without a document to validate on are left out.
    """

    def __init__(self, data: DataConfig, samples: int, share: slice | None = None) -> None:
        """Open the validation split of a folder that ``job=prepare`` wrote.

        Args:
            samples: how many, over all sources; each source has at least one, and not more than there are.
            share: of the folder's shards, those to be looked at; None: none, as ``TokenDataset`` looks at all of them.

        Raises:
            DataError: if the folder is not whole or has nothing to validate on.
        """
        self._sequences = Sequences(
            data, "validation", lambda sources: drawn_sources(data, sources), small=True, share=share
        )
        self.sources = self._sequences.sources
        if not self.sources:
            raise DataError(
                f"{data.path} has no documents to validate on. Prepare it with a larger data.corpus.validation_share, "
                "or train with train.evaluate.every_steps=0"
            )
        self._located = _shared_out(self._sequences.lengths, samples)

    def __len__(self) -> int:
        return self._located.shape[1]

    def batch(self, indices: npt.ArrayLike) -> Samples:
        """The samples at n indices of at least 0.

        From ``len(self)`` on they repeat, with nothing to be learned: so all ranks can make equally many passes.
        """
        wanted = np.atleast_1d(np.asarray(indices, dtype=np.int64))
        found = self._sequences.read(*self._located[:, wanted % len(self)])
        beyond = wanted >= len(self)
        if beyond.any():
            targets = found.targets.copy()
            targets[beyond] = IGNORED
            found = found._replace(targets=targets)
        return found


def _shared_out(lengths: np.ndarray, samples: int) -> np.ndarray:
    """int64 [2, n]: sources and numbers of about ``samples`` sequences, source by source in turn."""
    quota, rest = divmod(samples, len(lengths))
    wanted = np.maximum(quota + (np.arange(len(lengths)) < rest), 1)
    taken = np.minimum(wanted, lengths)
    sources = np.repeat(np.arange(len(lengths)), taken)
    turns = np.arange(int(taken.sum())) - np.repeat(np.cumsum(taken) - taken, taken)
    numbers = shuffled(turns, lengths[sources], 0)
    return np.stack([sources, numbers])[:, np.lexsort((sources, turns))]
