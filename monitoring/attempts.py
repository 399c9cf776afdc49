"""The attempts of a run as people are shown them: none goes on for ever because nobody lived to write its end. Pure."""

from __future__ import annotations

from dataclasses import replace

from monitoring.snapshot import Attempt, Snapshot


def settled(snapshot: Snapshot) -> tuple[Attempt, ...]:
    """All attempts; one that cannot go on any more has ended with its last word, by what is known of the run.

    It cannot where the run has ended, a later attempt began, or its job is gone or waits.
    """
    job, found = snapshot.job, list(snapshot.attempts)
    over = snapshot.done or (job is not None and (job.over or job.state == "PENDING"))
    for place, attempt in enumerate(found):
        newest = place == len(found) - 1
        if attempt.ended is None and (over or not newest):
            told = attempt.cause or ("cancelled" if newest and snapshot.state == "cancelled" else "unknown")
            found[place] = replace(attempt, ended=_last_word(snapshot, place), cause=told)
    return tuple(found)


def _last_word(snapshot: Snapshot, place: int) -> float | None:
    """When an attempt was last heard of, in unix seconds."""
    attempt = snapshot.attempts[place]
    if attempt.began is None:
        return None
    spans = (span.end for span in snapshot.outlook.spans if span.attempt == attempt.number)
    end = max(spans, default=attempt.began)
    later = [each.began for each in snapshot.attempts[place + 1 :] if each.began is not None]
    if later:
        return max(attempt.began, min(end, *later))
    if snapshot.done:
        return end
    return max(attempt.began, min(end, snapshot.updated or attempt.began))  # its time is still being counted
