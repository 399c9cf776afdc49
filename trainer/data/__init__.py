"""From text to training samples: corpora, a tokenizer, token shards, and the order in which they are read.

Which tokens a sample has is a pure function of (seed, sample index): the whole state of the data is the next index.

======================  ==================================================================================
corpus, prepare, ...    text to shards, once
shards, manifest        what a prepared folder holds
rows, packing           the documents of a source as one row, and how sequences are cut from it
sequences               every sequence, by source and number
mixture, interleave     how often each source is drawn, and which one stands at an index
order                   which sequence of a source its n-th draw is
dataset, validation     all of that together: samples by index
======================  ==================================================================================
"""

from trainer.data.dataset import TokenDataset
from trainer.data.files import DataError
from trainer.data.tokenizer import Tokenizer
from trainer.data.validation import ValidationSet

__all__ = ["DataError", "TokenDataset", "Tokenizer", "ValidationSet"]
