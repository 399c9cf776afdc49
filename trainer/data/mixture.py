"""How often a run draws each source: what ``data.mixture`` means for the sources of a folder. Pure, free of torch.

Weights count sequences. A name may be a pattern ("*", "de_*"), whose weight every source takes that it matches
and that is not named itself; of several patterns the first holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from fractions import Fraction

from trainer.config import DataConfig, Packing, Phase
from trainer.problems import Problem

_FINEST = 1 << 40  # by temperature the smallest source has this part of the largest one's weight at least


@dataclass(frozen=True)
class Part:
    """Weights that hold from a sample of the run on, until the next part begins or for ever."""

    first: int  # index of its first sample
    weights: dict[str, int]  # above 0, by source
    # Samples after which each source was drawn exactly as often as its weight, and which are shuffled among
    # themselves only, so that each epoch is whole; 0: there is no such number.
    epoch: int = 0


def drawn_sources(data: DataConfig, sources: Mapping[str, int]) -> list[str]:
    """Which sources of a folder the mixture draws from at any time, in the folder's order."""
    given = [weights for _, weights in _weights(data)]
    return [source for source in sources if not given or any(source in _resolved(w, sources) for w in given)]


def first_samples(phases: Sequence[Phase], run: int) -> list[int]:
    """Index of the first sample of each phase, in a run of so many samples."""
    ends = [Fraction(str(phase.until)) * run for phase in phases]
    return [0, *(math.floor(end + Fraction(1, 2)) for end in ends[:-1])] if phases else []


def kept_phases(phases: Sequence[Phase], starts: Sequence[int], run: int) -> list[Phase]:
    """The same phases, beginning at the samples ``starts`` in a run of another length, in which all of them begin."""
    ends = [start / run for start in starts[1:]] + [1.0]
    return [Phase(until=end, weights=phase.weights) for end, phase in zip(ends, phases, strict=True)]


def parts(data: DataConfig, *, samples: Mapping[str, int], tokens: Mapping[str, int], run: int) -> list[Part]:
    """The run's mixture, exactly.

    Args:
        samples: of one epoch of each source that is drawn, at least 1.
        tokens: of each source.
        run: samples of the whole run, ``train.tokens`` / ``data.seq_len``, for the ends of phases.
    """
    mixture = data.mixture
    if mixture.phases:
        return [
            Part(first, _whole(_resolved(phase.weights, samples)))
            for first, phase in zip(first_samples(mixture.phases, run), mixture.phases, strict=True)
        ]
    if mixture.weights:
        return [Part(0, _whole(_resolved(mixture.weights, samples)))]
    if mixture.temperature is not None:
        most = max(tokens[source] for source in samples)
        shares = {source: (tokens[source] / most) ** (1 / mixture.temperature) for source in samples}
        return [Part(0, {source: max(1, round(share * _FINEST)) for source, share in shares.items()})]
    return [Part(0, dict(samples), epoch=sum(samples.values()))]


def problems(sources: Mapping[str, int], data: DataConfig) -> Iterator[Problem]:
    """What is wrong with a mixture for these sources, which ``trainer.problems`` cannot know.

    Args:
        sources: tokens of each source of the split that is trained on.
    """
    longest = max(sources.values(), default=0)
    if data.packing is Packing.stream and longest <= data.seq_len:
        fix = f"data.seq_len={longest - 1}" if longest > 1 else ""
        allowed = f"the largest source of {data.path} has {longest} tokens, and must have more than data.seq_len"
        yield Problem("data.seq_len", str(data.seq_len), allowed, fix)
        return
    least = data.seq_len if data.packing is Packing.stream else 0
    for path, weights in _weights(data):
        yield from _unknown(path, weights, sources)
        drawn = _resolved(weights, sources)
        if drawn and all(sources[source] <= least for source in drawn):
            given = ", ".join(f"{name}: {weight:g}" for name, weight in weights.items())
            yield Problem(path, given, f"no source that it draws has more than data.seq_len={least} tokens")
            continue
        for source in weights:
            if source in drawn and sources[source] <= least:
                yield Problem(
                    f"{path}.{source}",
                    f"{weights[source]:g}",
                    f"this source has {sources[source]} tokens, too few for one sequence of "
                    f"data.seq_len={data.seq_len}",
                    "data.packing=documents, or leave it out",
                )


def _unknown(path: str, weights: Mapping[str, float], sources: Mapping[str, int]) -> Iterator[Problem]:
    for name in weights:
        if not any(source == name or fnmatchcase(source, name) for source in sources):
            near = get_close_matches(name, sources, n=1, cutoff=0.5)
            fix = f"{near[0]} in place of {name}" if near else ""
            known = ", ".join(list(sources)[:20]) + (", ..." if len(sources) > 20 else "")
            yield Problem(path, name, f"no such source; the data has {known}", fix)


def _weights(data: DataConfig) -> list[tuple[str, dict[str, float]]]:
    """Every table of weights with its path; none where sources are drawn by their size."""
    phases = data.mixture.phases
    if phases:
        return [(f"data.mixture.phases[{i}].weights", phase.weights) for i, phase in enumerate(phases)]
    return [("data.mixture.weights", data.mixture.weights)] if data.mixture.weights else []


def _resolved(weights: Mapping[str, float], sources: Mapping[str, int]) -> dict[str, float]:
    """The weights above 0 of the sources that are named or matched, in the order of ``sources``."""
    found: dict[str, float] = {}
    for source in sources:
        weight = weights.get(source)
        if weight is None:
            weight = next((w for pattern, w in weights.items() if fnmatchcase(source, pattern)), 0.0)
        if weight > 0:
            found[source] = weight
    return found


def _whole(weights: Mapping[str, float]) -> dict[str, int]:
    """The same proportions in whole numbers: 0.1 is a tenth, as it was written, not the float next to it."""
    exact = {source: Fraction(str(weight)) for source, weight in weights.items()}
    scale = math.lcm(*(weight.denominator for weight in exact.values()))
    whole = {source: int(weight * scale) for source, weight in exact.items()}
    common = math.gcd(*whole.values())
    return {source: weight // common for source, weight in whole.items()}
