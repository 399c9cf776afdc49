"""What the trainer tells about itself while it runs; whoever starts it decides where that goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Record(Protocol):
    """Takes host values only, returns at once but for ``sync``, and never raises. Steps count from 1.

    Metrics are floats; seconds end in ``_s``. What does not apply is not there, rather than 0.
    """

    def step(self, *, step: int, tokens: int, **metrics: float) -> None:
        """Rank 0, each step; ``tokens`` counts from the first attempt on, this step's included.

        - ``loss``, ``lr``, ``grad_norm`` (before clipping); for fp16 ``loss_scale``
        - of MoE layers, mean over them: ``balance_loss``, ``z_loss``, ``router_entropy`` (natural logarithm),
          ``dropped_share`` (0 to 1, of the rows sent to experts)
        - ``tokens_per_s``, ``flops_per_s``, and ``mfu`` (0 to 1) where the peak is known; ``trainer.size`` says
          what is counted
        - ``step_s`` and its parts: ``data_s``, ``forward_s``, ``backward_s``, ``communication_s`` (the reduction that
          ends a step, with the wait for slower ranks; what an engine sends during forward and backward is in theirs),
          ``norm_s`` (of the gradient, over all ranks), ``optimizer_s`` (the update; on GPUs that of the step before).
          A rank waits for no other in ``data_s`` and, but for what DeepSpeed gathers, in ``optimizer_s``: where these
          are long on one rank alone, it is the rank that the others wait for
        - of what went on between the step before and this one, and no part of ``step_s``: ``checkpoint_s`` (for
          which training waited), ``evaluation_s``, ``rewind_s``
        - ``peak_memory_gib``: the most so far; of a GPU what torch allocated, of a CPU rank its resident memory

        After an evaluation a second time for the same step, with ``validation_loss`` (natural logarithm, a token)
        and ``validation_loss/<source>`` alone.
        """

    def rank(self, *, step: int, step_s: float, **metrics: float) -> None:
        """Each rank, each ``train.ranks_every`` steps: its own ``step_s``, the parts of it, ``peak_memory_gib``."""

    def experts(
        self,
        *,
        step: int,
        layers: Mapping[int, Sequence[int]],
        entropy: Mapping[int, float],
        dropped: Mapping[int, int],
    ) -> None:
        """Rank 0, each ``train.experts_every`` steps, by MoE layer, over all ranks: tokens sent to each expert, mean
        entropy of the router, rows beyond capacity."""

    def event(self, kind: str, **fields: Any) -> None:
        """Rank 0, unless it concerns another rank alone. All have ``step``, but for ``hang`` and ``out_of_memory``.

        - ``resumed`` and ``rng_reseeded``
        - ``checkpoint_begin``, ``checkpoint`` (``seconds`` until it was complete, ``blocked_s`` that training waited),
          ``checkpoint_failed`` and ``corrupt_checkpoint`` (``reason``)
        - ``sources``, with each ``checkpoint_begin``: of each source ``tokens/<source>`` and ``epochs/<source>``, read
          since the first attempt by the samples below ``next_sample``, skipped ones left out
        - ``warm_start``: with the weights ``of_step`` in ``folder``
        - ``skipped_step``: ``loss`` or ``grad_norm`` is not finite, nothing was updated; ``overflow``: the same for
          gradients under a ``loss_scale``; ``spike``: ``sigma`` standard deviations above the usual loss. All with
          ``samples``, [begin, end) of the batch
        - ``rewound``: from ``from_step`` back to ``to_step``; the samples ``skipped``, [begin, end), are passed
          over. The steps from there on are made again, with other samples
        - ``validation``: ``loss`` over ``tokens``
        - ``profile``: of ``steps`` steps up to ``step`` on ``rank``, in ``file``
        - ``hang``: ``rank`` was ``waiting_for`` something for ``seconds`` in ``place``; ``out_of_memory``: ``file``
        - ``stop`` when the ranks agreed on it, then ``stopped`` or ``finished``, the last
        """

    def sync(self) -> Any:
        """Returns when all records so far would survive the loss of the machine. The one method that several threads
        may call."""
