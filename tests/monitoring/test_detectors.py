"""Findings on generated histories: each fault is found, soon, and for what it is; a healthy run is left in peace."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from monitoring.detectors import curve, detect, experts, gpus, hardware, ranks, run
from monitoring.evidence import Disk, Evidence, Pulse
from monitoring.findings import Finding, Severity, ordered, worst
from monitoring.goodput import Bucket, Span, totals
from monitoring.history import Series
from monitoring.outlook import Outlook
from monitoring.snapshot import Attempt, ExpertLoad, JobState, Snapshot

BEGAN = 1_763_800_000.0


def healthy(count: int, seed: int, noise: float = 0.03, step_s: float = 1.0) -> dict[str, np.ndarray]:
    """The metrics of a training that goes well: warm-up, a power law, noise that is no bell curve, a cosine."""
    dice, step = np.random.default_rng(seed), np.arange(1, count + 1)
    loss = 2.2 + 8.5 * (step + 20.0) ** -0.35
    loss = loss * (1 + noise * dice.standard_t(10, count) / 1.12)
    rate = np.minimum(1, step / 100) * (0.55 + 0.45 * np.cos(np.pi * step / (count * 1.3)))
    speed = 4096 / step_s * (1 + 0.04 * dice.standard_normal(count))
    speed[::50] *= 0.6  # a checkpoint, an evaluation
    memory = np.maximum.accumulate(10 * (1 - np.exp(-step / 5)) + 0.01 * dice.random(count))
    return {"loss": loss, "lr": rate * 3e-4, "tokens_per_s": speed, "peak_memory_gib": memory}


def evidence(metrics: dict[str, np.ndarray], *, step_s: float = 1.0, late: float = 1.0, **more: object) -> Evidence:
    """A running attempt that recorded these, ``late`` seconds ago."""
    count = len(next(iter(metrics.values()))) if metrics else 0
    steps, times = np.arange(1, count + 1), BEGAN + 20 + step_s * np.arange(1, count + 1)
    now = float(times[-1] if count else BEGAN) + late
    known = {"folder": Path("x"), "name": "x", "id": "x", "now": now, "state": "running"}
    snapshot = Snapshot(**known, attempts=(Attempt(0, began=BEGAN, nodes=("a", "b")),))
    series = {name: Series(steps, values) for name, values in metrics.items()}
    return Evidence(snapshot, steps=steps, times=times, series=series, began=BEGAN, **more)  # type: ignore[arg-type]


def kinds(found: list[Finding]) -> set[str]:
    return {finding.kind for finding in found}


def test_a_healthy_run_is_left_in_peace() -> None:
    looks, alarms = 0, []
    for seed in range(40):
        whole = healthy(6000, seed, noise=(0.01, 0.03, 0.06, 0.1)[seed % 4])
        for count in (5, 60, 300, 1000, 2500, 6000):
            looks += 1
            alarms += detect(evidence({name: values[:count] for name, values in whole.items()}))
    assert len(alarms) <= looks / 100, [f"{each.kind}: {each.title} {each.evidence}" for each in alarms]


def delay(break_it: Callable[[np.ndarray], np.ndarray], kind: str, seed: int) -> int | None:
    """Steps from the fault at step 3,000 until the detector tells of it."""
    whole = healthy(3400, seed)
    whole["loss"] = np.concatenate([whole["loss"][:3000], break_it(whole["loss"][3000:])])
    for count in range(3001, 3401, 10 if kind != "loss_spike" else 1):
        found = detect(evidence({name: values[:count] for name, values in whole.items()}))
        if kind in kinds(found):
            return count - 3000
    return None


@pytest.mark.parametrize(
    ("break_it", "kind", "steps"),
    [
        (lambda loss: np.where(np.arange(len(loss)) == 0, loss * 2, loss), "loss_spike", 1),
        (lambda loss: np.full_like(loss, math.nan), "not_finite", 1),
        (lambda loss: loss + np.minimum(np.arange(len(loss)) / 100, 2.0), "divergence", 250),
    ],
    ids=["spike", "nan", "divergence"],
)
def test_a_loss_that_goes_wrong_is_told_soon(
    break_it: Callable[[np.ndarray], np.ndarray], kind: str, steps: int
) -> None:
    found = [delay(break_it, kind, seed) for seed in range(3)]
    assert all(each is not None and each <= steps for each in found), found


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.3])
def test_a_loss_that_went_up_and_stays_there_is_told_at_every_look(noise: float) -> None:
    whole = healthy(3000, 4)["loss"]
    whole[1000:] = np.minimum(6, 2.6 + 0.04 * np.arange(2000)) + noise * np.random.default_rng(5).standard_normal(2000)
    told = [bool(list(curve.divergence(evidence({"loss": whole[:count]})))) for count in range(1400, 3000, 50)]
    assert sum(told) >= len(told) - 1


def test_a_loss_that_comes_down_again_is_no_divergence() -> None:
    whole = healthy(3000, 4)["loss"]
    whole[1000:] += 3 * np.exp(-np.arange(2000) / 300)
    assert not any(list(curve.divergence(evidence({"loss": whole[:count]}))) for count in range(1250, 3000, 50))


def test_a_spike_is_none_once_the_news_is_old() -> None:
    whole = healthy(4000, 0)
    whole["loss"][3000] *= 3
    assert not list(curve.spike(evidence(whole)))


def test_a_loss_that_gains_nothing_is_a_plateau_and_one_at_the_end_of_its_schedule_is_not() -> None:
    whole = healthy(12000, 1, noise=0.01)
    whole["loss"][6000:] = 2.6 + 0.02 * np.random.default_rng(0).standard_normal(6000)
    whole["lr"] = np.full(12000, 3e-4)
    assert [found.severity for found in curve.plateau(evidence(whole))] == [Severity.info]
    assert not list(curve.plateau(evidence({**whole, "lr": np.linspace(3e-4, 0, 12000)})))


@pytest.mark.parametrize("every", [1, 10, 41, 100])
@pytest.mark.parametrize("count", [210, 260, 310, 1000])
def test_runs_of_which_few_steps_are_recorded_can_be_judged(every: int, count: int) -> None:
    steps = np.arange(1, count + 1) * every
    falling, flat = 3 + 5 / (1 + steps / 1000), 3 + 0.01 * np.sin(steps)
    for values, plateau in ((falling, False), (flat, count * every >= 8000 and count >= 900)):
        series = {"loss": Series(steps, values), "lr": Series(steps, np.full(count, 3e-4))}
        found = detect(Evidence(evidence({}).snapshot, steps=steps, times=BEGAN + steps, series=series))
        assert kinds(found) == ({"plateau"} if plateau else set())


def test_a_fault_in_one_detector_hides_nothing_that_others_find(monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(given: Evidence) -> Iterator[Finding]:
        yield Finding("first", Severity.warning, "x", "y", since=given.now)
        raise TypeError("expected non-empty vector for x")

    monkeypatch.setattr("monitoring.detectors.DETECTORS", (odd, curve.not_finite))
    found = detect(evidence({"loss": np.array([2.0, math.nan])}))
    assert [each.kind for each in found] == ["not_finite", "first", "unjudged"]
    assert found[-1].severity is Severity.info and "expected non-empty" in found[-1].evidence


# -- ranks -------------------------------------------------------------------------------------------------------


def pulses(
    *, slow: int | None = None, part: str = "optimizer_s", silent: int | None = None, count: int = 4
) -> list[Pulse]:
    """Ranks of which each step takes all the same time, as in training they do."""
    dice, found = np.random.default_rng(0), []
    steps = np.arange(10, 310, 10)
    for rank in range(count):
        metrics = {"step_s": np.full(len(steps), 1.0), "data_s": np.full(len(steps), 0.01)}
        metrics["optimizer_s"] = 0.1 * (1 + 0.05 * dice.standard_normal(len(steps)))
        if rank == slow:
            metrics[part] = metrics[part] + 0.2
        kept = slice(0, 10) if rank == silent else slice(None)
        times = BEGAN + 20 + steps.astype(float)
        columns = {name: values[kept] for name, values in metrics.items()}
        found.append(Pulse(rank, ("a", "b")[rank // 2], times[kept], steps[kept], columns))
    return found


@pytest.mark.parametrize("part", ["optimizer_s", "data_s"])
def test_the_rank_that_others_wait_for_is_named_with_its_node(part: str) -> None:
    whole = healthy(310, 0)
    assert not list(ranks.straggler(evidence(whole, pulses=pulses())))
    (found,) = ranks.straggler(evidence(whole, pulses=pulses(slow=3, part=part)))
    assert (found.rank, found.node, found.about) == (3, "b", part.removesuffix("_s"))
    assert "job.exclude=b" in found.do


def test_a_rank_that_went_silent_is_named() -> None:
    assert not list(ranks.dead_rank(evidence(healthy(310, 0), pulses=pulses())))
    (found,) = ranks.dead_rank(evidence(healthy(310, 0), pulses=pulses(silent=2)))
    assert (found.rank, found.node, found.severity) == (2, "b", Severity.critical)


def test_silence_is_a_stall_only_beyond_what_the_trainer_allows_itself() -> None:
    def found(late: float, *events: dict[str, object]) -> bool:
        return bool(list(ranks.stall(evidence(healthy(200, 0), late=late, events=events))))

    last = BEGAN + 20 + 200
    saving = {"event": "checkpoint_begin", "t": last + 0.1}
    evaluating = {"event": "evaluation_begin", "t": last + 0.1}
    assert not found(300) and found(400)
    assert not found(3000, saving) and found(4000, saving)
    assert not found(3000, evaluating) and found(4000, evaluating)
    assert not found(300, {"event": "checkpoint", "t": last + 0.1}) and found(400, {"event": "checkpoint", "t": last})


def test_a_clock_that_was_ahead_for_a_moment_hides_no_stall() -> None:
    ahead = {"event": "started", "t": BEGAN + 86_400}
    for events in ([ahead], [ahead, {"event": "checkpoint", "t": BEGAN + 30}]):
        assert not list(ranks.stall(evidence(healthy(200, 0), late=100, events=events)))
        assert list(ranks.stall(evidence(healthy(200, 0), late=18_000, events=events)))


def test_a_clock_that_is_ahead_all_the_time_makes_no_stall() -> None:
    told = [{"event": "started", "t": BEGAN + 15}]
    assert not list(ranks.stall(evidence(healthy(2000, 0), late=-600, events=told)))
    assert not list(ranks.stall(evidence({}, late=-600, events=told)))


@pytest.mark.parametrize("event", ["sources", "spike", "stop", "finished", "profile"])
def test_what_the_trainer_allows_itself_an_hour_for_is_no_stall(event: str) -> None:
    told = {"event": event, "t": BEGAN + 20 + 200 + 0.1}
    assert not list(ranks.stall(evidence(healthy(200, 0), late=3000, events=[told])))
    assert list(ranks.stall(evidence(healthy(200, 0), late=4000, events=[told])))


@pytest.mark.parametrize(
    "config",
    [
        {"job": {"_target_": "jobs.prepare.Prepare"}},
        {"job": {"_target_": "jobs.command.Command"}},
        {"train": {"watch": {"hang_factor": 0.0}}},
    ],
)
def test_of_what_nobody_promised_nothing_is_a_stall(config: dict[str, object]) -> None:
    assert not list(ranks.stall(evidence(healthy(200, 0), late=9000, config=config)))
    assert not list(ranks.stall(evidence({}, late=9000, config=config)))


def test_an_attempt_of_the_start_before_is_not_judged() -> None:
    given = evidence(healthy(200, 0), late=4000)

    def judged(started: float | None) -> bool:
        job = JobState("7", "RUNNING", started=started)
        return bool(list(ranks.stall(replace(given, snapshot=replace(given.snapshot, job=job)))))

    assert judged(None) and judged(BEGAN - 5) and judged(BEGAN + 2)
    assert not judged(BEGAN + 3900)  # requeued: its new attempt has not said yet that it began


def test_a_rank_that_never_said_a_word_is_named() -> None:
    given = evidence(healthy(310, 0), pulses=[each for each in pulses() if each.rank != 1])
    attempt = Attempt(0, began=BEGAN, nodes=("a", "b"), world_size=4)
    (found,) = ranks.dead_rank(replace(given, snapshot=replace(given.snapshot, attempts=(attempt,))))
    assert (found.rank, found.node) == (1, "a") and "never" in found.title
    header = Pulse(1, "a", np.empty(0), np.empty(0, np.int64), {})
    (found,) = ranks.dead_rank(replace(given, pulses=[*given.pulses, header]))
    assert (found.rank, found.node) == (1, "") and "but that it began" in found.title
    assert not list(ranks.dead_rank(replace(given, pulses=[*given.pulses, header], unreadable={1})))
    assert not list(ranks.dead_rank(given))  # nobody said how many there are
    other = replace(given, snapshot=replace(given.snapshot, attempts=(attempt,)), config={"job": {"_target_": "x"}})
    assert not list(ranks.dead_rank(other))  # of another program nobody knows which ranks tell anything


def test_a_start_is_given_time_and_a_run_that_waits_for_nodes_does_not_stall() -> None:
    assert not list(ranks.stall(evidence({}, late=1500)))
    assert list(ranks.stall(evidence({}, late=2000)))
    waiting = evidence(healthy(200, 0), late=9000)
    assert not list(ranks.stall(replace(waiting, snapshot=replace(waiting.snapshot, state="requeued"))))


def test_fewer_tokens_a_second_are_told_with_the_part_that_grew() -> None:
    whole = healthy(1000, 0)
    whole["tokens_per_s"][-60:] *= 0.6
    whole["forward_s"] = np.full(1000, 0.3)
    whole["backward_s"] = np.where(np.arange(1000) >= 940, 1.0, 0.6)
    (found,) = ranks.throughput_drop(evidence(whole))
    assert "backward_s" in found.evidence and "fewer" in found.title


# -- experts, hardware, course -----------------------------------------------------------------------------------


def loads(shares: list[float], count: int = 6) -> dict[int, list[ExpertLoad]]:
    return {2: [ExpertLoad(2, 1000 + 10 * n, tuple(int(s * 1000) for s in shares)) for n in range(count)]}


def test_experts_that_get_nothing_and_routers_that_use_few() -> None:
    assert not detect(replace(evidence({}), loads=loads([1.2, 0.8, 1.1, 0.9])))
    assert kinds(list(experts.dead_expert(replace(evidence({}), loads=loads([1, 0, 1, 0.02]))))) == {
        "dead_expert",
        "starved_expert",
    }
    one_of_many = loads([1.0] + [0.001] * 15)
    assert kinds(list(experts.routing_collapse(replace(evidence({}), loads=one_of_many)))) == {"routing_collapse"}


def device(rank: int, **fields: float) -> Pulse:
    now = BEGAN + 21
    records = [{"t": now - 660 + 60 * n, **fields} for n in range(12)]
    return Pulse(rank, "a", np.empty(0), np.empty(0, np.int64), {}, records)


def test_gpus_that_idle_or_are_hot() -> None:
    assert not list(gpus.idle_gpu(evidence({}, pulses=[device(0, gpu_util=0.9)])))
    assert [f.rank for f in gpus.idle_gpu(evidence({}, pulses=[device(1, gpu_util=0.01)]))] == [1]
    assert not list(gpus.hot_gpu(evidence({}, pulses=[device(0, temperature_c=70, throttled=0)])))
    assert len(list(gpus.hot_gpu(evidence({}, pulses=[device(0, temperature_c=92)])))) == 1
    (found,) = gpus.hot_gpu(evidence({}, pulses=[device(0, temperature_c=70, throttled=0.9)]))
    assert "throttled" in found.title and "90% of the time" in found.evidence
    hours_ago = [replace(device(0), devices=[{**r, "t": r["t"] - 7200} for r in device(0, temperature_c=92).devices])]
    assert not list(gpus.hot_gpu(evidence({}, pulses=hours_ago)))
    assert not list(gpus.hot_gpu(evidence({}, pulses=[device(0, temperature_c=70, throttled=0.4)])))


def test_errors_that_the_driver_tells_of() -> None:
    def found(**fields: list[float]) -> list[Finding]:
        count = len(next(iter(fields.values())))
        records = [{"t": BEGAN + 60 * n, **{key: row[n] for key, row in fields.items()}} for n in range(count)]
        pulse = Pulse(3, "b", np.empty(0), np.empty(0, np.int64), {}, records)
        return list(gpus.gpu_error(evidence({}, pulses=[pulse])))

    assert not found(ecc_errors=[12, 12, 12]) and not found(gpu_util=[0.5])
    (told,) = found(ecc_errors=[12, 12, 13, 14])
    assert (told.severity, told.rank, told.node, told.since) == (Severity.critical, 3, "b", BEGAN + 120)
    assert "14 since" in told.evidence and "12 before" in told.evidence and "job.exclude=b" in told.do
    other, told = found(xid=[31, 31, 79, 79])
    assert (other.severity, other.about) == (Severity.warning, "xid-31") and "hpc logs RUN --rank 3" in other.do
    assert (told.severity, told.since) == (Severity.critical, BEGAN + 120) and "bus" in told.title
    for xid in (48, 63, 64, 74, 79, 94, 95):
        assert found(xid=[xid])[0].severity is Severity.critical
    assert found(xid=[109])[0].severity is Severity.warning


def test_memory_that_grows_without_end() -> None:
    whole = healthy(2000, 0)
    whole["peak_memory_gib"] = 10 + np.arange(2000) / 500
    (found,) = hardware.memory_growth(evidence(whole))
    assert found.kind == "memory_growth"


def test_memory_that_grows_is_seen_in_the_newest_attempt_and_after_a_long_quiet_time() -> None:
    leak = 40 + np.arange(4000) * 0.005

    def found(values: np.ndarray, began: int = 0) -> list[Finding]:
        return list(hardware.memory_growth(replace(evidence({"peak_memory_gib": values}), began=BEGAN + 20 + began)))

    assert found(np.tile(leak, 3), began=8001) and found(np.append(np.full(20_000, 40.0), leak))
    assert not found(np.append(leak, np.full(8000, 60.0)))
    assert not found(np.append(leak, np.full(4000, 40.0)), began=4001)


def test_memory_of_a_node_that_grows_without_end() -> None:
    def pulse(rank: int, *, own: float, node: float, minutes: int = 120) -> Pulse:
        rows = []
        for n in range(minutes):
            used = {"memory_gib": 10 + own * n / 60 + 0.01 * (n % 3), "host_memory_gib": 100 + node * n / 60}
            rows.append(
                {"t": BEGAN + 60 * (n - minutes), **(used if not rank % 2 else {"memory_gib": used["memory_gib"]})}
            )
        return Pulse(rank, "ab"[rank // 2], np.empty(0), np.empty(0, np.int64), {}, rows)

    def found(*given: Pulse) -> list[Finding]:
        return list(hardware.host_memory_growth(evidence({}, pulses=given)))

    (told,) = found(*(pulse(rank, own=2.0 if rank == 1 else 0.0, node=2.0) for rank in range(4)))
    assert "rank 1 " in told.title and told.key == "memory_growth:host"
    (told,) = found(*(pulse(rank, own=2.0, node=4.0) for rank in range(4)))
    assert "3 others" in told.title
    assert not found(pulse(0, own=2.0, node=0.0))  # pages of files that are mapped
    assert not found(pulse(0, own=2.0, node=2.0, minutes=30))
    assert not found(pulse(0, own=0.2, node=0.2))


def test_a_disk_that_takes_no_other_checkpoint() -> None:
    def found(free: int) -> list[Severity]:
        disk = Disk("x", free << 30, 1000 << 30, checkpoint=10 << 30)
        return [each.severity for each in hardware.disk_nearly_full(evidence({}, disk=disk))]

    assert (found(500), found(25), found(5)) == ([], [Severity.warning], [Severity.critical])


def test_nodes_that_do_not_train_and_what_to_do_about_it() -> None:
    def outlook(repeated: float) -> Outlook:
        spans = (Span(Bucket.training, 0, 10_000), Span(Bucket.repeated, 10_000, 10_000 + repeated))
        return Outlook(spans, totals(spans), best_interval=1800.0)

    given = evidence({})
    good = replace(given, snapshot=replace(given.snapshot, outlook=outlook(1000)))
    assert not list(run.low_goodput(good))
    (found,) = run.low_goodput(replace(given, snapshot=replace(given.snapshot, outlook=outlook(9000))))
    other = replace(given, config={"job": {"_target_": "jobs.prepare.Prepare"}})
    assert not list(run.low_goodput(replace(other, snapshot=replace(given.snapshot, outlook=outlook(9000)))))
    assert "repeated" in found.evidence and "30:00" in found.evidence and "every_steps" in found.do


def test_a_job_that_no_time_will_start_is_told_with_what_releases_it() -> None:
    def found(reason: str, state: str = "PENDING") -> list[Finding]:
        job = JobState("7", state, reason)
        given = evidence({})
        return list(run.held(replace(given, snapshot=replace(given.snapshot, job=job))))

    assert [f.do for f in found("launch failed requeued held")] == ["scontrol release 7"]
    assert found("JobHeldAdmin") and found("DependencyNeverSatisfied")
    assert not found("Priority") and not found("BeginTime") and not found("JobHeldAdmin", "RUNNING")


def test_attempt_after_attempt_is_a_storm() -> None:
    given = evidence({}, late=0)
    tried = tuple(Attempt(n, began=BEGAN - 60 * n, ended=BEGAN, cause="node_failure") for n in range(5))
    (found,) = run.requeue_storm(replace(given, snapshot=replace(given.snapshot, attempts=tried)))
    assert "5 attempts" in found.title and "node failure" in found.evidence
    assert not list(run.requeue_storm(replace(given, snapshot=replace(given.snapshot, attempts=tried[:2]))))


def test_the_worst_comes_first_and_one_finding_keeps_its_key() -> None:
    one = Finding("a", Severity.info, "x", "y", since=5.0)
    other = Finding("b", Severity.critical, "x", "y", since=1.0, node="n1", rank=3, about="data")
    assert ordered([one, other]) == [other, one]
    assert worst([one, other]) is Severity.critical and worst([]) is None
    assert other.key == "b:n1:rank-3:data" == replace(other, title="z", since=9.0).key
    assert other.to_json()["severity"] == "critical"
