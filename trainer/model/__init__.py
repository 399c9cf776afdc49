"""The decoder and its parts. No parallelism in here: engines in ``trainer.parallel`` lay it over ranks.

Suffixes name a tensor's dimensions: B sequences, S positions, T = B·S tokens, D model size, H heads, G key-value
heads, C size of one head, F hidden size of a feed-forward, E experts, K experts per token, R = T·K routed rows,
V vocabulary.
"""

from trainer.model.decoder import Decoder
from trainer.model.moe import Routing

__all__ = ["Decoder", "Routing"]
