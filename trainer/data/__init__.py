"""From text to training samples: corpora, a tokenizer, token shards, and the order in which they are read.

The order is a pure function of (seed, sample index): the whole state of the data is the next index.
"""

from trainer.data.dataset import TokenDataset
from trainer.data.files import DataError
from trainer.data.tokenizer import Tokenizer

__all__ = ["DataError", "TokenDataset", "Tokenizer"]
