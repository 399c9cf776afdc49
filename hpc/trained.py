"""What a run has trained on, as its newest complete checkpoint and its records say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hpc import runs
from hpc.runs import Run


@dataclass(frozen=True)
class Skipped:
    """Samples [first, last) that were left out on purpose."""

    first: int
    last: int
    why: str  # empty where no record says


@dataclass(frozen=True)
class Saved:
    """The newest complete checkpoint, and the whole state of the data: the next sample, and those left out."""

    step: int
    next_sample: int
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class Source:
    """What was read of a source; padding and skipped samples are not counted."""

    source: str
    tokens: int
    share: float  # of the tokens of all sources, 0 to 1
    epochs: float  # how often it was read from end to end


def trained(run: Run) -> tuple[Saved | None, tuple[Source, ...]]:
    """The newest checkpoint and, as of it or of the end, the sources, that with most tokens first."""
    from trainer import checkpoint_folder

    found = checkpoint_folder.newest(run.checkpoints)
    progress: dict[str, Any] = found[1]["progress"] if found else {}
    done = runs.read_json(run.finished_file) or {}
    saved = None
    if found:
        why = _reasons(run) if progress.get("skipped") else {}
        skipped = tuple(Skipped(first, last, why.get((first, last), "")) for first, last in progress.get("skipped", ()))
        saved = Saved(progress["step"], progress["next_sample"], skipped)
    return saved, _sources(done.get("by_source") or progress.get("sources") or {})


def _sources(found: dict[str, dict[str, Any]]) -> tuple[Source, ...]:
    every = sum(each["tokens"] for each in found.values())
    rows = [
        Source(name, each["tokens"], each["tokens"] / every if every else 0.0, each["epochs"])
        for name, each in found.items()
    ]
    return tuple(sorted(rows, key=lambda row: (-row.tokens, row.source)))


def _reasons(run: Run) -> dict[tuple[int, int], str]:
    """Why samples were left out, by [first, last)."""
    from monitoring import layout
    from monitoring.tail import events

    found: dict[tuple[int, int], str] = {}
    for number in layout.attempt_numbers(run.folder):
        spike: dict[str, Any] = {}
        for event in events(layout.attempt_folder(run.folder, number), {"spike", "rewound"}):
            if event["event"] == "spike":
                spike = event
            elif isinstance(skipped := event.get("skipped"), list) and len(skipped) == 2:
                found[skipped[0], skipped[1]] = _reason(event, spike)
    return found


def _reason(rewound: dict[str, Any], spike: dict[str, Any]) -> str:
    said = f"the loss spiked at step {rewound.get('from_step')}"
    try:
        return f"{said}: {spike['loss']:.4g}, {spike['sigma']:.1f} standard deviations above the usual"
    except (KeyError, TypeError, ValueError):
        return said
