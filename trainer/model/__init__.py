"""The decoder and its parts. No parallelism in here: engines in ``trainer.parallel`` lay it over ranks.

Suffixes name a tensor's dimensions: B sequences, S positions, T = B·S tokens, D model size, H heads, G key-value
heads, C size of one head, F hidden size of a feed-forward, E experts, K experts per token, N = T·K routed rows,
R rows on their way through experts, V vocabulary.
"""

from trainer.model.decoder import Decoder, Output
from trainer.model.router import Routing

__all__ = ["Decoder", "Output", "Routing"]
